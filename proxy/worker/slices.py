"""Long work in slices, between which everybody else is served.

Why: a client may name a hundred thousand channels. Used by worker.subscriptions and worker.upstream.

Invariant: no slice is longer than SLICE_S by more than one step of a piece of work, and PAUSE_S lies between two.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final

SLICE_S: Final = 0.0005
PAUSE_S: Final = 0.002


class Slices:
    """See the module. raised(what, error): a piece of work has raised, and is over."""

    def __init__(self, loop: asyncio.AbstractEventLoop, raised: Callable[[str, BaseException], None]) -> None:
        self._loop = loop
        self._raised = raised
        self._work: deque[Iterator[None]] = deque()
        self._next: asyncio.TimerHandle | None = None
        self._running = self._ended = False

    def do(self, work: Iterator[None]) -> None:
        """Begins at once, when nothing else is under way."""
        self._work.append(work)
        if self._next is None and not self._running and not self._ended:
            self._go_on()

    def stop(self) -> None:
        """Nothing is done any more."""
        self._ended = True
        if self._next is not None:
            self._next.cancel()

    def _go_on(self) -> None:
        self._next = None
        self._running = True
        until_s = time.perf_counter() + SLICE_S
        while self._work and time.perf_counter() < until_s:
            work = self._work.popleft()
            try:
                if next(work, self) is not self:
                    self._work.append(work)
            except Exception as error:
                self._raised("subscriptions", error)
        self._running = False
        if self._work and not self._ended:
            self._next = self._loop.call_later(PAUSE_S, self._go_on)
