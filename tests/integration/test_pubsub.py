"""Subscriptions: what a client is told is what one Redis would tell it, and every message and event comes once."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from proxy.embedded import EmbeddedCluster, wait_for
from tests.support.cluster import Standalone, spread_keys
from tests.support.proxyd import ProxyDaemon
from tests.support.raw import RawClient, Word, array, bulk, encode

MARK = b"the mark behind it"


def said(client: RawClient, *words: Word) -> list[bytes]:
    """Everything that one command brings about: frames up to the answer of a PING behind it."""
    client.send(encode(*words) + encode("PING", MARK))
    frames = []
    while MARK not in (frame := client.frame()):
        frames.append(frame)
    return [*frames, frame]


def told(proto: int, word: str, name: str, count: int) -> bytes:
    frame = array(bulk(word.encode()), bulk(name.encode()), b":%d\r\n" % count)
    return b">" + frame[1:] if proto == 3 else frame


def message(proto: int, *words: str | bytes) -> bytes:
    frame = array(*(bulk(word if isinstance(word, bytes) else word.encode()) for word in words))
    return b">" + frame[1:] if proto == 3 else frame


@pytest.fixture(params=[2, 3], ids=["resp2", "resp3"])
def proto(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def subscriber(proxy: ProxyDaemon, proto: int) -> Iterator[RawClient]:
    with proxy.raw() as client:
        client.command("HELLO", proto)
        yield client


DIALOGUES: dict[str, list[str]] = {
    "subscribe": ["SUBSCRIBE a", "SUBSCRIBE a b a", "PSUBSCRIBE x* a", "UNSUBSCRIBE a", "UNSUBSCRIBE b", "GET k"],
    "nothing subscribed": ["UNSUBSCRIBE", "UNSUBSCRIBE a b", "PUNSUBSCRIBE", "PUNSUBSCRIBE x*", "GET k"],
    "shard nothing": ["SUNSUBSCRIBE", "SUNSUBSCRIBE a", "SUNSUBSCRIBE {a}1 {a}2", "GET k"],
    "counts": ["SUBSCRIBE a", "PSUBSCRIBE a", "SSUBSCRIBE a", "SUNSUBSCRIBE", "UNSUBSCRIBE", "PUNSUBSCRIBE", "GET k"],
    "shard": ["SSUBSCRIBE {a}1 {a}2", "SSUBSCRIBE {a}1", "SUNSUBSCRIBE {a}3 {a}1", "UNSUBSCRIBE", "SUNSUBSCRIBE {a}2"],
    "not allowed": [
        "SUBSCRIBE a", "GET k", "get k", "NOSUCH x", "GET", "CLIENT GETNAME", "CLIENT", "HELLO 2", "MULTI", "EXEC",
        "PUBLISH a x", "COMMAND COUNT", "CONFIG GET x", "AUTH x", "SELECT 0", "ECHO x", "PING", "PING a", "PING a b",
        "UNSUBSCRIBE a", "ECHO x",
    ],
    "arity": ["SUBSCRIBE", "PSUBSCRIBE", "SSUBSCRIBE", "PUBLISH a", "SPUBLISH a", "PUBLISH", "PUBSUB"],
    "reset": ["SUBSCRIBE a b", "PSUBSCRIBE *", "SSUBSCRIBE s", "RESET", "GET k", "UNSUBSCRIBE", "SUBSCRIBE a"],
    "replies off": ["CLIENT REPLY OFF", "SUBSCRIBE a", "UNSUBSCRIBE a", "SUBSCRIBE b", "UNSUBSCRIBE"],
    "to RESP2 and back": ["HELLO 3", "SUBSCRIBE a", "SET k v", "HELLO 2", "GET k", "PING", "UNSUBSCRIBE a", "GET k"],
    "empty and binary": ["SUBSCRIBE ''", "PSUBSCRIBE ''", "UNSUBSCRIBE ''", "PUNSUBSCRIBE ''"],
    "case": ["SubScribe A", "uNSUBSCRIBE a A", "GET k"],
}  # fmt: skip


def comparable(frames: list[bytes]) -> list[bytes]:
    """HELLO tells who is there."""
    return [frame for frame in frames if b"server" not in frame]


@pytest.mark.parametrize("name", DIALOGUES)
def test_dialogue(name: str, proto: int, proxy: ProxyDaemon, standalone: Standalone) -> None:
    with proxy.raw() as through, standalone.raw() as direct:
        direct.command("DEL", "k")
        for client in (through, direct):
            client.command("HELLO", proto)
        for dialogue in DIALOGUES[name]:
            words = [word.strip("'") for word in dialogue.split()]
            if name == "replies off":
                both = []
                for client in (through, direct):
                    client.send(encode(*words))
                    both.append(client.frame() if "REPLY" not in words else b"")
                assert (words, both[0]) == (words, both[1])
                continue
            expected = comparable(said(direct, *words))
            assert (words, comparable(said(through, *words))) == (words, expected)


def test_unsubscribe_from_all_names_each(subscriber: RawClient, proto: int) -> None:
    names = [f"c{n}" for n in range(250)]  # more than are dealt with in one go
    subscriber.send(encode("SUBSCRIBE", *names))
    assert subscriber.frames(250) == [told(proto, "subscribe", name, n + 1) for n, name in enumerate(names)]
    frames = said(subscriber, "UNSUBSCRIBE")
    assert len(frames) == 251
    assert {frame.split(b"\r\n")[4] for frame in frames[:-1]} == {name.encode() for name in names}
    assert [frame.rsplit(b":", 1)[1] for frame in frames[:-1]] == [b"%d\r\n" % n for n in reversed(range(250))]
    assert subscriber.command("ECHO", "x") == bulk(b"x")


def test_messages_of_all_kinds(proxy: ProxyDaemon, subscriber: RawClient, proto: int, raw: RawClient) -> None:
    for words in (("SUBSCRIBE", "news", "sport"), ("PSUBSCRIBE", "n*"), ("SSUBSCRIBE", "{s}1", "{s}2")):
        subscriber.send(encode(*words))
        subscriber.frames(len(words) - 1)
    assert raw.command("PUBLISH", "sport", "a\r\nb") in (b":1\r\n", b":0\r\n")
    assert subscriber.frame() == message(proto, "message", "sport", "a\r\nb")
    raw.command("PUBLISH", "news", "")
    both = sorted(subscriber.frames(2))
    assert both == sorted([message(proto, "message", "news", ""), message(proto, "pmessage", "n*", "news", "")])
    raw.command("SPUBLISH", "{s}2", "x")
    assert subscriber.frame() == message(proto, "smessage", "{s}2", "x")
    large = b"x" * 3_000_000
    raw.command("PUBLISH", "sport", large)
    assert subscriber.frame() == message(proto, "message", "sport", large)


def test_messages_come_in_order_and_replies_whole(proxy: ProxyDaemon, raw: RawClient) -> None:
    with proxy.raw() as client:
        client.command("HELLO", 3)
        client.command("SUBSCRIBE", "c")
        client.command("SET", "large", b"v" * 300_000)
        raw.send(b"".join(encode("PUBLISH", "c", n) for n in range(2000)))
        client.send(encode("GET", "large") * 50)
        frames = [client.frame() for _ in range(2050)]
        assert [frame for frame in frames if frame[:1] == b">"] == [
            message(3, "message", "c", str(n)) for n in range(2000)
        ]
        assert [frame for frame in frames if frame[:1] != b">"] == [bulk(b"v" * 300_000)] * 50


def test_one_hears_what_it_publishes_itself(proxy: ProxyDaemon) -> None:
    with proxy.raw() as client:
        client.command("HELLO", 3)
        client.send(
            encode("SET", "k", "v") + encode("SUBSCRIBE", "c") + encode("PUBLISH", "c", "x") + encode("GET", "k")
        )
        first, second = client.frames(2)
        assert (first, second) == (b"+OK\r\n", told(3, "subscribe", "c", 1))
        rest = client.frames(3)
        assert message(3, "message", "c", "x") in rest
        published, got = (frame for frame in rest if frame[:1] != b">")
        assert published in (b":0\r\n", b":1\r\n")  # what one node counts: the proxy is subscribed at some node
        assert got == bulk(b"v")


def test_shard_channels_of_several_slots(raw: RawClient) -> None:
    refused = b"-CROSSSLOT Keys in request don't hash to the same slot\r\n"
    assert raw.command("SSUBSCRIBE", "a", "b") == refused
    assert raw.command("SUNSUBSCRIBE", "a", "b") == refused
    for name in ("a", "b"):
        assert raw.command("SSUBSCRIBE", name) == told(2, "ssubscribe", name, 1 + (name == "b"))


def test_not_inside_a_transaction(raw: RawClient) -> None:
    raw.command("MULTI")
    assert raw.command("SUBSCRIBE", "a").startswith(b"-ERR command 'subscribe' is not possible inside a transaction")
    assert raw.command("EXEC").startswith(b"-EXECABORT")
    raw.send(encode("MULTI") + encode("PUBLISH", "a", "x") + encode("EXEC"))
    assert raw.frames(3) == [b"+OK\r\n", b"+QUEUED\r\n", b"*1\r\n:0\r\n"]


@pytest.fixture
def events(cluster: EmbeddedCluster) -> Iterator[None]:
    """All of them are sent."""
    for node in cluster.primaries():
        node.command("CONFIG", "SET", "notify-keyspace-events", "KEA")
    yield
    for node in cluster.nodes:
        node.command("CONFIG", "SET", "notify-keyspace-events", "")


def until_mark(client: RawClient, publisher: RawClient, channel: str) -> list[bytes]:
    """What has come when a message of that channel comes; everything before was published earlier, by any node."""
    time.sleep(0.3)  # events of other nodes are on their way by other connections
    mark = f"mark {time.monotonic_ns()}"
    publisher.command("PUBLISH", channel, mark)
    frames = []
    while (frame := client.frame())[1:] != message(3, "message", channel, mark)[1:]:
        if mark.encode() not in frame:  # a pattern may fit the channel, too
            frames.append(frame)
    return frames


@pytest.mark.parametrize("pattern", ["*", "__key*", "__keyevent@*__:*", "_[_]keyevent@0__:set", "?*", "*:set"])
def test_events_of_every_shard_once(
    pattern: str, proxy: ProxyDaemon, subscriber: RawClient, proto: int, raw: RawClient, events: None
) -> None:
    assert subscriber.command("PSUBSCRIBE", pattern) == told(proto, "psubscribe", pattern, 1)
    said(subscriber, "SUBSCRIBE", "mark")
    keys = spread_keys(9, "event")
    for key in keys:
        raw.command("SET", key, "v")
    frames = [frame for frame in until_mark(subscriber, raw, "mark") if b"__keyevent@0__:set" in frame]
    assert Counter(frames) == Counter(message(proto, "pmessage", pattern, "__keyevent@0__:set", key) for key in keys)
    if pattern in ("*", "?*"):  # and what is no event comes once, too
        raw.command("PUBLISH", "other", "x")
        assert until_mark(subscriber, raw, "mark").count(message(proto, "pmessage", pattern, "other", "x")) == 1


def test_events_by_name(proxy: ProxyDaemon, subscriber: RawClient, proto: int, raw: RawClient, events: None) -> None:
    keys = spread_keys(3, "named")
    names = [f"__keyspace@0__:{key}" for key in keys]
    said(subscriber, "SUBSCRIBE", "mark", "__keyevent@0__:del", *names)
    said(subscriber, "PSUBSCRIBE", "*", "__keyevent@*")
    for key in keys:
        raw.send(encode("SET", key, "v") + encode("DEL", key))
        raw.frames(2)
    frames = Counter(until_mark(subscriber, raw, "mark"))
    expected: Counter[bytes] = Counter()
    for key, name in zip(keys, names, strict=True):
        for event in ("set", "del"):
            expected[message(proto, "message", name, event)] += 1
            expected[message(proto, "pmessage", "*", name, event)] += 1
            expected[message(proto, "pmessage", "*", f"__keyevent@0__:{event}", key)] += 1
            expected[message(proto, "pmessage", "__keyevent@*", f"__keyevent@0__:{event}", key)] += 1
        expected[message(proto, "message", "__keyevent@0__:del", key)] += 1
    assert frames == expected


def test_who_is_subscribed(proxy: ProxyDaemon, raw: RawClient, cluster: EmbeddedCluster) -> None:
    clients = [proxy.raw() for _ in range(6)]  # of both workers
    try:
        for n, client in enumerate(clients):
            said(client, "SUBSCRIBE", "all", f"own{n}")
            said(client, "PSUBSCRIBE", "p*", f"p{n}*")
            said(client, "SSUBSCRIBE", "shard")
        assert raw.command("PUBSUB", "NUMSUB", "all", "own3", "none", "all") == array(
            bulk(b"all"), b":6\r\n", bulk(b"own3"), b":1\r\n", bulk(b"none"), b":0\r\n", bulk(b"all"), b":6\r\n"
        )
        assert raw.command("PUBSUB", "NUMPAT") == b":7\r\n"
        assert raw.command("PUBSUB", "SHARDNUMSUB", "shard", "all") == array(
            bulk(b"shard"), b":6\r\n", bulk(b"all"), b":0\r\n"
        )
        assert raw.command("PUBSUB", "SHARDCHANNELS") == array(bulk(b"shard"))
        assert raw.command("PUBSUB", "CHANNELS", "own[01]").split(b"\r\n")[0] == b"*2"
        with cluster.primaries()[0].raw() if hasattr(cluster.primaries()[0], "raw") else proxy.raw() as other:
            other.command("HELLO", 2)
        lines = raw.command("CLIENT", "LIST", "TYPE", "pubsub").decode().splitlines()[1:-1]
        assert len(lines) == 6
        assert all(" flags=P " in line and " sub=2 psub=2 ssub=1 " in line for line in lines)
        for client in clients[1:]:
            client.close()
        wait_for(lambda: raw.command("PUBSUB", "NUMSUB", "all").endswith(b":1\r\n"), 5, "the others have left")
        assert raw.command("PUBSUB", "CHANNELS", "own*") == array(bulk(b"own0"))
        wait_for(lambda: raw.command("PUBSUB", "NUMPAT") == b":2\r\n", 5, "their patterns are gone")
        assert raw.command("CLIENT", "KILL", "TYPE", "pubsub") == b":1\r\n"
        assert clients[0].rest() == b""
        wait_for(lambda: raw.command("PUBSUB", "CHANNELS") == b"*0\r\n", 5, "nobody is subscribed")
        for node in cluster.primaries():
            wait_for(lambda node=node: node.command("PUBSUB", "CHANNELS") == [], 5, "nor is the proxy")
            assert node.command("PUBSUB", "NUMPAT") == 0
    finally:
        for client in clients:
            client.close()


def test_no_more_than_so_many(start_proxy: Callable[..., ProxyDaemon], cluster: EmbeddedCluster) -> None:
    daemon = start_proxy(cluster.seeds[:1], {"clients": {"max_subscriptions": 5}})
    with daemon.raw() as client:
        said(client, "SUBSCRIBE", "a", "b", "c")
        assert said(client, "PSUBSCRIBE", "x", "y", "z")[0] == (
            b"-ERR too many subscriptions of one client, the limit is 5\r\n"
        )
        assert said(client, "PSUBSCRIBE", "x", "y")[1] == told(2, "psubscribe", "y", 5)
        assert said(client, "SUBSCRIBE", "a", "b", "c", "a")[0] == told(2, "subscribe", "a", 5)


def test_who_does_not_read_is_cut(start_proxy: Callable[..., ProxyDaemon], cluster: EmbeddedCluster) -> None:
    limits = {"pubsub_output_limit": "1mb", "pubsub_soft_limit": "1mb"}
    daemon = start_proxy(cluster.seeds[:1], {"clients": limits, "workers": 1})
    with daemon.raw() as slow, daemon.raw() as reader, daemon.raw() as publisher:
        for client in (slow, reader):
            client.command("SUBSCRIBE", "c")
        for n in range(300):
            publisher.command("PUBLISH", "c", b"%06d" % n + b"x" * 100_000)
            assert reader.frame()[30:50].find(b"%06d" % n) >= 0
        wait_for(
            lambda: daemon.metric("redis_proxy_client_disconnects_total", reason="pubsub_limit") == 1, 5, "it is cut"
        )
        assert daemon.metric("redis_proxy_subscriptions", kind="channel") == 1
        assert daemon.log_contains(r"clients\.pubsub_output_limit")


def test_a_thousand_clients_come_and_go(proxy: ProxyDaemon, raw: RawClient, cluster: EmbeddedCluster) -> None:
    """While somebody publishes; who stays misses nothing, and in the end nothing is left of them."""
    chance = random.Random(7)
    failed: list[BaseException] = []

    def churn(seed: int) -> None:
        own = random.Random(seed)
        try:
            for _ in range(250):
                with proxy.raw() as client:
                    names = [f"churn{own.randrange(20)}" for _ in range(own.randrange(1, 6))]
                    client.send(encode(own.choice(["SUBSCRIBE", "PSUBSCRIBE"]), *names))
                    if own.random() < 0.7:
                        client.frames(len(names))
                    if own.random() < 0.3:
                        client.send(encode("UNSUBSCRIBE"))
        except BaseException as error:
            failed.append(error)

    with proxy.raw() as stays:
        said(stays, "SUBSCRIBE", "churn3")
        threads = [threading.Thread(target=churn, args=(chance.random(),)) for _ in range(4)]
        for thread in threads:
            thread.start()
        sent = 0
        while any(thread.is_alive() for thread in threads):
            raw.command("PUBLISH", f"churn{sent % 20}", sent)
            sent += 1
        assert not failed
        raw.command("PUBLISH", "churn3", MARK)
        numbers = []
        while MARK not in (frame := stays.frame()):
            numbers.append(int(frame.split(b"\r\n")[-2]))
        assert numbers == list(range(3, sent, 20))
    wait_for(lambda: raw.command("PUBSUB", "CHANNELS") == b"*0\r\n", 5, "no channel is left")
    for node in cluster.primaries():
        wait_for(lambda node=node: node.command("PUBSUB", "CHANNELS") == [], 5, "at no node")
        wait_for(lambda node=node: node.command("PUBSUB", "NUMPAT") == 0, 5, "nor a pattern")


def test_denied_commands(start_proxy: Callable[..., ProxyDaemon], cluster: EmbeddedCluster) -> None:
    daemon = start_proxy(cluster.seeds[:1], {"commands": {"deny": ["psubscribe"]}})
    with daemon.raw() as client:
        assert client.command("PSUBSCRIBE", "x").endswith(b"is not allowed through this proxy\r\n")
        assert client.command("SUBSCRIBE", "x") == told(2, "subscribe", "x", 1)


def test_info_counts_them(raw: RawClient, proxy: ProxyDaemon) -> None:
    with proxy.raw() as client:
        said(client, "SUBSCRIBE", "a", "b")
        said(client, "PSUBSCRIBE", "x*")
        said(client, "SSUBSCRIBE", "s")

        def counted() -> bool:
            text = raw.command("INFO", "stats")
            return b"pubsub_channels:2\r\npubsub_patterns:1\r\npubsubshard_channels:1\r\n" in text

        wait_for(counted, 5, "INFO")


@pytest.mark.parametrize("word", ["SUBSCRIBE", "PSUBSCRIBE", "SSUBSCRIBE"])
def test_a_name_given_up_and_taken_again(word: str, proxy: ProxyDaemon) -> None:
    """What was confirmed is in force, however soon behind the end of the last subscription."""
    end = word.replace("SUB", "UNSUB")
    with proxy.raw() as first, proxy.raw() as publisher:
        for n in range(30):
            first.command(word, "again")
            if n % 2:
                first.command(end, "again")
                first.command(word, "again")
            else:
                first.send(encode(end, "again") + encode(word, "again"))
                first.frames(2)
            publisher.command("SPUBLISH" if word == "SSUBSCRIBE" else "PUBLISH", "again", f"message {n}")
            assert f"message {n}".encode() in first.frame()
            first.command(end, "again")


@pytest.mark.parametrize("kind", ["CHANNELS", "SHARDCHANNELS"])
def test_one_name_is_looked_up_and_too_many_are_an_error(kind: str, proxy: ProxyDaemon) -> None:
    word = "SUBSCRIBE" if kind == "CHANNELS" else "SSUBSCRIBE"
    names = [f"{{listed}}{n}" for n in range(10_100)]
    with proxy.raw(timeout_s=30) as subscriber, proxy.raw(timeout_s=30) as other:
        subscriber.send(encode(word, *names))
        subscriber.frames(len(names))
        assert other.command("PUBSUB", kind, "{listed}77") == array(bulk(b"{listed}77"))
        assert other.command("PUBSUB", kind, "{listed}none") == array()
        assert other.command("PUBSUB", kind, "{listed}1007?").count(b"\r\n{listed}") == 10
        assert other.command("PUBSUB", kind).startswith(b"-ERR too many channels to list")


def test_wide_patterns_of_one_client_are_limited(proxy: ProxyDaemon) -> None:
    with proxy.raw() as client:
        refused = client.command("PSUBSCRIBE", *(f"*{n}" for n in range(1001)))
        assert refused.startswith(b"-ERR too many patterns of one client that fit keyspace events")
        client.send(encode("PSUBSCRIBE", *(f"*{n}" for n in range(1000))))
        client.frames(1000)
        assert client.command("PSUBSCRIBE", "*more").startswith(b"-ERR too many patterns")
        assert b"plain*" in client.command("PSUBSCRIBE", "plain*")


def test_what_a_node_refuses_is_told_until_it_is_in_force_again(server: str) -> None:
    """The proxy's user loses the right to subscribe, and is given it back."""

    def rights(*rules: str) -> None:
        for node in cluster.nodes:
            node.command("ACL", "SETUSER", "px", "reset", "on", ">pw", "~*", "&*", "+@all", *rules)

    with EmbeddedCluster(server, primaries=3, replicas=0) as cluster:
        rights()
        settings = {"cluster": {"username": "px", "password": "pw"}}
        with ProxyDaemon(cluster.seeds, settings, workers=1) as daemon:
            gauge = "redis_proxy_workers_with_interrupted_subscriptions"
            with daemon.raw(timeout_s=20) as subscriber, daemon.raw() as other:
                subscriber.command("SUBSCRIBE", "news")
                rights("-subscribe")
                for node in cluster.nodes:
                    node.command("CLIENT", "KILL", "USER", "px")
                wait_for(lambda: "a node refuses a subscription" in daemon.log, 10, "the refusal")
                assert other.command("SUBSCRIBE", "news").startswith(b"-NOPERM")
                wait_for(lambda: daemon.metrics()[gauge] == 1, 10, "the gauge")
                assert "in force again" not in daemon.log
                rights()
                wait_for(lambda: "in force again" in daemon.log, 15, "the subscription")
                other.command("PUBLISH", "news", "x")
                assert subscriber.frame() == message(2, "message", "news", "x")
            rights("resetchannels", "&[*]")  # but none of the taps of events
            for node in cluster.nodes:
                node.command("CLIENT", "KILL", "USER", "px")
            with daemon.raw() as client:
                assert client.command("PSUBSCRIBE", "[*]").startswith(b"-NOPERM")
