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
        self.told_fate = ""

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

    def fate(self, pause: NodePause, /) -> str:
        return self.told_fate

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
    one, every = NodePause(ID, "a:1", 1, "c:1", 0), NodePause("", "", 1, "c:1", 0)
    assert console._paused(ctx, one, (0, 2)).startswith(b"-ERR node a:1 is paused, but 2 workers")
    assert console._paused(ctx, every, (0, -1)) == console.NO_MAIN_PROCESS


def test_a_pause_that_another_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its client is told so, and at once: it holds nothing any more."""
    monkeypatch.setattr(console, "DRAINED_S", 60.0)
    ctx, client, pauses = stage(left=3)
    pauses.told_fate = "was ended by b:1"
    assert ask(ctx, client, "PAUSE", "NODE", ID) == b"-ERR the pause of node 10.0.0.1:7000 was ended by b:1\r\n"
    pauses.left = 0
    assert ask(ctx, client, "PAUSE") == b"-ERR the pause of all nodes was ended by b:1\r\n"


@pytest.mark.parametrize(
    ("resume", "subject", "label", "told"),
    [
        ((), "h:1", "h:1", b"-ERR node h:1 was paused meanwhile by b:1; what was paused before goes on\r\n"),
        (("NODE", ID), ID, "x:1", b"-ERR node x:1 was paused meanwhile by b:1; what was paused before goes on\r\n"),
        (("NODE", ID), "", "", b"-ERR all nodes were paused meanwhile by b:1; what was paused before goes on\r\n"),
        (("NODE", ID), "h:1", "h:1", b"+OK\r\n"),
    ],
)
def test_paused_while_resume_prepares(resume: tuple[str, ...], subject: str, label: str, told: bytes) -> None:
    ctx, client, pauses = stage()
    pauses.obey = lambda pause: orders.append(pause)  # type: ignore[method-assign]
    orders: list[NodePause] = []
    newer = NodePause(subject, label, 2**62, "b:1", 0)

    def prepare(subject: str) -> Iterator[None]:
        newer_ns = time.monotonic_ns()
        pauses.orders[newer.subject] = NodePause(newer.subject, newer.label, newer.until_ns, newer.who, newer_ns)
        yield

    pauses.prepare = prepare  # type: ignore[method-assign]
    inner = ctx.inquire
    ctx.inquire = lambda inquiry, reply: inner(inquiry, reply) and NotedLater()  # type: ignore[assignment, return-value]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(console, "Later", NotedLater)
        assert ask(ctx, client, "RESUME", *resume).made == told
    (order,) = orders
    assert order.until_ns == 0
    assert order.given_ns < pauses.orders[subject].given_ns


def test_resume_takes_no_pauses_place_with_workers_that_start_later() -> None:
    """Of each kind and subject the last order holds for them; a pause may be newer than the RESUME sent after it."""
    ctx, client, _ = stage()
    inner, orders = ctx.inquire, []

    def inquire(inquiry: Any, reply: Any) -> Any:
        orders.extend([(inquiry.kind, inquiry.subject)] if inquiry.everyone else [])
        return inner(inquiry, reply)

    ctx.inquire = inquire
    ask(ctx, client, "PAUSE", "NODE", ID)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(console, "Later", NotedLater)
        ask(ctx, client, "RESUME", "NODE", ID)
    assert orders == [("proxy|pause", ID), ("proxy|resume", ID)]
