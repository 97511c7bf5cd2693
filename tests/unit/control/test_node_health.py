from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from proxy.cluster.topology import Address, Node
from proxy.cluster.topology_replies import AddressRules, build
from proxy.control.node_client import NodeClientSettings, node_client
from proxy.control.node_health import HealthSettings, NodeHealth, judge, lost_touch
from proxy.embedded import HOST, EmbeddedCluster, free_port, wait_for
from tests.support.fake_node import SILENCE, Cut, FakeNode
from tests.support.raw import bulk
from tests.support.refresher import at, closed, until

SYNCED = b"role:slave\r\nmaster_host:h\r\nmaster_link_status:up\r\nmaster_sync_in_progress:0\r\n"
LINK_DOWN = SYNCED.replace(b"status:up", b"status:down")
LOADED = b"# Persistence\r\nloading:0\r\nasync_loading:0\r\n"

Change = tuple[Address, bool, str]
Scene = Callable[[NodeHealth, list[Change]], Awaitable[None]]


@pytest.fixture
def start_node(start_node: Callable[..., FakeNode]) -> Callable[..., FakeNode]:
    """Starts a replica that is well."""
    return lambda name="f": tell(start_node(name))


def tell(node: FakeNode, replication: bytes = SYNCED, persistence: bytes = LOADED) -> FakeNode:
    return node.on("INFO REPLICATION", bulk(replication)).on("INFO PERSISTENCE", bulk(persistence))


def replica(node: FakeNode | Address, health: Any = "online") -> Node:
    address = node if isinstance(node, Address) else at(node)
    return Node(f"id-{address.port}", address, "replica", health)


def primary(node: FakeNode) -> Node:
    return Node(f"id-{node.port}", at(node), "primary")


def run(scene: Scene, **more: Any) -> list[Change]:
    """The scene; what was told by on_change. Checks that stop() leaves nothing."""

    async def play() -> list[Change]:
        changes: list[Change] = []
        options: dict[str, Any] = {"health_interval_s": 0.01, "timeout_s": 5.0} | more
        health = NodeHealth(HealthSettings(**options), lambda *change: changes.append(change), rng=random.Random(1))
        try:
            await scene(health, changes)
        finally:
            await health.stop()
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return changes

    return asyncio.run(play())


def probes(node: FakeNode) -> int:
    return len(node.seen("INFO")) // 2


def test_a_replica_that_changes(node: FakeNode) -> None:
    address = at(node)

    async def scene(health: NodeHealth, changes: list[Change]) -> None:
        health.set_nodes([replica(node)])
        assert health.usable(address)
        await until(lambda: probes(node) >= 3)
        assert health.usable(address)
        assert health.reason(address) == "ok"
        tell(node, LINK_DOWN)
        await until(lambda: not health.usable(address))
        tell(node, SYNCED.replace(b"progress:0", b"progress:1"))
        await until(lambda: health.reason(address) == "is syncing with its primary")
        tell(node, SYNCED, b"loading:1\r\n")
        await until(lambda: health.reason(address) == "is loading its data")
        tell(node)
        await until(lambda: health.usable(address))

    changes = run(scene)
    assert changes == [(address, False, "its link to its primary is down"), (address, True, "ok")]
    assert len(node.sessions) == 1  # one kept connection


def test_only_replicas_are_probed(start_node: Callable[[], FakeNode]) -> None:
    watched, spared = start_node(), start_node()

    async def scene(health: NodeHealth, changes: list[Change]) -> None:
        health.set_nodes([primary(spared), replica(watched)])
        await until(lambda: probes(watched) >= 3)
        assert health.usable(at(spared))
        assert health.reason(at(spared)) == ""

    assert run(scene) == []
    assert spared.received == []


def test_down_and_back(node: FakeNode) -> None:
    async def scene(health: NodeHealth, changes: list[Change]) -> None:
        health.set_nodes([replica(node)])
        await until(lambda: probes(node) >= 1)
        node.on("INFO", Cut())
        node.on("INFO REPLICATION", Cut())
        await until(lambda: len(changes) == 1)
        before = len(node.sessions)
        await until(lambda: len(node.sessions) >= before + 3)
        tell(node)
        await until(lambda: len(changes) == 2)

    changes = run(scene)
    assert [usable for _, usable, _ in changes] == [False, True]


@pytest.mark.parametrize("fault", ["refused", "silent"])
def test_what_counts_as_down(node: FakeNode, fault: str) -> None:
    address = at(node)
    if fault == "refused":
        address = Address(HOST, free_port())
    else:
        node.on("INFO REPLICATION", SILENCE)

    async def scene(health: NodeHealth, changes: list[Change]) -> None:
        health.set_nodes([replica(address)])
        await until(lambda: changes)
        await until(lambda: len(node.sessions) >= 3 or fault == "refused")

    ((changed, usable, reason),) = run(scene, timeout_s=0.5 if fault == "silent" else 5.0)
    assert (changed, usable) == (address, False)
    assert {"refused": "Connection refused", "silent": "does not answer in time"}[fault] in reason


@pytest.mark.parametrize(
    "refusal",
    [
        b"-WRONGPASS invalid username-password pair or user is disabled.\r\n",
        Cut(b"-ERR max number of clients reached\r\n"),
    ],
)
def test_one_that_refuses_to_be_asked(node: FakeNode, refusal: Any) -> None:
    """The password is changed at the servers first: the connections that carry reads go on."""

    async def scene(health: NodeHealth, changes: list[Change]) -> None:
        health.set_nodes([replica(node)])
        await until(lambda: probes(node))
        node.on("INFO REPLICATION", SILENCE)  # it is busy for a moment, and that costs the connection
        await until(lambda: not health.usable(at(node)))
        node.on("AUTH", refusal)
        await until(lambda: health.usable(at(node)))
        assert health.reason(at(node)) == "online in the topology"
        health.set_nodes([replica(node, "fail")])
        assert not health.usable(at(node))

    run(scene, timeout_s=1.0, password="old")


class TestWhatTheTopologySays:
    def test_until_the_first_probe(self, node: FakeNode) -> None:
        """And then the probe: Redis 7.0 calls the replicas of an idle shard loading."""

        async def scene(health: NodeHealth, changes: list[Change]) -> None:
            health.set_nodes([replica(node, "loading")])
            assert changes == [(at(node), False, "loading in the topology")]
            assert not health.usable(at(node))
            await until(lambda: health.usable(at(node)))
            seen = probes(node)
            health.set_nodes([replica(node, "loading")])
            assert health.usable(at(node))
            await until(lambda: probes(node) >= seen + 2)

        assert [usable for _, usable, _ in run(scene)] == [False, True]

    def test_a_change_of_its_mind_counts_until_the_next_probe(self, node: FakeNode) -> None:
        async def scene(health: NodeHealth, changes: list[Change]) -> None:
            health.set_nodes([replica(node)])
            await until(lambda: probes(node) >= 1)
            health.set_nodes([replica(node, "fail")])
            assert not health.usable(at(node))
            await until(lambda: health.usable(at(node)))

        assert [reason for _, _, reason in run(scene)] == ["fail in the topology", "ok"]

    def test_that_it_is_up_again_is_no_proof_that_it_has_its_data(self, node: FakeNode) -> None:
        """It may have been restarted, and be empty until its primary has sent everything."""
        tell(node, LINK_DOWN)

        async def scene(health: NodeHealth, changes: list[Change]) -> None:
            health.set_nodes([replica(node, "fail")])
            await until(lambda: probes(node) >= 2)
            health.set_nodes([replica(node)])
            assert not health.usable(at(node))
            tell(node)
            await until(lambda: health.usable(at(node)))

        assert [reason for _, usable, reason in run(scene) if usable] == ["ok"]

    def test_where_the_server_may_not_say(self, node: FakeNode) -> None:
        refused = b"-NOPERM this user has no permissions to run the 'info' command\r\n"
        node.on("INFO REPLICATION", refused).on("INFO PERSISTENCE", refused)

        async def scene(health: NodeHealth, changes: list[Change]) -> None:
            health.set_nodes([replica(node)])
            await until(lambda: probes(node) >= 2)
            health.set_nodes([replica(node, "loading")])
            await until(lambda: probes(node) >= 4)

        assert run(scene) == [(at(node), False, "loading in the topology")]


class TestDoubt:
    def test_until_the_next_probe(self, node: FakeNode) -> None:
        """A worker was refused a read: the replica is not used, and the next probe has the last word."""

        async def scene(health: NodeHealth, changes: list[Change]) -> None:
            health.set_nodes([replica(node)])
            await until(lambda: probes(node) >= 1 and health.reason(at(node)) == "ok")
            health.doubt(at(node), "LOADING")
            health.doubt(at(node), "MASTERDOWN")
            assert not health.usable(at(node))
            assert health.reason(at(node)) == "MASTERDOWN"
            health.set_nodes([replica(node)])  # the same topology once more is no reason to trust it
            assert not health.usable(at(node))
            health.reconfigure(HealthSettings(health_interval_s=0.01, timeout_s=5.0))
            await until(lambda: health.usable(at(node)))

        changes = run(scene, health_interval_s=3600.0)
        assert changes == [(at(node), False, "LOADING"), (at(node), True, "ok")]

    def test_a_probe_that_agrees(self, node: FakeNode) -> None:
        async def scene(health: NodeHealth, changes: list[Change]) -> None:
            health.set_nodes([replica(node)])
            await until(lambda: health.reason(at(node)) == "ok")
            tell(node, SYNCED, b"loading:1\r\n")
            health.doubt(at(node), "LOADING")
            await until(lambda: health.reason(at(node)) == "is loading its data")
            assert not health.usable(at(node))

        run(scene)

    def test_of_what_is_not_watched(self, start_node: Callable[[], FakeNode]) -> None:
        """A primary, a node of yesterday: the report was under way when the topology changed."""
        watched, other = start_node(), start_node()

        async def scene(health: NodeHealth, changes: list[Change]) -> None:
            health.set_nodes([primary(other), replica(watched)])
            health.doubt(at(other), "LOADING")
            health.doubt(Address("gone", 1), "LOADING")
            assert health.usable(at(other))
            assert health.reason(at(other)) == ""

        assert run(scene) == []


class TestNodesComeAndGo:
    def test_connections_of_gone_nodes_are_closed(self, start_node: Callable[[], FakeNode]) -> None:
        gone, stays = start_node(), start_node()

        async def scene(health: NodeHealth, changes: list[Change]) -> None:
            health.set_nodes([replica(gone), replica(stays)])
            await until(lambda: probes(gone) and probes(stays))
            health.set_nodes([replica(stays)])
            await until(lambda: closed(gone))
            seen = probes(gone)
            await until(lambda: probes(stays) >= 3)
            assert probes(gone) == seen
            assert health.usable(at(gone))

        assert run(scene) == []
        assert len(stays.sessions) == 1
        wait_for(lambda: closed(stays), 5.0, "stop() closed the other one")

    def test_a_promoted_replica_is_good_again(self, node: FakeNode) -> None:
        tell(node, LINK_DOWN)

        async def scene(health: NodeHealth, changes: list[Change]) -> None:
            health.set_nodes([replica(node)])
            await until(lambda: changes)
            health.set_nodes([primary(node)])
            assert health.usable(at(node))

        assert run(scene)[1:] == [(at(node), True, "is a primary now")]

    def test_it_is_watched_again_when_it_comes_back(self, node: FakeNode) -> None:
        async def scene(health: NodeHealth, changes: list[Change]) -> None:
            for _ in range(3):
                health.set_nodes([replica(node)])
                seen = probes(node)
                await until(lambda seen=seen: probes(node) > seen)  # type: ignore[misc]
                health.set_nodes([])
            await until(lambda: closed(node))

        assert run(scene) == []
        assert len(node.sessions) == 3

    def test_a_probe_on_its_way_changes_nothing_any_more(self, node: FakeNode) -> None:
        node.on("INFO REPLICATION", SILENCE)

        async def scene(health: NodeHealth, changes: list[Change]) -> None:
            health.set_nodes([replica(node)])
            await until(lambda: node.received)
            health.set_nodes([])
            await until(lambda: closed(node))

        assert run(scene, timeout_s=1.5) == []


def test_no_more_probes_at_a_time_than_allowed(start_node: Callable[[], FakeNode]) -> None:
    nodes = [start_node() for _ in range(4)]
    for node in nodes:
        node.on("INFO REPLICATION", SILENCE)

    async def scene(health: NodeHealth, changes: list[Change]) -> None:
        health.set_nodes([replica(node) for node in nodes])
        await until(lambda: sum(len(node.sessions) for node in nodes) == 2)
        await asyncio.sleep(0.3)  # longer than the first probes are spread
        assert sum(len(node.sessions) for node in nodes) == 2

    run(scene, concurrency=2)


def test_new_settings_hold_at_once(node: FakeNode) -> None:
    """Also in the middle of an hour's pause; other credentials mean another connection, the old one is closed."""

    async def scene(health: NodeHealth, changes: list[Change]) -> None:
        health.set_nodes([replica(node)])
        await until(lambda: probes(node) == 1)
        health.reconfigure(HealthSettings(health_interval_s=3600.0, timeout_s=5.0, username="bob", password="new"))
        await until(lambda: probes(node) == 2)
        old, new = node.sessions
        assert [b"AUTH", b"bob", b"new"] in new.commands
        await until(lambda: old.sock.fileno() == -1)
        health.reconfigure(HealthSettings(health_interval_s=0.01, timeout_s=5.0, username="bob", password="new"))
        await until(lambda: probes(node) >= 6)
        assert len(node.sessions) == 2

    assert run(scene, health_interval_s=3600.0) == []


def test_a_listener_that_fails_stops_nothing(node: FakeNode, caplog: pytest.LogCaptureFixture) -> None:
    def boom(*change: object) -> None:
        raise RuntimeError("boom")

    async def scene() -> None:
        health = NodeHealth(HealthSettings(health_interval_s=0.01), boom)
        health.set_nodes([replica(node, "loading")])
        await until(lambda: probes(node) >= 3)
        await health.stop()

    asyncio.run(scene())
    assert "telling a change of a node's health failed" in caplog.text


def test_real_replicas(cluster: EmbeddedCluster) -> None:
    seed = Address(HOST, cluster.nodes[0].port)

    async def scene(health: NodeHealth, changes: list[Change]) -> None:
        async with node_client(seed, NodeClientSettings(timeout_s=5.0)) as upstream:
            (shards,) = await upstream.ask(("CLUSTER", "SHARDS"))
        nodes = build(seed, AddressRules(), shards=shards).nodes()
        replicas = [node.address for node in nodes if node.role == "replica"]
        health.set_nodes(nodes)
        await until(lambda: all(health.reason(address) == "ok" for address in replicas))
        assert len(replicas) == 3
        assert all(health.usable(node.address) for node in nodes)

    run(scene)


@pytest.mark.parametrize(
    ("info", "usable"),
    [
        ("", True),
        ("loading:1\r\nrole:master\r\n", False),
        ("role:master\r\nmaster_link_status:down\r\n", True),
        ("role:slave\r\nmaster_link_status:up\r\n", True),
        ("role:replica\r\nmaster_link_status:down\r\n", False),
        ("role:slave\r\nmaster_link_status:up\r\nmaster_sync_in_progress:1\r\n", False),
    ],
)
def test_judge(info: str, usable: bool) -> None:
    assert judge(info)[0] is usable


@pytest.mark.parametrize(
    ("info", "lost"),
    [
        ("", False),
        ("role:slave\r\nmaster_link_status:up\r\n", False),
        ("role:master\r\nmaster_link_status:down\r\nmaster_link_down_since_seconds:3\r\n", False),
        ("role:slave\r\nmaster_link_status:down\r\nmaster_link_down_since_seconds:0\r\n", True),
        ("role:replica\r\nmaster_link_status:down\r\nmaster_link_down_since_seconds:3\r\n", True),
        ("role:slave\r\nmaster_link_status:down\r\nmaster_link_down_since_seconds:-1\r\n", False),  # it never had one
        ("role:slave\r\nmaster_link_status:down\r\n", False),
        ("loading:1\r\nrole:slave\r\nmaster_link_status:down\r\nmaster_link_down_since_seconds:3\r\n", False),
        (
            "role:slave\r\nmaster_link_status:down\r\nmaster_sync_in_progress:1\r\nmaster_link_down_since_seconds:3\r\n",
            False,
        ),
    ],
)
def test_lost_touch(info: str, lost: bool) -> None:
    assert lost_touch(info) is lost


def test_a_primary_that_has_become_a_replica_is_probed_first(node: FakeNode) -> None:
    async def scene(health: NodeHealth, changes: list[Change]) -> None:
        health.set_nodes([primary(node)])
        assert health.usable(at(node))
        health.set_nodes([replica(node)])
        assert not health.usable(at(node))
        await until(lambda: health.usable(at(node)))
        assert probes(node)

    assert [usable for _, usable, _ in run(scene)] == [False, True]


def test_one_that_has_lost_touch_is_stale(node: FakeNode) -> None:
    async def scene(health: NodeHealth, changes: list[Change]) -> None:
        health.set_nodes([replica(node)])
        await until(lambda: health.reason(at(node)) == "ok")
        tell(node, LINK_DOWN)
        await until(lambda: len(changes) == 1)
        assert not health.stale(at(node))
        tell(node, LINK_DOWN + b"master_link_down_since_seconds:1\r\n")
        await until(lambda: len(changes) == 2)
        assert (health.usable(at(node)), health.stale(at(node))) == (False, True)
        health.doubt(at(node), "LOADING")
        assert not health.stale(at(node))
        await until(lambda: health.stale(at(node)))
        tell(node)
        await until(lambda: health.usable(at(node)))
        assert not health.stale(at(node))
        assert not health.stale(Address("nobody", 1))

    assert [usable for _, usable, _ in run(scene)] == [False, False, False, False, True]
