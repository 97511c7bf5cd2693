"""Nodes die, hang, and come back at other addresses: only what must fail fails, and nothing needs a restart."""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from proxy.embedded import EmbeddedCluster, EmbeddedNode, wait_for
from tests.support.cluster import key_in
from tests.support.proxyd import ProxyDaemon
from tests.support.raw import RawClient
from tests.support.standstill import Standstill

StartProxy = Callable[..., ProxyDaemon]
# What a client may be told while its shard has no primary: it can try again, or the write may have been executed.
ALLOWED = (b"-CLUSTERDOWN", b"-TRYAGAIN", b"-LOADING", b"-MASTERDOWN", b"-READONLY", b"-ERR")


@pytest.fixture
def fragile(server: str) -> Iterator[EmbeddedCluster]:
    """A cluster of its own for each test, that serves what it covers and fails over quickly."""
    with EmbeddedCluster(server, node_timeout_ms=1000, options={"cluster-require-full-coverage": "no"}) as started:
        yield started


def key_of(cluster: EmbeddedCluster, node: EmbeddedNode, prefix: str = "k") -> str:
    slots = cluster.slots_of(node)
    return key_in(slots[0], slots[-1], prefix)


def until_served(raw: RawClient, key: str, timeout_s: float = 30.0) -> list[bytes]:
    """Writes until one works; the errors before."""
    errors: list[bytes] = []

    def written() -> bool:
        answer = raw.command("SET", key, "after")
        if answer != b"+OK\r\n":
            errors.append(answer)
        return answer == b"+OK\r\n"

    wait_for(written, timeout_s, f"{key} is served again")
    return errors


def test_a_killed_primary_is_survived(fragile: EmbeddedCluster, start_proxy: StartProxy) -> None:
    daemon = start_proxy(fragile.seeds)
    victim, *others = fragile.primaries()
    lost, kept = key_of(fragile, victim), [key_of(fragile, node) for node in others]
    stop = threading.Event()
    slowest: list[float] = []
    wrong: list[bytes] = []

    def keep_using_the_others() -> None:
        with daemon.raw() as raw:
            while not stop.is_set():
                started = time.monotonic()
                for key in kept:
                    if (answer := raw.command("INCR", key))[:1] != b":":
                        wrong.append(answer)
                slowest.append(time.monotonic() - started)

    thread = threading.Thread(target=keep_using_the_others)
    with Standstill() as still, daemon.raw(timeout_s=30) as raw:
        assert raw.command("SET", lost, "before") == b"+OK\r\n"
        assert raw.command("WAIT", 1, 5000) == b":1\r\n"  # who wrote it asks: for others it may not be there yet
        thread.start()
        try:
            fragile.kill(victim)
            errors = until_served(raw, lost)
        finally:
            stop.set()
            thread.join()
        assert all(error.startswith(ALLOWED) for error in errors), errors
        assert raw.command("GET", lost) == b"$5\r\nafter\r\n"
        assert wrong == []
        assert max(slowest) < 1.0 + 2 * still.longest_s  # one dead shard does not hold back the others
        # The old primary comes back as a replica, and nobody notices.
        fragile.restart(victim)
        fragile.wait_ok()
        assert raw.command("MSET", lost, 1, *(word for key in kept for word in (key, 1))) == b"+OK\r\n"
        assert raw.command("MGET", lost, *kept) == b"*3\r\n" + b"$1\r\n1\r\n" * 3


def test_commands_wait_for_a_quick_failover(fragile: EmbeddedCluster, start_proxy: StartProxy) -> None:
    """Reads and unsent writes are held up to the deadline: with enough patience there is no error at all."""
    daemon = start_proxy(fragile.seeds, {"requests": {"timeout": "25s", "failover_timeout": "25s"}})
    victim = fragile.primaries()[0]
    key = key_of(fragile, victim)
    with daemon.raw(timeout_s=30) as raw:
        assert raw.command("SET", key, "before") == b"+OK\r\n"
        assert raw.command("WAIT", 1, 5000) == b":1\r\n"
        fragile.kill(victim)
        assert raw.command("GET", key) == b"$6\r\nbefore\r\n"
        assert raw.command("SET", key, "after") == b"+OK\r\n"
        assert raw.command("GET", key) == b"$5\r\nafter\r\n"


def test_a_shard_that_stays_dead(fragile: EmbeddedCluster, start_proxy: StartProxy) -> None:
    """Its commands fail, soon without waiting; others do not; it is served when it is back, without a restart."""
    daemon = start_proxy(fragile.seeds, {"requests": {"timeout": "2s", "failover_timeout": "1s"}})
    victim, *others = fragile.primaries()
    lost, kept = key_of(fragile, victim), [key_of(fragile, node) for node in others]
    dead = [victim, *fragile.replicas_of(victim)]
    with daemon.raw(timeout_s=30) as raw:
        assert raw.command("SET", lost, "before") == b"+OK\r\n"
        for node in dead:
            fragile.kill(node)
        assert raw.command("GET", lost).startswith(ALLOWED)

        def fails_at_once() -> bool:
            started = time.monotonic()
            assert raw.command("GET", lost).startswith(ALLOWED)
            return time.monotonic() - started < 0.5

        wait_for(fails_at_once, 15, "commands for the dead shard fail at once")
        for key in kept:
            assert raw.command("SET", key, "v") == b"+OK\r\n"
        assert raw.command("MGET", *kept) == b"*2\r\n$1\r\nv\r\n$1\r\nv\r\n"
        assert raw.command("MGET", lost, *kept).startswith(ALLOWED)  # never a silent nil
        fragile.restart(victim)
        errors = until_served(raw, lost)
        assert all(error.startswith(ALLOWED) for error in errors), errors


def test_a_node_that_comes_back_on_another_port(fragile: EmbeddedCluster, start_proxy: StartProxy) -> None:
    """Predixy #139: after a pod's address changed, writes failed until a restart."""
    daemon = start_proxy(fragile.seeds)
    victim = fragile.primaries()[0]
    replica = fragile.replicas_of(victim)[0]
    key = key_of(fragile, victim)
    old = victim.address
    with daemon.raw(timeout_s=30) as raw:
        assert raw.command("SET", key, "v") == b"+OK\r\n"
        fragile.kill(victim)
        until_served(raw, key)
        fragile.restart(victim, new_port=True)
        fragile.wait_ok()
        fragile.failover(victim)
        until_served(raw, key)
        assert fragile.role(replica) == "replica"
        wait_for(
            lambda: not any(old in name for name in daemon.metrics() if "backend_connections" in name), 45, "forgotten"
        )


def test_all_addresses_change_at_once(fragile: EmbeddedCluster, start_proxy: StartProxy) -> None:
    """A cluster that was down and is back elsewhere is found by a seed; the proxy is not restarted."""
    daemon = start_proxy(fragile.seeds[:1], {"cluster": {"refresh_interval": "1s"}})
    for node in fragile.nodes:
        fragile.kill(node)
    with daemon.raw(timeout_s=30) as raw:
        assert raw.command("GET", "a").startswith(ALLOWED)
        for n, node in enumerate(fragile.nodes):
            fragile.restart(node, new_port=n > 0)
        for n, node in enumerate(fragile.nodes):  # no node knows another's new port: introduce them
            for other in fragile.nodes[:n]:
                node.command("CLUSTER", "MEET", "127.0.0.1", other.port)
                other.command("CLUSTER", "MEET", "127.0.0.1", node.port)
        fragile.wait_ok()
        for key in ("a", "b", "c"):
            until_served(raw, key)


def test_a_paused_node_delays_nobody_else(fragile: EmbeddedCluster, start_proxy: StartProxy) -> None:
    daemon = start_proxy(fragile.seeds, {"requests": {"timeout": "1500ms"}})
    victim, *others = fragile.primaries()
    stuck, kept = key_of(fragile, victim), [key_of(fragile, node) for node in others]
    with daemon.raw(timeout_s=30) as one, daemon.raw() as other:
        assert one.command("SET", stuck, "v") == b"+OK\r\n"
        fragile.pause(victim)
        try:
            started = time.monotonic()
            one.send(b"GET %s\r\n" % stuck.encode())
            slowest_s, turns = 0.0, 0
            with Standstill() as still:
                while not select.select([one.sock], [], [], 0)[0]:
                    for key in kept:
                        asked = time.monotonic()
                        assert other.command("SET", key, "v") == b"+OK\r\n"
                        slowest_s = max(slowest_s, time.monotonic() - asked)
                    turns += 1
            assert slowest_s < 1.0 + 2 * still.longest_s
            assert turns > 5
            assert one.frame().startswith(ALLOWED)
            assert 1.4 < time.monotonic() - started < 5
            assert one.command("SET", kept[0], "w") == b"+OK\r\n"  # the client goes on
        finally:
            fragile.resume(victim)
        until_served(one, stuck)


def test_a_dead_replica_fails_no_traffic(fragile: EmbeddedCluster, start_proxy: StartProxy) -> None:
    """envoy#21352: a dead replica failed traffic of the primary."""
    daemon = start_proxy(fragile.seeds, {"listeners": [{"reads": "prefer_replica"}]})
    keys = [key_of(fragile, node) for node in fragile.primaries()]
    with daemon.raw(timeout_s=30) as raw:
        for key in keys:
            assert raw.command("SET", key, "v") == b"+OK\r\n"
        assert raw.command("WAIT", 1, 5000) == b":1\r\n"
        for _ in range(10):
            assert raw.command("MGET", *keys) == b"*3\r\n" + b"$1\r\nv\r\n" * 3
        for replica in fragile.replicas():
            fragile.kill(replica)
            for _ in range(30):
                for key in keys:
                    assert raw.command("SET", key, "v") == b"+OK\r\n"
                    assert raw.command("GET", key) == b"$1\r\nv\r\n"


@pytest.mark.parametrize("event", ["a killed replica", "a primary that hung"])
def test_a_node_that_is_back_is_read_from(fragile: EmbeddedCluster, start_proxy: StartProxy, event: str) -> None:
    """It was voted failed meanwhile; nothing that clients do tells that it is well again, or a replica now."""
    daemon = start_proxy(fragile.seeds, {"listeners": [{"reads": "replica"}], "cluster": {"refresh_interval": "10m"}})
    primary = fragile.primaries()[0]
    (victim,) = fragile.replicas_of(primary) if event == "a killed replica" else [primary]
    key = key_of(fragile, primary)
    with daemon.raw(timeout_s=30) as raw:
        assert raw.command("SET", key, "v") == b"+OK\r\n"
        assert raw.command("WAIT", 1, 5000) == b":1\r\n"
        assert raw.command("GET", key) == b"$1\r\nv\r\n"
        if event == "a killed replica":
            fragile.kill(victim)
            wait_for(lambda: f"{victim.address} is now fail" in daemon.log, 20, "it is voted failed")
            fragile.restart(victim)
        else:
            fragile.pause(victim)
            wait_for(lambda: raw.command("SET", key, "v") == b"+OK\r\n", 20, "another primary has taken over")
            fragile.resume(victim)
        wait_for(lambda: victim.info("replication").get("master_link_status") == "up", 20, "it is in step")
        back_s = time.monotonic()
        wait_for(lambda: raw.command("GET", key) == b"$1\r\nv\r\n", 20, "it is read from")
        assert time.monotonic() - back_s < 6  # and not in ten minutes


def test_seeds_may_all_be_gone(fragile: EmbeddedCluster, start_proxy: StartProxy) -> None:
    """The seeds are only for the start: afterwards any live node tells the topology."""
    seed = fragile.primaries()[0]
    daemon = start_proxy([seed.address], {"cluster": {"refresh_interval": "500ms"}})
    key = key_of(fragile, seed)
    with daemon.raw(timeout_s=30) as raw:
        fragile.kill(seed)
        errors = until_served(raw, key)
        assert all(error.startswith(ALLOWED) for error in errors), errors
