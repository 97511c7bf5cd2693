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
