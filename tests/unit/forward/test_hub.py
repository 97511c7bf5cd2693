"""Messages from a node's pushes to all who are subscribed: to whom, in which order, in turns, and how much."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from proxy.forward.backend import Backend
from proxy.forward.client import Client
from proxy.forward.hub import CHANNELS, MAIN, NODE, PATTERNS, SHARDS, Hub
from proxy.resp.encode import array, bulk, encode_command, push
from tests.support.datapath import A, B, End, Stage

HELLO = encode_command("HELLO", "3")


def message(*words: bytes | str) -> bytes:
    return push([bulk(word) for word in words])


def resp2(frame: bytes) -> bytes:
    return b"*" + frame[1:]


class Scene:
    """A stage with a hub, and a connection to node A for each duty, which PING has opened."""

    def __init__(self) -> None:
        self.told: list[tuple[bytes, bytes | None]] = []
        self.faults: list[BaseException] = []
        self.stage = Stage()
        self.hub = Hub(
            lambda backend, word, name: self.told.append((word, name)), lambda what, error: self.faults.append(error)
        )
        self.hub.bind(self.stage.path)
        self.stage.context.pubsub = self  # type: ignore[assignment]
        self.main, self.main_end = self.connect(MAIN)
        self.node, self.node_end = self.connect(NODE)

    def connect(self, duty: int) -> tuple[Backend, End]:
        source = self.hub.open(self.stage.router.nodes[A], duty)
        replies: list[bytes] = []
        self.hub.send(source, encode_command("PING"), replies.append)
        self.stage.turn()
        end = self.stage.nodes[A][-1]
        assert end.get() == encode_command("PING")
        end.send(b"+PONG\r\n")
        self.stage.turn()
        assert replies == [b"+PONG\r\n"]
        return source, end

    def client(self, *topics: tuple[int, bytes], proto: int = 3) -> tuple[Client, End]:
        end = self.stage.client()
        client = self.stage.accepted
        client.set_proto(proto)
        for kind, name in topics:
            assert self.hub.join(client, self.hub.topic(kind, name))
        return client, end

    def closed(self, client: Client) -> None:
        """As worker.subscriptions."""
        self.left = self.hub.leave(client)

    def close(self) -> None:
        assert self.faults == []
        for source in list(self.hub.sources):
            self.hub.close(source)
        self.stage.close()


@pytest.fixture
def scene() -> Iterator[Scene]:
    made = Scene()
    yield made
    made.close()


def test_each_protocol_in_its_form(scene: Scene) -> None:
    _, three = scene.client((CHANNELS, b"c"), (PATTERNS, b"c*"))
    _, two = scene.client((CHANNELS, b"c"), proto=2)
    _, other = scene.client((CHANNELS, b"d"))
    direct, pattern = message("message", "c", "x"), message("pmessage", "c*", "c", "x")
    scene.main_end.send(direct + pattern)
    scene.stage.turn()
    assert (three.get(), two.get(), other.get()) == (direct + pattern, resp2(direct), b"")
    assert (scene.stage.count("messages"), scene.stage.count("deliveries")) == (2, 3)


@pytest.mark.parametrize("name", [b"__keyspace@0__:k", b"__keyevent@0__:set", b"__keyevent@"])
def test_events_count_from_their_node_only(name: bytes, scene: Scene) -> None:
    topic = scene.hub.topic(PATTERNS, name + b"*")
    topic.events = True
    _, end = scene.client((CHANNELS, name), (PATTERNS, name + b"*"))
    both = message("message", name, "x") + message("pmessage", name + b"*", name, "x")
    scene.main_end.send(both)
    scene.stage.turn()
    assert end.get() == b""
    scene.node_end.send(both)
    scene.stage.turn()
    assert end.get() == both


def test_all_else_counts_from_main_only(scene: Scene) -> None:
    _, end = scene.client((CHANNELS, b"__keyspac"), (PATTERNS, b"*"))
    both = message("message", b"__keyspac", "x") + message("pmessage", "*", b"__keyspac", "x")
    scene.node_end.send(both)
    scene.stage.turn()
    assert end.get() == b""
    scene.main_end.send(both)
    scene.stage.turn()
    assert end.get() == both


def test_wide_patterns_get_their_events_by_the_taps(scene: Scene) -> None:
    _, end = scene.client((PATTERNS, b"*set"))
    scene.hub.widen(scene.hub.topic(PATTERNS, b"*set"))
    scene.node_end.send(message("pmessage", "__keyevent@*", "__keyevent@0__:set", "k\r\n"))
    scene.node_end.send(message("pmessage", "__keyevent@*", "__keyevent@0__:del", "k"))
    scene.node_end.send(message("pmessage", "__key*", "__keyevent@0__:set", "k"))
    scene.main_end.send(message("pmessage", "*set", "__keyevent@0__:set", "k"))
    scene.stage.turn()
    assert end.get() == message("pmessage", "*set", "__keyevent@0__:set", "k\r\n")


def test_shard_channels_count_from_where_they_are_subscribed(scene: Scene) -> None:
    _, end = scene.client((SHARDS, b"s"), (CHANNELS, b"s"))
    frame = message("smessage", "s", "x")
    scene.node_end.send(frame)
    scene.stage.turn()
    assert end.get() == b""
    scene.hub.topic(SHARDS, b"s").source = scene.node
    scene.node_end.send(frame)
    scene.main_end.send(frame)
    scene.stage.turn()
    assert end.get() == frame


def test_who_has_parted_or_left_gets_nothing(scene: Scene) -> None:
    topic = scene.hub.topic(CHANNELS, b"c")
    stays, end = scene.client((CHANNELS, b"c"))
    parted, parted_end = scene.client((CHANNELS, b"c"), (PATTERNS, b"p"))
    left, _ = scene.client((CHANNELS, b"c"))
    assert scene.hub.part(parted, topic)
    assert not scene.hub.part(parted, topic)
    assert (stays.subscriptions, parted.subscriptions) == ((1, 0, 0), (0, 1, 0))
    left.kill()
    scene.main_end.send(message("message", "c", "x"))
    scene.stage.turn()
    assert (end.get(), parted_end.get()) == (message("message", "c", "x"), b"")
    assert not scene.hub.join(left, topic)
    assert scene.left is not None
    assert list(scene.left.topics[CHANNELS]) == [b"c"]
    assert scene.hub.leave(left) is None
    assert left.subscriptions == (0, 0, 0)


def test_memory_of_subscriptions_is_counted_and_given_back(scene: Scene) -> None:
    before = scene.stage.path.client_memory
    client, _ = scene.client(*((CHANNELS, b"%0100d" % n) for n in range(50)))
    assert scene.stage.path.client_memory - before >= 50 * 100
    assert client.memory >= 50 * 100
    scene.hub.leave(client)
    assert scene.stage.path.client_memory == before


MANY = 1000


def test_many_have_it_in_turns_and_in_order(scene: Scene) -> None:
    ends = [scene.client((CHANNELS, b"c"), (CHANNELS, b"d"), proto=2 + n % 2)[1] for n in range(MANY)]
    frames = [message("message", "c" if n % 3 else "d", b"%d" % n) for n in range(12)]
    scene.main_end.send(b"".join(frames))
    scene.stage.turn(1)
    had = sum(bool(end.get()) for end in ends)
    assert 0 < had < MANY  # others have their turn
    assert scene.hub.waiting > 0
    scene.stage.until(lambda: scene.hub.waiting == 0)
    scene.main_end.send(frames[0])
    scene.stage.turn()
    scene.stage.until(lambda: scene.hub.waiting == 0)
    scene.stage.turn()
    assert scene.stage.count("deliveries") <= 13 * MANY


def test_every_one_of_them_has_all_of_it_once(scene: Scene) -> None:
    ends = [scene.client((CHANNELS, b"c"), proto=2 + n % 2)[1] for n in range(300)]
    late: list[End] = []
    frames = [message("message", "c", b"%d" % n) for n in range(20)]
    scene.main_end.send(b"".join(frames))
    scene.stage.turn(1)
    assert scene.hub.waiting > 0
    late_client, late_end = scene.client((CHANNELS, b"c"))  # it was published before
    again, _ = scene.stage.accepted, late.append(late_end)
    scene.stage.until(lambda: scene.hub.waiting == 0)
    scene.stage.turn()
    for n, end in enumerate(ends):
        expected = b"".join(frames) if n % 2 else b"".join(map(resp2, frames))
        assert end.get() == expected
    assert late_end.get() == b""
    assert again is late_client


def test_who_parts_meanwhile_gets_no_more(scene: Scene) -> None:
    clients = [scene.client((CHANNELS, b"c")) for _ in range(400)]
    scene.main_end.send(message("message", "c", "x"))
    scene.stage.turn(1)
    waiting = [(client, end) for client, end in clients if not end.get()]
    assert waiting
    for client, _ in waiting[::2]:
        scene.hub.part(client, scene.hub.topic(CHANNELS, b"c"))
    for client, _ in waiting[1::4]:
        client.kill()
    scene.stage.until(lambda: scene.hub.waiting == 0)
    scene.stage.turn()
    got = [bool(end.get()) for _, end in waiting]
    assert not any(got[::2])
    assert all(got[3::4])


def test_what_waits_is_bounded_by_not_reading(scene: Scene) -> None:
    clients = [scene.client((CHANNELS, b"c")) for _ in range(300)]
    scene.hub.most_waiting = 100_000
    frames = b"".join(message("message", "c", b"%06d" % n + b"x" * 1000) for n in range(1500))
    sent = 0
    for _ in range(4):
        sent += scene.main_end.offer(frames[sent:])
        scene.stage.turn(1)
    assert scene.hub.deaf
    assert scene.stage.count("fan_out_pauses") == 1
    bound = scene.hub.waiting
    for _ in range(3):
        sent += scene.main_end.offer(frames[sent:])
        scene.stage.turn(1)
        assert scene.hub.waiting <= bound
    for client, _ in clients[1:]:
        client.kill()
    received = []

    def all_has_come() -> bool:
        nonlocal sent
        sent += scene.main_end.offer(frames[sent:])
        received.append(clients[0][1].get())
        return sum(map(len, received)) == len(frames)

    scene.stage.until(all_has_come)
    assert b"".join(received) == frames
    assert not scene.hub.deaf


def test_one_that_does_not_take_its_messages_is_closed(scene: Scene) -> None:
    scene.hub.hard_limit = scene.hub.soft_limit = 1 << 20
    scene.client((CHANNELS, b"c"))
    _, quick = scene.client((CHANNELS, b"c"))
    frame = message("message", "c", b"x" * 100_000)
    for _ in range(40):
        scene.main_end.send(frame)
        scene.stage.turn(2)
        assert scene.stage.drink(quick) == frame
    assert scene.stage.count("closed")["pubsub_limit"] == 1
    assert scene.stage.notices == ["client closed: it does not take its messages (clients.pubsub_output_limit)"]


def test_nor_one_that_is_slow_for_too_long(scene: Scene) -> None:
    scene.hub.hard_limit, scene.hub.soft_limit, scene.hub.soft_ns = 64 << 20, 1 << 20, 0
    scene.client((CHANNELS, b"c"))
    for _ in range(20):
        scene.main_end.send(message("message", "c", b"x" * 100_000))
        scene.stage.turn(2)
    assert scene.stage.count("closed")["pubsub_limit"] == 0
    scene.hub.sweep()
    scene.stage.turn()
    assert scene.stage.count("closed")["pubsub_limit"] == 1


def test_what_is_no_message_is_told(scene: Scene) -> None:
    scene.main_end.send(
        push([bulk("subscribe"), bulk("c"), b":1\r\n"]) + push([bulk("unsubscribe"), b"_\r\n", b":0\r\n"])
    )
    scene.stage.turn()
    assert scene.told == [(b"subscribe", b"c"), (b"unsubscribe", None)]


@pytest.mark.parametrize(
    "frame", [b">0\r\n", b">1\r\n:1\r\n", b">2\r\n+a\r\n+b\r\n", push([bulk("x" * 100)]), push([array([])])]
)
def test_nonsense_loses_the_connection(frame: bytes, scene: Scene) -> None:
    _, end = scene.client((CHANNELS, b"c"))
    scene.main_end.send(message("message", "c", "x") + frame * 100 + message("message", "c", "y"))
    scene.stage.turn()
    assert end.get() == message("message", "c", "x")
    assert scene.stage.lost_for == ["a push of unknown form"]
    assert scene.told == []


def test_pushes_of_servers_to_come_are_let_be(scene: Scene) -> None:
    _, end = scene.client((CHANNELS, b"c"))
    scene.main_end.send(push([bulk("weather"), bulk("fine")]) + message("message", "c", "x"))
    scene.stage.turn()
    assert end.get() == message("message", "c", "x")
    assert scene.told == []


def event(name: bytes, what: bytes = b"set") -> bytes:
    return message("pmessage", "__keyspace@*", b"__keyspace@0__:" + name, what)


def test_events_are_matched_in_turns_and_in_order(scene: Scene) -> None:
    names = [b"_*%05d*" % n for n in range(20_000)] + [b"*"]
    for name in names:
        scene.hub.widen(scene.hub.topic(PATTERNS, name))
    scene.client(*((PATTERNS, name) for name in names[:-1]))
    scene.hub.topic(PATTERNS, b"__keyspace@*").events = True
    _, end = scene.client((PATTERNS, b"_*00007*"), (PATTERNS, b"__keyspace@*"))
    events = [event(b"00007:%d" % n) for n in range(2)] + [event(b"other")]
    scene.node_end.send(b"".join(events))
    scene.stage.turn(1)
    assert scene.hub.waiting > 0  # others have their turn
    scene.stage.until(lambda: scene.hub.waiting == 0)
    scene.stage.turn()
    expected = b""
    for n in range(2):
        expected += events[n] + message("pmessage", "_*00007*", b"__keyspace@0__:00007:%d" % n, "set")
    assert end.get() == expected + events[2]


def test_what_events_take_is_bounded_and_what_is_above_counted(scene: Scene) -> None:
    """A long name, and patterns that go back and forth in it."""
    names = [b"_*" + b"a" * 64 + b"b%d" % n for n in range(200)]
    for name in [*names, b"*"]:
        scene.hub.widen(scene.hub.topic(PATTERNS, name))
    _, end = scene.client((PATTERNS, b"*"))
    scene.client(*((PATTERNS, name) for name in names))
    scene.node_end.send(event(b"k") + event(b"a" * 30_000) + event(b"k"))
    scene.stage.turn(1)
    scene.stage.until(lambda: scene.hub.waiting == 0)
    scene.stage.turn()
    assert scene.hub.wide.cut == 1
    assert end.get().count(b"pmessage") == 2  # those that were not too much


def test_what_waits_to_be_matched_is_bounded(scene: Scene) -> None:
    names = [b"_*%d" % n for n in range(20_000)]
    for name in names:
        scene.hub.widen(scene.hub.topic(PATTERNS, name))
    _, end = scene.client((CHANNELS, b"c"), *((PATTERNS, name) for name in names))
    scene.node_end.send(event(b"k") * 100)
    scene.stage.turn(1)
    assert scene.hub.wide.cut > 50
    assert not scene.hub.deaf
    scene.main_end.send(message("message", "c", "x"))
    scene.stage.until(lambda: scene.hub.waiting == 0)
    scene.stage.turn()
    assert end.get() == message("message", "c", "x")


def test_limits_that_are_lowered_hold_at_once(scene: Scene) -> None:
    slow, _ = scene.client((CHANNELS, b"c"))
    for _ in range(40):
        scene.main_end.send(message("message", "c", b"x" * 100_000))
        scene.stage.turn(2)
    scene.hub.look_at(scene.hub.everybody())
    assert scene.stage.count("closed")["pubsub_limit"] == 0
    scene.hub.hard_limit = scene.hub.soft_limit = 1 << 20
    scene.hub.look_at(scene.hub.everybody())
    scene.stage.turn()
    assert scene.stage.count("closed")["pubsub_limit"] == 1
    assert slow.fd < 0


def test_pushes_confirm_the_oldest_command(scene: Scene) -> None:
    replies: list[bytes] = []
    for name in ("a", "b"):
        scene.hub.send(scene.main, encode_command("SUBSCRIBE", name), replies.append)
    assert not scene.hub.confirm(scene.main)  # it was not sent yet
    scene.stage.turn()
    assert scene.hub.confirm(scene.main)
    assert replies == [b"+OK\r\n"]
    scene.main_end.send(b"-NOPERM no\r\n")
    scene.stage.turn()
    assert replies == [b"+OK\r\n", b"-NOPERM no\r\n"]
    assert not scene.hub.confirm(scene.main)


def test_a_lost_connection_answers_what_was_asked(scene: Scene) -> None:
    replies: list[bytes] = []
    source = scene.hub.open(scene.stage.router.nodes[B], NODE)
    scene.hub.send(source, encode_command("SUBSCRIBE", "a"), replies.append)
    scene.stage.turn()
    scene.stage.nodes[B][-1].close()
    scene.stage.turn()
    assert len(replies) == 1
    assert replies[0].startswith(b"-ERR")
    assert len(scene.stage.lost_for) == 1
    scene.hub.close(source)
