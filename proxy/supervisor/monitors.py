"""What clients of one worker do, passed on to the workers whose clients monitor.

Why: MONITOR shows what passes through the whole proxy, and workers do not know each other. Called by worker_pool, with
what workers say.

Invariants: a worker shows its clients' commands to the others only while one of those has monitors. A worker that does
not take its messages is sent no lines; how many it missed comes with the next ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from proxy.ipc.messages import Monitoring, Shown, ShowOthers
from proxy.supervisor.relay import Worker

BEHIND: Final = 1 << 15  # bytes that a worker has not taken: less than what holds up questions (relay.BEHIND)


class MonitorRelay:
    """See the module. workers: those whose channel has not ended."""

    def __init__(self, workers: Callable[[], Sequence[Worker]]) -> None:
        self._workers = workers
        self._monitors: dict[Worker, int] = {}
        self._missed: dict[Worker, int] = {}
        self._asked: set[Worker] = set()  # who shows its commands to the others

    def heard(self, worker: Worker, message: Monitoring | Shown) -> None:
        """A worker has another number of monitors, or shows what its clients did."""
        if isinstance(message, Monitoring):
            self._monitors[worker] = message.monitors
            self._follow()
            return
        for other, monitors in self._monitors.items():
            if other is worker or not monitors:
                continue
            if other.backlog > BEHIND:
                self._missed[other] = self._missed.get(other, 0) + message.count
            else:
                missed = self._missed.pop(other, 0)
                other.channel.send(Shown(message.lines, message.count, missed))

    def started(self, worker: Worker) -> None:
        """A worker has started."""
        self._follow()

    def gone(self, worker: Worker) -> None:
        """A worker's channel has ended."""
        self._monitors.pop(worker, None)
        self._missed.pop(worker, None)
        self._asked.discard(worker)
        self._follow()

    def _follow(self) -> None:
        for worker in self._workers():
            wanted = any(monitors for other, monitors in self._monitors.items() if other is not worker)
            if worker.started and wanted != (worker in self._asked):
                (self._asked.add if wanted else self._asked.discard)(worker)
                worker.channel.send(ShowOthers(wanted))
