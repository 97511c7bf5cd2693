"""What a worker alone sees of the cluster, told to the main process: at most one Report in GAP_S, each sign once.

Why: one lost node makes thousands of requests notice it. Called by worker.worker, in the middle of batches too.

Invariant: a main process that takes nothing, for it is stopped, is not told the same again and again for that time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from proxy.ipc.messages import Report

GAP_S: Final = 0.01
BEHIND: Final = 4 << 20  # bytes that the main process has not taken, more than answers and lines of MONITOR come to ...
BEHIND_S: Final = 0.1  # ... and when that is looked at again


class Reports:
    """See the module. `timer`: to be cancelled at the end. backlog: bytes on their way to the main process."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, send: Callable[[Report], None], backlog: Callable[[], int]
    ) -> None:
        self.timer: asyncio.TimerHandle | None = None
        self._loop = loop
        self._send = send
        self._backlog = backlog
        self._next = Report([])
        self._not_before_s = 0.0

    def add(self, sign: str = "", unfit: str = "", why: str = "", silent: str = "", unreached: str = "") -> None:
        """sign: of control.topology_refresh.TRIGGERS; unfit: "host:port" of a replica that refused a read, and why;
        silent: of a node that says nothing; unreached: of a primary that closes connections or takes none.
        """
        if sign and sign not in self._next.signs:
            self._next.signs.append(sign)
        if unfit:
            self._next.unfit[unfit] = why
        if silent and silent not in self._next.silent:
            self._next.silent.append(silent)
        if unreached and unreached not in self._next.unreached:
            self._next.unreached.append(unreached)
        if self.timer is None:
            self.timer = self._loop.call_at(max(self._not_before_s, self._loop.time()), self._tell)

    def _tell(self) -> None:
        if self._backlog() > BEHIND:
            self.timer = self._loop.call_later(BEHIND_S, self._tell)
            return
        self.timer = None
        self._not_before_s = self._loop.time() + GAP_S
        report, self._next = self._next, Report([])
        self._send(report)
