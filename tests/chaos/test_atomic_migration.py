"""Valkey 9's atomic slot migration (CLUSTER MIGRATESLOTS) under load: what its clients see is nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from proxy.embedded import EmbeddedCluster, EmbeddedNode, wait_for
from tests.support.cluster import key_in, servers
from tests.support.proxyd import ProxyDaemon
from tests.support.raw import RawClient, array, bulk
from tests.support.workload import Workload

StartProxy = Callable[..., ProxyDaemon]
HOT = range(0, 200)


@pytest.fixture(scope="module")
def valkey() -> Iterator[EmbeddedCluster]:
    with EmbeddedCluster(servers()["valkey"], replicas=1, node_timeout_ms=2500) as started:
        yield started


def migrate(cluster: EmbeddedCluster, source: EmbeddedNode, target: EmbeddedNode, slots: range = HOT) -> None:
    words = ("CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", slots[0], slots[-1], "NODE", target.id)
    assert source.command(*words) == "OK"
    wait_for(lambda: set(slots) <= set(cluster.slots_of(target)), 20, "the slots have moved")


def test_it_is_not_noticed(valkey: EmbeddedCluster, start_proxy: StartProxy) -> None:
    one, two = valkey.primaries()[:2]
    daemon = start_proxy(valkey.seeds)
    with Workload(daemon.address, hot=HOT) as load:
        for _ in range(3):
            for source, target in ((one, two), (two, one)):
                migrate(valkey, source, target)
                load.advance(30)
    load.check(valkey)
    assert load.told.longest_s < 3.0
    valkey.wait_ok()


def test_what_waits_and_what_pushes(valkey: EmbeddedCluster, start_proxy: StartProxy) -> None:
    """Blocked clients, subscriptions of shard channels, watches, scripts: in a slot that moves."""
    one, two = valkey.primaries()[:2]
    key = key_in(HOT[0], HOT[-1], "w")
    daemon = start_proxy(valkey.seeds)
    with (
        daemon.raw() as raw,
        daemon.raw() as blocked,
        daemon.raw() as subscriber,
        daemon.raw() as watcher,
        daemon.raw() as stream,
    ):
        script = "return redis.call('INCR', KEYS[1])"
        for turn, (source, target) in enumerate(((one, two), (two, one))):
            base = f"{{{key}}}:{turn}"
            assert raw.command("XADD", f"{base}:s", "1-1", "f", "v").startswith(b"$")
            subscriber.send(b"SSUBSCRIBE %s\r\n" % key.encode())
            assert subscriber.frame().startswith(b"*3\r\n$10\r\nssubscribe")
            blocked.send(b"BLPOP %s:list 20\r\n" % base.encode())
            stream.send(b"XREAD BLOCK 20000 STREAMS %s:s 1-1\r\n" % base.encode())
            assert watcher.command("SET", f"{base}:w", "1") == b"+OK\r\n"
            assert watcher.command("WATCH", f"{base}:w") == b"+OK\r\n"
            wait_for(lambda: daemon.metric("redis_proxy_blocked_clients") == 2, 10, "both are blocked")
            migrate(valkey, source, target)
            assert raw.command("EVAL", script, 1, f"{base}:c") == b":1\r\n"
            # The watch is gone with the slot: EXEC does nothing, however it says so, and the next try works.
            for words in (("MULTI",), ("INCR", f"{base}:w")):
                watcher.command(*words)
            answer = watcher.command("EXEC")
            assert answer == b"*-1\r\n" or answer.startswith(b"-EXECABORT"), answer
            assert watcher.command("GET", f"{base}:w") == b"$1\r\n1\r\n"
            assert watcher.command("WATCH", f"{base}:w") == b"+OK\r\n"
            for words in (("MULTI",), ("INCR", f"{base}:w")):
                watcher.command(*words)
            assert watcher.command("EXEC") == b"*1\r\n:2\r\n"
            # Whoever waited goes on waiting where the slot is now.
            assert raw.command("RPUSH", f"{base}:list", "e") == b":1\r\n"
            assert blocked.frame() == array(bulk(f"{base}:list".encode()), bulk(b"e"))
            assert raw.command("XADD", f"{base}:s", "2-1", "f", "v").startswith(b"$")
            assert b"2-1" in stream.frame()
            deliver(raw, subscriber, key)
            subscriber.send(b"SUNSUBSCRIBE\r\n")
            while not subscriber.frame().startswith(b"*3\r\n$12\r\nsunsubscribe"):
                pass


def deliver(raw: RawClient, subscriber: RawClient, channel: str) -> None:
    """The subscription is where the slot is now, or soon."""
    subscriber.sock.settimeout(0.1)
    end_s = time.monotonic() + 3
    while time.monotonic() < end_s:
        assert raw.command("SPUBLISH", channel, "m")[:1] == b":"
        try:
            assert subscriber.frame() == array(bulk(b"smessage"), bulk(channel.encode()), bulk(b"m"))
        except TimeoutError:
            continue
        break
    else:
        raise AssertionError("no message comes")
    subscriber.sock.settimeout(10)


@pytest.mark.long
def test_it_is_given_up(valkey: EmbeddedCluster, start_proxy: StartProxy) -> None:
    """Cancelled again and again, and begun anew: nothing is lost, and nobody is told."""
    one, two = valkey.primaries()[:2]
    daemon = start_proxy(valkey.seeds)
    with Workload(daemon.address, hot=HOT) as load:
        for _ in range(10):
            one.command("CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", HOT[0], HOT[-1], "NODE", two.id)
            one.command("CLUSTER", "CANCELSLOTMIGRATIONS")
            load.advance(3)
            if HOT[0] in valkey.slots_of(two):  # too late
                one, two = two, one
        migrate(valkey, one, two)
        migrate(valkey, two, one)
        load.advance(30)
    load.check(valkey)
