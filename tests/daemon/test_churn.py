"""Clients that come and go without end leave nothing behind: no descriptor, no memory, no client on the books."""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Callable

import pytest

from proxy.embedded import EmbeddedCluster, wait_for
from tests.support.load import Load, Where, in_threads
from tests.support.processes import descriptors, memory, session_members
from tests.support.proxyd import ProxyDaemon
from tests.support.raw import encode

StartProxy = Callable[..., ProxyDaemon]
MB = 1 << 20
SPARE = 20  # descriptors: the admin port's connections, and those the control plane makes when a node seems silent
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close() sends RST
THREADS = 4


def come_and_go(address: Where, count: int) -> None:
    """So many connections one after the other, each ended in one of the ways clients have."""
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    for n in range(count):
        with socket.socket(family) as sock:
            sock.settimeout(20)
            sock.connect(address)
            manner = n % 5
            if manner == 1:
                sock.sendall(b"PING\r\n")
                assert sock.recv(64) == b"+PONG\r\n"
            elif manner == 2:
                sock.sendall(encode("SET", "a", "v")[:-3])  # half a command
            elif manner == 3:
                sock.sendall(encode("GET", "a"))  # and gone before the reply
            elif manner == 4:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)


def held(daemon: ProxyDaemon) -> dict[int, int]:
    """Descriptors of each of the daemon's processes."""
    return {pid: len(descriptors(pid)) for pid in session_members(daemon.pid)}


def as_before(daemon: ProxyDaemon, before: dict[int, int]) -> bool:
    """Whether each process has as many descriptors as before; thousands of clients came in between."""
    now = held(daemon)
    return all(now[pid] <= count + SPARE for pid, count in before.items())


def sizes(daemon: ProxyDaemon) -> dict[int, int]:
    return {pid: memory(pid) for pid in session_members(daemon.pid)}


def churn(daemon: ProxyDaemon, connections: int, at_least_s: float = 0.0) -> float:
    """Connections per second reached."""
    started_s = time.monotonic()
    addresses: list[Where] = [daemon.address, daemon.unix_path]
    share = min(connections, 15000) // THREADS
    done = 0
    while done < connections or time.monotonic() - started_s < at_least_s:
        in_threads(THREADS, lambda place: come_and_go(addresses[place % 2], share))
        done += share * THREADS
    return done / (time.monotonic() - started_s)


def test_nothing_is_left_of_15000_clients(small_cluster: EmbeddedCluster, start_proxy: StartProxy) -> None:
    daemon = start_proxy(small_cluster.seeds, unix=True)
    with Load(daemon.address, 4) as load:
        churn(daemon, 1000)  # what is allocated once
        wait_for(lambda: daemon.metric("redis_proxy_client_connections") == 4, 10, "only the load is there")
        came = daemon.metric("redis_proxy_client_connections_total")
        before, memory_before = held(daemon), sizes(daemon)
        rate = churn(daemon, 15000)
        load.advance()
        wait_for(lambda: daemon.metric("redis_proxy_client_connections") == 4, 10, "only the load is there")
        assert daemon.metric("redis_proxy_client_connections_total") - came == 15000
        wait_for(lambda: as_before(daemon, before), 10, "descriptors as before")
        grown = {pid: size - memory_before[pid] for pid, size in sizes(daemon).items()}
        assert max(grown.values()) < 4 * MB, (grown, rate)
    wait_for(lambda: daemon.metric("redis_proxy_client_connections") == 0, 10, "nobody is there")


@pytest.mark.long
@pytest.mark.timeout(300)
def test_thirty_seconds_of_coming_and_going(small_cluster: EmbeddedCluster, start_proxy: StartProxy) -> None:
    daemon = start_proxy(small_cluster.seeds, unix=True)
    churn(daemon, 15000)
    wait_for(lambda: daemon.metric("redis_proxy_client_connections") == 0, 10, "nobody is there")
    before, memory_before = held(daemon), sizes(daemon)
    rate = churn(daemon, 150_000, at_least_s=30)
    print(f"{rate:.0f} connections a second")
    wait_for(lambda: daemon.metric("redis_proxy_client_connections") == 0, 10, "nobody is there")
    wait_for(lambda: as_before(daemon, before), 10, "descriptors as before")
    grown = {pid: size - memory_before[pid] for pid, size in sizes(daemon).items()}
    assert max(grown.values()) < 4 * MB, grown


def test_nothing_is_left_of_clients_that_were_refused(small_cluster: EmbeddedCluster, start_proxy: StartProxy) -> None:
    daemon = start_proxy(small_cluster.seeds, {"clients": {"max_clients": 3}})
    wait_for(lambda: daemon.metric("redis_proxy_client_connections") == 0, 10, "nobody is there")
    before = held(daemon)
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            assert stack.enter_context(daemon.raw()).command("PING") == b"+PONG\r\n"
        for _ in range(10):
            for refused in [daemon.raw() for _ in range(100)]:
                with refused:
                    assert refused.rest() == b"-ERR max number of clients reached\r\n"
    assert daemon.metric("redis_proxy_client_connections_rejected_total") == 1000
    wait_for(lambda: daemon.metric("redis_proxy_client_connections") == 0, 10, "nobody is there")
    wait_for(lambda: as_before(daemon, before), 10, "descriptors as before")
