"""Clients at their worst, each kind beside a well-behaved one: what that one's GETs take meanwhile.

Run it with the project's interpreter: `.venv/bin/python bench/worst_clients.py [--write]`. It takes about a minute and
a half, prints a table and leaves nothing behind; --write also puts it into bench/results.

The well-behaved client is a process of its own: a GET every millisecond on one connection, and every 20 ms one on a new
connection. The bad ones are this process: whatever it does not take, or sends slowly, is meant. Both share the
machine's cores with proxy and servers, so "nobody" and "a busy client" are there to compare with.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import resource
import select
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import machine
from bench.procfs import family, rss_bytes
from proxy.embedded import HOST, EmbeddedCluster
from tests.support.proxyd import ProxyDaemon
from tests.support.raw import Closed, RawClient, encode

SECONDS = 8.0
PAUSE_S = 1.0  # between two waves of many
EVERY_S, ANEW_EVERY_S = 0.001, 0.02
MANY, HERD = 1000, 5000
LARGE = 10_000  # bytes of the value that is asked for and not taken
PIPELINE = 100_000
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close() sends a reset


@dataclass(frozen=True)
class Row:
    """What the well-behaved client saw, in ms; what became of the others; how much the proxy grew, in bytes."""

    name: str
    gets: int
    p50: float
    p99: float
    longest: float
    anew_p99: float  # connect, GET, close
    errors: int
    grown: int
    note: str


# -- the well-behaved client's process -------------------------------------------------------------------------------


def behave(port: int) -> None:
    """Until stdin ends; then says what it saw, as JSON."""
    took: list[float] = []
    anew: list[float] = []
    errors = 0
    raw = RawClient((HOST, port), timeout_s=30)
    raw.command("SET", "polite", "x" * 64)
    print("ready", flush=True)
    next_anew_s = time.monotonic()
    while not select.select([sys.stdin], [], [], EVERY_S)[0]:
        begun_s = time.perf_counter()
        try:
            errors += not raw.command("GET", "polite").startswith(b"$64")
            took.append(time.perf_counter() - begun_s)
            if time.monotonic() >= next_anew_s:
                next_anew_s = time.monotonic() + ANEW_EVERY_S
                begun_s = time.perf_counter()
                with RawClient((HOST, port), timeout_s=30) as other:
                    errors += not other.command("GET", "polite").startswith(b"$64")
                anew.append(time.perf_counter() - begun_s)
        except (OSError, Closed):
            errors += 1
            raw.close()
            raw = RawClient((HOST, port), timeout_s=30)
    print(json.dumps({"took": took, "anew": anew, "errors": errors}), flush=True)


@contextlib.contextmanager
def polite(port: int, seen: dict[str, list[float]]) -> Iterator[None]:
    """It behaves as long as this lasts."""
    words = [sys.executable, __file__, "--behave", str(port)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield
        finally:
            process.stdin.close()
            seen.update(json.loads(process.stdout.read()))


def at(values: list[float], share: float) -> float:
    """A quantile in ms."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] * 1000 if values else 0.0


# -- the others ------------------------------------------------------------------------------------------------------


def connections(port: int, count: int) -> list[socket.socket]:
    """So many, non-blocking."""
    found = []
    for _ in range(count):
        one = socket.create_connection((HOST, port), timeout=30)
        one.setblocking(False)
        found.append(one)
    return found


def vanish(sock: socket.socket) -> None:
    """Leaves with a reset."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    sock.close()


def nobody(daemon: ProxyDaemon, seconds: float) -> str:
    time.sleep(seconds)
    return ""


def busy(daemon: ProxyDaemon, seconds: float) -> str:
    """For comparison: one client that pipelines 100 at a time, as fast as it can."""
    n, until_s = 0, time.monotonic() + seconds
    with daemon.raw(30) as raw:
        while time.monotonic() < until_s:
            raw.send(encode("GET", "polite") * 100)
            raw.frames(100)
            n += 100
    return f"{n / seconds:,.0f} GETs a second"


def vanishing(daemon: ProxyDaemon, seconds: float) -> str:
    """MANY at a time ask for much, begin another command and leave in the middle of it."""
    rounds, until_s = 0, time.monotonic() + seconds
    half = encode("GET", "large") * 20 + b"*3\r\n$3\r\nSET\r\n$1\r\nx\r\n$1000\r\nabc"
    while time.monotonic() < until_s:
        socks = connections(daemon.port, MANY)
        for sock in socks:
            with contextlib.suppress(OSError):
                sock.send(half)
        for sock in socks:
            vanish(sock)
        rounds += 1
        time.sleep(PAUSE_S)
    return f"{rounds} times {MANY}"


def never_reading(daemon: ProxyDaemon, seconds: float) -> str:
    """MANY ask for a megabyte each and take nothing."""
    socks = connections(daemon.port, MANY)
    for sock in socks:
        sock.send(encode("GET", "large") * (1_000_000 // LARGE))
    time.sleep(seconds / 2)
    note = f"held for them: {daemon.metric('redis_proxy_client_memory_bytes') / 1e6:.0f} MB"
    time.sleep(seconds / 2)
    for sock in socks:
        vanish(sock)
    return note


def byte_a_second(daemon: ProxyDaemon, seconds: float) -> str:
    """MANY send a command a byte a second."""
    socks = connections(daemon.port, MANY)
    words = encode("SET", "slow", "x" * 100)
    for n in range(int(seconds)):
        for sock in socks:
            with contextlib.suppress(OSError):
                sock.send(words[n : n + 1])
        time.sleep(1)
    closed = daemon.metric("redis_proxy_client_disconnects_total", reason="slow_frame")
    for sock in socks:
        vanish(sock)
    return f"{closed:.0f} closed by clients.frame_timeout (3 s)"


def pipelining(daemon: ProxyDaemon, seconds: float) -> str:
    """Ten send PIPELINE commands at once, and take the answers."""
    n, until_s = 0, time.monotonic() + seconds
    words = encode("GET", "polite") * PIPELINE
    poll = select.poll()
    socks = {sock.fileno(): sock for sock in connections(daemon.port, 10)}
    left = dict.fromkeys(socks, 0)
    for fd in socks:
        poll.register(fd, select.POLLIN | select.POLLOUT)
    while time.monotonic() < until_s:
        for fd, events in poll.poll(100):
            with contextlib.suppress(BlockingIOError):
                if events & select.POLLIN:
                    n += len(socks[fd].recv(1 << 18))
                if events & select.POLLOUT:
                    left[fd] = (left[fd] + socks[fd].send(words[left[fd] :][: 1 << 18])) % len(words)
    for sock in socks.values():
        vanish(sock)
    return f"{n / 71 / seconds:,.0f} GETs a second"


def silent(daemon: ProxyDaemon, seconds: float) -> str:
    """MANY connect and never say anything."""
    socks = connections(daemon.port, MANY)
    time.sleep(seconds)
    closed = daemon.metric("redis_proxy_client_disconnects_total", reason="idle")
    for sock in socks:
        vanish(sock)
    return f"{closed:.0f} closed by clients.idle_timeout (5 s)"


def herd(daemon: ProxyDaemon, seconds: float) -> str:
    """HERD clients are cut off and connect again, all at once, until each has been answered; again and again."""
    longest_s, rounds, until_s = 0.0, 0, time.monotonic() + seconds
    while time.monotonic() < until_s:
        begun_s = time.monotonic()
        poll = select.epoll()
        waiting: dict[int, socket.socket] = {}
        for _ in range(HERD):
            sock = socket.socket()
            sock.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                sock.connect((HOST, daemon.port))
            waiting[sock.fileno()] = sock
            poll.register(sock.fileno(), select.EPOLLOUT)
        done: list[socket.socket] = []
        while waiting:
            for fd, events in poll.poll(1):
                if events & select.EPOLLOUT:
                    waiting[fd].send(b"PING\r\n")
                    poll.modify(fd, select.EPOLLIN)
                else:
                    poll.unregister(fd)
                    done.append(waiting.pop(fd))
                    if done[-1].recv(100) != b"+PONG\r\n":
                        raise SystemExit("a client was not let in")
        longest_s = max(longest_s, time.monotonic() - begun_s)
        rounds += 1
        poll.close()
        for sock in done:
            vanish(sock)
        time.sleep(PAUSE_S)
    return f"{rounds} times {HERD}; all answered within {longest_s:.1f} s"


KINDS: dict[str, Callable[[ProxyDaemon, float], str]] = {
    "nobody": nobody,
    "a busy client": busy,
    f"{MANY:,} that vanish mid-request": vanishing,
    f"{MANY:,} that never read": never_reading,
    f"{MANY:,} that send a byte a second": byte_a_second,
    f"10 that pipeline {PIPELINE:,} commands": pipelining,
    f"{MANY:,} that connect and never speak": silent,
    f"{HERD:,} reconnecting at once": herd,
}


def measure(daemon: ProxyDaemon, name: str, seconds: float) -> Row:
    """One kind beside the well-behaved client."""
    seen: dict[str, list[float]] = {}
    before = rss_bytes(family(daemon.pid))
    with polite(daemon.port, seen):
        note = KINDS[name](daemon, seconds)
    took, anew = seen["took"], seen["anew"]
    grown = rss_bytes(family(daemon.pid)) - before
    figures = at(took, 0.5), at(took, 0.99), at(took, 1.0), at(anew, 0.99)
    return Row(name, len(took), *figures, int(seen["errors"]), grown, note)  # type: ignore[call-overload,arg-type]


def table(rows: list[Row]) -> str:
    lines = [
        "| beside | GETs | p50 / p99 / max ms | connect + GET p99 ms | errors | proxy grew by | |",
        "|---|" * 1 + "---|" * 6,
    ]
    for row in rows:
        times = f"{row.p50:.2f} / {row.p99:.2f} / {row.longest:.1f}"
        grown = f"{row.grown / 1e6:.0f} MB"
        lines.append(
            f"| {row.name} | {row.gets:,} | {times} | {row.anew_p99:.2f} | {row.errors} | {grown} | {row.note} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--behave", type=int, metavar="PORT", help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of each kind")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--write", action="store_true", help="put the table into bench/results")
    options = parser.parse_args()
    if options.behave:
        behave(options.behave)
        return
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    about = machine.describe_machine() | {"commit": machine.commit(machine.ROOT), "workers": str(options.workers)}
    config = {"clients": {"frame_timeout": "3s", "idle_timeout": "5s"}, "listeners": [{"backlog": 4096}]}
    with EmbeddedCluster(replicas=0) as cluster, ProxyDaemon(cluster.seeds, config, workers=options.workers) as daemon:
        with daemon.raw() as raw:
            raw.command("SET", "large", "x" * LARGE)
        rows = []
        for name in KINDS:
            rows.append(measure(daemon, name, options.seconds))
            print(table(rows[-1:]).splitlines()[-1], flush=True)
            time.sleep(1)
    now = datetime.datetime.now(datetime.UTC)
    facts = "\n".join(f"| {name} | {value} |" for name, value in about.items())
    page = f"# Clients at their worst, {now:%Y-%m-%d %H:%M} UTC\n\n|  |  |\n|---|---|\n{facts}\n\n{table(rows)}\n"
    print(page)
    if options.write:
        Path(__file__).with_name("results").joinpath(f"{now:%Y-%m-%d}-worst-clients.md").write_text(page)


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    main()
