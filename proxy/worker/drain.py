"""How a worker parts with its clients when it is to end: waits for the last to leave, or gives each its turn.

Why: whoever ends owes every client the answers to what it has sent. Called by worker.worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable
from typing import Final

from proxy.forward.clients import close_all, drain
from proxy.forward.datapath import DataPath
from proxy.system.log import get

NEW_S: Final = 0.25  # a client that has just connected has something to say, and would take the end for a failure
UNBLOCK_S: Final = 1.2  # for nodes to end what blocks: a client that is blocked is told the end itself after a second
_TAKE_S: Final = 0.2  # ... and for clients to take the answer and close
_GROUP: Final = 100  # so many are ended in one turn of the loop
# Turns that come due within this long are taken together: ten thousand of them need not be ten thousand timers.
_TURN_S: Final = 0.005

log = get("worker")


class Leaving:
    """The clients of one data path on their way out. lift: ends what holds them back (CLIENT PAUSE), for good."""

    def __init__(self, loop: asyncio.AbstractEventLoop, path: DataPath, lift: Callable[[], Awaitable[None]]) -> None:
        self.draining = False
        self._loop = loop
        self._path = path
        self._lift = lift
        self._one_left = asyncio.Event()

    async def drain(self, spread_s: float, timeout_s: float) -> None:
        """Gives each client its turn, evenly over spread_s and in no order; returns when all are gone.

        At its turn a client is drained: what has come is answered, no more is read of it. One that came within
        NEW_S and has said nothing yet comes last, and not before it has been there so long. Whoever is left after
        timeout_s is closed; those that are blocked are unblocked first, within UNBLOCK_S more.
        """
        self.draining = True
        await self._lift()  # those that were held are owed answers, too
        turns = list(self._path.clients)
        random.shuffle(turns)  # connections made together, one application's, are not to go together
        begun_s = self._loop.time()
        turns.sort(key=lambda client: client.age_s < NEW_S and not client.total_commands)
        try:
            async with asyncio.timeout(timeout_s):
                for place, client in enumerate(turns):
                    wait_s = begun_s + spread_s * place / len(turns) - self._loop.time()
                    if not client.total_commands:
                        wait_s = max(wait_s, NEW_S - client.age_s)
                    if wait_s > 0:
                        await asyncio.sleep(max(wait_s, _TURN_S))
                    drain(client)
                await self.empty()
        except TimeoutError:
            await self._unblock()
        if self._path.clients:
            log.warning("clients cut off at the end of the drain", clients=len(self._path.clients))
            close_all(self._path)

    async def _unblock(self) -> None:
        """Ends what blocks clients: their nodes say whether something was popped for them, which they still get."""
        until_s = self._loop.time() + UNBLOCK_S
        some = False
        while self._loop.time() < until_s and (blocked := [client for client in self._path.clients if client.blocked]):
            some = True
            for place, client in enumerate(blocked):
                if place % _GROUP == _GROUP - 1:
                    await asyncio.sleep(0)
                drain(client)
                client.dismiss()
            await asyncio.sleep(_TURN_S)
        if some:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_TAKE_S):
                    await self.empty()

    async def empty(self) -> None:
        """Returns when no client is left."""
        self._path.on_close = self._one_left.set
        while self._path.clients:
            self._one_left.clear()
            await self._one_left.wait()
