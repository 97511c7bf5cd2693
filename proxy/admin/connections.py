"""Connections to the admin port, and what each of them may cost.

Why: whoever reaches the port must not be able to fill the main process with connections, with requests that never end
or with answers that are never read. Called by proxy.admin.listener.

Invariants:
- No connection lives for ever: its whole request head comes within HEAD_S of its beginning or of the last answer, and
  an answer is taken within TAKE_S; otherwise the connection is closed.
- No more than MAX_CONNECTIONS are open at a time, over all listeners that share a set of connections; for another one
  the one that has asked nothing for longest is closed.
- A body is read and thrown away for a moment at most, and never decompressed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final, cast

from aiohttp import web

from proxy.system import log as logs

Answer = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

MAX_CONNECTIONS: Final = 128
HEAD_S = 5.0
TAKE_S = 10.0  # Prometheus gives up a scrape after as long
_NEW_S: Final = 0.2  # whose request may still be on its way
_LINGER_S: Final = 1.0  # how long the rest of an unwanted body is read, so that its sender sees the answer
_MAX_LINE: Final = 8190  # bytes of the request line, and of one header
_MAX_HEADERS: Final = 64
_SHOWN: Final = 200  # characters of a fault that are logged
_SERVER: Final = "redis-proxy"

log = logs.get(__name__)


class Connection(web.RequestHandler):
    """One connection to the admin port. States: waiting for a request head -> answering -> waiting ... -> closed.

    owner: whose connection this is. server: aiohttp's part of that. everybody: the open connections, this one too
    while it is open. options: of web.RequestHandler.
    """

    def __init__(self, owner: Connections, server: web.Server, everybody: set[Connection], **options: Any) -> None:
        super().__init__(server, loop=asyncio.get_running_loop(), **options)
        self.owner = owner
        self._everybody = everybody
        self._stream: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.idle_since_s: float | None = None  # loop.time(); None = a request is being answered

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begins to wait for a request; one connection too many is closed at once."""
        stream = cast(asyncio.Transport, transport)
        if len(self._everybody) >= MAX_CONNECTIONS and not self._make_room():
            logs.warn_limited(log, "full", "admin connection refused: too many are open", most=MAX_CONNECTIONS)
            stream.abort()
            return
        self._stream = stream
        self._everybody.add(self)
        self.idle_since_s = asyncio.get_running_loop().time()
        self._within(HEAD_S)
        super().connection_made(transport)

    def _make_room(self) -> bool:
        """Closes who has asked nothing for longest, and not only come just now: it must not keep probes out."""
        since_s, oldest = asyncio.get_running_loop().time() - _NEW_S, None
        for one in self._everybody:
            if one.idle_since_s is not None and one.idle_since_s < since_s:
                since_s, oldest = one.idle_since_s, one
        if oldest is None:
            return False
        logs.warn_limited(log, "room", "idle admin connection closed: too many are open", most=MAX_CONNECTIONS)
        self._everybody.discard(oldest)
        oldest.abort()
        return True

    def connection_lost(self, exc: BaseException | None) -> None:
        """The other side left, or we closed it."""
        self._everybody.discard(self)
        self._stream = None
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def answering(self, within_s: float) -> None:
        """A request has come; its answer will be there within within_s."""
        self.idle_since_s = None
        self._within(within_s + TAKE_S)

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Sends the answer, also those that aiohttp makes by itself."""
        resp.headers["Server"] = _SERVER
        if self.owner.released:
            resp.force_close()
        self._within(TAKE_S)
        try:
            return await super().finish_response(request, resp, start_time)
        finally:
            self.idle_since_s = asyncio.get_running_loop().time()
            self._within(HEAD_S)

    def abort(self) -> None:
        """Closes it, whatever is still to be sent."""
        if self._stream is not None:
            self._stream.abort()

    def _within(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._stream is not None:
            self._timer = asyncio.get_running_loop().call_later(seconds, self._late)

    def _late(self) -> None:
        unread = self._stream.get_write_buffer_size() if self._stream is not None else 0
        if unread:
            logs.warn_limited(log, "unread", "admin connection closed: its client does not read", unread=unread)
        self.abort()


class Connections:
    """The connections of one listener: makes them, holds their requests to the limits, and closes them.

    answer: makes the answer to a request, within within_s. everybody: the open connections of all listeners of one
    server.
    """

    def __init__(self, answer: Answer, within_s: float, everybody: set[Connection]) -> None:
        self.released = False  # each is closed with its next answer
        self._answer = answer
        self._within_s = within_s
        self._everybody = everybody
        self._server = web.Server(self._handle)
        self._logger = _Faults()

    def __call__(self) -> Connection:
        """The protocol of a connection that has just been accepted."""
        return Connection(
            self,
            self._server,
            self._everybody,
            logger=self._logger,
            access_log=None,
            max_line_size=_MAX_LINE,
            max_field_size=_MAX_LINE,
            max_headers=_MAX_HEADERS,
            lingering_time=_LINGER_S,
            auto_decompress=False,
        )

    async def close(self, within_s: float) -> None:
        """Closes them all; requests under way have so long."""
        self._server.pre_shutdown()
        await self._server.shutdown(within_s)
        for one in [one for one in self._everybody if one.owner is self]:
            one.abort()  # else it would stay until its client has read what it was sent

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        cast(Connection, request.protocol).answering(self._within_s)
        response = await self._answer(request)
        if request.body_exists:
            response.force_close()
        return response


class _Faults(logging.Logger):
    """Where aiohttp complains of requests that are none: one line for many of them, without a trace."""

    def __init__(self) -> None:
        super().__init__(f"{__name__}.requests", logging.WARNING)

    def handle(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        logs.warn_limited(log, "fault", "bad request to the admin port", error=repr(error)[:_SHOWN])
