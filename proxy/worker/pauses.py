"""CLIENT PAUSE in one worker: put in force, told in the log, lifted when the worker is to end.

Why: a proxy that is paused looks like one that hangs; whoever operates it has to see who paused it. Called by
worker.worker (proxy.serve sets a pause through ServeContext.pause) and by worker.drain.

Invariants: each change is logged once, by worker 0, for all have the same pause; a client that pauses again and again
does not fill the log. From lift() on nothing is held any more.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

from proxy.forward.datapath import DataPath
from proxy.forward.hold import held, pause, paused
from proxy.system.log import get, warn_limited

_MODES: Final = {1: "WRITE", 2: "ALL"}

log = get("worker.pause")


class Pauses:
    """See the module. logged: whether this worker is the one that logs."""

    def __init__(self, path: DataPath, *, logged: bool) -> None:
        self._path = path
        self._logged = logged
        self._told = False
        self._lifted = False

    def set(self, level: int, until_ns: int, who: str) -> None:
        """See ServeContext.pause; who: the address of the client that asked for it."""
        if self._lifted:
            return
        before = self.now()
        pause(self._path, level, until_ns)
        now = self.now()
        if self._logged and now[0] and now != before:
            seconds = round((now[1] - time.monotonic_ns()) / 1e9, 1)
            warn_limited(log, f"paused{now[0]}", "clients paused", mode=_MODES[now[0]], seconds=seconds, client=who)
            self._told = True
        elif not now[0]:
            self._go_on(who)

    def now(self) -> tuple[int, int]:
        """See ServeContext.paused."""
        return paused(self._path)

    def look(self) -> None:
        """To be called regularly: a pause ends by itself, too."""
        if self._told and not self.now()[0]:
            self._go_on("")

    async def lift(self) -> None:
        """Lets everybody go on, for good; returns when all whom the pause held do."""
        self._lifted = True
        pause(self._path, 0, 0)
        self._go_on("")
        while held(self._path):
            await asyncio.sleep(0)

    def _go_on(self, who: str) -> None:
        if self._told:
            self._told = False
            warn_limited(log, "on", "clients go on", **({"client": who} if who else {}))
