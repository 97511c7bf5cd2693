"""Scripts and functions while slots move, primaries change and one is killed: no error, and each is run exactly once.

Each client has counters and lists of its own, in slots that move and in slots that do not, and several commands of one
pipeline under way: EVAL, EVALSHA, FCALL and the plain command in turn. Only it writes them, so that it knows every
reply: one that was run twice, or not, or out of order, shows at once. Meanwhile the nodes lose their scripts, again and
again.
"""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import count, cycle
from typing import Any

import pytest
import redis

from proxy.embedded import EmbeddedCluster, wait_for
from tests.support.cluster import key_in, slot_of
from tests.support.proxyd import ProxyDaemon
from tests.support.raw import RawClient, Word, encode

StartProxy = Callable[..., ProxyDaemon]
CLIENTS = 12
DEPTH = 4
TAGS = 9  # a third of them in each shard
PATIENT = {"requests": {"timeout": "25s", "failover_timeout": "25s"}}
REPLICAS = {"listeners": [{"reads": "prefer_replica"}]}
UNSURE = b"may have been executed"
COUNT = "return redis.call('INCR', KEYS[1])"
COUNT_BOTH = "redis.call('INCR', KEYS[1]) return redis.call('INCR', KEYS[2])"
PUSH = "return redis.call('RPUSH', KEYS[1], ARGV[1])"
READ = "return tonumber(redis.call('GET', KEYS[1]) or 0)"
LIBRARY = """#!lua name=chaos
redis.register_function('count', function(keys) return redis.call('INCR', keys[1]) end)
redis.register_function('push', function(keys, args) return redis.call('RPUSH', keys[1], args[1]) end)
redis.register_function{function_name='read', flags={'no-writes'},
    callback=function(keys) return tonumber(redis.call('GET', keys[1]) or 0) end}
"""


@pytest.fixture(scope="module")
def moving(server: str) -> Iterator[EmbeddedCluster]:
    """Nodes vote once per shard and two node timeouts, so those must be short."""
    with EmbeddedCluster(server, node_timeout_ms=2500) as started:
        yield started


def tags_of_all() -> list[str]:
    """Hash tags, a third of them of each primary's slots."""
    return [f"{{{key_in(n * 16384 // TAGS, (n + 1) * 16384 // TAGS - 1, 'tag')}}}" for n in range(TAGS)]


@pytest.fixture
def tags() -> list[str]:
    return tags_of_all()


class Runner(threading.Thread):
    """One client. reads: also what replicas may answer, and then perhaps something older.

    wrong: replies that no order of events explains. unsure: key -> commands that may have been executed.
    """

    def __init__(self, daemon: ProxyDaemon, number: int, tags: list[str], shas: list[str], reads: bool) -> None:
        super().__init__(daemon=True)
        self.rounds = 0
        self.wrong: list[tuple[str, bytes]] = []
        self.counts: dict[str, int] = {}
        self.unsure: dict[str, int] = {}
        self.errors: Counter[bytes] = Counter()
        self.error: BaseException | None = None
        self.lossy: tuple[str, ...] = ()  # tags of keys of which what was answered may be lost
        self.stopping = threading.Event()
        self._serial = count()
        self._daemon, self._number, self._tags, self._reads = daemon, number, tags, reads
        self._count, self._both, self._read = shas
        self._random = random.Random(number)

    def run(self) -> None:
        try:
            with self._daemon.raw(timeout_s=60) as raw:
                while not self.stopping.is_set():
                    tag = self._random.choice(self._tags)
                    self._random.choice((self._counting, self._pushing, self._counting_both))(raw, tag)
                    self.rounds += 1
        except BaseException as error:
            self.error = error

    def _key(self, tag: str, kind: str) -> str:
        return f"{tag}:{self._number}:{kind}"

    def _counting(self, raw: RawClient, tag: str) -> None:
        """A script that its node has lost runs after what was pipelined behind it, so any order will do."""
        key = self._key(tag, "counter")
        ways: list[tuple[Word, ...]] = [
            ("EVAL", COUNT, 1, key),
            ("EVALSHA", self._count, 1, key),
            ("FCALL", "count", 1, key),
            ("INCR", key),
        ]
        self._check(key, self._talk(raw, self._random.choices(ways, k=DEPTH)), ordered=False)
        if self._reads:
            reads: list[tuple[Word, ...]] = [
                ("EVAL_RO", READ, 1, key),
                ("EVALSHA_RO", self._read, 1, key),
                ("FCALL_RO", "read", 1, key),
            ]
            for reply in self._talk(raw, reads):
                if not reply.startswith(b":") or int(reply[1:]) > self.counts[key] + self.unsure.get(key, 0):
                    self.wrong.append((key, reply))

    def _pushing(self, raw: RawClient, tag: str) -> None:
        """In the order in which they were sent."""
        key = self._key(tag, "list")
        ways: list[tuple[Word, ...]] = [("EVAL", PUSH, 1), ("FCALL", "push", 1), ("RPUSH",)]
        pushes = [(*self._random.choice(ways), key, next(self._serial)) for _ in range(DEPTH)]
        self._check(key, self._talk(raw, pushes), ordered=True)

    def _counting_both(self, raw: RawClient, tag: str) -> None:
        """Two keys of one slot, of which one may have moved already."""
        key, other = self._key(tag, "both"), self._key(tag, "both2")
        ways: list[tuple[Word, ...]] = [("EVAL", COUNT_BOTH, 2, key, other), ("EVALSHA", self._both, 2, key, other)]
        self._check(key, self._talk(raw, self._random.choices(ways, k=2)), ordered=False)

    def _talk(self, raw: RawClient, commands: list[tuple[Word, ...]]) -> list[bytes]:
        raw.send(b"".join(encode(*words) for words in commands))
        return raw.frames(len(commands))

    def _check(self, key: str, replies: list[bytes], ordered: bool) -> None:
        done, unsure = self.counts.get(key, 0), self.unsure.get(key, 0)
        good = [int(reply[1:]) for reply in replies if reply.startswith(b":")]
        for reply in replies:
            if not reply.startswith(b":"):
                self.errors[reply] += 1
                unsure += UNSURE in reply
        if not ordered:
            good.sort()
        if (
            not unsure
            and not (self.lossy and key.startswith(self.lossy))
            and good != [*range(done + 1, done + 1 + len(good))]
        ):
            self.wrong.append((key, b"%d: %s" % (done, b"".join(replies))))
        self.counts[key] = done + len(good)
        self.unsure[key] = unsure


class Load:
    """The clients; check() says whether all that was asked for was executed once."""

    def __init__(self, daemon: ProxyDaemon, cluster: EmbeddedCluster, tags: list[str], reads: bool) -> None:
        self.cluster, self.daemon = cluster, daemon
        with daemon.client() as client:
            client.flushall()
            client.function_load(LIBRARY, replace=True)
            shas = [str(client.script_load(body)) for body in (COUNT, COUNT_BOTH, READ)]
        self.runners = [Runner(daemon, n, tags, shas, reads) for n in range(CLIENTS)]
        self.flushes = 0
        self._stop = threading.Event()
        self._flusher = threading.Thread(target=self._flush, daemon=True)

    def __enter__(self) -> Load:
        for thread in (*self.runners, self._flusher):
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        for runner in self.runners:
            runner.stopping.set()
        for thread in (*self.runners, self._flusher):
            thread.join(60)

    def settle(self, rounds: int = 2) -> None:
        """Everybody goes on so many rounds: what was sent before is answered by then."""
        goals = [runner.rounds + rounds for runner in self.runners]
        wait_for(
            lambda: all(r.error or r.rounds >= goal for r, goal in zip(self.runners, goals, strict=True)), 60, "rounds"
        )

    def _flush(self) -> None:
        for node in cycle(self.cluster.nodes):
            if self._stop.wait(0.05):
                return
            if node.alive:
                with suppress(redis.RedisError):
                    node.command("SCRIPT", "FLUSH")
                    self.flushes += 1

    def check(self, lossy: Sequence[str] = ()) -> None:
        """lossy: tags of whose keys a round of each client may have been lost after it was answered."""
        errors: Counter[bytes] = sum((runner.errors for runner in self.runners), Counter())
        rounds = sum(runner.rounds for runner in self.runners)
        print(f"{rounds} rounds, {self.flushes} flushes, errors {dict(errors)}")
        for runner in self.runners:
            assert (runner.error, runner.wrong[:5], runner.is_alive()) == (None, [], False)
        assert [text for text in errors if UNSURE not in text] == []
        wrong = []
        with self.daemon.client() as client:
            for runner in self.runners:
                for key, answered in runner.counts.items():
                    held = self._held(client, key)
                    least = answered - (DEPTH if key.startswith(tuple(lossy)) else 0)
                    if not least <= held <= answered + runner.unsure[key]:
                        wrong.append((key, answered, held, runner.unsure[key]))
        assert wrong == []
        assert self.flushes > 5
        assert rounds > 20 * CLIENTS

    def _held(self, client: redis.Redis, key: str) -> int:
        if key.endswith("list"):
            items = [int(item) for item in client.lrange(key, 0, -1)]
            assert items == sorted(items), f"{key}: {items}"
            return len(items)
        counts = [int(str(client.get(name) or 0)) for name in (key, f"{key}2" if key.endswith("both") else key)]
        assert counts[0] == counts[1], key
        return counts[0]


def slots_move(cluster: EmbeddedCluster, daemon: ProxyDaemon, tags: list[str], times: int, *, reads: bool) -> None:
    """Of one primary, with their keys, to another and back."""
    one, two = cluster.primaries()[:2]
    slots = sorted({slot_of(tag) for tag in tags} & set(cluster.slots_of(one)))
    assert slots
    moved = 0
    with Load(daemon, cluster, tags, reads) as load:
        load.settle()
        for turn in range(times):
            for source, target in ((one, two), (two, one)):
                moved += cluster.move_slots(slots, source, target, batch=(1, 20)[turn % 2])
                load.settle()
    load.check()
    print(f"{moved} keys moved")
    assert moved > 100
    for kind in ("moved", "ask"):
        assert daemon.metric("redis_proxy_redirections_total", kind=kind) > 0


def primaries_change(cluster: EmbeddedCluster, daemon: ProxyDaemon, tags: list[str], *, reads: bool) -> None:
    """CLUSTER FAILOVER of each, and back."""
    with Load(daemon, cluster, tags, reads) as load:
        load.settle()
        for primary in cluster.primaries():
            cluster.failover(cluster.replicas_of(primary)[0])
            load.settle()
            cluster.failover(primary)
            load.settle()
    load.check()


def test_slots_move_back_and_forth(moving: EmbeddedCluster, tags: list[str], start_proxy: StartProxy) -> None:
    slots_move(moving, start_proxy(moving.seeds[:1], REPLICAS), tags, 4, reads=True)


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("config", [{}, REPLICAS], ids=["primary", "replicas"])
def test_slots_move_back_and_forth_for_long(
    workers: int, config: dict[str, Any], moving: EmbeddedCluster, tags: list[str], start_proxy: StartProxy
) -> None:
    slots_move(moving, start_proxy(moving.seeds[:1], config, workers=workers), tags, 60, reads=bool(config))


@pytest.mark.parametrize("config", [{}, pytest.param(REPLICAS, marks=pytest.mark.long)], ids=["primary", "replicas"])
def test_primaries_change(
    config: dict[str, Any], moving: EmbeddedCluster, tags: list[str], start_proxy: StartProxy
) -> None:
    daemon = start_proxy(moving.seeds[:1], config | PATIENT)
    primaries_change(moving, daemon, tags, reads=bool(config))


@pytest.mark.parametrize("config", [{}, pytest.param(REPLICAS, marks=pytest.mark.long)], ids=["primary", "replicas"])
def test_a_primary_is_killed(config: dict[str, Any], server: str, start_proxy: StartProxy) -> None:
    """What its node had answered and not yet replicated is lost, and what was under way may have been executed."""
    with EmbeddedCluster(server, node_timeout_ms=1000) as cluster:
        tags = tags_of_all()
        victim = cluster.primaries()[0]
        lossy = [tag for tag in tags if slot_of(tag) in set(cluster.slots_of(victim))]
        replica = cluster.replicas_of(victim)[0]
        daemon = start_proxy(cluster.seeds[1:2], config | PATIENT)
        with Load(daemon, cluster, tags, bool(config)) as load:
            load.settle(10)
            for runner in load.runners:
                runner.lossy = tuple(lossy)
            cluster.kill(victim)
            wait_for(lambda: cluster.role(replica) == "primary", 30, "its replica takes over")
            load.settle(10)
        load.check(lossy)
