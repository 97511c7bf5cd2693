"""Subscriptions while primaries change, die, hang, and slots move: nothing comes twice, what is missed is of then."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from proxy.embedded import EmbeddedCluster, wait_for, wait_or_none
from tests.support.cluster import slot_of, spread_keys
from tests.support.proxyd import ProxyDaemon
from tests.support.raw import encode

CHANNELS = ["news", "sport"]
SHARDS = spread_keys(3, "shard")
EVENT = b"__keyevent@0__:set"


@pytest.fixture
def fragile(server: str) -> Iterator[EmbeddedCluster]:
    with EmbeddedCluster(server, node_timeout_ms=1000, options={"cluster-require-full-coverage": "no"}) as started:
        yield started


class Publisher(threading.Thread):
    """Publishes numbers to all channels, and sets keys, until it is told to stop."""

    def __init__(self, daemon: ProxyDaemon) -> None:
        super().__init__()
        self.daemon_ = daemon
        self.done = threading.Event()
        self.sent = 0
        self.failed: list[BaseException] = []

    def run(self) -> None:
        try:
            with self.daemon_.raw(timeout_s=30) as raw:
                while not self.done.is_set():
                    self.burst(raw)
                    time.sleep(0.002)
        except BaseException as error:
            self.failed.append(error)

    def burst(self, raw: object) -> None:
        n = self.sent
        commands = [encode("PUBLISH", name, n) for name in CHANNELS]
        commands += [encode("SPUBLISH", name, n) for name in SHARDS]
        commands += [encode("SET", f"{{{name}}}:{n}", "v") for name in SHARDS]
        raw.send(b"".join(commands))  # type: ignore[attr-defined]
        raw.frames(len(commands))  # type: ignore[attr-defined]
        self.sent += 1


class Subscriber(threading.Thread):
    """Keeps what it hears: (channel or pattern, channel, message)."""

    def __init__(self, daemon: ProxyDaemon) -> None:
        super().__init__()
        self.raw = daemon.raw(timeout_s=1)
        self.raw.command("HELLO", 3)
        self.raw.send(encode("SUBSCRIBE", *CHANNELS) + encode("PSUBSCRIBE", "*"))
        self.raw.frames(len(CHANNELS) + 1)
        for name in SHARDS:
            assert self.raw.command("SSUBSCRIBE", name).startswith(b">3\r\n$10\r\nssubscribe")
        self.heard: list[tuple[bytes, ...]] = []
        self.done = threading.Event()

    def run(self) -> None:
        while not self.done.is_set():
            try:
                frame = self.raw.frame()
            except TimeoutError:
                continue
            words = frame.split(b"\r\n")[2::2]
            self.heard.append(tuple(words))
        self.raw.close()

    def numbers(self, *words: bytes) -> list[int]:
        """What came of a channel, in the order in which it came."""
        return [int(one[-1]) for one in self.heard if one[:-1] == words]

    def events(self) -> Counter[bytes]:
        return Counter(one[-1] for one in self.heard if one[:-1] == (b"pmessage", b"*", EVENT))


def failover(cluster: EmbeddedCluster) -> None:
    for primary in cluster.primaries():
        cluster.failover(cluster.replicas_of(primary)[0])


def kill(cluster: EmbeddedCluster) -> None:
    victim = cluster.owner_of(slot_of(SHARDS[0]))
    cluster.kill(victim)
    cluster.wait_ok(30)


def pause(cluster: EmbeddedCluster) -> None:
    victim = cluster.owner_of(slot_of(SHARDS[1]))
    cluster.pause(victim)
    try:
        time.sleep(6)  # more than the proxy gives a node to answer, and than the cluster gives it
    finally:
        cluster.resume(victim)
    cluster.wait_ok(30)


def move(cluster: EmbeddedCluster) -> None:
    for _ in range(2):
        source = cluster.owner_of(slot_of(SHARDS[0]))
        target = next(node for node in cluster.primaries() if node is not source)
        cluster.move_slots([slot_of(SHARDS[0])], source, target)
        time.sleep(0.3)


@pytest.mark.parametrize("incident", [failover, kill, pause, move], ids=lambda f: f.__name__)
def test_nothing_is_doubled_and_all_is_heard_again(
    incident: Callable[[EmbeddedCluster], None], fragile: EmbeddedCluster, start_proxy: Callable[..., ProxyDaemon]
) -> None:
    daemon = start_proxy(fragile.seeds)
    with daemon.raw() as raw:
        assert raw.command("CONFIG", "SET", "notify-keyspace-events", "KEA") == b"+OK\r\n"
    subscriber, publisher = Subscriber(daemon), Publisher(daemon)
    subscriber.start()
    publisher.start()
    try:
        wait_for(lambda: publisher.sent > 100, 10, "some messages before")
        before = publisher.sent
        incident(fragile)

        def whole() -> bool:
            return daemon.metric("redis_proxy_workers_with_interrupted_subscriptions") == 0

        time.sleep(1.2)  # status of the workers comes once a second
        wait_for(whole, 20, "subscriptions are in force again")
        time.sleep(0.5)
        wait_for(whole, 20, "... and stay so")
        after = publisher.sent + 1
        wait_for(lambda: publisher.sent > after + 300 or publisher.failed, 20, "some messages after")
    finally:
        publisher.done.set()
        publisher.join()
        final = str(publisher.sent - 1).encode()
        topics = [(b"message", name.encode(), final) for name in CHANNELS]
        topics += [(b"smessage", name.encode(), final) for name in SHARDS]
        wait_or_none(lambda: set(topics) <= set(subscriber.heard[-1000:]), 10)
        time.sleep(1)  # and what else is on its way by other connections
        subscriber.done.set()
        subscriber.join()
    assert not publisher.failed
    last = publisher.sent
    expected_after = list(range(after, last))
    for kind, names in ((b"message", CHANNELS), (b"smessage", SHARDS)):
        for name in names:
            numbers = subscriber.numbers(kind, name.encode())
            assert len(numbers) == len(set(numbers)), f"{name}: doubled"
            # Where another node becomes primary, the cluster's bus brings it what was published at the one before when
            # it has already given out what came after that: so it is for who subscribes at the node itself, too.
            if incident is move:
                assert numbers == sorted(numbers), f"{name}: out of order"
            assert [n for n in numbers if n < before - 1] == list(range(before - 1)), f"{name}: missed before"
            assert [n for n in numbers if n >= after] == expected_after, f"{name}: missed after"
    events = subscriber.events()
    assert [key for key, count in events.items() if count > 1] == []
    missing = [
        n for name in SHARDS for n in (*range(before - 1), *expected_after) if f"{{{name}}}:{n}".encode() not in events
    ]
    assert missing == []
    if incident is not move or daemon.metric("redis_proxy_subscriptions_interrupted_total"):
        assert daemon.metric("redis_proxy_subscriptions_interrupted_total") >= 1
        assert daemon.log.count("subscriptions interrupted") == daemon.metric(
            "redis_proxy_subscriptions_interrupted_total"
        )


def test_a_node_that_restarts_sends_events_again(
    fragile: EmbeddedCluster, start_proxy: Callable[..., ProxyDaemon]
) -> None:
    """CONFIG SET notify-keyspace-events was for one Redis: it holds for what comes later, too."""
    daemon = start_proxy(fragile.seeds)
    option = "notify-keyspace-events"
    with daemon.raw(timeout_s=30) as raw, daemon.raw() as subscriber:
        assert raw.command("CONFIG", "SET", option, "KEA") == b"+OK\r\n"
        node = fragile.primaries()[0]
        fragile.restart(node)
        wait_for(lambda: b"AKE" in str(node.command("CONFIG", "GET", option)).encode(), 15, "the node is told")
        # Who changes it by hand is not contradicted.
        node.command("CONFIG", "SET", option, "Ex")
        subscriber.command("PSUBSCRIBE", "__keyevent@0__:set")
        time.sleep(3)
        assert "AKE" not in str(node.command("CONFIG", "GET", option))
        assert raw.command("CONFIG", "SET", option, "") == b"+OK\r\n"
        fragile.restart(node)
        time.sleep(3)
        assert "AKE" not in str(node.command("CONFIG", "GET", option))
