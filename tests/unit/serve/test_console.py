"""PROXY: who may, its grammar, and what the workers' answers come to."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from typing import Any

import pytest

from proxy.serve import console, table
from proxy.serve.context import NodePause, NodeState, ServeContext
from tests.unit.serve.fakes import FakeClient, alone, context

ID = "a" * 40


class FakePauses:
    """Fits NodePausesLike."""

    def __init__(self, left: int = 0) -> None:
        self.orders: dict[str, NodePause] = {}
        self.left = left
        self.prepared: list[str] = []
        self.resumed: list[str] = []

    @property
    def present(self) -> Collection[NodePause]:
        return self.orders.values()

    def obey(self, pause: NodePause, /) -> None:
        if not pause.until_ns:
            self.resumed.append(pause.subject)
        if pause.until_ns:
            self.orders[pause.subject] = pause
        elif pause.subject:
            self.orders.pop(pause.subject, None)
        else:
            self.orders.clear()

    def pending(self, subject: str, /) -> int:
        return self.left

    def prepare(self, subject: str, /) -> Iterator[None]:
        self.prepared.append(subject)
        yield


def stage(left: int = 0, **changes: Any) -> tuple[ServeContext, FakeClient, FakePauses]:
    pauses = FakePauses(left)
    changes = {"admin_password": "x", "node_pauses": pauses} | changes
    ctx = alone(context(**changes), [])
    inner = ctx.inquire

    def inquire(inquiry: Any, reply: Any) -> Any:  # an answerer that has nothing to say yet says None
        merge = inquiry.merge
        inquiry = type(inquiry)(inquiry.kind, inquiry.body, lambda parts, n: merge([p for p in parts if p], n))
        return inner(inquiry, reply)

    ctx.inquire = inquire
    ctx.nodes = lambda: [NodeState("10.0.0.1:7000", "primary", True, 1, 0, ID), NodeState("h:1", "replica", True, 1, 0)]
    return ctx, FakeClient(user="admin"), pauses


def ask(ctx: ServeContext, client: FakeClient, *words: str) -> Any:
    return table.answer(ctx, client, [word.encode() for word in ("PROXY", *words)])  # type: ignore[arg-type]


@pytest.mark.parametrize("words", [("INFO",), ("HELP",), ("PAUSE",), ("RESUME",)])
def test_nobody_but_administrators(words: tuple[str, ...]) -> None:
    ctx, client, pauses = stage()
    client.user = "default"
    assert ask(ctx, client, *words) == console.NO_ADMINISTRATOR
    client.user, ctx.admin_password = "admin", None  # taken away by a reload
    assert ask(ctx, client, *words) == console.NO_ADMINISTRATORS
    assert not pauses.present


def test_pause_and_resume() -> None:
    ctx, client, pauses = stage()
    for name in ("10.0.0.1:7000", ID):
        assert ask(ctx, client, "pause", "node", name, "500000") == b"+OK\r\n"
        (order,) = pauses.present
        assert (order.subject, order.label, order.who) == (ID, "10.0.0.1:7000", client.address)
        assert 0 < order.until_ns - time.monotonic_ns() <= 500_000_000_000
    assert b"pauses:1\r\npause0:node=10.0.0.1:7000,left_ms=49" in ask(ctx, client, "INFO")
    assert ask(ctx, client, "PAUSE", "NODE", "h:1") == b"+OK\r\n"
    assert set(pauses.orders) == {ID, "h:1"}
    ctx.nodes = list  # they have left the topology
    ask(ctx, client, "RESUME", "NODE", ID)
    assert (set(pauses.orders), pauses.prepared) == ({"h:1"}, [ID])
    ask(ctx, client, "RESUME")
    assert (set(pauses.orders), pauses.prepared) == (set(), [ID, ""])
    # A PAUSE that has not come here yet must not come last.
    ask(ctx, client, "RESUME")
    assert (pauses.prepared, pauses.resumed) == ([ID, "", ""], [ID, "", ""])


class NotedLater:
    """What the client is answered with."""

    def __init__(self, barrier: bool = False) -> None:
        self.made: bytes | None = None

    def answer(self, made: bytes, /) -> None:
        self.made = self.made or made


def test_what_cannot_be_asked_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The questions of all clients wait in one queue, and it may be full: be it at the second step of RESUME."""
    refusal = b"-ERR too many questions to all workers are waiting\r\n"
    ctx, client, pauses = stage()
    inner, asked = ctx.inquire, 0

    def inquire(inquiry: Any, reply: Any) -> Any:
        nonlocal asked
        asked += 1
        if asked == full:
            return refusal
        inner(inquiry, reply)
        return NotedLater()  # as the real one does

    monkeypatch.setattr(console, "Later", NotedLater)
    ctx.inquire = inquire
    full = 1
    assert ask(ctx, client, "RESUME") == refusal
    full = 3
    assert ask(ctx, client, "RESUME").made == refusal
    full = 0
    assert ask(ctx, client, "RESUME").made == b"+OK\r\n"
    assert pauses.resumed == [""]


def test_an_empty_name_is_nobodys() -> None:
    ctx, client, _ = stage()
    assert ask(ctx, client, "PAUSE", "NODE", "") == b"-ERR Unknown node \r\n"


def test_grammar() -> None:
    ctx, client, pauses = stage()
    for words in (("NODE",), ("NODE", ID, "1", "2"), ("1", "2")):
        assert ask(ctx, client, "PAUSE", *words) == b"-ERR syntax error\r\n"
    for words in (("x",), ("0",), ("-5",), ("3600001",), ("NODE", ID, "1.5")):
        assert ask(ctx, client, "PAUSE", *words) == console.TIMEOUT
    assert ask(ctx, client, "PAUSE", "NODE", "\xff") == b"-ERR Unknown node \xc3\xbf\r\n"
    assert ask(ctx, client, "RESUME", "x") == b"-ERR syntax error\r\n"
    assert pauses.orders == {}
    assert ask(ctx, client, "PAUSE") == b"+OK\r\n"
    assert ask(ctx, client, "RESUME", "NODE", ID) == console.ALL_PAUSED
    assert ask(ctx, client, "PAUSE", "NODE", ID) == b"+OK\r\n"
    assert ask(ctx, client, "RESUME", "NODE", ID) == console.ALL_PAUSED  # it would not go on
    assert set(pauses.orders) == {"", ID}


def test_what_is_not_answered_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "DRAINED_S", 0.05)
    ctx, client, pauses = stage(left=3)
    assert ask(ctx, client, "PAUSE", "NODE", ID).startswith(b"-ERR node 10.0.0.1:7000 is paused, but after 0.05 s 3 ")
    assert set(pauses.orders) == {ID}
    assert console._paused("a:1", (0, 2)).startswith(b"-ERR node a:1 is paused, but 2 workers")
    assert console._paused("", (0, -1)) == console.NO_MAIN_PROCESS
