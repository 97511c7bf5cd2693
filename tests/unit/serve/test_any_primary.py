"""One question to any primary: the next one after an error, and an end."""

from __future__ import annotations

from typing import Any

from proxy.resp import errors
from proxy.serve.any_primary import TRIES, AnyPrimary

FRAME = b"*1\r\n$7\r\nCOMMAND\r\n"


class Node:
    replica = False

    def __init__(self, label: str) -> None:
        self.label = label


class Scene:
    def __init__(self, count: int, *replies: bytes | None) -> None:
        self.nodes = [Node(f"n{number}:1") for number in range(count)]
        self.replies = list(replies)
        self.asked: list[str] = []
        self.told: list[bytes] = []
        AnyPrimary(lambda: self.nodes, self.ask).ask(FRAME, 3, self.told.append)

    def ask(self, node: Any, frame: bytes, *, proto: int, timeout_ns: int, most: int, done: Any) -> None:
        assert (frame, proto) == (FRAME, 3)
        self.asked.append(node.label)
        done(self.replies.pop(0))


def test_the_first_that_answers() -> None:
    scene = Scene(3, b"*0\r\n")
    assert (scene.asked, scene.told) == (["n0:1"], [b"*0\r\n"])


def test_the_next_after_an_error_and_after_what_is_too_long() -> None:
    scene = Scene(3, b"-LOADING\r\n", None, b"*0\r\n")
    assert (scene.asked, scene.told) == (["n0:1", "n1:1", "n2:1"], [b"*0\r\n"])


def test_the_last_error_when_none_answers() -> None:
    scene = Scene(9, *[b"-ERR %d\r\n" % number for number in range(9)])
    assert len(scene.asked) == TRIES
    assert scene.told == [b"-ERR %d\r\n" % (TRIES - 1)]
    assert Scene(1, None).told == [errors.REPLY_TOO_LONG]


def test_without_primaries() -> None:
    assert Scene(0).told == [errors.CLUSTERDOWN]
