"""SCRIPT LOAD and SCRIPT FLUSH: what is asked of the servers, and when what is remembered changes."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from proxy.forward.ask import Ask, Later
from proxy.resp import errors
from proxy.resp.encode import encode_command
from proxy.serve import table
from tests.unit.serve.fakes import FakeClient, context

SHA_REPLY = b"$40\r\n" + b"a" * 40 + b"\r\n"


class Remembered:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.asks: list[Callable[[], Ask]] = []

    def body(self, sha: bytes, /) -> bytes | None:
        return None

    def loaded(self, body: bytes, /) -> None:
        self.bodies.append(body)

    def flush(self, ask: Callable[[], Ask], /) -> Later:
        self.asks.append(ask)
        return Later()


def asked(ask: object) -> list[tuple[object, bytes, int]]:
    assert isinstance(ask, Ask)
    return list(ask.parts)


def test_load_is_remembered_when_the_servers_have_it() -> None:
    ctx = context(scripts=Remembered())
    answer = table.answer(ctx, FakeClient(), [b"script", b"load", b"return 1"])
    assert asked(answer) == [("primaries", encode_command("script", "load", "return 1"), 0)]
    assert ctx.scripts.bodies == []
    assert isinstance(answer, Ask)
    assert answer.finish is not None
    answer.labels.extend(["a:1", "b:1", "c:1"])
    assert answer.finish([SHA_REPLY] * 3) == SHA_REPLY
    assert ctx.scripts.bodies == [b"return 1"]


@pytest.mark.parametrize("words", [[], [b"Sync"], [b"ASYNC"]])
def test_flush_waits_until_all_have_forgotten(words: list[bytes]) -> None:
    ctx = context(scripts=Remembered())
    args = [b"SCRIPT", b"FLUSH", *words]
    assert isinstance(table.answer(ctx, FakeClient(), args), Later)
    (ask,) = ctx.scripts.asks
    assert asked(ask()) == [("nodes", encode_command(*args), 0)]


def test_flush_comes_behind_what_the_client_has_under_way() -> None:
    ctx = context(scripts=Remembered())
    assert table.answer(ctx, FakeClient(pending=1), [b"SCRIPT", b"FLUSH"]) is None
    assert ctx.scripts.asks == []


def test_a_node_that_does_not_load_it_is_named() -> None:
    ctx = context(scripts=Remembered())
    answer = table.answer(ctx, FakeClient(), [b"script", b"load", b"return 1"])
    assert isinstance(answer, Ask)
    assert answer.finish is not None
    answer.labels.extend(["a:1", "b:1"])
    assert b"b:1" in answer.finish([SHA_REPLY, b"-OOM no\r\n"])
    assert ctx.scripts.bodies == []


@pytest.mark.parametrize("words", [[b"BAD"], [b"SYNC", b"SYNC"]])
def test_a_flush_that_the_server_refuses_forgets_nothing(words: list[bytes]) -> None:
    ctx = context(scripts=Remembered())
    answer = table.answer(ctx, FakeClient(), [b"SCRIPT", b"FLUSH", *words])
    assert asked(answer) == [("any", encode_command("SCRIPT", "FLUSH", *words), 0)]
    assert ctx.scripts.asks == []


def test_where_nothing_is_remembered() -> None:
    ctx = context()
    assert asked(table.answer(ctx, FakeClient(), [b"script", b"flush"]))[0][0] == "nodes"
    answer = table.answer(ctx, FakeClient(), [b"script", b"load", b"return 1"])
    assert isinstance(answer, Ask)
    assert answer.finish is not None
    answer.labels.extend(["a:1"])
    assert answer.finish([SHA_REPLY]) == SHA_REPLY


def test_arity() -> None:
    assert table.answer(context(), FakeClient(), [b"script", b"load"]) == errors.wrong_arity(b"script|load")
