"""One channel with ten thousand subscribers: the proxy beside a single server with the same subscribers.

Run it with the project's interpreter: `.venv/bin/python bench/pubsub.py --help`. Prints a table, leaves nothing behind.

A process of its own holds the subscribers (RESP2) and counts the bytes that come; another one publishes. `flood`: so
many messages in one pipeline, which the server and the proxy may give out together; `single`: each when all have got
the one before. Delivered messages a second, and the CPU of the proxy (all its processes) and of the servers, per
delivery. `paced`: so many messages a second, while one client asks GET after GET
through the same worker; the latency of these GETs is compared with that without any message.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import os
import resource
import select
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import machine
from bench.contestants import packed, start_cluster, start_proxy
from bench.procfs import cpu_time, family
from proxy.embedded import HOST
from tests.support.cluster import Standalone, servers

CHANNEL = "news"
PAYLOAD = b"x" * 64
FRAME = packed("message", CHANNEL, PAYLOAD)


# -- the subscribers' process ----------------------------------------------------------------------------------------


def hold(port: int, count: int) -> None:
    """Subscribes `count` connections, then counts what they are sent: each line of stdin is a number of bytes to come.

    Says `ready`, and for each line when the bytes were there, in time.monotonic_ns().
    """
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    poll = select.epoll()
    sockets: dict[int, socket.socket] = {}
    for _ in range(count):
        one = socket.create_connection((HOST, port), timeout=30)
        one.sendall(packed("SUBSCRIBE", CHANNEL))
        want = len(packed("subscribe", CHANNEL)) + len(":1\r\n")
        while want:
            got = one.recv(want)
            if not got:
                raise SystemExit("a subscriber is not let in")
            want -= len(got)
        one.setblocking(False)
        sockets[one.fileno()] = one
        poll.register(one.fileno(), select.EPOLLIN)
    print("ready", flush=True)
    buffer = bytearray(1 << 18)
    receive = {fd: one.recv_into for fd, one in sockets.items()}
    for line in sys.stdin:
        left = int(line)
        while left > 0:
            for fd, _ in poll.poll(10, 1024):
                n = receive[fd](buffer)
                if n == 0:
                    raise SystemExit("a subscriber was closed")
                left -= n
        print(time.monotonic_ns(), flush=True)


class Subscribers:
    """That process."""

    def __init__(self, port: int, count: int) -> None:
        self.count = count
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--hold", str(port), str(count)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._said() == "ready"

    def _said(self) -> str:
        assert self.process.stdout is not None
        said = self.process.stdout.readline().strip()
        if not said:
            raise SystemExit("the subscribers have failed")
        return said

    def expect(self, messages: int) -> Callable[[], int]:
        """Waits for so many messages to each; the call returns when they were there, in ns."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{messages * self.count * len(FRAME)}\n")
        self.process.stdin.flush()
        return lambda: int(self._said())

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


# -- what is measured ------------------------------------------------------------------------------------------------


def connect(port: int) -> socket.socket:
    one = socket.create_connection((HOST, port), timeout=120)
    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return one


def flood(
    port: int, pids: dict[str, list[int]], subscribers: Subscribers, messages: int, single: bool
) -> dict[str, float]:
    """Deliveries a second, and microseconds of CPU for each. single: one message after the other."""
    with connect(port) as publisher:
        before = {name: cpu_time(of) for name, of in pids.items()}
        begun_ns = end_ns = time.monotonic_ns()
        for _ in range(messages if single else 1):
            arrived = subscribers.expect(1 if single else messages)
            publisher.sendall(packed("PUBLISH", CHANNEL, PAYLOAD) * (1 if single else messages))
            end_ns = arrived()
        seconds = (end_ns - begun_ns) / 1e9
        deliveries = messages * subscribers.count
        told = {"rate": deliveries / seconds}
        for name, of in pids.items():
            spent = cpu_time(of).since(before[name])
            told[name] = (spent.user_ns + spent.system_ns) / deliveries / 1e3
        return told


def latencies(port: int, seconds: float) -> list[float]:
    """Of GET after GET, in milliseconds, ascending."""
    frame, found = packed("GET", "bench"), []
    with connect(port) as one:
        one.sendall(packed("SET", "bench", PAYLOAD))
        one.recv(64)
        until = time.perf_counter() + seconds
        while (begun := time.perf_counter()) < until:
            one.sendall(frame)
            one.recv(4096)
            found.append((time.perf_counter() - begun) * 1e3)
            time.sleep(0.001)
    return sorted(found)


def paced(port: int, subscribers: Subscribers, rate: float, seconds: float) -> list[float]:
    """The latencies of GET while so many messages a second are given out."""
    messages = round(rate * seconds)
    arrived = subscribers.expect(messages)

    def publish() -> None:
        with connect(port) as publisher:
            begun = time.monotonic()
            for n in range(messages):
                time.sleep(max(0.0, begun + n / rate - time.monotonic()))
                publisher.sendall(packed("PUBLISH", CHANNEL, PAYLOAD))
                publisher.recv(64)

    thread = threading.Thread(target=publish)
    thread.start()
    found = latencies(port, seconds)
    thread.join()
    arrived()
    return found


@contextlib.contextmanager
def subscribed(port: int, count: int) -> Iterator[Subscribers]:
    subscribers = Subscribers(port, count)
    try:
        yield subscribers
    finally:
        subscribers.close()


def quantiles(found: list[float]) -> str:
    return " / ".join(f"{found[min(len(found) - 1, int(len(found) * q))]:.2f}" for q in (0.5, 0.99, 1.0))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--subscribers", type=int, default=10_000)
    parser.add_argument("--messages", type=int, default=100, help="of a flood")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rates", default="1,5,10", help="messages a second, paced")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each pace")
    parser.add_argument("--hold", nargs=2, type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.hold:
        hold(*options.hold)
        return 0
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    rates = [float(rate) for rate in options.rates.split(",")]
    print(f"# Publish and subscribe, {datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC\n\n|  |  |\n|---|---|")
    for name, value in machine.describe_machine().items():
        print(f"| {name} | {value} |")
    print(f"| commit | {machine.commit(Path(__file__).parents[1])} |")
    print(f"| load | {options.subscribers:,} subscribers (RESP2) of one channel, messages of {len(PAYLOAD)} bytes |\n")
    floods, gets = [], []
    for kind, binary in servers().items():
        version = (
            subprocess.run([binary, "--version"], capture_output=True, text=True, check=True)
            .stdout.split("v=")[1]
            .split()[0]
        )
        with Standalone(binary) as server:
            pid = server._process.pid  # type: ignore[union-attr]
            with connect(server.port) as admin:
                admin.sendall(packed("CONFIG", "SET", "maxclients", options.subscribers + 100))
                admin.settimeout(5)
                assert admin.recv(64) == b"+OK\r\n", "the server does not take so many clients"
            with subscribed(server.port, options.subscribers) as subscribers:
                for single in [False, True] * options.rounds:
                    told = flood(server.port, {"server": [pid]}, subscribers, options.messages, single)
                    floods.append((f"one {kind} {version}", single, told["rate"], None, told["server"]))
                gets.append((f"one {kind}", "none", latencies(server.port, options.seconds)))
                for rate in rates:
                    gets.append((f"one {kind}", f"{rate:g}", paced(server.port, subscribers, rate, options.seconds)))
    with tempfile.TemporaryDirectory() as folder, start_cluster(None) as cluster:
        proxy = start_proxy(cluster, Path(folder))
        try:
            pids = {
                "proxy": proxy.family(),
                "server": [pid for node in cluster.nodes for pid in family(node.process.pid)],  # type: ignore[union-attr]
            }
            with subscribed(proxy.port, options.subscribers) as subscribers:
                for single in [False, True] * options.rounds:
                    told = flood(proxy.port, pids, subscribers, options.messages, single)
                    name = "proxy, 1 worker, 3 primaries"
                    floods.append((name, single, told["rate"], told["proxy"], told["server"]))
                gets.append(("proxy", "none", latencies(proxy.port, options.seconds)))
                for rate in rates:
                    gets.append(("proxy", f"{rate:g}", paced(proxy.port, subscribers, rate, options.seconds)))
        finally:
            proxy.stop()
    print("| | messages | delivered/s | CPU us per delivery: proxy | servers |\n|---|---|---|---|---|")
    for name, single, rate, ours, theirs in sorted(floods, key=lambda row: row[1]):
        how = "one by one" if single else "a flood"
        print(f"| {name} | {how} | {rate:,.0f} | {'' if ours is None else f'{ours:.2f}'} | {theirs:.2f} |")
    print("\n| GET meanwhile | messages/s | deliveries/s | p50 / p99 / max ms |\n|---|---|---|---|")
    for name, paced_at, found in gets:
        deliveries = 0 if paced_at == "none" else float(paced_at) * options.subscribers
        print(f"| {name} | {paced_at} | {deliveries:,.0f} | {quantiles(found)} |")
    print(f"\nload average at the end: {' '.join(f'{one:.1f}' for one in os.getloadavg())}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
