"""The clients that said MONITOR: what they are shown, by this worker and by the others.

Why: each worker sees the commands of its own clients only. proxy.forward.monitor writes them down as lines; here they
are given to this worker's monitors, and through the main process (supervisor.monitors) to those of the others. Called
by worker.worker, and by proxy.serve.monitor.

Invariants:
- Nothing is looked at while nobody monitors, here or elsewhere.
- Monitors never hold anything up: of lines that they, or the main process, do not take in time, whole ones are dropped
  and counted. They get TICK_MOST bytes in each TICK_S, all of them together.
- The lines of one worker come in their order, those of two may be TICK_S apart.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

import msgspec

from proxy.forward.datapath import DataPath
from proxy.forward.monitor import Monitor
from proxy.ipc.messages import Monitoring, Shown
from proxy.serve.context import ClientLike
from proxy.system.log import get, warn_limited

log = get("worker.monitors")

TICK_S: Final = 0.01
TICK_MOST: Final = 1 << 20
SLOW: Final = 1 << 20  # bytes that a monitor has not taken: nothing more is added to them
BEHIND: Final = 1 << 17  # ... the main process: less than what holds up the answers to questions (inquiries.BEHIND)


class Monitors:
    """See the module. send: to the main process; backlog: bytes on their way there."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        path: DataPath,
        send: Callable[[msgspec.Struct], None],
        backlog: Callable[[], int],
    ) -> None:
        self._loop = loop
        self._path = path
        self._send = send
        self._backlog = backlog
        self._monitor = Monitor(path)
        self._clients: list[ClientLike] = []
        self._coming: set[ClientLike] = set()
        self._elsewhere = False
        self._left = TICK_MOST  # bytes that may still be given to monitors in this tick
        self._lost = 0  # lines that the data path dropped, as far as they are counted
        self._turn: asyncio.TimerHandle | None = None

    def add(self, client: ClientLike) -> None:
        """A client is to be shown everything, in a moment: when begin() is called, all workers have been told."""
        client.monitoring = True
        self._coming.add(client)
        warn_limited(log, "begins", "MONITOR begins: every command is shown, which takes time", client=client.address)
        self._changed()

    def begin(self, client: ClientLike) -> None:
        """A client is shown everything from now on, if it is still there."""
        if client in self._coming:
            self._coming.remove(client)
            self._clients.append(client)

    def remove(self, client: ClientLike) -> None:
        """It is shown nothing more: it has left, or said RESET."""
        client.monitoring = False
        if client in self._coming:
            self._coming.remove(client)
        else:
            self._clients.remove(client)
        self._changed()

    def __len__(self) -> int:
        return len(self._clients) + len(self._coming)

    def wanted_elsewhere(self, wanted: bool) -> None:
        """Another worker has monitors; or none has any more."""
        self._elsewhere = wanted
        self._follow()

    def shown(self, others: Shown) -> None:
        """What the clients of the other workers did."""
        self._drop(others.dropped)
        if others.count:
            self._show(others.lines, others.count)

    def stop(self) -> None:
        """Nothing is looked at any more."""
        self._monitor.watch(False)
        if self._turn is not None:
            self._turn.cancel()

    def _changed(self) -> None:
        self._send(Monitoring(len(self)))
        self._follow()

    def _follow(self) -> None:
        wanted = bool(self._clients or self._coming or self._elsewhere)
        self._monitor.watch(wanted)
        if wanted and self._turn is None:
            self._turn = self._loop.call_later(TICK_S, self._tick)

    def _tick(self) -> None:
        self._turn = self._loop.call_later(TICK_S, self._tick) if self._monitor.active else None
        self._left = TICK_MOST
        self._drop(self._monitor.dropped - self._lost)
        self._lost = self._monitor.dropped
        lines, count = self._monitor.take()
        if not count:
            return
        self._show(lines, count)
        if not self._elsewhere:
            return
        if self._backlog() > BEHIND:
            self._drop(count)
        else:
            self._send(Shown(lines, count, 0))

    def _show(self, lines: bytes, count: int) -> None:
        for client in list(self._clients):  # one of them may be closed by its push
            if client.output_bytes > SLOW or self._left < len(lines):
                self._drop(count)
            else:
                self._left -= len(lines)
                client.push(lines)
        if self._clients:
            self._clients.append(self._clients.pop(0))  # else the same would always be served first

    def _drop(self, count: int) -> None:
        if count:
            self._path.counters.drop_monitored(count)
            warn_limited(log, "dropped", "MONITOR is not taken fast enough: lines are dropped", lines=count)
