"""CLIENT TRACKING while the cluster changes: no stale value lasts in a client that relies on its cache."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable

import pytest

from proxy.embedded import EmbeddedCluster, EmbeddedNode, wait_for
from tests.support.cluster import slot_of
from tests.support.proxyd import ProxyDaemon
from tests.support.raw import encode
from tests.support.standstill import Standstill

KEYS = [f"track:{n}" for n in range(300)]
SETTLED_S = 5.0  # after which a cache must be right again
FOLLOWED_S = 6.0  # in which a moved slot is: the main process hears in 1 s of who tracks, and looks every 2.4 s
SILENT_S = 6.5  # in which a silent node is found: a second, three of patience, and what a busy machine takes


class Writer(threading.Thread):
    """Writes growing numbers to its share of the keys; `written` is what the proxy has confirmed."""

    def __init__(self, proxy: ProxyDaemon, keys: list[str], counter: list[int]) -> None:
        super().__init__(daemon=True)
        self.proxy, self.keys, self.counter = proxy, keys, counter
        self.written: dict[str, int] = {}
        self.over = threading.Event()
        self.count = 0

    def run(self) -> None:
        chance = random.Random(self.keys[0])
        with self.proxy.raw() as client:
            while not self.over.is_set():
                key = chance.choice(self.keys)
                self.counter[0] += 1
                number = self.counter[0]
                if client.command("SET", key, number) == b"+OK\r\n":
                    self.written[key] = number
                    self.count += 1


class Cache(threading.Thread):
    """A client that reads a key only when it is not in its cache, pipelined; drops what it is told to drop.

    A value that is not newer than the one it had before that key was written (`strict`: invalidations come of nothing
    else), or that is older (`lossless`: no write is lost) is a fault.
    """

    lossless = strict = False

    def __init__(self, proxy: ProxyDaemon, *options: str) -> None:
        super().__init__(daemon=True)
        self.client = proxy.raw()
        self.client.command("HELLO", 3)
        assert self.client.command("CLIENT", "TRACKING", "ON", *options) == b"+OK\r\n"
        self.values: dict[str, bytes] = {}
        self.least: dict[str, int] = {}  # the number that the next value of a key has at least
        self.over = threading.Event()
        self.reads = self.hits = self.flushes = self.drops = 0
        self.faults: list[str] = []

    def run(self) -> None:
        chance = random.Random(7)
        try:
            while not self.over.is_set():
                self.round(chance.sample(KEYS, 20), chance.random() < 0.3)
        except Exception as error:
            self.faults.append(repr(error))

    def round(self, keys: list[str], together: bool) -> None:
        wanted = [key for key in keys if key not in self.values]
        self.hits += len(keys) - len(wanted)
        self.reads += len(wanted)
        if not wanted:
            self.said([], 1, encode("PING"))
        elif together:
            self.said(wanted, 1, encode("MGET", *wanted))
        else:
            self.said(wanted, len(wanted), b"".join(encode("GET", key) for key in wanted))

    def said(self, keys: list[str], replies: int, frames: bytes) -> None:
        """In the order in which it comes: values are kept, and dropped by what comes behind them."""
        self.client.send(frames)
        n = 0
        while n < replies:
            frame = self.client.frame()
            if frame.startswith(b">"):
                self.told(frame)
                continue
            if keys and replies == 1 and frame.startswith(b"*"):
                items = frame.split(b"\r\n")[1:-1]
                at = 0
                for key in keys:
                    null = items[at] in (b"_", b"$-1")
                    self.keep(key, b"" if null else items[at + 1])
                    at += 1 if null else 2
            elif keys and not frame.startswith(b"-"):
                self.keep(keys[n], b"" if frame.startswith((b"_", b"$-1")) else frame.split(b"\r\n")[1])
            n += 1

    def keep(self, key: str, value: bytes) -> None:
        least = self.least.get(key, 0)
        if self.lossless and int(value or 0) < least:
            self.faults.append(f"{key}: {value!r} was read, {least} or more should have been")
        self.least[key] = int(value or 0)
        self.values[key] = value

    def told(self, frame: bytes) -> None:
        if frame.endswith(b"invalidate\r\n_\r\n"):
            self.values.clear()
            self.flushes += 1
            return
        for key in frame.split(b"\r\n")[5::2]:
            if key:
                if self.values.pop(key.decode(), None) is not None and self.strict:
                    self.least[key.decode()] += 1  # the value it had is not the one that was written
                self.drops += 1


def converges(cluster: EmbeddedCluster, cache: Cache, truth: dict[str, bytes]) -> None:
    """Whatever it has in its cache is what the servers have, within SETTLED_S; and it did rely on its cache."""
    deadline = time.monotonic() + SETTLED_S
    while True:
        cache.round(KEYS, False)
        stale = {key: (value, truth[key]) for key, value in cache.values.items() if value != truth[key]}
        if not stale and len(cache.values) == len(KEYS):
            return
        assert time.monotonic() < deadline, f"{len(stale)} stale: {dict(list(stale.items())[:5])}"
        time.sleep(0.05)


def move_some(cluster: EmbeddedCluster, stop: threading.Event) -> None:
    chance = random.Random(3)
    slots = sorted({slot_of(key) for key in KEYS})
    while not stop.is_set():
        source, target = chance.sample(cluster.primaries(), 2)
        own = set(cluster.slots_of(source))
        some = [slot for slot in slots if slot in own][:15]
        cluster.move_slots(some, source, target)


def fail_over(cluster: EmbeddedCluster, stop: threading.Event) -> None:
    while not stop.is_set():
        for primary in cluster.primaries():
            replica = cluster.replicas_of(primary)[0]
            cluster.failover(replica)
            if stop.is_set():
                return


def kill_one(cluster: EmbeddedCluster, stop: threading.Event) -> None:
    primary: EmbeddedNode = cluster.primaries()[0]
    stop.wait(1)
    cluster.kill(primary)
    cluster.wait_ok()
    stop.wait(1)
    cluster.restart(primary)


def break_connections(cluster: EmbeddedCluster, stop: threading.Event) -> None:
    while not stop.wait(0.3):
        for node in cluster.primaries():
            node.command("CLIENT", "KILL", "TYPE", "normal")


TROUBLES: list[Callable[[EmbeddedCluster, threading.Event], None]] = [
    lambda cluster, stop: None, move_some, fail_over, kill_one, break_connections,
]  # fmt: skip
LOSSLESS = (TROUBLES[0], move_some, break_connections)


@pytest.mark.parametrize(
    "trouble",
    [
        pytest.param(trouble, id=name, marks=pytest.mark.long if name in ("none", "failover") else ())
        for trouble, name in zip(TROUBLES, ["none", "slots", "failover", "kill", "connections"], strict=True)
    ],
)
def test_no_stale_value_lasts(trouble: Callable[[EmbeddedCluster, threading.Event], None], server: str) -> None:
    with EmbeddedCluster(server, node_timeout_ms=1500) as cluster, ProxyDaemon(cluster.seeds[:1]) as proxy:
        counter = [0]
        caches = [Cache(proxy), Cache(proxy, "NOLOOP"), Cache(proxy, "BCAST")]
        for cache in caches:
            cache.lossless = trouble in LOSSLESS
            cache.strict = trouble is TROUBLES[0] and cache is not caches[2]  # BCAST may tell behind what has been read
        writers = [Writer(proxy, KEYS[n::2], counter) for n in range(2)]
        stop = threading.Event()
        for thread in (*caches, *writers):
            thread.start()
        troubles = threading.Thread(target=trouble, args=(cluster, stop), daemon=True)
        troubles.start()
        time.sleep(4)
        stop.set()
        troubles.join(30)
        for thread in writers:
            thread.over.set()
            thread.join(10)
        for cache in caches:
            cache.over.set()
            cache.join(15)
        assert [cache.faults for cache in caches] == [[], [], []]
        with proxy.raw() as client:
            truth = {}
            for key in KEYS:
                said = client.command("GET", key)
                truth[key] = b"" if said == b"$-1\r\n" else said.split(b"\r\n")[1]
        for cache in caches:
            converges(cluster, cache, truth)
        assert sum(writer.count for writer in writers) > 300
        assert all(cache.hits > 100 and cache.drops > 100 for cache in caches)
        print([(cache.hits, cache.reads, cache.drops, cache.flushes) for cache in caches])
        for cache in caches:
            cache.client.close()


def test_a_node_that_hangs(server: str) -> None:
    """Its replica is promoted and another application writes there: who asks the proxy for nothing is told, too.

    The proxy finds out by itself: no other client of it comes to that node.
    """
    with EmbeddedCluster(server, node_timeout_ms=1500) as cluster, ProxyDaemon(cluster.seeds[:1]) as proxy:
        node = cluster.primaries()[0]
        (replica,) = cluster.replicas_of(node)
        own = set(cluster.slots_of(node))
        key = next(key for key in KEYS if slot_of(key) in own)
        clients = [proxy.raw() for _ in range(2)]
        for client, options in zip(clients, ((), ("BCAST",)), strict=True):
            client.command("HELLO", 3)
            assert client.command("CLIENT", "TRACKING", "ON", *options) == b"+OK\r\n"
            client.command("GET", key)
        with Standstill() as still:
            start = time.monotonic()
            cluster.pause(node)
            for client in clients:
                client.sock.settimeout(4 * SILENT_S)
                assert client.frame() == b">2\r\n$10\r\ninvalidate\r\n_\r\n"
            took_s = time.monotonic() - start
        assert took_s < SILENT_S + 2 * still.longest_s
        wait_for(lambda: replica.command("ROLE")[0] == "master", 20, "the replica is promoted")
        wait_for(lambda: replica.cluster_info()["cluster_state"] == "ok", 20, "it serves")
        replica.command("SET", key, "new")

        def reads() -> bool:
            clients[0].send(encode("GET", key))
            said = clients[0].frame()
            while said.startswith(b">"):
                said = clients[0].frame()
            return said == b"$3\r\nnew\r\n"

        wait_for(reads, 15, "it reads what is true")
        for client in clients:
            client.close()


def test_a_slot_that_moves_in_order(server: str) -> None:
    """A key that is not there is not deleted at the old place, so nobody tells: the proxy looks, and does not storm."""
    with EmbeddedCluster(server, replicas=0) as cluster, ProxyDaemon(cluster.seeds[:1], workers=1) as proxy:
        source, target = cluster.primaries()[:2]
        own = set(cluster.slots_of(source))
        key = next(key for key in KEYS if slot_of(key) in own)
        with proxy.raw() as client:
            client.command("HELLO", 3)
            assert client.command("CLIENT", "TRACKING", "ON") == b"+OK\r\n"
            assert client.command("GET", key) == b"_\r\n"
            cluster.move_slots([slot_of(key)], source, target)
            target.command("SET", key, "new")
            client.sock.settimeout(4 * FOLLOWED_S)
            with Standstill() as still:
                start = time.monotonic()
                assert client.frame() == b">2\r\n$10\r\ninvalidate\r\n_\r\n"
                took_s = time.monotonic() - start
            assert took_s < FOLLOWED_S + 2 * still.longest_s
            start, before = time.monotonic(), refreshes(proxy)
            wait_for(lambda: refreshes(proxy) >= before + 2, 10, "it looks again, though nothing happens")
            assert time.monotonic() - start > 1.5


def refreshes(proxy: ProxyDaemon) -> float:
    return proxy.metric("redis_proxy_topology_refreshes_total", trigger="interval", outcome="unchanged")
