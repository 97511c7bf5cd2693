"""One connection of a client in a workload: commands out in pipelines, replies back in order.

Called by the workloads (tests.chaos.workload, tests.support.workload) and the chaos bench's prober. Replies are
hiredis's values with text as str; an error is a hiredis.ReplyError value. What has no answer when the connection ends
gets a Lost.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import hiredis

from tests.support.raw import Word, encode


class Lost(Exception):
    """The connection has ended; the text says how."""


class Connection(asyncio.Protocol):
    """Made by open(). push: called with what nobody asked for (a subscriber's messages) and its time."""

    def __init__(self, push: Callable[[Any, float], None] | None = None) -> None:
        self.gone = False
        self.ended_as = ""
        self.strange: list[str] = []
        self._closing = False
        self._push = push
        self._reader = hiredis.Reader(encoding="utf-8", errors="replace")
        self._pending: deque[asyncio.Future[tuple[Any, float]]] = deque()
        self._transport: Any = None

    @classmethod
    async def open(
        cls,
        address: tuple[str, int],
        push: Callable[[Any, float], None] | None = None,
        *,
        timeout_s: float = 5.0,
        source: str | None = None,
    ) -> Connection:
        """OSError or TimeoutError when nobody takes it. source: the address it connects from."""
        local = (source, 0) if source else None
        async with asyncio.timeout(timeout_s):
            _, made = await asyncio.get_running_loop().create_connection(lambda: cls(push), *address, local_addr=local)
        return made

    def send(self, *words: Word) -> asyncio.Future[tuple[Any, float]]:
        """Sends one command; the future gets (reply, its time), or Lost."""
        future: asyncio.Future[tuple[Any, float]] = asyncio.get_running_loop().create_future()
        if self.gone:
            future.set_exception(Lost(self.ended_as))
            return future
        self._pending.append(future)
        self._transport.write(encode(*words))
        return future

    def write(self, *words: Word) -> None:
        """Sends a command whose answers are pushes."""
        if not self.gone:
            self._transport.write(encode(*words))

    async def call(self, *words: Word) -> Any:
        """The reply; raises Lost, or the error that came."""
        reply, _ = await self.send(*words)
        if isinstance(reply, hiredis.ReplyError):
            raise reply
        return reply

    def close(self) -> None:
        self._closing = True
        self.gone = True
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        now = time.monotonic()
        self._reader.feed(data)
        while (reply := self._reader.gets()) is not False:
            if self._push is not None and isinstance(reply, list):
                self._push(reply, now)
            elif self._pending:
                future = self._pending.popleft()
                if not future.done():
                    future.set_result((reply, now))
            else:
                self.strange.append(f"a reply to nothing: {reply!r}"[:200])

    def connection_lost(self, error: Exception | None) -> None:
        self.gone = True
        if not self.ended_as:
            self.ended_as = "closed by us" if self._closing else "reset" if error else "closed by the proxy"
        while self._pending:
            future = self._pending.popleft()
            if not future.done():
                future.set_exception(Lost(self.ended_as))
