"""How clients leave a worker: counted for whoever hands them out, and parted with when the worker is to end.

Why: the supervisor gives a client to the worker with the fewest, so it must learn soon who has left; and a worker that
ends owes every client the answers to what was read of it. Called by proxy.worker.worker.

Invariants: each client is counted as left exactly once, also one that could not be served; what the data path says in
the middle of a batch is told outside of it, at most once in LEFT_GAP_S.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from typing import Final

from proxy.forward.clients import close_all, drain
from proxy.forward.datapath import DataPath
from proxy.system.log import get

LEFT_GAP_S: Final = 0.005
NEW_S: Final = 0.25  # a client that has just connected has something to say, and would take the end for a failure
# Turns that come due within this long are taken together: ten thousand of them need not be ten thousand timers.
_TURN_S: Final = 0.005

log = get("worker")


class Leaving:
    """See the module. on_left(clients): so many more are gone."""

    def __init__(self, loop: asyncio.AbstractEventLoop, path: DataPath, on_left: Callable[[int], None]) -> None:
        self.draining = False
        self._loop = loop
        self._path = path
        self._on_left = on_left
        self._unserved = 0
        self._told = 0
        self._next_s = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._some_left = asyncio.Event()
        path.on_close = self._left

    def unserved(self) -> None:
        """A client that was handed over has left before the data path took it."""
        self._unserved += 1
        self._left()

    async def drain(self, spread_s: float, timeout_s: float) -> None:
        """Gives each client its turn, evenly over spread_s and in no order; returns when all are gone.

        At its turn a client is drained: no more is read of it, what was read is answered. One that came within
        NEW_S and has said nothing yet comes last, and not before it has been there so long. Whoever is left after
        timeout_s is closed.
        """
        self.draining = True
        turns = list(self._path.clients)
        random.shuffle(turns)  # connections made together, one application's, are not to go together
        begun_s, new_s = self._loop.time(), time.time() - NEW_S
        turns.sort(key=lambda client: client.created_s > new_s and not client.total_commands)
        try:
            async with asyncio.timeout(timeout_s):
                for place, client in enumerate(turns):
                    wait_s = begun_s + spread_s * place / len(turns) - self._loop.time()
                    if not client.total_commands:
                        wait_s = max(wait_s, client.created_s + NEW_S - time.time())
                    if wait_s > 0:
                        await asyncio.sleep(max(wait_s, _TURN_S))
                    drain(client)
                await self.empty()
        except TimeoutError:
            log.warning("clients cut off at the end of the drain", clients=len(self._path.clients))
            close_all(self._path)
            await self.empty()

    async def empty(self) -> None:
        """Returns when no client is left, and that has been told."""
        while self._path.clients or self._timer is not None:
            self._some_left.clear()
            await self._some_left.wait()

    def stop(self) -> None:
        """Tells nothing any more."""
        self._path.on_close = None
        if self._timer is not None:
            self._timer.cancel()

    def _left(self) -> None:
        if self._timer is None:
            self._timer = self._loop.call_at(max(self._next_s, self._loop.time()), self._tell)

    def _tell(self) -> None:
        self._timer = None
        self._next_s = self._loop.time() + LEFT_GAP_S
        gone = self._path.closed + self._unserved
        if gone > self._told:
            self._on_left(gone - self._told)
            self._told = gone
        self._some_left.set()
