"""What one client may cost the others: connections, unread replies, memory."""

from __future__ import annotations

import contextlib
import resource
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from proxy.embedded import EmbeddedCluster, wait_for
from tests.support.proxyd import ProxyDaemon
from tests.support.raw import RawClient, bulk, encode

MB = 1 << 20


def test_max_clients(cluster: EmbeddedCluster, start_proxy: Callable[..., ProxyDaemon]) -> None:
    daemon = start_proxy(cluster.seeds, {"clients": {"max_clients": 3}})
    with contextlib.ExitStack() as stack:

        def free() -> bool:  # the readiness probe's own connection has gone
            with daemon.raw() as probe:
                probe.send(encode("PING"))
                return probe.rest_or_frame() == b"+PONG\r\n"

        wait_for(free, 5, "the probe is gone")
        clients = []
        for _ in range(3):
            clients.append(stack.enter_context(wait_for(lambda: accepted(daemon), 5, "a free place")))
        for _ in range(3):
            with daemon.raw() as refused:
                assert refused.rest() == b"-ERR max number of clients reached\r\n"
        for client in clients:
            assert client.command("PING") == b"+PONG\r\n"
        clients.pop().close()
        again = stack.enter_context(wait_for(lambda: accepted(daemon), 5, "the place is free again"))
        assert again.command("PING") == b"+PONG\r\n"
        assert daemon.metric("redis_proxy_client_connections_rejected_total") >= 3


def accepted(daemon: ProxyDaemon) -> RawClient | None:
    """A served connection, or None when it was refused."""
    client = daemon.raw()
    client.send(encode("PING"))
    if client.rest_or_frame() == b"+PONG\r\n":
        return client
    client.close()
    return None


def test_a_reader_that_stops_reading_stops_nobody(
    cluster: EmbeddedCluster, start_proxy: Callable[..., ProxyDaemon]
) -> None:
    """Its commands wait unread, its replies stay within the limits; the others are as fast as before."""
    daemon = start_proxy(cluster.seeds, {"clients": {"max_pending": 30}})
    with daemon.raw(receive_buffer=4096) as slow, daemon.raw() as other:
        assert other.command("SET", "big", "x" * MB) == b"+OK\r\n"
        base = daemon.memory()
        slow.sock.settimeout(0.3)
        sent = 0
        with contextlib.suppress(TimeoutError):
            for _ in range(5000):  # 5 GB of replies asked for
                slow.send(encode("GET", "big"))
                sent += 1
        for n in range(500):
            assert other.command("SET", f"k{n}", n) == b"+OK\r\n"
            assert other.command("GET", f"k{n}") == bulk(str(n).encode())
        assert other.command("GET", "big") == bulk(b"x" * MB)  # also from the same node
        assert daemon.memory("VmHWM") - base < 64 * MB
        slow.sock.settimeout(30)
        for _ in range(min(sent, 40)):
            assert len(slow.frame()) == MB + 12


def test_the_hard_output_limit_closes_with_a_reason(
    cluster: EmbeddedCluster, start_proxy: Callable[..., ProxyDaemon]
) -> None:
    daemon = start_proxy(cluster.seeds, {"clients": {"output_soft_limit": "64kb", "output_hard_limit": "256kb"}})
    with daemon.raw(receive_buffer=4096) as slow, daemon.raw() as other:
        other.command("SET", "big", "x" * MB)
        before = daemon.metric("redis_proxy_client_disconnects_total")
        slow.send(encode("GET", "big") * 200)
        wait_for(lambda: daemon.metric("redis_proxy_client_disconnects_total") > before, 10, "the client is cut")
        reasons = [
            name
            for name, value in daemon.metrics().items()
            if name.startswith("redis_proxy_client_disconnects_total") and value and "output" in name
        ]
        assert reasons
        assert other.command("PING") == b"+PONG\r\n"
        assert daemon.log_contains("output")


def test_a_client_that_only_sends(cluster: EmbeddedCluster, start_proxy: Callable[..., ProxyDaemon]) -> None:
    """Pending commands are bounded too: a writer that is ahead of its node is not read further."""
    daemon = start_proxy(cluster.seeds)
    base = daemon.memory()
    with daemon.raw(receive_buffer=4096) as flood, daemon.raw() as other:
        flood.sock.settimeout(0.3)
        with contextlib.suppress(TimeoutError):
            for _ in range(400):
                flood.send(encode("SET", "k", "x" * MB))
        for _ in range(100):
            assert other.command("INCR", "n").startswith(b":")
        assert daemon.memory("VmHWM") - base < 200 * MB


@pytest.mark.parametrize("protocol", [2, pytest.param(3, marks=pytest.mark.long)])
def test_a_100_mb_value(protocol: int, cluster: EmbeddedCluster, start_proxy: Callable[..., ProxyDaemon]) -> None:
    daemon = start_proxy(cluster.seeds[:1])
    size = 100 * MB
    base = daemon.memory()
    with daemon.raw(timeout_s=60) as raw:
        raw.command("HELLO", protocol)
        raw.send(encode("SET", "big", b"v" * size))
        assert raw.frame() == b"+OK\r\n"
        raw.send(encode("GET", "big"))
        assert raw.frame() == bulk(b"v" * size)
        assert raw.command("DEL", "big") == b":1\r\n"
        assert daemon.memory("VmHWM") - base < 2.2 * size
        wait_for(lambda: daemon.memory() - base < 8 * MB, 10, "memory is given back")


def test_large_replies_reach_a_client_in_its_order(proxy: ProxyDaemon) -> None:
    """A large reply is passed on as it comes only when its turn has come."""
    with proxy.raw(timeout_s=30) as raw:
        for key in "abcd":
            raw.command("SET", key, key * (4 * MB))
        raw.send(b"".join(encode("GET", key) + encode("PING") for key in "abcdabcd"))
        for key in "abcdabcd":
            assert raw.frame() == bulk(key.encode() * (4 * MB))
            assert raw.frame() == b"+PONG\r\n"
        assert raw.command("DEL", *"abcd") == b":4\r\n"


def test_idle_clients_cost_little(cluster: EmbeddedCluster, start_proxy: Callable[..., ProxyDaemon]) -> None:
    """At most 40 MB for 10,000 idle clients that were active before: here for fewer clients, in proportion."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    count = min(2000, hard - 500)
    daemon = start_proxy(cluster.seeds)
    with daemon.raw() as raw:
        raw.command("PING")
    base = daemon.memory()
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(daemon.raw()) for _ in range(count)]
        for client in clients:
            client.send(encode("SET", "k", "x" * 1000) + encode("GET", "k"))
        for client in clients:
            assert client.frames(2) == [b"+OK\r\n", bulk(b"x" * 1000)]
        assert (daemon.memory() - base) / count < 4200
        assert daemon.metric("redis_proxy_client_connections") == count
    wait_for(lambda: daemon.metric("redis_proxy_client_connections") == 0, 10, "all are gone")


def test_a_client_that_leaves_in_the_middle_costs_nobody(proxy: ProxyDaemon) -> None:
    with proxy.raw() as stays:
        stays.command("SET", "big", "x" * MB)
        for _ in range(20):
            leaver = proxy.raw()
            leaver.send(encode("GET", "big") * 20 + encode("MGET", "big", "a", "b", "c") * 5)
            leaver.sock.recv(10)
            leaver.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # RST
            leaver.close()
            assert stays.command("ECHO", "still here") == b"$10\r\nstill here\r\n"
            assert stays.command("GET", "a") == b"$-1\r\n"


def test_idle_timeout(cluster: EmbeddedCluster, start_proxy: Callable[..., ProxyDaemon]) -> None:
    for timeout_s in (0.3, 1.2, 4.8):  # long enough for this machine to be busy in
        daemon = start_proxy(cluster.seeds, {"clients": {"idle_timeout": f"{timeout_s * 1000:.0f}ms"}})
        with daemon.raw(timeout_s=20) as idle, daemon.raw() as busy, ThreadPoolExecutor(1) as pool:
            idle.command("PING")
            started = last = time.monotonic()
            longest = 0.0  # that it said nothing
            ended = pool.submit(idle.rest)
            while not ended.done() and longest < timeout_s / 2:
                assert busy.command("PING") == b"+PONG\r\n"
                time.sleep(0.02)
                longest, last = max(longest, time.monotonic() - last), time.monotonic()
            assert ended.result() == b""
            assert timeout_s - 0.1 < time.monotonic() - started < timeout_s + 4.7
            if longest < timeout_s / 2:
                assert busy.command("PING") == b"+PONG\r\n"
                return
    pytest.fail("nobody could be busy")
