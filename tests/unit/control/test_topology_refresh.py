from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable

import pytest

from proxy.cluster.topology import SLOTS, Address, Topology, diff
from proxy.control.topology_refresh import (
    OUTCOMES,
    TRIGGERS,
    TopologyRefresher,
    resolve_address,
)
from proxy.embedded import HOST, EmbeddedCluster, wait_for, wait_or_none
from proxy.system.log import FIELDS
from tests.support.cluster import Standalone
from tests.support.fake_node import SILENCE, Cut, FakeNode, Shard, shards_reply
from tests.support.refresher import (
    FOREVER_S,
    WHOLE,
    asked,
    at,
    closed,
    counted,
    refreshed,
    run,
    settings,
    tell,
    until,
)


class TestRealCluster:
    def test_learns_it_quickly(self, cluster: EmbeddedCluster) -> None:
        async def scene(refresher: TopologyRefresher, published: list[Topology]) -> None:
            started = time.monotonic()
            assert await refresher.ready(5.0)
            assert time.monotonic() - started < 3.0
            (topology,) = published
            assert refresher.topology is topology
            assert refresher.fresh
            assert topology.covered == SLOTS
            assert topology.epoch >= 6
            assert {node.id for node in topology.nodes()} == {node.id for node in cluster.nodes}
            for slot in (0, 5460, 5461, 16383):
                owner = topology.owner(slot)
                assert owner is not None
                assert owner.primary is not None
                assert owner.primary.id == cluster.owner_of(slot).id
            # A replica that was just made may turn from loading to online.
            assert await refreshed(refresher) in ("changed", "unchanged")
            assert not diff(topology, published[1]).moved

        refresher = run(settings(Address(HOST, cluster.nodes[0].port)), scene)
        assert refresher.outcomes["start", "changed"] == 1
        assert abs(time.time() - refresher.last_success) < 60
        assert refresher.last_error == ""

    def test_a_seed_that_is_no_cluster(
        self, cluster: EmbeddedCluster, standalone: Standalone, caplog: pytest.LogCaptureFixture
    ) -> None:
        alone = Address(HOST, standalone.port)

        async def hopeless(refresher: TopologyRefresher, published: list[Topology]) -> None:
            await until(lambda: refresher.outcomes["retry", "failed"])
            assert "not a cluster node (ERR This instance has cluster support disabled)" in refresher.last_error
            assert str(alone) in refresher.last_error
            assert not refresher.fresh
            assert not published

        async def saved(refresher: TopologyRefresher, published: list[Topology]) -> None:
            assert await refresher.ready(5.0)

        run(settings(alone), hopeless)
        assert "seed is not a cluster node" in caplog.text
        run(settings(alone, Address(HOST, cluster.nodes[0].port)), saved)


class TestWhen:
    def test_a_thousand_triggers_are_one_refresh(self, node: FakeNode) -> None:
        async def scene(refresher: TopologyRefresher, published: list[Topology]) -> None:
            assert await refresher.ready(5.0)
            for _ in range(1000):
                refresher.trigger("moved")
            await until(lambda: refresher.outcomes["moved", "unchanged"])
            await asyncio.sleep(0.1)

        refresher = run(settings(node, min_gap_s=0.01), scene)
        assert counted(refresher) == {("start", "changed"): 1, ("moved", "unchanged"): 1}
        assert asked(node) == 2
        assert len(node.sessions) == 2

    def test_signs_before_the_first_refresh_are_answered_by_it(self, node: FakeNode) -> None:
        async def scene(refresher: TopologyRefresher, published: list[Topology]) -> None:
            refresher.trigger("uncovered")
            assert await refresher.ready(5.0)
            await asyncio.sleep(0.05)

        assert counted(run(settings(node), scene)) == {("start", "changed"): 1}

    def test_triggers_during_a_refresh_are_one_more(self, node: FakeNode) -> None:
        open_connections: list[int] = []
        triggered = threading.Event()

        def slow(session: object, words: list[bytes]) -> bytes:
            def others() -> int:
                return sum(other.sock.fileno() != -1 for other in node.sessions) - 1

            wait_or_none(lambda: not others(), 1.0)  # the node may not have noticed yet that one was closed
            open_connections.append(1 + others())
            triggered.wait(10)
            return shards_reply([Shard(WHOLE, [(node, "master")])])

        node.on("CLUSTER SHARDS", slow)

        async def scene(refresher: TopologyRefresher, published: list[Topology]) -> None:
            await until(lambda: asked(node) == 1)
            for _ in range(1000):
                refresher.trigger("lost")
                await asyncio.sleep(0)
            assert asked(node) == 1
            triggered.set()
            await until(lambda: refresher.outcomes["lost", "unchanged"])
            await asyncio.sleep(0.1)

        refresher = run(settings(node), scene)
        assert counted(refresher) == {("start", "changed"): 1, ("lost", "unchanged"): 1}
        assert open_connections == [1, 1]

    def test_the_minimum_gap(self, node: FakeNode) -> None:
        gap_s = 0.05

        async def scene(refresher: TopologyRefresher, published: list[Topology]) -> None:
            started = time.monotonic()
            while len(published) < 6:
                refresher.trigger("moved")
                await asyncio.sleep(0.001)
            assert time.monotonic() - started >= 5 * gap_s * 0.9

        run(settings(node, min_gap_s=gap_s), scene)

    def test_the_interval(self, node: FakeNode) -> None:
        async def scene(refresher: TopologyRefresher, published: list[Topology]) -> None:
            started = time.monotonic()
            await until(lambda: len(published) == 5)
            assert time.monotonic() - started >= 4 * 0.04

        refresher = run(settings(node, refresh_interval_s=0.05), scene)
        assert refresher.outcomes["interval", "unchanged"] >= 4

    @pytest.mark.parametrize(
        ("slots", "trigger", "waits"),
        [
            ((0, 100), "interval", [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]),
            ((0, 100), "lost", [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]),
            ((0, SLOTS - 1), "lost", [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]),
            ((0, SLOTS - 1), "uncovered", [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]),
            ((0, SLOTS - 1), "moved", [30.0, 30.0]),
            ((0, SLOTS - 1), "interval", [30.0, 30.0]),
        ],
    )
    def test_trouble_is_looked_at_sooner_but_ever_less_often(
        self, node: FakeNode, slots: tuple[int, int], trigger: str, waits: list[float]
    ) -> None:
        tell(node, node, slots=[slots])
        refresher = TopologyRefresher(settings(node, refresh_interval_s=30.0), lambda _: None)

        async def once() -> None:
            await refresher.start()
            assert await refresher.ready(5.0)
            await refresher.stop()

        asyncio.run(once())
        # What the task asks for between refreshes that change nothing.
        refresher._pace._recheck_s = 0.0
        asked_for = [refresher._interval_s(trigger, "unchanged")]
        asked_for += [refresher._interval_s("interval", "unchanged") for _ in waits[1:]]
        assert asked_for == waits
        assert refresher._interval_s("interval", "changed") == (30.0 if refresher.topology.settled else 0.5)  # type: ignore[union-attr]

    def test_while_it_is_followed(self, node: FakeNode) -> None:
        """A refresh at once, and then one every 2 s at least; saying so again brings no more of them."""

        async def scene(refresher: TopologyRefresher, published: list[Topology]) -> None:
            assert await refresher.ready(5.0)
            assert refresher._interval_s("interval", "unchanged") == FOREVER_S
            for _ in range(100):
                refresher.follow(True)
            await until(lambda: refresher.outcomes["interval", "unchanged"])
            for _ in range(100):
                refresher.follow(True)
            await asyncio.sleep(0.1)
            assert refresher.outcomes["interval", "unchanged"] == 1
            assert refresher._interval_s("interval", "unchanged") == 2.0
            assert refresher._interval_s("lost", "unchanged") == 0.5
            assert [refresher._interval_s("interval", "unchanged") for _ in range(3)] == [1.0, 2.0, 2.0]
            refresher.follow(False)
            assert refresher._interval_s("interval", "changed") == FOREVER_S

        run(settings(node), scene)

    def test_a_failover_ends_the_hurry(self, node: FakeNode) -> None:
        async def scene(refresher: TopologyRefresher, published: list[Topology]) -> None:
            assert await refresher.ready(5.0)
            assert refresher._interval_s("lost", "unchanged") == 0.5
            assert refresher._interval_s("interval", "changed") == FOREVER_S
            assert refresher._interval_s("interval", "unchanged") == FOREVER_S

        run(settings(node), scene)

    def test_nothing_shortens_the_backoff_and_it_ends(self, node: FakeNode) -> None:
        node.on("CLUSTER INFO", Cut())

        async def scene(refresher: TopologyRefresher, published: list[Topology]) -> None:
            started = time.monotonic()
            while refresher.outcomes["lost", "failed"] < 3:
                refresher.trigger("lost")
                await asyncio.sleep(0.001)
            # 50, 100 and 200 ms, less the jitter
            assert time.monotonic() - started >= 0.35 * 0.8 * 0.9
            tell(node, node)
            await until(lambda: published)
            assert refresher.last_error == ""

        run(settings(node), scene)

    def test_while_a_primary_is_suspected(self, start_node: Callable[[str], FakeNode]) -> None:
        """The others are asked again and again; not for ever so often."""
        suspect, other = start_node("a"), start_node("b")
        now = [100.0]
        for node in (suspect, other):
            tell(node, suspect, other)

        async def scene(refresher: TopologyRefresher, published: list[Topology]) -> None:
            await until(lambda: published)
            before = asked(suspect)
            refresher.suspect(frozenset({at(suspect)}))
            await until(lambda: refresher.outcomes["silent", "unchanged"] == 1)
            await until(lambda: refresher.outcomes["interval", "unchanged"] >= 2)
            assert asked(suspect) == before
            assert refresher._interval_s("interval", "unchanged") == 0.25
            refresher.suspect(frozenset({at(suspect)}))  # no news
            now[0] += 60.0
            assert refresher._interval_s("interval", "unchanged") == 2.0
            refresher.suspect(frozenset())
            assert refresher._interval_s("interval", "unchanged") == FOREVER_S
            assert refresher.outcomes["silent", "unchanged"] == 1

        run(settings(suspect, other), scene, clock=lambda: now[0])

    @pytest.mark.parametrize("what", ["failed", "without slots"])
    def test_while_a_node_may_be_back_at_any_moment(self, start_node: Callable[[str], FakeNode], what: str) -> None:
        """A failed node, or a primary that was deposed: soon, though all slots are served; not for ever so often."""
        owner, other = start_node("a"), start_node("b")
        now = [100.0]
        tell(owner, owner, other)
        whole = owner.shards
        if what == "failed":
            other_one = [Shard(WHOLE, [(owner, "master"), (other, "replica")], failed=1)]
        else:
            other_one = [Shard(WHOLE, [(owner, "master")]), Shard([], [(other, "master")])]

        async def scene(refresher: TopologyRefresher, published: list[Topology]) -> None:
            await until(lambda: published)
            assert refresher._interval_s("interval", "unchanged") == FOREVER_S
            owner.shards = shards_reply(other_one)
            assert await refreshed(refresher) == "changed"
            now[0] += 59.0
            assert await refreshed(refresher) == "unchanged"
            assert refresher._interval_s("interval", "unchanged") == 1.0
            assert [refresher._interval_s("back", "unchanged") for _ in range(2)] == [0.5, 0.5]
            now[0] += 1.0
            assert [refresher._interval_s("interval", "unchanged") for _ in range(4)] == [1.0, 2.0, 4.0, 5.0]
            assert [refresher._interval_s("interval", "unchanged") for _ in range(30)] == [5.0] * 30
            owner.shards = whole
            assert await refreshed(refresher) == "changed"
            assert refresher._interval_s("interval", "unchanged") == FOREVER_S

        run(settings(owner), scene, clock=lambda: now[0])

    def test_others_that_hang_with_it_are_not_waited_for(self, start_node: Callable[[str], FakeNode]) -> None:
        """Each would take its whole time, twenty times as long."""
        suspect, *others = nodes = [start_node(name) for name in "abcd"]
        for node in nodes:
            tell(node, *nodes)

        async def scene(refresher: TopologyRefresher, published: list[Topology]) -> None:
            await until(lambda: published)
            for node in others[:2]:
                for what in ("INFO", "SHARDS", "NODES"):
                    node.on(f"CLUSTER {what}", SILENCE)
            suspected = time.monotonic()
            refresher.suspect(frozenset({at(suspect)}))
            await until(lambda: len(published) >= 6)
            assert time.monotonic() - suspected < 5

        run(settings(*nodes, timeout_s=10.0), scene)

    def test_fresh_for_three_intervals(self, node: FakeNode) -> None:
        now = 1000.0

        async def scene(refresher: TopologyRefresher, published: list[Topology]) -> None:
            nonlocal now
            assert not refresher.fresh
            assert await refresher.ready(5.0)
            now += 3 * FOREVER_S - 1
            assert refresher.fresh
            now += 2
            assert not refresher.fresh

        run(settings(node), scene, clock=lambda: now)

    def test_not_ready_in_time(self, node: FakeNode) -> None:
        node.on("CLUSTER INFO", SILENCE)

        async def scene(refresher: TopologyRefresher, published: list[Topology]) -> None:
            assert not await refresher.ready(0.05)

        run(settings(node), scene)

    def test_counters_are_there_from_the_start(self) -> None:
        refresher = TopologyRefresher(settings(), lambda _: None)
        assert refresher.outcomes == {(trigger, outcome): 0 for trigger in TRIGGERS for outcome in OUTCOMES}

    def test_an_unlisted_reason(self, node: FakeNode) -> None:
        async def scene(refresher: TopologyRefresher, published: list[Topology]) -> None:
            assert await refresher.ready(5.0)
            await refreshed(refresher, "full moon")
            assert refresher.outcomes["other", "unchanged"] == 1

        run(settings(node), scene)


class TestEnd:
    def test_in_the_middle_of_a_refresh(self, node: FakeNode) -> None:
        node.on("CLUSTER INFO", SILENCE)

        async def scene(refresher: TopologyRefresher, published: list[Topology]) -> None:
            await until(lambda: node.seen("CLUSTER"))

        run(settings(node), scene)
        wait_for(lambda: closed(node), 5.0, "the connection is closed")

    def test_no_connection_stays_open(self, node: FakeNode) -> None:
        async def scene(refresher: TopologyRefresher, published: list[Topology]) -> None:
            assert await refresher.ready(5.0)
            await until(lambda: closed(node))

        run(settings(node), scene)

    def test_before_the_start_and_twice(self) -> None:
        async def scene() -> None:
            refresher = TopologyRefresher(settings(), lambda _: None)
            await refresher.stop()
            await refresher.start()
            await refresher.start()
            assert len(asyncio.all_tasks()) == 2
            await refresher.stop()
            await refresher.stop()

        asyncio.run(scene())

    def test_new_settings(self, start_node: Callable[[str], FakeNode]) -> None:
        first, second = start_node("a"), start_node("b")

        async def scene(refresher: TopologyRefresher, published: list[Topology]) -> None:
            await until(lambda: refresher.outcomes["start", "failed"])
            refresher.reconfigure(settings(second))
            assert await refresher.ready(5.0)
            assert [node.id for node in published[-1].nodes()] == [second.id]

        first.close()
        run(settings(first), scene)

    def test_a_publisher_that_fails(self, node: FakeNode, caplog: pytest.LogCaptureFixture) -> None:
        attempts = []

        def publish(topology: Topology) -> None:
            attempts.append(topology)
            if len(attempts) == 1:
                raise RuntimeError("boom")

        async def scene() -> None:
            refresher = TopologyRefresher(settings(node), publish)
            await refresher.start()
            assert await refresher.ready(5.0)
            assert counted(refresher) | {("start", "failed"): 1} == counted(refresher)
            await refresher.stop()

        with caplog.at_level(logging.ERROR):
            asyncio.run(scene())
        assert "publishing the topology failed" in caplog.text
        assert len(attempts) == 2


def test_what_changed_is_logged_once(node: FakeNode, caplog: pytest.LogCaptureFixture) -> None:
    async def scene(refresher: TopologyRefresher, published: list[Topology]) -> None:
        assert await refresher.ready(5.0)
        await refreshed(refresher)

    with caplog.at_level(logging.INFO):
        run(settings(node), scene)
    (record,) = [record for record in caplog.records if record.msg == "topology changed"]
    assert "16384 slots moved" in str(getattr(record, FIELDS)["what"])


def test_resolve_address() -> None:
    for address in (Address("127.0.0.1", 1), Address("::1", 2)):
        assert asyncio.run(resolve_address(address)) == [address]
    assert Address("127.0.0.1", 6379) in asyncio.run(resolve_address(Address("localhost", 6379)))
    with pytest.raises(OSError, match=r"(?i)name|host"):
        asyncio.run(resolve_address(Address("no-such-host.invalid", 1)))
