"""Slots move and primaries change under constant load: no client sees an error, every INCR counts once."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from proxy.embedded import EmbeddedCluster, EmbeddedNode
from tests.support.cluster import slot_of
from tests.support.proxyd import ProxyDaemon
from tests.support.workload import Workload

CLIENTS = 20


@pytest.fixture(scope="module")
def moving_cluster(server: str) -> Iterator[EmbeddedCluster]:
    """Its own cluster, for what changes it. Nodes vote once per shard and two node timeouts, so those must be short."""
    with EmbeddedCluster(server, node_timeout_ms=2500) as started:
        yield started


@pytest.fixture
def moving_proxy(moving_cluster: EmbeddedCluster, start_proxy: Callable[..., ProxyDaemon]) -> ProxyDaemon:
    for node in moving_cluster.primaries():
        node.command("FLUSHALL")
    return start_proxy(moving_cluster.seeds[:1])


def busy(proxy: ProxyDaemon) -> Workload:
    return Workload(proxy.address, CLIENTS, protocols=(2, 3), also=("pipeline",))


def some_busy_slots(load: Workload, cluster: EmbeddedCluster, node: EmbeddedNode, count: int = 50) -> list[int]:
    """Slots of the node with keys of the load in them."""
    return sorted({slot_of(name) for name in load.known} & set(cluster.slots_of(node)))[:count]


def test_slots_move_back_and_forth(moving_cluster: EmbeddedCluster, moving_proxy: ProxyDaemon) -> None:
    one, two = moving_cluster.primaries()[:2]
    moved = 0
    with busy(moving_proxy) as load:
        slots = some_busy_slots(load, moving_cluster, one)
        load.advance(25)
        for _ in range(2):
            moved += moving_cluster.move_slots(slots, one, two, batch=1)
            load.advance(15)
            moved += moving_cluster.move_slots(slots, two, one, batch=10)
            load.advance(15)
    load.check(moving_cluster)
    assert moved > 160
    assert moving_proxy.metric("redis_proxy_redirections_total", kind="moved") > 0
    assert moving_proxy.metric("redis_proxy_redirections_total", kind="ask") > 0
    moving_cluster.wait_ok()


def test_manual_failover_and_back(moving_cluster: EmbeddedCluster, moving_proxy: ProxyDaemon) -> None:
    with busy(moving_proxy) as load:
        load.advance(25)
        for _ in range(2):
            for primary in moving_cluster.primaries():
                moving_cluster.failover(moving_cluster.replicas_of(primary)[0])
                load.advance(10)
    load.check(moving_cluster)


def test_both_at_once(moving_cluster: EmbeddedCluster, moving_proxy: ProxyDaemon) -> None:
    """Slots move between two shards while the third changes its primary."""
    one, two, three = moving_cluster.primaries()
    with busy(moving_proxy) as load:
        slots = some_busy_slots(load, moving_cluster, one)
        load.advance(15)
        moving_cluster.move_slots(slots, one, two)
        moving_cluster.failover(moving_cluster.replicas_of(three)[0])
        moving_cluster.move_slots(slots, two, one)
        moving_cluster.failover(three)
        load.advance(15)
    load.check(moving_cluster)


def test_a_slot_left_half_moved_is_served(moving_cluster: EmbeddedCluster, moving_proxy: ProxyDaemon) -> None:
    """Keys on both sides of a migration that pauses: single keys are found, multi-key commands too once it ends."""
    one, two = moving_cluster.primaries()[:2]
    slot = moving_cluster.slots_of(one)[0]
    tag = next(f"t{n}" for n in range(200_000) if slot_of(f"t{n}") == slot)
    names = [f"{{{tag}}}:{n}" for n in range(10)]
    with moving_proxy.raw() as raw:
        assert raw.command("MSET", *(word for name in names for word in (name, "v"))) == b"+OK\r\n"
        two.command("CLUSTER", "SETSLOT", slot, "IMPORTING", one.id)
        one.command("CLUSTER", "SETSLOT", slot, "MIGRATING", two.id)
        one.command("MIGRATE", "127.0.0.1", two.port, "", 0, 5000, "KEYS", *names[:5])
        for name in names:
            assert raw.command("GET", name) == b"$1\r\nv\r\n"
        assert raw.command("SET", f"{{{tag}}}:new", "w") == b"+OK\r\n"  # a new key goes to the importing node
        assert raw.command("GET", f"{{{tag}}}:new") == b"$1\r\nw\r\n"
        raw.send(b"".join(b"MGET %s\r\n" % " ".join(names).encode() for _ in range(3)))  # TRYAGAIN until it ends
        moving_cluster.move_slots([slot], one, two)
        assert raw.frames(3) == [b"*10\r\n" + b"$1\r\nv\r\n" * 10] * 3
        moving_cluster.move_slots([slot], two, one)
        assert raw.command("EXISTS", *names) == b":10\r\n"
    moving_cluster.wait_ok()
