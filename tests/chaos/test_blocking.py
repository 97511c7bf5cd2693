"""Blocked clients while slots move and primaries die or hang: each gets its element once, or a line to try again on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from proxy.embedded import EmbeddedCluster, wait_for
from proxy.resp import errors
from tests.support.cluster import slot_of
from tests.support.proxyd import ProxyDaemon
from tests.support.raw import RawClient, encode

StartProxy = Callable[..., ProxyDaemon]
POPPED = b"*2\r\n$1\r\nq\r\n$1\r\nv\r\n"


@pytest.fixture
def fragile(server: str) -> Iterator[EmbeddedCluster]:
    with EmbeddedCluster(server, node_timeout_ms=1000, options={"cluster-require-full-coverage": "no"}) as started:
        yield started


def block(cluster: EmbeddedCluster, raw: RawClient, *words: str) -> None:
    """Sends it, and waits until it is blocked at its node."""
    raw.send(encode(*words))
    node = cluster.owner_of(slot_of(words[1]))
    wait_for(lambda: int(node.info("clients")["blocked_clients"]) == 1, 10, "blocked")


def pop_again(raw: RawClient, daemon: ProxyDaemon) -> None:
    """The client tries again, as clients do."""
    with daemon.raw() as other:
        wait_for(lambda: other.command("RPUSH", "q", "v")[:1] == b":", 20, "the shard is served")
        assert raw.command("BLPOP", "q", "0") == POPPED


def test_a_slot_that_moves_takes_its_blocked_clients_along(fragile: EmbeddedCluster, start_proxy: StartProxy) -> None:
    daemon = start_proxy(fragile.seeds)
    source, target, _ = fragile.primaries()
    source = fragile.owner_of(slot_of("q"))
    target = next(node for node in fragile.primaries() if node is not source)
    with daemon.raw() as raw, daemon.raw() as timed, daemon.raw() as other:
        raw.send(encode("BLPOP", "q", "0"))
        started = time.monotonic()
        timed.send(encode("BLPOP", "{q}2", "4"))
        wait_for(lambda: int(source.info("clients")["blocked_clients"]) == 2, 10, "blocked")
        fragile.move_slots([slot_of("q")], source, target)
        wait_for(lambda: int(target.info("clients")["blocked_clients"]) == 2, 10, "they have followed")
        assert other.command("RPUSH", "q", "v") == b":1\r\n"
        assert raw.frame() == POPPED
        assert timed.frame() == b"*-1\r\n"
        assert 3.5 < time.monotonic() - started < 8  # its own time, not twice


def test_a_failover_ends_the_wait_or_takes_it_along(fragile: EmbeddedCluster, start_proxy: StartProxy) -> None:
    daemon = start_proxy(fragile.seeds)
    (replica,) = fragile.replicas_of(fragile.owner_of(slot_of("q")))
    with daemon.raw() as raw:
        block(fragile, raw, "BLPOP", "q", "0")
        fragile.failover(replica)
        with daemon.raw() as other:
            wait_for(lambda: other.command("RPUSH", "q", "v")[:1] == b":", 20, "the shard is served")
        told = raw.frame()
        assert told in (errors.UNBLOCKED_CHANGED, POPPED)  # it may also be redirected, and followed
        if told != POPPED:
            assert raw.command("BLPOP", "q", "0") == POPPED


def test_a_killed_node_ends_the_wait(fragile: EmbeddedCluster, start_proxy: StartProxy) -> None:
    daemon = start_proxy(fragile.seeds)
    victim = fragile.owner_of(slot_of("q"))
    with daemon.raw() as raw, daemon.raw() as waiting:
        block(fragile, raw, "BLPOP", "q", "0")
        fragile.kill(victim)
        started = time.monotonic()
        assert raw.frame() == errors.UNBLOCKED_CHANGED
        assert time.monotonic() - started < 4
        waiting.send(encode("BLPOP", "q", "0"))  # not sent yet: it waits for the failover
        with daemon.raw() as other:
            wait_for(lambda: other.command("RPUSH", "q", "v")[:1] == b":", 20, "the shard is served")
        assert waiting.frame() in (POPPED, errors.EXCHANGE_TEXTS["down"])


def test_a_node_that_hangs_and_is_replaced_ends_the_wait(fragile: EmbeddedCluster, start_proxy: StartProxy) -> None:
    """As soon as the topology says so, which is asked for although nobody but idle clients has to do with the node."""
    daemon = start_proxy(fragile.seeds)
    victim = fragile.owner_of(slot_of("q"))
    with daemon.raw(timeout_s=25) as raw:
        block(fragile, raw, "BLPOP", "q", "0")
        fragile.pause(victim)
        started = time.monotonic()
        try:
            assert raw.frame() == errors.UNBLOCKED_CHANGED
            assert time.monotonic() - started < 8
            pop_again(raw, daemon)
        finally:
            fragile.resume(victim)
