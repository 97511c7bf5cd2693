"""Seeds: what is said when they yield no node, and how new ones decide which cluster is ours."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest

from proxy.cluster.topology import Address, Topology
from proxy.control.tasks import failures
from proxy.control.topology_refresh import TopologyRefresher
from proxy.embedded import HOST, free_port
from proxy.system.log import FIELDS
from tests.support.fake_node import SILENCE, Cut, FakeNode
from tests.support.refresher import asked, at, closed, refreshed, run, settings, tell, until


@pytest.fixture
def start_node(start_node: Callable[[str], FakeNode]) -> Callable[[str], FakeNode]:
    """Starts one that is a cluster by itself."""

    def start(name: str) -> FakeNode:
        node = start_node(name)
        tell(node, node)
        return node

    return start


def dead() -> Address:
    return Address(HOST, free_port())


def ids(topology: Topology | None) -> list[str]:
    assert topology is not None
    return [node.id for node in topology.nodes()]


class TestNoNode:
    def test_each_reason_is_said_once(
        self, start_node: Callable[[str], FakeNode], caplog: pytest.LogCaptureFixture
    ) -> None:
        """However often they are asked meanwhile; and last_error has them all."""
        lost, gone = Address("nowhere.example", 6379), dead()
        stranger = start_node("a").on("AUTH", b"-WRONGPASS invalid username-password pair or user is disabled.\r\n")
        alone = start_node("b").on("CLUSTER", b"-ERR This instance has cluster support disabled\r\n")
        silent = start_node("c").on("CLUSTER INFO", SILENCE)

        async def resolve(address: Address) -> list[Address]:
            if address == lost:
                raise OSError("Name or service not known")
            return [address]

        async def scene(refresher: TopologyRefresher, published: list[Topology]) -> None:
            await until(lambda: refresher.outcomes["retry", "failed"] >= 2)
            error = refresher.last_error
            assert f"{lost}: Name or service not known" in error
            assert f"{gone}: Connection refused" in error
            assert f"{at(stranger)}: WRONGPASS invalid" in error
            assert "not a cluster node (ERR This instance has cluster support disabled)" in error
            assert f"{at(silent)}: {at(silent)} does not answer in time" in error

        seeds = (lost, gone, at(stranger), at(alone), at(silent))
        run(settings(*seeds, password="s3cret", timeout_s=1.0), scene, resolve=resolve)
        said = [(record.msg, str(getattr(record, FIELDS)["node"])) for record in caplog.records]
        assert sorted(said) == sorted(
            [
                ("seed cannot be resolved", str(lost)),
                ("seed is unreachable", str(gone)),
                ("seed refuses the upstream credentials", str(at(stranger))),
                ("seed is not a cluster node", str(at(alone))),
                ("seed is unreachable", str(at(silent))),
            ]
        )


class TestNewSeeds:
    def test_of_the_known_cluster(
        self, start_node: Callable[[str], FakeNode], caplog: pytest.LogCaptureFixture
    ) -> None:
        first, second = start_node("a"), start_node("b")
        for node in (first, second):
            tell(node, first, second)

        async def scene(refresher: TopologyRefresher, published: list[Topology]) -> None:
            assert await refresher.ready(5.0)
            for _ in range(5):
                seen = asked(second)
                refresher.reconfigure(settings(second))
                await until(lambda seen=seen: asked(second) == seen + 1)  # type: ignore[misc]
                assert published[-1].asked in (at(first), at(second))
                refresher.reconfigure(settings(first))
                await until(lambda: refresher.topology is published[-1] and published[-1].asked == at(first))

        refresher = run(settings(first), scene)
        assert refresher.last_error == ""
        assert caplog.records == []

    def test_of_another_cluster(self, start_node: Callable[[str], FakeNode], caplog: pytest.LogCaptureFixture) -> None:
        """At once, though the known cluster answers as ever; and the old seed has no say any more."""
        ours, theirs = start_node("a"), start_node("b")
        tell(theirs, theirs, epoch=1)  # younger than ours: no matter

        async def scene(refresher: TopologyRefresher, published: list[Topology]) -> None:
            assert await refresher.ready(5.0)
            seen = asked(ours)
            refresher.reconfigure(settings(theirs))
            await until(lambda: len(published) == 2)
            assert ids(refresher.topology) == [theirs.id]
            assert refresher.last_error == ""
            assert await refreshed(refresher) == "unchanged"
            assert asked(ours) == seen

        refresher = run(settings(ours), scene)
        assert refresher.outcomes["other", "changed"] == 1
        (record,) = caplog.records
        assert record.msg == "the new seeds belong to another cluster, which is used from now on"

    def test_the_known_cluster_comes_first(self, start_node: Callable[[str], FakeNode]) -> None:
        """A recycled address in an otherwise good list leads nowhere, whatever the order of the list."""
        ours, theirs, more = start_node("a"), start_node("b"), dead()

        async def scene(refresher: TopologyRefresher, published: list[Topology]) -> None:
            assert await refresher.ready(5.0)
            for seeds in ((theirs, more, ours), (ours, theirs), (more, ours, theirs)):
                count = len(published)
                refresher.reconfigure(settings(*seeds))
                await until(lambda count=count: len(published) == count + 1)  # type: ignore[misc]
                assert ids(refresher.topology) == [ours.id]

        run(settings(ours), scene)

    def test_the_first_of_several_others(self, start_node: Callable[[str], FakeNode]) -> None:
        """All workers have the same list, and must not part ways."""
        ours, second, third = (start_node(name) for name in "abc")

        async def scene(refresher: TopologyRefresher, published: list[Topology]) -> None:
            assert await refresher.ready(5.0)
            refresher.reconfigure(settings(dead(), third, second))
            await until(lambda: len(published) == 2)
            assert ids(refresher.topology) == [third.id]

        for seed in range(3):
            run(settings(ours), scene, seed=seed)

    def test_a_seed_that_is_behind_decides_too(
        self, start_node: Callable[[str], FakeNode], caplog: pytest.LogCaptureFixture
    ) -> None:
        first, behind = start_node("a"), start_node("b")
        tell(first, first, behind, epoch=5)
        tell(behind, first, behind, epoch=4)

        async def scene(refresher: TopologyRefresher, published: list[Topology]) -> None:
            assert await refresher.ready(5.0)
            refresher.reconfigure(settings(behind))
            await until(lambda: len(published) == 2)
            assert published[-1].epoch == 5
            assert refresher.last_error == ""

        run(settings(first), scene)
        assert caplog.records == []

    def test_that_yield_no_node(self, start_node: Callable[[str], FakeNode], caplog: pytest.LogCaptureFixture) -> None:
        """The known cluster stays in use and is refreshed; the seeds are asked again until they have decided."""
        ours, theirs, nowhere, empty = start_node("a"), start_node("b"), dead(), start_node("c")
        tell(empty, empty, slots=[])
        told = theirs.shards
        theirs.shards = b"-LOADING not now\r\n"

        async def scene(refresher: TopologyRefresher, published: list[Topology]) -> None:
            assert await refresher.ready(5.0)
            refresher.reconfigure(settings(nowhere, theirs, empty))
            await until(lambda: len(published) == 2)
            assert ids(refresher.topology) == [ours.id]
            assert refresher.fresh
            assert refresher.last_error.startswith("the seeds yield no node: ")
            for reason in (
                f"{nowhere}: Connection refused",
                "LOADING not now",
                f"{at(empty)}: knows of no slots",
            ):
                assert reason in refresher.last_error
            count = len(published)
            assert await refreshed(refresher) == "unchanged"  # without asking them
            assert published[count].asked == at(ours)
            assert refresher.last_error.startswith("the seeds yield no node: ")
            theirs.shards = told
            await until(lambda: ids(refresher.topology) == [theirs.id])
            assert refresher.last_error == ""

        run(settings(ours), scene)
        (record,) = [record for record in caplog.records if "stays in use" in record.msg]
        assert record.msg == "the new seeds yield no node, the known cluster stays in use"

    def test_nobody_twice_in_one_refresh(self, start_node: Callable[[str], FakeNode]) -> None:
        ours, lost = start_node("a"), Address("nowhere.example", 6379)
        resolved: list[Address] = []

        async def resolve(address: Address) -> list[Address]:
            resolved.append(address)
            if address == lost:
                raise OSError("Name or service not known")
            return [address]

        async def scene(refresher: TopologyRefresher, published: list[Topology]) -> None:
            assert await refresher.ready(5.0)
            ours.on("CLUSTER INFO", Cut())
            resolved.clear()
            refresher.reconfigure(settings(lost))
            await until(lambda: refresher.outcomes["other", "failed"])
            assert resolved == [lost]

        run(settings(ours), scene, resolve=resolve)

    def test_dead_seeds_are_asked_ever_less_often(self, start_node: Callable[[str], FakeNode]) -> None:
        ours, theirs = start_node("a"), start_node("b").on("CLUSTER", b"-ERR not now\r\n")
        now = 1000.0

        async def scene(refresher: TopologyRefresher, published: list[Topology]) -> None:
            nonlocal now
            assert await refresher.ready(5.0)
            refresher.reconfigure(settings(theirs, refresh_interval_s=8.0))
            await until(lambda: len(published) == 2)
            for pause_s in (0.5, 1.0, 2.0, 4.0, 8.0, 8.0):
                seen = asked(theirs)
                now += pause_s - 0.01
                await refreshed(refresher)
                assert asked(theirs) == seen
                now += 0.02
                await refreshed(refresher)
                assert asked(theirs) == seen + 1

        run(settings(ours, refresh_interval_s=8.0), scene, clock=lambda: now)

    def test_back_to_the_old_ones(self, start_node: Callable[[str], FakeNode]) -> None:
        ours = start_node("a")

        async def scene(refresher: TopologyRefresher, published: list[Topology]) -> None:
            assert await refresher.ready(5.0)
            refresher.reconfigure(settings(dead()))
            await until(lambda: refresher.last_error)
            refresher.reconfigure(settings(ours))
            await until(lambda: not refresher.last_error)

        run(settings(ours), scene)

    def test_the_same_ones_decide_nothing(self, start_node: Callable[[str], FakeNode]) -> None:
        """Other settings do not let a recycled address in."""
        ours, theirs = start_node("a"), start_node("b")

        async def scene(refresher: TopologyRefresher, published: list[Topology]) -> None:
            assert await refresher.ready(5.0)
            tell(ours, theirs)
            refresher.reconfigure(settings(ours, min_gap_s=0.01))
            await until(lambda: refresher.outcomes["other", "refused"])
            assert ids(refresher.topology) == [ours.id]

        run(settings(ours), scene)


class TestAtOnce:
    def test_a_question_under_way_is_given_up(self, start_node: Callable[[str], FakeNode]) -> None:
        """A mistaken seed list, mended by a reload, must not cost its timeouts first."""
        silent, node = start_node("a").on("CLUSTER INFO", SILENCE), start_node("b")

        async def scene(refresher: TopologyRefresher, published: list[Topology]) -> None:
            await until(lambda: silent.seen("CLUSTER"))
            begun_s = time.monotonic()
            refresher.reconfigure(settings(node, timeout_s=60.0))
            assert await refresher.ready(5.0)
            assert time.monotonic() - begun_s < 3.0
            assert ids(refresher.topology) == [node.id]
            await until(lambda: closed(silent))

        run(settings(silent, timeout_s=60.0), scene)

    def test_nor_a_backoff(self, start_node: Callable[[str], FakeNode]) -> None:
        node = start_node("a")

        async def scene(refresher: TopologyRefresher, published: list[Topology]) -> None:
            await until(lambda: refresher.outcomes["start", "failed"])
            await asyncio.sleep(0.02)
            begun_s = time.monotonic()
            refresher.reconfigure(settings(node))
            assert await refresher.ready(5.0)
            assert time.monotonic() - begun_s < 3.0

        run(settings(dead(), min_gap_s=60.0), scene)

    def test_before_the_start_and_after_the_end(self, start_node: Callable[[str], FakeNode]) -> None:
        first, second = start_node("a"), start_node("b")

        async def play() -> None:
            refresher = TopologyRefresher(settings(first), lambda _: None)
            refresher.reconfigure(settings(second))
            await refresher.start()
            assert await refresher.ready(5.0)
            await refresher.stop()
            refresher.reconfigure(settings(first))
            assert asyncio.all_tasks() == {asyncio.current_task()}
            assert ids(refresher.topology) == [second.id]

        asyncio.run(play())


def test_a_fault_is_counted_and_not_the_end(start_node: Callable[[str], FakeNode]) -> None:
    """A refresher that died would leave the topology as it is until a restart."""
    before = failures["topology-refresh"]

    async def scene(refresher: TopologyRefresher, published: list[Topology]) -> None:
        assert await refresher.ready(5.0)
        refresher._order = None  # type: ignore[method-assign,assignment]
        refresher.trigger("moved")
        await until(lambda: failures["topology-refresh"] > before)
        assert len(published) == 1
        del refresher._order
        await until(lambda: len(published) == 2)
        assert await refreshed(refresher) == "unchanged"

    run(settings(start_node("a")), scene)
