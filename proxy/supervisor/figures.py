"""What the whole proxy counts, for INFO of each worker, which adds what the others count to its own.

Why: whichever worker a client is with, INFO is of one server. Called by worker_pool, which keeps one `Figures`.

Invariant: what workers that have ended had counted stays counted, as in the metrics: whoever compares two answers of
INFO would take it for a restart otherwise. What is counted of now (clients, commands in flight) ends with its worker.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Final

from proxy.ipc.messages import TOPIC_STATS

if TYPE_CHECKING:
    from proxy.forward.counters import Counters
    from proxy.supervisor.worker_pool import Worker

_LASTING: Final = (
    "total_connections_received",
    "total_commands_processed",
    "total_net_input_bytes",
    "total_net_output_bytes",
    "rejected_connections",
)


class Figures:
    """See the module."""

    def __init__(self) -> None:
        self._past: Counter[str] = Counter()

    def ended(self, counters: Counters) -> None:
        """A worker has ended. counters: its last."""
        self._past.update(_lasting(counters))

    def others(self, own: Mapping[str, int], workers: Iterable[Worker]) -> dict[Worker, dict[str, int]]:
        """Each worker that is present -> what is counted elsewhere, under INFO's names.

        own: what the main process counts. workers: all whose end has not been told.
        """
        totals = Counter(own)
        totals.update(self._past)
        figures: dict[Worker, Mapping[str, int]] = {}
        for worker in workers:
            if worker.present:
                figures[worker] = figures_of(worker)
                totals.update(figures[worker])
            else:
                totals.update(_lasting(worker.counters))
        return {
            worker: {name: total - counted.get(name, 0) for name, total in totals.items()}
            for worker, counted in figures.items()
        }


def figures_of(worker: Worker) -> Mapping[str, int]:
    """What one worker has counted, under INFO's names."""
    status = worker.status
    topics = status.topics if status is not None else (0, 0, 0)
    return worker.counters.totals() | {
        **dict(zip(TOPIC_STATS, topics, strict=True)),
        "connected_clients": worker.clients,
        "tracking_clients": status.tracking_clients if status is not None else 0,
        "monitors": status.monitors if status is not None else 0,
        "proxy_requests_waiting": status.waiting if status is not None else 0,
        "proxy_client_memory": status.client_memory if status is not None else 0,
    }


def _lasting(counters: Counters) -> dict[str, int]:
    totals = counters.totals()
    return {name: totals[name] for name in _LASTING}
