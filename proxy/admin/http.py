"""The admin HTTP server: /metrics, /livez and /readyz on an address of its own.

Why: what watches the proxy (Prometheus, Kubernetes, a balancer) must get an answer while the data path is busy, unready
or draining, until the very end of the process. Called by proxy.supervisor, which gives it the three answers.

Invariants: it never sees a client of the data path; a probe's answer is computed when it is asked for, never cached;
every request is answered within some PATIENCE_S, whatever becomes of the callback; whoever was let in is answered, also
when the address is moved or given away meanwhile; stop() may be called at any time, also twice or before listen().
"""

from __future__ import annotations

import asyncio
import json
import socket
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from aiohttp import web

from proxy.admin.listener import Door, bind
from proxy.system import log as logs

Metrics = Callable[[str], Awaitable[tuple[bytes, str]]]  # Accept header -> (body, Content-Type)
Probe = Callable[[], Awaitable[tuple[bool, Mapping[str, Any]]]]  # -> (good, details)

PATIENCE_S = 2.0
_GRACE_S = 1.0  # for requests that are still on their way, and answers that are, when a listener is closed
_TEXT = "text/plain; charset=utf-8"

log = logs.get(__name__)

_Answer = tuple[int, bytes, str]  # status, body, Content-Type


class AdminServer:
    """States: closed -> listening (listen) -> closed (release, stop); listen() and move() again at any time.

    metrics: one scrape. live: whether the loops still answer. ready: whether clients should be sent here. The details
    of the probes are shown as JSON for `?verbose`, and their `reasons` (sentences) with a bad answer.
    """

    def __init__(self, metrics: Metrics, live: Probe, ready: Probe) -> None:
        self._metrics = metrics
        self._live = live
        self._ready = ready
        self._address = ""
        self._door: Door | None = None
        self._left: list[Door] = []  # no longer listening, with requests under way
        self._scrapes: dict[str, asyncio.Task[_Answer]] = {}

    @property
    def port(self) -> int:
        """The port listened on; 0 when closed."""
        return int(self._door.sockets[0].getsockname()[1]) if self._door is not None else 0

    @property
    def sockets(self) -> list[socket.socket]:
        """The listening sockets, for a successor to take over; they stay this server's until release()."""
        return list(self._door.sockets) if self._door is not None else []

    async def listen(self, address: str, sockets: Sequence[socket.socket] = ()) -> None:
        """Listens at "host:port" or "[ip6]:port" (port 0 takes a free one; see `port`), and nowhere else any more.

        sockets: a predecessor's, bound to that address already; this server's from here on. OSError, with a sentence
        for the operator as its text, when the address cannot be had: everything is as it was then.
        """
        door = Door(self._app(), list(sockets) or await bind(address, self.sockets))
        await door.open()
        old, self._door, self._address = self._door, door, address
        if old is not None:
            await self._leave(old)

    async def move(self, address: str) -> None:
        """As listen(), but does nothing when it listens there already."""
        if self._door is None or address != self._address:
            await self.listen(address)

    async def release(self) -> None:
        """Lets go of the listening sockets; requests under way are answered."""
        old, self._door = self._door, None
        if old is not None:
            await self._leave(old)

    async def stop(self) -> None:
        """Closes everything, within some two seconds when requests are under way."""
        doors = [*self._left, *([self._door] if self._door is not None else [])]
        self._left, self._door = [], None
        for door in doors:
            await door.close()
        tasks = list(self._scrapes.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _leave(self, door: Door) -> None:
        await door.leave(PATIENCE_S + _GRACE_S)
        self._left = [*(one for one in self._left if not one.closed), door]

    # -- answers -------------------------------------------------------------------------------------------------

    def _app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/metrics", self._get_metrics)  # GET brings HEAD
        app.router.add_get("/livez", self._get_livez)
        app.router.add_get("/readyz", self._get_readyz)
        return app

    async def _get_metrics(self, request: web.Request) -> web.Response:
        # Scrapes that come while one is being made get that one: collecting is work for every worker.
        accept = request.headers.get("Accept", "")
        task = self._scrapes.get(accept)
        if task is None:
            task = asyncio.create_task(self._bounded("/metrics", self._scrape(accept)), name="scrape")
            self._scrapes[accept] = task
            task.add_done_callback(lambda done: self._scrapes.pop(accept, None))
        return _response(await asyncio.shield(task))

    async def _get_livez(self, request: web.Request) -> web.Response:
        return _response(await self._bounded("/livez", _probe(self._live, "live", "verbose" in request.query)))

    async def _get_readyz(self, request: web.Request) -> web.Response:
        return _response(await self._bounded("/readyz", _probe(self._ready, "ready", "verbose" in request.query)))

    async def _scrape(self, accept: str) -> _Answer:
        body, content_type = await self._metrics(accept)
        return 200, body, content_type

    async def _bounded(self, path: str, answer: Awaitable[_Answer]) -> _Answer:
        try:
            async with asyncio.timeout(PATIENCE_S) as patience:
                return await answer
        except Exception as error:
            if isinstance(error, TimeoutError) and patience.expired():
                logs.warn_limited(log, f"slow {path}", "no answer in time", path=path, after_s=PATIENCE_S)
                return 503, b"no answer in time\n", _TEXT
            logs.warn_limited(log, path, "cannot answer", path=path, error=repr(error), trace=traceback.format_exc())
            return 500, b"internal error, see the log\n", _TEXT


async def _probe(probe: Probe, word: str, verbose: bool) -> _Answer:
    good, details = await probe()
    status = 200 if good else 503
    if verbose:
        return status, json.dumps({word: good, **details}).encode(), "application/json; charset=utf-8"
    reasons = "; ".join(details.get("reasons", ()))
    said = word if good else f"not {word}: {reasons}" if reasons else f"not {word}"
    return status, f"{said}\n".encode(), _TEXT


def _response(answer: _Answer) -> web.Response:
    status, body, content_type = answer
    return web.Response(status=status, body=body, headers={"Content-Type": content_type})
