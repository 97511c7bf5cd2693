"""Keys that are there throughout are returned by every SCAN, while slots move back and forth and primaries change.

Ten clients scan with different COUNTs, each page through any of two proxies; one slot has many keys of one hash tag,
so that it takes many pages itself.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress

import pytest
import redis

from proxy.embedded import EmbeddedCluster, EmbeddedNode, wait_for
from proxy.resp.decode import decode
from tests.support.cluster import slot_of
from tests.support.proxyd import ProxyDaemon
from tests.support.raw import RawClient

StartProxy = Callable[..., ProxyDaemon]
CLIENTS = 10
TAG = "{many}"
COUNTS = (25, 50, 100, 100, 250, 500, 1000, 1000, 3000, 20_000)
PATIENT = {"requests": {"timeout": "25s", "failover_timeout": "25s"}}


@pytest.fixture(scope="module")
def moving(server: str) -> Iterator[EmbeddedCluster]:
    with EmbeddedCluster(server, node_timeout_ms=2500) as started:
        yield started


def fill(cluster: EmbeddedCluster, daemon: ProxyDaemon, plain: int, tagged: int) -> set[bytes]:
    """The only keys of the cluster."""
    for node in cluster.primaries():
        node.command("FLUSHALL")
    names = [f"key:{n}".encode() for n in range(plain)] + [f"{TAG}{n}".encode() for n in range(tagged)]
    with daemon.raw(timeout_s=60) as raw:
        for at in range(0, len(names), 1000):
            part = names[at : at + 1000]
            assert raw.command("MSET", *(word for name in part for word in (name, b"v"))) == b"+OK\r\n"
    return set(names)


def page(raw: RawClient, cursor: bytes, *words: bytes | str | int) -> tuple[bytes, list[bytes]]:
    reply = decode(raw.command("SCAN", cursor, *words))
    assert isinstance(reply, list), f"SCAN {cursor!r}: {reply!r}"
    return reply[0], reply[1]


class Scanner(threading.Thread):
    """Scans again and again until told to stop, and notes what a whole scan has not returned."""

    def __init__(self, daemons: list[ProxyDaemon], count: int, wanted: set[bytes], number: int) -> None:
        super().__init__(daemon=True)
        self.scans = self.pages = 0
        self.missed: list[tuple[int, list[bytes]]] = []
        self.error: BaseException | None = None
        self.stopping = threading.Event()
        self._daemons, self._count, self._wanted = daemons, count, wanted
        self._random = random.Random(number)

    def run(self) -> None:
        try:
            with ExitStack() as stack:
                raws = [stack.enter_context(daemon.raw(60)) for daemon in self._daemons for _ in range(2)]
                while not self.stopping.is_set():
                    self._scan(raws)
        except BaseException as error:
            self.error = error

    def _scan(self, raws: list[RawClient]) -> None:
        cursor, found = b"0", set[bytes]()
        while True:
            cursor, keys = page(self._random.choice(raws), cursor, "COUNT", self._count)
            found.update(keys)
            self.pages += 1
            if cursor == b"0":
                break
        self.scans += 1
        if lacking := self._wanted - found:
            self.missed.append((len(lacking), [*lacking][:5]))


class Mover(threading.Thread):
    """Moves slots from one primary to the other and back until told to stop."""

    def __init__(self, cluster: EmbeddedCluster, slots: list[int], pair: tuple[EmbeddedNode, EmbeddedNode]) -> None:
        super().__init__(daemon=True)
        self.moves = self.keys = 0
        self.error: BaseException | None = None
        self.stopping = threading.Event()
        self._cluster, self._slots, self._pair = cluster, slots, pair

    def run(self) -> None:
        source, target = self._pair
        try:
            while not self.stopping.is_set():
                for slot in self._slots:  # all of them, so that each round begins with all at one node
                    batch = 100 if slot == slot_of(TAG) else 1
                    while not self._moved(slot, source, target, batch):
                        pass
                    self.moves += 1
                source, target = target, source
        except BaseException as error:
            self.error = error

    def _moved(self, slot: int, source: EmbeddedNode, target: EmbeddedNode, batch: int) -> bool:
        """False when it is to be done again: the cluster is down for a moment, or a third node changes its role."""
        try:
            self.keys += self._cluster.move_slots([slot], source, target, batch=batch)
        except redis.ResponseError:
            return slot in self._cluster.slots_of(target) and slot not in self._cluster.slots_of(source)
        return True


def scans_are_whole(
    cluster: EmbeddedCluster,
    daemons: list[ProxyDaemon],
    wanted: set[bytes],
    *,
    slots: int,
    scans: int,
    meanwhile: Callable[[], None] = lambda: None,
    timeout_s: float = 100,
) -> None:
    """slots: that move. scans: of each client, at least. meanwhile: what else happens."""
    source = cluster.owner_of(slot_of(TAG))
    target = next(node for node in cluster.primaries() if node is not source)
    owned = set(cluster.slots_of(source))
    busy = sorted({slot_of(name) for name in wanted} & owned - {slot_of(TAG)})
    chosen = [slot_of(TAG), *random.Random(1).sample(busy, slots)]
    mover = Mover(cluster, chosen, (source, target))
    scanners = [Scanner(daemons, COUNTS[n], wanted, n) for n in range(CLIENTS)]

    def done() -> bool:
        if mover.error or any(scanner.error for scanner in scanners):
            return True
        return mover.moves > 2 * len(chosen) and all(scanner.scans >= scans for scanner in scanners)

    for thread in (mover, *scanners):
        thread.start()
    try:
        meanwhile()
        wait_for(done, timeout_s, f"{scans} scans of each client")
    finally:
        for thread in (mover, *scanners):
            thread.stopping.set()
        for thread in (mover, *scanners):
            thread.join(60)
    print(
        f"{mover.moves} moves of {mover.keys} keys; scans {[s.scans for s in scanners]}, "
        f"pages {[s.pages for s in scanners]}"
    )
    assert [scanner.error for scanner in scanners] == [None] * CLIENTS
    assert mover.error is None
    assert [scanner.missed for scanner in scanners] == [[]] * CLIENTS
    assert mover.moves >= len(chosen)


def test_slots_move_while_ten_clients_scan(moving: EmbeddedCluster, start_proxy: StartProxy) -> None:
    daemons = [start_proxy(moving.seeds[:1]), start_proxy(moving.seeds[1:2])]
    wanted = fill(moving, daemons[0], 3000, 2000)
    scans_are_whole(moving, daemons, wanted, slots=20, scans=1)


@pytest.mark.long
def test_primaries_change_while_ten_clients_scan(moving: EmbeddedCluster, start_proxy: StartProxy) -> None:
    """CLUSTER FAILOVER of the shard whose slots do not move, and back."""
    daemons = [start_proxy(moving.seeds[:1], PATIENT), start_proxy(moving.seeds[1:2], PATIENT)]
    wanted = fill(moving, daemons[0], 3000, 1000)
    source = moving.owner_of(slot_of(TAG))
    target = next(node for node in moving.primaries() if node is not source)
    third = next(node for node in moving.primaries() if node not in (source, target))

    def fail_over() -> None:
        replica = moving.replicas_of(third)[0]
        assert third.command("WAIT", 1, 5000) == 1
        ask_for(replica)
        ask_for(third)

    def ask_for(node: EmbeddedNode) -> None:
        """moving.failover also waits for slots that agree everywhere, which they do not while some move."""

        def primary() -> bool:
            if moving.role(node) == "primary":
                return True
            with suppress(redis.ResponseError):  # it is busy with the one before
                node.command("CLUSTER", "FAILOVER")
            return False

        wait_for(primary, 30, "failover")

    scans_are_whole(moving, daemons, wanted, slots=10, scans=1, meanwhile=fail_over)


@pytest.mark.long
def test_a_primary_is_killed_while_ten_clients_scan(server: str, start_proxy: StartProxy) -> None:
    """kill -9 of the shard whose slots do not move: its replica takes over, no client sees an error."""
    with EmbeddedCluster(server, node_timeout_ms=2500) as cluster:
        daemons = [start_proxy(cluster.seeds[:1], PATIENT), start_proxy(cluster.seeds[1:2], PATIENT)]
        wanted = fill(cluster, daemons[0], 3000, 1000)
        source = cluster.owner_of(slot_of(TAG))
        target = next(node for node in cluster.primaries() if node is not source)
        third = next(node for node in cluster.primaries() if node not in (source, target))
        replica = cluster.replicas_of(third)[0]
        assert third.command("WAIT", 1, 5000) == 1

        def kill() -> None:
            cluster.kill(third)
            wait_for(lambda: cluster.role(replica) == "primary", 30, "its replica takes over")

        scans_are_whole(cluster, daemons, wanted, slots=10, scans=1, meanwhile=kill)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_200_000_keys(moving: EmbeddedCluster, start_proxy: StartProxy) -> None:
    daemons = [start_proxy(moving.seeds[:1]), start_proxy(moving.seeds[1:2])]
    wanted = fill(moving, daemons[0], 185_000, 15_000)
    scans_are_whole(moving, daemons, wanted, slots=100, scans=1, timeout_s=600)
