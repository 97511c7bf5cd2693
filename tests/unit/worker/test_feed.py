"""A connection for subscriptions: what is in force there while names come and go."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from proxy.forward.hub import CHANNELS, MAIN, Hub
from proxy.forward.node import Node
from proxy.resp.encode import encode_command
from proxy.worker.feed import Feed

KEY = (CHANNELS, b"a")
OK = b"+OK\r\n"


class Connection:
    """Stands for the hub: takes down what is sent, and answers when told to."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.done: list[Callable[[bytes], None]] = []

    def open(self, node: Node, duty: int) -> object:
        return self

    def send(self, backend: object, frame: bytes, done: Callable[[bytes], None]) -> None:
        self.sent.append(frame)
        self.done.append(done)

    def close(self, backend: object) -> None:
        self.sent.clear()
        self.done.clear()

    def confirm(self, backend: object) -> None:
        self.done.pop(0)(OK)


def test_a_name_that_is_being_given_up_is_not_in_force() -> None:
    """A client that subscribes meanwhile would be told so, and miss what is published before the node hears of it."""
    connection = Connection()
    feed = Feed(cast(Hub, connection), MAIN, cast(Any, object()), lambda *_: None)
    feed.want(KEY)
    feed.open(0.0)
    feed.heard(b"subscribe", b"a")
    assert feed.has(KEY)
    feed.unwant(KEY)
    feed.flush()
    feed.want(KEY)
    feed.flush()
    assert not feed.has(KEY)
    feed.heard(b"unsubscribe", b"a")
    assert not feed.has(KEY)
    feed.heard(b"subscribe", b"a")
    assert feed.has(KEY)
    assert connection.sent == [encode_command(word, "a") for word in ("SUBSCRIBE", "UNSUBSCRIBE", "SUBSCRIBE")]


def test_a_name_that_is_wanted_again_before_anything_was_sent_stays() -> None:
    connection = Connection()
    feed = Feed(cast(Hub, connection), MAIN, cast(Any, object()), lambda *_: None)
    feed.want(KEY)
    feed.open(0.0)
    feed.heard(b"subscribe", b"a")
    feed.unwant(KEY)
    feed.want(KEY)
    feed.flush()
    assert feed.has(KEY)
    assert connection.sent == [encode_command("SUBSCRIBE", "a")]


def loaded(connection: Connection, count: int) -> Feed:
    """A feed with so many names, all in force."""
    feed = Feed(cast(Hub, connection), MAIN, cast(Any, object()), lambda *_: None)
    for n in range(count):
        feed.want((CHANNELS, b"%d" % n))
    feed.open(0.0)
    confirm_all(feed, connection)
    return feed


def confirm_all(feed: Feed, connection: Connection) -> list[bytes]:
    """What the node is asked for until nothing is asked any more, in that order."""
    asked = []
    while connection.done:
        names = connection.sent.pop(0).split(b"\r\n")[4:-1:2]
        for name in names:
            feed.heard(b"subscribe", name)
        asked += names
    return asked


def test_after_a_loss_new_names_come_first_and_all_come_again() -> None:
    connection = Connection()
    feed = loaded(connection, 3000)
    assert feed.whole
    assert feed.shut()
    assert not feed.whole
    assert not feed.have
    feed.want((CHANNELS, b"new"))
    feed.unwant((CHANNELS, b"7"))
    feed.open(0.0)
    asked = confirm_all(feed, connection)
    assert asked[0] == b"new"
    assert sorted(asked) == sorted([b"new", *(b"%d" % n for n in range(3000) if n != 7)])
    assert feed.whole
    assert feed.have == feed.wanted


def test_a_second_loss_in_the_middle_forgets_nothing() -> None:
    connection = Connection()
    feed = loaded(connection, 3000)
    feed.shut()
    feed.open(0.0)
    for name in [b"%d" % n for n in range(3000)]:
        feed.heard(b"subscribe", name)
    feed.shut()
    feed.open(0.0)
    assert len(set(confirm_all(feed, connection))) == 3000
    assert feed.whole


def test_names_nobody_wants_any_more_hold_nobody_up() -> None:
    connection = Connection()
    feed = loaded(connection, 3000)
    feed.shut()
    for key in list(feed.wanted):
        feed.unwant(key)
    assert feed.whole
    feed.open(0.0)
    assert not feed.flush()  # there is more to be looked at
    while not feed.flush():
        pass
    assert connection.sent == []


def test_what_is_refused_is_not_in_force_and_asked_for_again_in_parts() -> None:
    connection = Connection()
    feed = Feed(cast(Hub, connection), MAIN, cast(Any, object()), lambda *_: None)
    keys = [(CHANNELS, b"%d" % n) for n in range(5)]
    for key in keys:
        feed.want(key)
        feed.alone.add(key)
        feed.given_up[key] = None
    feed.open(0.0)
    assert not feed.whole
    assert not any(map(feed.has, keys))
    assert connection.sent == []
    assert feed.reconsider(2)
    feed.flush()
    assert connection.sent == [encode_command("SUBSCRIBE", name) for _, name in keys[:2]]
    feed.want(keys[4])  # somebody new asks
    feed.flush()
    assert connection.sent[2:] == [encode_command("SUBSCRIBE", keys[4][1])]
    feed.unwant(keys[2])
    feed.unwant(keys[3])
    assert not feed.reconsider(2)
