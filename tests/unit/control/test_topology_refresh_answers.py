"""Whom the refresher asks, and which answers it believes."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from proxy.cluster.topology import SLOTS, Address, Topology
from proxy.control.topology_refresh import (
    TopologyRefresher,
)
from proxy.embedded import HOST, free_port
from tests.support.fake_node import SILENCE, Cut, FakeNode
from tests.support.raw import bulk
from tests.support.refresher import (
    asked,
    at,
    refreshed,
    run,
    settings,
    tell,
    until,
)
from tests.support.resolver import HANGS, fake_resolver


class TestWhom:
    def test_dead_seeds_first(self, node: FakeNode, caplog: pytest.LogCaptureFixture) -> None:
        dead = [Address(HOST, free_port()) for _ in range(20)]

        async def scene(refresher: TopologyRefresher, published: list[Topology]) -> None:
            assert await refresher.ready(5.0)

        for seed in range(4):
            run(settings(*dead, node), scene, seed=seed)
        assert "seed is unreachable" in caplog.text

    def test_a_silent_seed_costs_its_timeout(self, node: FakeNode, start_node: Callable[[str], FakeNode]) -> None:
        silent = start_node("b").on("CLUSTER INFO", SILENCE)

        async def scene(refresher: TopologyRefresher, published: list[Topology]) -> None:
            assert await refresher.ready(5.0)
            assert published[0].asked == at(node)

        run(settings(silent, node, timeout_s=0.1), scene)

    def test_any_known_node(self, start_node: Callable[[str], FakeNode]) -> None:
        nodes = [start_node(name) for name in "abc"]
        for node in nodes:
            tell(node, *nodes)

        async def scene(refresher: TopologyRefresher, published: list[Topology]) -> None:
            assert await refresher.ready(5.0)
            for _ in range(40):
                await refreshed(refresher)
            assert {topology.asked for topology in published} == {at(node) for node in nodes}

        run(settings(nodes[0]), scene)

    def test_a_dead_node_is_asked_last(self, start_node: Callable[[str], FakeNode]) -> None:
        nodes = [start_node(name) for name in "abc"]
        for node in nodes:
            tell(node, *nodes)
        nodes[1].on("CLUSTER INFO", Cut())

        async def scene(refresher: TopologyRefresher, published: list[Topology]) -> None:
            assert await refresher.ready(5.0)
            for _ in range(40):
                assert await refreshed(refresher) == "unchanged"

        run(settings(nodes[0]), scene)
        assert len(nodes[1].sessions) == 1
        assert len(nodes[0].sessions) + len(nodes[2].sessions) == 41

    def test_every_node_before_giving_up(self, start_node: Callable[[str], FakeNode]) -> None:
        nodes = [start_node(name) for name in "abcdef"]
        for node in nodes:
            tell(node, *nodes)
        *others, last = nodes

        async def scene(refresher: TopologyRefresher, published: list[Topology]) -> None:
            assert await refresher.ready(5.0)
            for node in others:
                node.close()
            assert await refreshed(refresher, "lost") == "unchanged"
            assert published[-1].asked == at(last)

        run(settings(nodes[0]), scene)

    def test_nobody_twice_in_one_refresh(self, node: FakeNode) -> None:
        """The only seed is the only known node."""

        async def scene(refresher: TopologyRefresher, published: list[Topology]) -> None:
            assert await refresher.ready(5.0)
            node.on("CLUSTER INFO", Cut())
            assert await refreshed(refresher) == "failed"
            assert len(node.sessions) == 2

        run(settings(node), scene)

    def test_seeds_when_all_known_nodes_are_gone(self, start_node: Callable[[str], FakeNode]) -> None:
        """Seeds are resolved anew: behind the name is another address now."""
        old, new = start_node("a"), start_node("a")
        name = Address("nodes.example", 6379)
        behind = [at(old)]

        async def resolve(address: Address) -> list[Address]:
            assert address == name
            return list(behind)

        async def scene(refresher: TopologyRefresher, published: list[Topology]) -> None:
            assert await refresher.ready(5.0)
            assert published[-1].asked == name
            old.close()
            behind[:] = [at(new)]
            assert await refreshed(refresher, "lost") == "changed"
            assert [node.address for node in published[-1].nodes()] == [at(new)]

        run(settings(name), scene, resolve=resolve)

    def test_a_name_of_several_nodes(self, start_node: Callable[[str], FakeNode]) -> None:
        """Each is called by its own address: the name would lead to any of them."""
        node = start_node("a")

        async def resolve(address: Address) -> list[Address]:
            return [Address(HOST, free_port()), at(node)]

        async def scene(refresher: TopologyRefresher, published: list[Topology]) -> None:
            assert await refresher.ready(5.0)
            assert published[-1].asked == at(node)

        run(settings(Address("nodes.example", 6379)), scene, resolve=resolve)

    def test_a_seed_that_does_not_resolve(self, node: FakeNode, caplog: pytest.LogCaptureFixture) -> None:
        name = Address("gone.example", node.port)

        async def resolve(address: Address) -> list[Address]:
            if address == name:
                raise OSError("Name or service not known")
            return [address]

        async def scene(refresher: TopologyRefresher, published: list[Topology]) -> None:
            await until(lambda: refresher.outcomes["start", "failed"])
            assert refresher.last_error == f"{name}: Name or service not known"
            refresher.reconfigure(settings(name, node))
            assert await refresher.ready(5.0)

        run(settings(name), scene, resolve=resolve)
        assert "seed cannot be resolved" in caplog.text

    def test_old_servers_have_no_shards(self, node: FakeNode) -> None:
        node.on("CLUSTER SHARDS", b"-ERR Unknown subcommand or wrong number of arguments for 'SHARDS'\r\n")
        words = b"*4\r\n%s:%d\r\n%s*0\r\n" % (bulk(HOST.encode()), node.port, bulk(node.id.encode()))
        node.on("CLUSTER SLOTS", b"*1\r\n*3\r\n:0\r\n:16383\r\n" + words)
        node.on(
            "CLUSTER NODES",
            bulk(b"%s %s:%d@1 myself,master - 0 0 7 connected 0-16383\n" % (b"a" * 40, HOST.encode(), node.port)),
        )

        async def scene(refresher: TopologyRefresher, published: list[Topology]) -> None:
            assert await refresher.ready(5.0)
            (known,) = published[0].nodes()
            assert (known.id, known.address, known.epoch) == (node.id, at(node), 7)
            assert published[0].covered == SLOTS

        run(settings(node), scene)


class TestRefused:
    def test_wrong_password(self, node: FakeNode, caplog: pytest.LogCaptureFixture) -> None:
        node.on("AUTH", b"-WRONGPASS invalid username-password pair or user is disabled.\r\n")

        async def scene(refresher: TopologyRefresher, published: list[Topology]) -> None:
            await until(lambda: refresher.outcomes["start", "failed"])
            assert "WRONGPASS invalid username-password pair" in refresher.last_error

        run(settings(node, username="bob", password="s3cret"), scene)
        assert "seed refuses the upstream credentials" in caplog.text
        assert "s3cret" not in caplog.text
        assert node.seen("AUTH")[0] == [b"AUTH", b"bob", b"s3cret"]
        assert "s3cret" not in repr(settings(password="s3cret"))

    def test_no_cluster(self, node: FakeNode) -> None:
        node.on("CLUSTER", b"-ERR This instance has cluster support disabled\r\n")

        async def scene(refresher: TopologyRefresher, published: list[Topology]) -> None:
            await until(lambda: refresher.outcomes["start", "failed"])

        run(settings(node), scene)
        assert [words[1] for words in node.received[:3]] == [b"INFO", b"SHARDS", b"NODES"]
        assert not any(words[1] == b"SLOTS" for words in node.received)

    def test_no_password(self, node: FakeNode) -> None:
        node.on("CLUSTER", b"-NOAUTH Authentication required.\r\n")

        async def scene(refresher: TopologyRefresher, published: list[Topology]) -> None:
            await until(lambda: refresher.outcomes["start", "failed"])
            assert "NOAUTH Authentication required." in refresher.last_error

        run(settings(node), scene)

    @pytest.mark.parametrize(
        "reply", [b"+OK\r\n", b"*1\r\n:7\r\n", b"-LOADING loading\r\n", b"$-1\r\n", b"garbage\r\n"]
    )
    def test_garbage(self, node: FakeNode, reply: bytes) -> None:
        node.on("CLUSTER SHARDS", reply)

        async def scene(refresher: TopologyRefresher, published: list[Topology]) -> None:
            await until(lambda: refresher.outcomes["retry", "failed"])
            assert str(at(node)) in refresher.last_error
            assert not published

        run(settings(node), scene)

    def test_epochs_do_not_go_back(self, node: FakeNode, caplog: pytest.LogCaptureFixture) -> None:
        tell(node, node, epoch=5)

        async def scene(refresher: TopologyRefresher, published: list[Topology]) -> None:
            assert await refresher.ready(5.0)
            tell(node, node, epoch=4, slots=[(0, 10)])
            assert await refreshed(refresher) == "refused"
            assert refresher.topology is published[-1]
            assert refresher.topology.epoch == 5
            assert "refused, stale" in refresher.last_error
            tell(node, node, epoch=6, slots=[(0, 10)])
            await until(lambda: len(published) == 2)
            assert published[-1].covered == 11

        run(settings(node), scene)
        assert "answer of a node that is behind refused" in caplog.text

    def test_a_node_that_is_behind_is_passed_over(self, start_node: Callable[[str], FakeNode]) -> None:
        nodes = [start_node(name) for name in "abc"]
        for node in nodes:
            tell(node, *nodes, epoch=5)

        async def scene(refresher: TopologyRefresher, published: list[Topology]) -> None:
            assert await refresher.ready(5.0)
            tell(nodes[1], *nodes, epoch=4, slots=[(0, 10)])
            for _ in range(20):
                assert await refreshed(refresher) == "unchanged"
            assert asked(nodes[1]) > 2

        run(settings(nodes[0]), scene)

    def test_a_recycled_address_is_no_authority(
        self, start_node: Callable[[str], FakeNode], caplog: pytest.LogCaptureFixture
    ) -> None:
        """The seed is dead and the only known node belongs to another cluster now: lettuce#1946."""
        seed, known, stranger = start_node("a"), start_node("b"), start_node("c")
        tell(seed, known)

        async def scene(refresher: TopologyRefresher, published: list[Topology]) -> None:
            assert await refresher.ready(5.0)
            seed.close()
            tell(known, stranger, epoch=99)
            assert await refreshed(refresher) == "refused"
            await until(lambda: refresher.outcomes["retry", "refused"] == 2)
            assert len(published) == 1
            tell(known, known, epoch=5)
            await until(lambda: len(published) == 2)

        run(settings(seed, gone_after_s=0.0), scene)
        assert "answer of another cluster refused" in caplog.text

    def test_a_seed_of_another_cluster_counts_once_ours_is_gone(self, start_node: Callable[[str], FakeNode]) -> None:
        ours, theirs = start_node("a"), start_node("b")
        name = Address("nodes.example", 6379)
        now = 0.0

        async def resolve(address: Address) -> list[Address]:
            return [at(ours)]

        async def scene(refresher: TopologyRefresher, published: list[Topology]) -> None:
            nonlocal now
            assert await refresher.ready(5.0)
            tell(ours, theirs, epoch=1)
            assert await refreshed(refresher) == "refused"
            now = 4.9
            await until(lambda: refresher.outcomes["retry", "refused"])
            assert len(published) == 1
            now = 5.0
            await until(lambda: len(published) == 2)
            assert [node.id for node in published[-1].nodes()] == [theirs.id]

        run(settings(name, gone_after_s=5.0), scene, resolve=resolve, clock=lambda: now)

    def test_a_seed_by_an_address_that_it_had(
        self, start_node: Callable[[str], FakeNode], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """While its name cannot be resolved, another cluster's node may have it by now."""
        ours, theirs = start_node("a"), start_node("b")
        seed = Address("seed.test", ours.port)

        async def scene(refresher: TopologyRefresher, published: list[Topology]) -> None:
            assert await refresher.ready(5.0)
            assert [node.address for node in published[0].nodes()] == [seed]
            resolver.answers["seed.test"] = HANGS
            tell(ours, theirs)
            assert await refreshed(refresher) == "refused"
            await until(lambda: refresher.outcomes["retry", "refused"])
            assert len(published) == 1
            resolver.answers["seed.test"] = HOST
            resolver.over.set()
            await until(lambda: len(published) == 2)

        with fake_resolver(monkeypatch) as resolver:
            resolver.answers["seed.test"] = HOST
            names = {str(at(node)): f"seed.test:{ours.port}" for node in (ours, theirs)}
            run(settings(seed, gone_after_s=0.0, timeout_s=1.5, address_map=names), scene)

    @pytest.mark.parametrize("seed", range(4))
    def test_a_node_that_was_reset_out_of_the_cluster(self, start_node: Callable[[str], FakeNode], seed: int) -> None:
        reset, whole = start_node("a"), start_node("b")
        tell(reset, reset, slots=[])
        tell(whole, whole, reset)

        async def scene(refresher: TopologyRefresher, published: list[Topology]) -> None:
            assert await refresher.ready(5.0)
            for _ in range(20):
                await refreshed(refresher)
            assert {topology.covered for topology in published} == {SLOTS}

        run(settings(reset, whole), scene, seed=seed)
        assert asked(reset) > 1

    def test_without_slots_is_better_than_nothing(self, node: FakeNode) -> None:
        tell(node, node, slots=[])

        async def scene(refresher: TopologyRefresher, published: list[Topology]) -> None:
            assert await refresher.ready(5.0)
            assert published[0].covered == 0
            tell(node, node)
            assert await refreshed(refresher, "uncovered") == "changed"

        run(settings(node), scene)
