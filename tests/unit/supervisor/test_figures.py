"""What all workers count together: what has been counted stays, what is there now goes with its worker."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from proxy.forward.counters import Counters
from proxy.ipc.messages import Status
from proxy.supervisor.figures import Figures
from tests.unit.supervisor.pool_stage import counted

LASTING = [
    "total_connections_received",
    "total_commands_processed",
    "total_net_input_bytes",
    "total_net_output_bytes",
    "rejected_connections",
]
PASSING = ["proxy_commands_in_flight", "blocked_clients"]


@dataclass(eq=False)
class Stub:
    """A worker as far as it is asked."""

    counters: Counters
    clients: int = 0
    status: Status | None = None
    present: bool = True


def others(figures: Figures, workers: list[Any]) -> list[dict[str, int]]:
    return list(figures.others({"rejected_connections": 7}, workers).values())


@pytest.mark.parametrize("name", LASTING + PASSING)
def test_the_end_of_a_worker(name: str) -> None:
    figures = Figures()
    one, two, last = Stub(counted(name, 5), clients=2), Stub(Counters(), clients=1), 5 if name in LASTING else 0
    more = 7 * (name == "rejected_connections")
    assert [told[name] for told in others(figures, [one, two])] == [more, 5 + more]
    assert [told["connected_clients"] for told in others(figures, [one, two])] == [1, 2]
    one.present = False  # it ends
    assert [told[name] for told in others(figures, [one, two])] == [last + more]
    figures.ended(one.counters)
    for workers in ([two], [two, Stub(Counters())]):
        for told in others(figures, workers):
            assert told[name] == last + more
    assert [told["connected_clients"] for told in others(figures, [two])] == [0]


def test_every_total_is_one_of_the_two() -> None:
    """A new one must be told apart: lasting, or of now."""
    assert sorted(Counters().totals()) == sorted(LASTING + PASSING)


def test_what_a_worker_tells() -> None:
    status = Status(0, 3, 0, 9, 0.0, 0, {}, tracking_clients=4, monitors=5, topics=(6, 7, 8))
    told, _ = others(Figures(), [Stub(Counters()), Stub(Counters(), status=status)])
    assert told == dict.fromkeys(LASTING + PASSING, 0) | {
        "rejected_connections": 7,
        "connected_clients": 0,
        "tracking_clients": 4,
        "monitors": 5,
        "proxy_requests_waiting": 3,
        "proxy_client_memory": 9,
        "pubsub_channels": 6,
        "pubsub_patterns": 7,
        "pubsubshard_channels": 8,
    }
