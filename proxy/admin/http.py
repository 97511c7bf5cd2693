"""The admin HTTP server: /metrics, /livez, /readyz and /api/state on an address of its own.

Why: what watches the proxy (Prometheus, Kubernetes, a balancer, `redis-proxy status`) must get an answer while the data
path is busy, unready or draining, until the very end of the process. Called by proxy.supervisor, which gives it the
answers.

Invariants: it never sees a client of the data path; a probe's answer is computed when it is asked for, never cached;
every request is answered within some ANSWER_S, whatever becomes of the callback; who has been accepted is answered,
also when the address is changed or given away meanwhile; stop() may be called at any time, also twice or before
prepare().
"""

from __future__ import annotations

import asyncio
import json
import socket
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

from aiohttp import web

from proxy.admin.connections import Connection
from proxy.admin.exposition import media_type
from proxy.admin.listener import Listener, bind
from proxy.system import log as logs

Metrics = Callable[[str], Awaitable[tuple[bytes, str]]]  # Accept header -> (body, Content-Type)
Probe = Callable[[], Awaitable[tuple[bool, Mapping[str, Any]]]]  # -> (good, details)
State = Callable[[], Awaitable[Mapping[str, Any]]]  # plain values, to be shown as JSON

ANSWER_S = 2.0
_GRACE_S = 1.0  # for requests that are still on their way, and answers that are, when a listener is released
_TEXT: Final = "text/plain; charset=utf-8"
_JSON: Final = "application/json; charset=utf-8"

log = logs.get(__name__)

_Answer = tuple[int, bytes, str]  # status, body, Content-Type


class AdminServer:
    """States: closed -> prepared (prepare) -> listening (start) -> closed (release, stop); prepare() again at any time.

    metrics: one scrape. live: whether the loops still answer. ready: whether clients should be sent here. The details
    of the probes are shown as JSON for `?verbose`, and their `reasons` (sentences) with a bad answer. state: what
    /api/state shows.
    """

    def __init__(self, metrics: Metrics, live: Probe, ready: Probe, state: State) -> None:
        self._metrics = metrics
        self._live = live
        self._ready = ready
        self._state = state
        self._paths = {
            "/metrics": self._get_metrics,
            "/livez": self._get_livez,
            "/readyz": self._get_readyz,
            "/api/state": self._get_state,
        }
        self._listener: Listener | None = None
        self._prepared: Listener | None = None
        self._released: list[Listener] = []  # no longer listening, with requests under way
        self._connections: set[Connection] = set()
        self._scrapes: dict[str, asyncio.Task[_Answer]] = {}

    @property
    def port(self) -> int:
        """The port listened on; 0 when there is none."""
        return int(self.sockets[0].getsockname()[1]) if self.sockets else 0

    @property
    def sockets(self) -> list[socket.socket]:
        """The listening sockets, or before start() the prepared ones; they stay this server's until release()."""
        if self._listener is not None:
            return list(self._listener.sockets)
        return list(self._prepared.sockets) if self._prepared is not None else []

    async def prepare(self, address: str, sockets: Sequence[socket.socket] = ()) -> None:
        """Does all that can fail, and answers nobody: start() does, which has connections wait for it until then.

        address: "host:port" or "[ip6]:port" (port 0 takes a free one; see `port`). sockets: a predecessor's or the
        service manager's, listening at that address already; this server's from here on, also when this fails.
        What was prepared before is given up. OSError, with a sentence for the operator as its text, when the address
        cannot be had: it listens where it did.
        """
        await self.discard()
        own = self._listener.sockets if self._listener is not None else []
        bound = list(sockets) or await bind(address, own)
        listener = Listener(address, bound, self._answer, ANSWER_S, self._connections)
        await listener.prepare()
        self._prepared = listener

    async def start(self) -> None:
        """Begins to answer where prepare() said, and listens nowhere else any more. Nothing prepared: no change."""
        if self._prepared is None:
            return
        old, self._listener, self._prepared = self._listener, self._prepared, None
        await self._listener.open()
        if old is not None:
            self._release(old)

    async def discard(self) -> None:
        """Gives up what was prepared and not started."""
        prepared, self._prepared = self._prepared, None
        if prepared is not None:
            await prepared.close()

    async def move(self, address: str) -> None:
        """prepare() and start(), but nothing when it listens there already."""
        if self._listener is None or address != self._listener.address:
            await self.prepare(address)
            await self.start()

    async def release(self) -> None:
        """Lets go of the listening sockets; requests under way are answered."""
        await self.discard()
        old, self._listener = self._listener, None
        if old is not None:
            self._release(old)

    async def stop(self) -> None:
        """Closes everything, within some two seconds when requests are under way."""
        await self.discard()
        listeners = [*self._released, *([self._listener] if self._listener is not None else [])]
        self._released, self._listener = [], None
        await asyncio.gather(*(listener.close() for listener in listeners))
        tasks = list(self._scrapes.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _release(self, listener: Listener) -> None:
        listener.release(ANSWER_S + _GRACE_S)
        self._released = [*(one for one in self._released if not one.closed), listener]

    # -- answers -------------------------------------------------------------------------------------------------

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        answer = self._paths.get(request.path)
        if answer is None:
            return _response((404, b"not found\n", _TEXT))
        if request.method not in ("GET", "HEAD"):
            return _response((405, b"only GET and HEAD\n", _TEXT), Allow="GET, HEAD")
        if request.body_exists:
            return _response((413, b"a request has no body here\n", _TEXT))
        return _response(await answer(request))

    async def _get_metrics(self, request: web.BaseRequest) -> _Answer:
        # Scrapes that come while one is being made get that one: collecting is work for every worker. By the format
        # and not by what was asked, which whoever asks can make up without end.
        accept = request.headers.get("Accept", "")
        kind = media_type(accept)
        task = self._scrapes.get(kind)
        if task is None:
            task = asyncio.create_task(self._bounded("/metrics", self._scrape(accept)), name="scrape")
            self._scrapes[kind] = task
            task.add_done_callback(lambda done: self._scrapes.pop(kind, None))
        return await asyncio.shield(task)

    async def _get_livez(self, request: web.BaseRequest) -> _Answer:
        return await self._bounded("/livez", _probe(self._live, "live", "verbose" in request.query))

    async def _get_readyz(self, request: web.BaseRequest) -> _Answer:
        return await self._bounded("/readyz", _probe(self._ready, "ready", "verbose" in request.query))

    async def _get_state(self, request: web.BaseRequest) -> _Answer:
        return await self._bounded("/api/state", self._show_state())

    async def _scrape(self, accept: str) -> _Answer:
        body, content_type = await self._metrics(accept)
        return 200, body, content_type

    async def _show_state(self) -> _Answer:
        return 200, json.dumps(await self._state()).encode() + b"\n", _JSON

    async def _bounded(self, path: str, answer: Awaitable[_Answer]) -> _Answer:
        try:
            async with asyncio.timeout(ANSWER_S) as limit:
                return await answer
        except Exception as error:
            if isinstance(error, TimeoutError) and limit.expired():
                logs.warn_limited(log, f"slow {path}", "no answer in time", path=path, after_s=ANSWER_S)
                return 503, b"no answer in time\n", _TEXT
            logs.warn_limited(log, path, "cannot answer", path=path, error=repr(error), trace=traceback.format_exc())
            return 500, b"internal error, see the log\n", _TEXT


async def _probe(probe: Probe, word: str, verbose: bool) -> _Answer:
    good, details = await probe()
    status = 200 if good else 503
    if verbose:
        return status, json.dumps({word: good, **details}).encode(), _JSON
    reasons = "; ".join(details.get("reasons", ()))
    said = word if good else f"not {word}: {reasons}" if reasons else f"not {word}"
    return status, f"{said}\n".encode(), _TEXT


def _response(answer: _Answer, **headers: str) -> web.Response:
    status, body, content_type = answer
    return web.Response(status=status, body=body, headers={"Content-Type": content_type, **headers})
