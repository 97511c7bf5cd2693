"""worker.node_pauses: several operators, and what the log says of PROXY PAUSE. See integration/test_pause.py, too."""

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
    now_ns = time.monotonic_ns()
    return NodePause(subject, subject, now_ns + int(seconds * 1e9) if seconds else 0, who, now_ns)


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


@pytest.mark.parametrize("of", ["", "n:1"])
def test_resume_ends_what_was_paused_before_it_was_given(pauses: NodePauses, of: str) -> None:
    """It is sent seconds later, when the nodes have come back; a pause that began meanwhile is somebody else's."""
    pauses.obey(order("n:1", "a:1", seconds=60))
    late = order(of, "a:1")
    newer = {order("n:2", "b:1", seconds=60), order("", "b:1", seconds=60)}
    for pause in newer:
        pauses.obey(pause)
    pauses.obey(late)
    assert set(pauses.present) == newer
    again = order(of, "b:1", seconds=60)
    pauses.obey(again)
    pauses.obey(late)
    assert again in pauses.present
    pauses.obey(order(of, "c:1"))
    assert again not in pauses.present


def test_what_has_come_of_a_pause(pauses: NodePauses) -> None:
    mine = order("n:1", "a:1", seconds=60)
    pauses.obey(mine)
    pauses.obey(order("n:2", "b:1", seconds=60))
    assert pauses.fate(mine) == ""
    short = order("n:1", "b:1", seconds=-1)
    pauses.obey(short)  # too late, too
    pauses.look()
    assert pauses.fate(mine) == "was set anew by b:1"
    assert pauses.fate(short).startswith("is over")
    again = order("n:1", "a:1", seconds=60)
    pauses.obey(again)
    pauses.obey(order("n:2", "b:1"))
    assert (pauses.fate(mine), pauses.fate(again)) == ("was set anew by a:1", "")
    pauses.obey(order("", "c:1"))
    assert pauses.fate(again) == "was ended by c:1"
    pauses.lift()
    assert pauses.fate(again) == "was ended by a drain"


def test_a_pause_of_all_that_comes_too_late_ends_no_other(pauses: NodePauses) -> None:
    """A worker that starts later is told it, too: it would not hold what the others do."""
    mine = order("n:1", "a:1", seconds=60)
    pauses.obey(mine)
    pauses.obey(order("", "b:1", seconds=-1))
    assert list(pauses.present) == [mine]
