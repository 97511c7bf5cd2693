"""Transactions while slots move, primaries change and die: each is carried out once or not at all, and never in part.

Each client appends to one log per slot, in a transaction that also counts: either blindly (MULTI, INCR, RPUSH) or with
WATCH, GET, MULTI, SET, RPUSH. What EXEC said of each entry is compared with the logs at the end. A counter that is less
than its log's length has lost an update; an entry that EXEC denied (nil, or an error that does not leave it open) is a
false failure; one that it confirmed and that is missing a false success, unless it was lost with the node it was
written to before that told its replica, which is inherent.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from proxy.embedded import EmbeddedCluster, wait_for
from tests.support.cluster import slot_of, spread_keys
from tests.support.proxyd import ProxyDaemon
from tests.support.raw import RawClient, encode

StartProxy = Callable[..., ProxyDaemon]
BLIND, WATCHING = 6, 6
UNSURE = b"may have been executed"
DENIED = (b"-CLUSTERDOWN", b"-TRYAGAIN", b"-LOADING", b"-MASTERDOWN", b"-READONLY", b"-ERR", b"-MOVED", b"-EXECABORT")
TAGS = spread_keys(prefix="tx")


class Load:
    """Clients that append until stopped; what they were told, by entry."""

    def __init__(self, daemon: ProxyDaemon) -> None:
        self.daemon = daemon
        self.made: set[str] = set()
        self.unsure: set[str] = set()
        self.denied: set[str] = set()
        self.errors: list[bytes] = []
        self.broken: list[str] = []
        self.nil = 0
        self._stop = threading.Event()
        works = [self._blind] * BLIND + [self._watching] * WATCHING
        self._threads = [threading.Thread(target=self._run, args=(n, work)) for n, work in enumerate(works)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def settle(self, more: int = 100, timeout_s: float = 30.0) -> None:
        """Until so many more were made."""
        goal = len(self.made) + more
        wait_for(lambda: len(self.made) >= goal or self.broken, timeout_s, f"{more} more transactions")

    def _run(self, number: int, work: Callable[[RawClient, str, str], bytes | None]) -> None:
        try:
            with self.daemon.raw(timeout_s=60) as raw:
                if number % 2:
                    raw.command("HELLO", "3")
                turn = 0
                while not self._stop.is_set():
                    turn += 1
                    entry = f"{number}:{turn}"
                    self._note(entry, work(raw, TAGS[turn % len(TAGS)], entry))
        except Exception as error:
            self.broken.append(f"client {number}: {error!r}")

    def _note(self, entry: str, answer: bytes | None) -> None:
        if answer is None:
            return
        if answer[:1] == b"*" and not answer.startswith(b"*-1"):
            if b"\r\n-" in answer:
                self.broken.append(repr(answer))
            self.made.add(entry)
            return
        if answer in (b"*-1\r\n", b"_\r\n"):
            self.nil += 1
        else:
            self.errors.append(answer)
            if UNSURE in answer:
                self.unsure.add(entry)
                return
        self.denied.add(entry)

    def _blind(self, raw: RawClient, tag: str, entry: str) -> bytes:
        log, counter = f"{{{tag}}}:blind:log", f"{{{tag}}}:blind"
        raw.send(encode("MULTI") + encode("INCR", counter) + encode("RPUSH", log, entry) + encode("EXEC"))
        return raw.frames(4)[-1]

    def _watching(self, raw: RawClient, tag: str, entry: str) -> bytes | None:
        log, counter = f"{{{tag}}}:watched:log", f"{{{tag}}}:watched"
        raw.send(encode("WATCH", counter) + encode("GET", counter))
        watched, value = raw.frames(2)
        if watched.startswith(b"-") or value.startswith(b"-"):
            self.errors.append(watched if watched.startswith(b"-") else value)
            raw.command("UNWATCH")
            return None
        number = int(value.split(b"\r\n")[1]) + 1 if value[:1] == b"$" and value != b"$-1\r\n" else 1
        raw.send(encode("MULTI") + encode("SET", counter, number) + encode("RPUSH", log, entry) + encode("EXEC"))
        return raw.frames(4)[-1]


def check(load: Load, daemon: ProxyDaemon, *, lost: int = 0) -> None:
    """Nothing was done twice, in part, or otherwise than it was told. lost: how many may have gone with a dead node."""
    assert load.broken == []
    entries: list[str] = []
    with daemon.client(socket_timeout=60) as client:
        for tag in TAGS:
            for kind in ("blind", "watched"):
                log = [str(entry) for entry in client.lrange(f"{{{tag}}}:{kind}:log", 0, -1)]
                assert int(str(client.get(f"{{{tag}}}:{kind}") or 0)) == len(log), f"an update of {kind} was lost"
                entries += log
    there = set(entries)
    assert len(there) == len(entries), "executed twice"
    assert not there & load.denied, "denied, but executed"
    assert there <= load.made | load.unsure
    assert len(load.made - there) <= lost, f"confirmed, but not there: {sorted(load.made - there)[:10]}"
    assert len(load.made) > 200
    assert load.nil > 0


@pytest.fixture
def shaken(server: str) -> Iterator[EmbeddedCluster]:
    with EmbeddedCluster(server, node_timeout_ms=1000, options={"cluster-require-full-coverage": "no"}) as started:
        yield started


def reshard(cluster: EmbeddedCluster, load: Load, rounds: int) -> None:
    slots = [slot_of(tag) for tag in TAGS]
    for _ in range(rounds):
        for slot in slots:
            owner = cluster.owner_of(slot)
            target = next(node for node in cluster.primaries() if node is not owner)
            cluster.move_slots([slot], owner, target, batch=1)
        load.settle(50)


def fail_over(cluster: EmbeddedCluster, load: Load, rounds: int) -> None:
    for _ in range(rounds):
        for primary in cluster.primaries():
            cluster.failover(cluster.replicas_of(primary)[0])
            load.settle(30)


def test_slots_move(shaken: EmbeddedCluster, start_proxy: StartProxy) -> None:
    daemon = start_proxy(shaken.seeds)
    with Load(daemon) as load:
        load.settle(200)
        reshard(shaken, load, 3)
    assert load.errors == []
    check(load, daemon)


def test_primaries_change(shaken: EmbeddedCluster, start_proxy: StartProxy) -> None:
    daemon = start_proxy(shaken.seeds)
    with Load(daemon) as load:
        load.settle(200)
        fail_over(shaken, load, 1)
    assert load.errors == []
    check(load, daemon)


def die(cluster: EmbeddedCluster, load: Load) -> None:
    victim = cluster.primaries()[0]
    cluster.kill(victim)
    wait_for(lambda: len(cluster.primaries()) == 3, 30, "its replica takes over")
    load.settle(200)
    cluster.restart(victim)
    cluster.wait_ok()
    load.settle(50)


def test_a_primary_dies(shaken: EmbeddedCluster, start_proxy: StartProxy) -> None:
    """Errors are allowed, lies are not; what the dead one had not told its replica is gone."""
    daemon = start_proxy(shaken.seeds)
    with Load(daemon) as load:
        load.settle(200)
        die(shaken, load)
    assert [error for error in load.errors if not error.startswith(DENIED)] == []
    check(load, daemon, lost=2 * (BLIND + WATCHING))


@pytest.mark.long
def test_all_of_it_for_long(shaken: EmbeddedCluster, start_proxy: StartProxy) -> None:
    daemon = start_proxy(shaken.seeds)
    with Load(daemon) as load:
        load.settle(200)
        for _ in range(5):
            reshard(shaken, load, 5)
            fail_over(shaken, load, 2)
            die(shaken, load)
    assert [error for error in load.errors if not error.startswith(DENIED)] == []
    check(load, daemon, lost=10 * (BLIND + WATCHING))
