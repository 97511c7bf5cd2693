"""worker.node_pauses: what the log says of PROXY PAUSE. What it does is tested in integration/test_pause.py."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest

from proxy.serve.context import NodePause
from proxy.system.log import FIELDS
from proxy.worker import node_pauses
from proxy.worker.node_pauses import LINES, NodePauses


class Clock:
    """As much of a loop as is needed."""

    now_s = 0.0

    def time(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def pauses(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> NodePauses:
    monkeypatch.setattr(node_pauses, "set_paused", lambda path, nodes: None)
    monkeypatch.setattr(node_pauses, "held", lambda path: 0)
    router: Any = SimpleNamespace(nodes={})
    rest: Any = None
    return NodePauses(clock, rest, router, rest, rest, lambda reason: None, logged=True)  # type: ignore[arg-type]


def order(subject: str, who: str, *, seconds: float = 0) -> NodePause:
    return NodePause(subject, subject, time.monotonic_ns() + int(seconds * 1e9) if seconds else 0, who)


def told(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str, str]]:
    """(event, node, client) of each line."""
    lines = [(record.message, getattr(record, FIELDS)) for record in caplog.records]
    return [(event, fields["node"], fields["client"]) for event, fields in lines]


def test_each_order_is_in_the_log(pauses: NodePauses, caplog: pytest.LogCaptureFixture) -> None:
    """The last line must not say that a node goes on which is paused."""
    for who in ("a:1", "b:1"):
        pauses.obey(order("n:1", who, seconds=60))
        pauses.obey(order("n:1", who))
    pauses.obey(order("n:1", "c:1", seconds=3600))
    assert told(caplog) == [
        ("node paused", "n:1", "a:1"),
        ("node resumed", "n:1", "a:1"),
        ("node paused", "n:1", "b:1"),
        ("node resumed", "n:1", "b:1"),
        ("node paused", "n:1", "c:1"),
    ]


def test_of_a_flood_the_last_of_each_node(pauses: NodePauses, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    for n in range(500):
        pauses.obey(order("n:1", f"a:{n}", seconds=60))
        pauses.obey(order("n:2", f"a:{n}", seconds=60))
        pauses.obey(order("n:2", f"b:{n}"))
    assert len(told(caplog)) == LINES
    clock.now_s = 0.5
    pauses.look()
    assert len(told(caplog)) == LINES
    clock.now_s = 1.0
    pauses.obey(order("n:1", "c:1"))  # nothing is paused any more
    pauses.look()
    assert sorted(told(caplog)[LINES:]) == [("node resumed", "n:1", "c:1"), ("node resumed", "n:2", "b:499")]
    pauses.look()
    assert len(told(caplog)) == LINES + 2
