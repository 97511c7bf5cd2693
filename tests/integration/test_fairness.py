"""One client cannot take a worker's time from the others.

Why: beside one client that pipelines what the proxy answers itself, or writes inline commands, a GET of another client
took between 34 and 210 ms in 0.1.0 (issue 7); on a quiet machine the promise is a median below 3 ms and a 99th
percentile below 15. The bounds here are wider, for machines on which everything else runs as well.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import pytest

from proxy.embedded import HOST, EmbeddedCluster, die_with_parent, wait_for
from tests.support.proxyd import ProxyDaemon
from tests.support.raw import bulk, encode

pytestmark = pytest.mark.alone

DURATION_S = 0.5
TIMES = 3  # unless all is well at once: in one of them, this machine may be busy with something else
MEDIAN_S = 0.020  # it was 34 ms at least
P99_S = 0.060
PASSWORD = "secret"

FLOODS = {
    "pipelined TIME": encode("TIME"),
    "pipelined CLIENT INFO": encode("CLIENT", "INFO"),
    "pipelined PING": encode("PING"),
    "pipelined HELLO": encode("HELLO", 2),
    "pipelined INFO": encode("INFO"),
    "pipelined COMMAND COUNT": encode("COMMAND", "COUNT"),
    "pipelined GET": encode("GET", "beside"),
    "pipelined MGET": encode("MGET", *(f"k{n}" for n in range(100))),
    "unknown commands": encode("NOSUCH", "a"),
    "inline PING": b"PING\r\n",
    "inline TIME": b"TIME\r\n",
    "inline GET": b"GET beside\r\n",
    "inline quotes": b'ECHO "a b" \'c\' "\\x00"\r\n',
    "empty lines": b"\r\n",
}
UNAUTHENTICATED = {
    "inline PING": b"PING\r\n",
    "inline anything": b"x\r\n",
    "pipelined GET": encode("GET", "a"),
    "pipelined AUTH": encode("AUTH", "wrong"),
}

# Left to `-m long`: another of the usual run goes the same way through the proxy.
AT_LENGTH = {
    "pipelined TIME",
    "pipelined PING",
    "pipelined HELLO",
    "pipelined COMMAND COUNT",
    "inline TIME",
    "inline GET",
    "not logged in: inline PING",
    "not logged in: pipelined GET",
}


def usual(floods: dict[str, bytes], prefix: str = "") -> list[object]:
    """The parameters of a test, those of AT_LENGTH marked."""
    return [pytest.param(name, marks=pytest.mark.long if prefix + name in AT_LENGTH else ()) for name in floods]


# Writes the same bytes for ever and throws away what comes back; says so once replies come, or after a while without.
FLOODER = """
import select, socket, sys
sock = socket.create_connection((sys.argv[1], int(sys.argv[2])))
one = bytes.fromhex(sys.argv[3])
sock.setblocking(False)
data = memoryview(one * max(1, 262144 // len(one)))
at, told = 0, False
while True:
    readable, writable, _ = select.select([sock], [sock], [], 0.2)
    if readable and not sock.recv(1 << 20):
        sys.exit("closed")
    if writable:
        at = (at + sock.send(data[at:])) % len(data)
    if not told:
        told = True
        print("under way", flush=True)
"""


@contextmanager
def flooded(daemon: ProxyDaemon, command: bytes) -> Iterator[subprocess.Popen[str]]:
    """A process of its own that keeps the proxy busy with this command, from one connection."""
    arguments = [HOST, str(daemon.port), command.hex()]
    process = subprocess.Popen(
        [sys.executable, "-c", FLOODER, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=die_with_parent(),
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "under way\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def latencies(daemon: ProxyDaemon, password: str = "") -> list[list[float]]:
    """Seconds that one GET after another takes, shortest first, for DURATION_S, until it is as promised or TIMES."""
    windows: list[list[float]] = []
    with daemon.raw(timeout_s=20) as raw:
        if password:
            assert raw.command("AUTH", password) == b"+OK\r\n"
        assert raw.command("SET", "mine", "v") == b"+OK\r\n"
        while len(windows) < TIMES and not (windows and promised(windows[-1])):
            found = []
            until = time.perf_counter() + DURATION_S
            while (started := time.perf_counter()) < until:
                assert raw.command("GET", "mine") == bulk(b"v")
                found.append(time.perf_counter() - started)
            windows.append(sorted(found))
    return windows


def median_and_p99(found: list[float]) -> tuple[float, float]:
    """Of seconds, shortest first."""
    return found[len(found) // 2], found[len(found) * 99 // 100]


def promised(found: list[float]) -> bool:
    """Whether both are within their bounds."""
    median, p99 = median_and_p99(found)
    return median < MEDIAN_S and p99 < P99_S


def check(windows: list[list[float]]) -> None:
    """The median and the 99th percentile, printed, and the best compared with what is promised."""
    medians, p99s = zip(*map(median_and_p99, windows), strict=True)
    for median, p99, found in zip(medians, p99s, windows, strict=True):
        print(f"{len(found)} GETs, median {median * 1e3:.2f} ms, p99 {p99 * 1e3:.2f}, worst {found[-1] * 1e3:.2f}")
    assert min(medians) < MEDIAN_S
    assert min(p99s) < P99_S


@pytest.fixture(scope="module")
def one_worker(small_cluster: EmbeddedCluster) -> Iterator[ProxyDaemon]:
    with ProxyDaemon(small_cluster.seeds, workers=1) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def with_password(small_cluster: EmbeddedCluster) -> Iterator[ProxyDaemon]:
    with ProxyDaemon(small_cluster.seeds, {"clients": {"password": PASSWORD}}, workers=1) as daemon:
        yield daemon


@pytest.mark.parametrize("flood", usual(FLOODS))
def test_beside_a_flood(flood: str, one_worker: ProxyDaemon) -> None:
    with flooded(one_worker, FLOODS[flood]) as flooder:
        found = latencies(one_worker)
        assert flooder.poll() is None, "the flood has ended"
    check(found)


@pytest.mark.parametrize("flood", usual(UNAUTHENTICATED, "not logged in: "))
def test_beside_a_flood_of_one_who_has_not_logged_in(flood: str, with_password: ProxyDaemon) -> None:
    with flooded(with_password, UNAUTHENTICATED[flood]) as flooder:
        found = latencies(with_password, PASSWORD)
        assert flooder.poll() is None, "the flood has ended"
    check(found)


def test_beside_a_flood_that_never_reads(one_worker: ProxyDaemon) -> None:
    """It is paused because of its unread replies; before and after that it slows nobody down."""
    with one_worker.raw(timeout_s=0.2, receive_buffer=4096) as deaf:
        with suppress(TimeoutError):
            for _ in range(2000):
                deaf.send(b"TIME\r\n" * 2000)
        check(latencies(one_worker))
    wait_for(lambda: one_worker.metric("redis_proxy_client_connections") == 0, 10, "the deaf one is gone")


def test_beside_many_that_ask_for_what_takes_long(one_worker: ProxyDaemon) -> None:
    """200 clients that pipeline INFO had a turn of 40 ms each in every batch: the worker was silent and replaced."""
    workers = one_worker.worker_pids()
    with ExitStack() as stack:
        asking = [stack.enter_context(one_worker.raw(timeout_s=60)) for _ in range(200)]
        for client in asking:
            client.send(encode("INFO") * 20)
        check(latencies(one_worker))
        for client in asking:
            client.frames(20)
    assert one_worker.worker_pids() == workers
