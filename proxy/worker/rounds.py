"""What a worker looks at again and again: deadlines and stalls, leases, clients that are idle or slow, memory.

Called by worker.worker; start() and stop(). Each round arms the next one first, so that one that fails is not the last.
Where the process stood still, what has come meanwhile is read before anybody counts as idle or late, and a client that
is in the middle of a command has that time besides: no byte of it could be read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from proxy.forward.blocking import look
from proxy.forward.buffer import trim
from proxy.forward.clients import close_idle, close_lingering, close_slow
from proxy.forward.datapath import DataPath
from proxy.forward.pulse import Pulse
from proxy.forward.router import Router
from proxy.ipc.settings import Clients
from proxy.worker.status import WorkerStatus

_SWEEP_S: Final = 0.05  # deadlines and stalls are noticed this late at most
_READ_S: Final = 0.01  # for what has come while the process stood still to be read: timers come first
_PUT_OFF: Final = 5  # times in a row that a sweep waits for that: a loop that is always late must not wait for ever
_LINGER_S: Final = 1.0  # a client that was told the end has this long to close
_TRIM_S: Final = 2.0
_LOOK_S: Final = 1.0  # between two looks at blocked commands whose node has lost its role, and beats of the pulse


class Rounds:
    """See the module. clients: their settings, which may change; looks: what else is to be done in each sweep."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        path: DataPath,
        router: Router,
        status: WorkerStatus,
        clients: Callable[[], Clients],
        looks: Sequence[Callable[[], None]],
    ) -> None:
        self._loop, self._path, self._router, self._status = loop, path, router, status
        self._clients, self._looks = clients, looks
        self._pulse = Pulse(router)
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._still_s = 0.0  # of the standstill for which the next sweep was put off

    def start(self) -> None:
        self._sweep()
        self._trim()
        self._look()

    def stop(self) -> None:
        for timer in self._timers.values():
            timer.cancel()

    def _sweep(self, due_s: float | None = None, put_off: int = 0) -> None:
        now_s = self._loop.time()
        late_s = max(0.0, now_s - due_s) if due_s is not None else 0.0
        stood_still = late_s > _SWEEP_S and put_off < _PUT_OFF
        next_s = now_s + (_READ_S if stood_still else _SWEEP_S)
        self._timers["sweep"] = self._loop.call_at(next_s, self._sweep, next_s, put_off + 1 if stood_still else 0)
        self._status.lag_s = late_s
        if stood_still:
            if not put_off:  # the first of a row: what is always late is not excused from all of its time
                self._still_s = late_s
            return
        still_s, self._still_s = self._still_s, 0.0
        self._router.sweep()
        self._path.leases.sweep()
        self.keep_up()
        for one in self._looks:
            one()
        close_lingering(self._path, _LINGER_S)
        clients = self._clients()
        if clients.idle_timeout:
            close_idle(self._path, clients.idle_timeout)
        if clients.frame_timeout:
            close_slow(self._path, clients.frame_timeout, still_s)

    def keep_up(self) -> None:
        """Clients that are told of changes without having read (BCAST) have a connection to every primary."""
        for client in list(self._path.tracking):
            if client.tracking is not None:
                client.tracking.keep_up()

    def _trim(self) -> None:
        self._timers["trim"] = self._loop.call_later(_TRIM_S, self._trim)
        trim()

    def _look(self) -> None:
        self._timers["look"] = self._loop.call_later(_LOOK_S, self._look)
        look(self._path)
        self._pulse.beat()
