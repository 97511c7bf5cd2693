"""Slots move and primaries change under constant load: no client sees an error, every INCR counts once."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator

import pytest
import redis

from proxy.embedded import EmbeddedCluster, EmbeddedNode, wait_for
from tests.support.cluster import slot_of
from tests.support.proxyd import ProxyDaemon

CLIENTS = 20
COUNTERS = [f"counter:{n}" for n in range(40)]
SHARED = [f"shared:{n}" for n in range(60)]


@pytest.fixture(scope="module")
def moving_cluster(server: str) -> Iterator[EmbeddedCluster]:
    """Its own cluster, for what changes it. Nodes vote once per shard and two node timeouts, so those must be short."""
    with EmbeddedCluster(server, node_timeout_ms=2500) as started:
        yield started


class Load:
    """CLIENTS threads of plain clients that read, write, MGET and INCR until stopped, and note every error."""

    def __init__(self, proxy: ProxyDaemon) -> None:
        self.proxy = proxy
        self.errors: list[str] = []
        self.done = 0
        self.counted: dict[str, int] = dict.fromkeys(COUNTERS, 0)
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._guard, args=(n,)) for n in range(CLIENTS)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def settle(self, commands: int = 2000, timeout_s: float = 30.0) -> None:
        """Until that many more rounds are done (or something is wrong already)."""
        goal = self.done + commands
        wait_for(lambda: self.done >= goal or self.errors, timeout_s, f"{commands} more rounds of load")

    def _guard(self, number: int) -> None:
        try:
            with self.proxy.client(protocol=2 + number % 2) as client:
                self._talk(client, number, random.Random(number))
        except Exception as error:
            self.errors.append(f"client {number}: {error!r}")

    def _talk(self, client: redis.Redis, number: int, rng: random.Random) -> None:
        own = {f"own:{number}:{n}": "" for n in range(10)}
        names = list(own)
        client.mset(own)
        incremented: dict[str, int] = dict.fromkeys(COUNTERS, 0)
        turn = 0
        try:
            while not self._stop.is_set():
                turn += 1
                key = rng.choice(names)
                match rng.randrange(6):
                    case 0:
                        own[key] = f"{turn}"
                        client.set(key, own[key])
                    case 1:
                        assert client.get(key) == own[key], f"GET {key}"
                    case 2:
                        some = rng.sample(names, 5)
                        assert client.mget(some) == [own[name] for name in some], f"MGET {some}"
                    case 3:
                        some = rng.sample(names, 4)
                        own.update(dict.fromkeys(some, f"m{turn}"))
                        client.mset({name: own[name] for name in some})
                    case 4:
                        counter = rng.choice(COUNTERS)
                        client.incr(counter)
                        incremented[counter] += 1
                    case 5:
                        pipe = client.pipeline(transaction=False)
                        for counter in rng.sample(COUNTERS, 3):
                            pipe.incr(counter)
                            incremented[counter] += 1
                        pipe.get(key)
                        pipe.set(rng.choice(SHARED), f"{number}")
                        assert pipe.execute()[3] == own[key], f"pipelined GET {key}"
                with self._lock:
                    self.done += 1
        finally:
            with self._lock:
                for counter, count in incremented.items():
                    self.counted[counter] += count


@pytest.fixture
def moving_proxy(moving_cluster: EmbeddedCluster, start_proxy: Callable[..., ProxyDaemon]) -> ProxyDaemon:
    for node in moving_cluster.primaries():
        node.command("FLUSHALL")
    return start_proxy(moving_cluster.seeds[:1])


def check(load: Load, proxy: ProxyDaemon) -> None:
    """No error reached a client, and the counters hold exactly what was counted."""
    assert load.errors == []
    with proxy.client() as client:
        held = [int(str(value or 0)) for value in client.mget(COUNTERS)]
    assert dict(zip(COUNTERS, held, strict=True)) == load.counted
    assert sum(held) > 100


def some_busy_slots(cluster: EmbeddedCluster, node: EmbeddedNode, count: int = 50) -> list[int]:
    """Slots of the node with keys of the load in them."""
    owned = set(cluster.slots_of(node))
    names = [*COUNTERS, *SHARED, *(f"own:{c}:{n}" for c in range(CLIENTS) for n in range(10))]
    return sorted({slot_of(name) for name in names} & owned)[:count]


def test_slots_move_back_and_forth(moving_cluster: EmbeddedCluster, moving_proxy: ProxyDaemon) -> None:
    one, two = moving_cluster.primaries()[:2]
    slots = some_busy_slots(moving_cluster, one)
    moved = 0
    with Load(moving_proxy) as load:
        load.settle(500)
        for _ in range(2):
            moved += moving_cluster.move_slots(slots, one, two, batch=1)
            load.settle(300)
            moved += moving_cluster.move_slots(slots, two, one, batch=10)
            load.settle(300)
    check(load, moving_proxy)
    assert moved > 160
    assert moving_proxy.metric("redis_proxy_redirections_total", kind="moved") > 0
    assert moving_proxy.metric("redis_proxy_redirections_total", kind="ask") > 0
    moving_cluster.wait_ok()


def test_manual_failover_and_back(moving_cluster: EmbeddedCluster, moving_proxy: ProxyDaemon) -> None:
    with Load(moving_proxy) as load:
        load.settle(500)
        for _ in range(2):
            for primary in moving_cluster.primaries():
                moving_cluster.failover(moving_cluster.replicas_of(primary)[0])
                load.settle(200)
    check(load, moving_proxy)


def test_both_at_once(moving_cluster: EmbeddedCluster, moving_proxy: ProxyDaemon) -> None:
    """Slots move between two shards while the third changes its primary."""
    one, two, three = moving_cluster.primaries()
    slots = some_busy_slots(moving_cluster, one)
    with Load(moving_proxy) as load:
        load.settle(300)
        moving_cluster.move_slots(slots, one, two)
        moving_cluster.failover(moving_cluster.replicas_of(three)[0])
        moving_cluster.move_slots(slots, two, one)
        moving_cluster.failover(three)
        load.settle(300)
    check(load, moving_proxy)


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
