"""CLIENT LIST, KILL, PAUSE and UNPAUSE, for a proxy of one worker; several: tests/daemon/test_clients.py."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest

from proxy.serve import client_all, table
from proxy.serve.context import Inquiry, ServeContext
from tests.unit.serve.fakes import FakeClient, alone, context


def proxy(*clients: FakeClient) -> ServeContext:
    return alone(context(), list(clients))


def ask(ctx: ServeContext, client: FakeClient, *words: str) -> Any:
    return table.answer(ctx, client, [b"CLIENT", *(word.encode() for word in words)])


def ids(answer: bytes) -> list[int]:
    return [int(found) for found in re.findall(rb"^(?:txt:)?id=(\d+) ", answer, re.MULTILINE)]


def test_list_is_sorted_and_shows_everybody() -> None:
    me, *others = (FakeClient(id=n) for n in (7, 30, 4, 100))
    ctx = proxy(me, *others)
    assert ids(ask(ctx, me, "LIST")) == [4, 7, 30, 100]
    assert ids(ask(ctx, me, "LIST", "SKIPME", "yes")) == [4, 30, 100]
    assert ids(ask(ctx, me, "LIST", "ID", "100", "4", "5")) == [4, 100]
    assert ask(ctx, me, "LIST", "TYPE", "replica") == b"$0\r\n\r\n"
    me.proto = 3
    assert re.fullmatch(rb"=\d+\r\ntxt:id=4 .*\n\r\n", ask(ctx, me, "LIST"), re.DOTALL)
    others[0].fd = -1  # closed while the list is made
    assert ids(ask(ctx, me, "LIST")) == [4, 7, 100]


def test_list_is_made_of_pieces_in_any_order() -> None:
    lines = [b"id=%d x\n" % n for n in (5, 10, 2, 1, 30)]
    assert client_all._sorted_lines([b"".join(lines[:2]), b"".join(lines[2:])], 1) == (
        b"id=1 x\nid=2 x\nid=5 x\nid=10 x\nid=30 x\n"
    )
    assert client_all._sorted_lines([], 0) == b""


@pytest.mark.parametrize(
    ("words", "error"), [([], False), (["timeout"], False), (["ERROR"], True), (["ERROR", "x"], False)]
)
def test_unblock(words: list[str], error: bool) -> None:
    me, free, blocked = FakeClient(id=1), FakeClient(id=2), FakeClient(id=3, blocked=True)
    ctx = proxy(me, free, blocked)
    assert ask(ctx, me, "UNBLOCK", "3", *words) == b":1\r\n"
    assert blocked.unblocked_with is error
    for nobody in ("1", "2", "4", "-1", str(2**63 - 1)):
        assert ask(ctx, me, "UNBLOCK", nobody, *words) == b":0\r\n"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["x"], b"-ERR value is not an integer or out of range\r\n"),
        (["3", "x"], b"-ERR CLIENT UNBLOCK reason should be TIMEOUT or ERROR\r\n"),
        ([str(2**63)], b"-ERR value is not an integer or out of range\r\n"),
    ],
)
def test_unblock_with_bad_arguments(words: list[str], told: bytes) -> None:
    me = FakeClient(blocked=True)
    assert ask(proxy(me), me, "UNBLOCK", *words) == told
    assert me.unblocked_with is None


def test_kill() -> None:
    me, *others = (FakeClient(id=n, address=f"1.1.1.1:{n}") for n in (7, 30, 4, 100))
    ctx = proxy(me, *others)
    assert ask(ctx, me, "KILL", "1.1.1.1:99") == b"-ERR No such client\r\n"
    assert ask(ctx, me, "KILL", "1.1.1.1:30") == b"+OK\r\n"
    assert [client.killed for client in others] == [True, False, False]
    assert ask(ctx, me, "KILL", "1.1.1.1:30") == b"-ERR No such client\r\n"
    assert ask(ctx, me, "KILL", "TYPE", "normal") == b":2\r\n"
    assert all(client.killed for client in others)
    assert not me.closing
    assert ask(ctx, me, "KILL", "TYPE", "normal") == b":0\r\n"


@pytest.mark.parametrize(
    ("words", "reply"),
    [
        (("1.1.1.1:7",), b"+OK\r\n"),
        (("ID", "7", "SKIPME", "no"), b":1\r\n"),
        (("TYPE", "normal", "SKIPME", "no"), b":2\r\n"),
    ],
)
def test_a_client_that_kills_itself_is_answered_first(words: tuple[str, ...], reply: bytes) -> None:
    me, other = FakeClient(id=7, address="1.1.1.1:7"), FakeClient(id=8)
    assert ask(proxy(me, other), me, "KILL", *words) == reply
    assert me.closing
    assert not me.killed


def test_a_client_has_one_question_at_a_time() -> None:
    """Else ten thousand of them could wait for one client; and Redis carries out one command after the other."""
    me = FakeClient(pending=1)
    ctx = proxy(me)
    for words in (("LIST",), ("KILL", "x"), ("KILL", "ID", "1"), ("PAUSE", "1"), ("UNPAUSE",)):
        assert ask(ctx, me, *words) is None
    assert ask(ctx, me, "KILL", "ID", "x") == b"-ERR syntax error\r\n"
    assert ctx.paused() == (0, 0)


def test_pause() -> None:
    me = FakeClient()
    ctx = proxy(me)
    now_ns = time.monotonic_ns()
    assert ask(ctx, me, "PAUSE", "100000", "write") == b"+OK\r\n"
    level, until_ns = ctx.paused()
    assert level == 1
    assert 100 <= (until_ns - now_ns) / 1e9 < 110
    # none becomes shorter, or milder
    assert ask(ctx, me, "PAUSE", "5") == b"+OK\r\n"
    assert ctx.paused() == (2, until_ns)
    assert ask(ctx, me, "PAUSE", "5", "WRITE") == b"+OK\r\n"
    assert ctx.paused() == (2, until_ns)
    assert ask(ctx, me, "UNPAUSE") == b"+OK\r\n"
    assert ctx.paused() == (0, 0)
    assert ask(ctx, me, "PAUSE", "9000000000000000000", "ALL", "x") == b"+OK\r\n"
    assert ctx.paused() == (2, 2**63 - 1)


def test_two_pauses_at_once() -> None:
    """Each worker puts what it hears on top of what holds."""
    ctx = proxy()
    now_ns = time.monotonic_ns()
    for level, until_ns in ((1, now_ns + 9 * 10**9), (2, now_ns + 10**9)):
        order = (level, until_ns), "a:1", (0, 0), 0
        list(table.ANSWERERS["client|pause"](ctx, client_all.msgspec.msgpack.encode(order)))
    assert ctx.paused() == (2, now_ns + 9 * 10**9)


def test_unpause_while_a_pause_is_on_its_way() -> None:
    """A pause of 5 s brings back none of 100 s that has been ended, and a worker that starts later holds the same."""
    ctx, newer, orders = proxy(), proxy(), dict[tuple[str, str], Inquiry]()

    def order(*words: str) -> Inquiry:
        asked: list[Inquiry] = []
        ctx.inquire = lambda inquiry, reply: asked.append(inquiry) or b""  # type: ignore[func-returns-value]
        ask(ctx, FakeClient(), *words)
        return asked[0]

    def obey(inquiry: Inquiry) -> tuple[int, int]:
        orders.pop((inquiry.kind, inquiry.subject), None)  # as supervisor.relay keeps them
        orders[inquiry.kind, inquiry.subject] = inquiry
        list(table.ANSWERERS[inquiry.kind](ctx, inquiry.body))
        return ctx.paused()

    def replayed() -> tuple[int, int]:
        newer.unpaused_ns = 0
        newer.pause(0, 0, "")
        for inquiry in orders.values():
            list(table.ANSWERERS[inquiry.kind](newer, inquiry.body))
        return newer.paused()

    longest = obey(order("PAUSE", "100000"))
    assert obey(order("PAUSE", "5000", "WRITE")) == longest == replayed()
    short = order("PAUSE", "5000", "WRITE")
    assert obey(order("UNPAUSE")) == (0, 0) == replayed()
    level, until_ns = obey(short)
    assert (level, until_ns) == replayed()
    assert level == 1
    assert until_ns < longest[1]
    assert obey(order("PAUSE", "1")) == (2, until_ns) == replayed()


def test_a_pause_that_may_have_reached_nobody() -> None:
    ctx = proxy()
    ctx.inquire = lambda inquiry, reply: reply(inquiry.merge([], -1))
    assert ask(ctx, FakeClient(), "PAUSE", "1").startswith(b"-ERR the proxy's main process does not answer")


def test_what_may_be_shared_and_what_is_an_order() -> None:
    asked: list[Inquiry] = []
    ctx = proxy()

    def inquire(inquiry: Inquiry, reply: Any) -> bytes:
        asked.append(inquiry)
        return b""

    ctx.inquire = inquire
    for words in (("LIST",), ("KILL", "ID", "1"), ("PAUSE", "1"), ("UNPAUSE",)):
        ask(ctx, FakeClient(), *words)
    assert [(one.shared, one.everyone, one.lasting) for one in asked] == [
        (True, False, False),
        (False, False, False),
        (False, True, True),  # not while an upgrade is under way
        (False, True, False),
    ]
    assert all(one.kind in table.ANSWERERS for one in asked)


def test_without_a_worker_around_it() -> None:
    """The context as it is made: nobody to ask."""
    me = FakeClient()
    assert ask(context(), me, "LIST") == b"$0\r\n\r\n"
    assert ask(context(), me, "PAUSE", "5") == b"+OK\r\n"
