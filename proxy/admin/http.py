"""The admin HTTP server: /metrics, /livez and /readyz on a port of its own.

Why: what watches the proxy (Prometheus, Kubernetes, a balancer) must get an answer while the data path is busy, unready
or draining, until the very end of the process.
Who calls it: proxy.worker starts and stops it.

Invariants: it never sees a client of the data path; a probe's answer is computed when it is asked for, never cached;
stop() may be called at any time, also twice or before start().
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from aiohttp import web
from prometheus_client import CollectorRegistry

from proxy.admin.metrics import render

Ready = Callable[[], tuple[bool, Mapping[str, Any]]]

_STOP_TIMEOUT_S = 1.0


class AdminServer:
    """One HTTP listener.

    address: "host:port" or "[ip6]:port"; port 0 takes a free one (see `port`). live: whether the loops still answer.
    ready: whether clients should be sent here, and the details that /readyz?verbose shows as JSON.
    """

    def __init__(
        self,
        address: str,
        registry: CollectorRegistry,
        live: Callable[[], bool],
        ready: Ready,
    ) -> None:
        host, _, port = address.rpartition(":")
        self._address = address
        self._host = host.removeprefix("[").removesuffix("]")
        self._port = int(port)
        self._registry = registry
        self._live = live
        self._ready = ready
        self._runner: web.AppRunner | None = None

    @property
    def port(self) -> int:
        """The port listened on; before start() the configured one."""
        if self._runner is not None and self._runner.addresses:
            return int(self._runner.addresses[0][1])
        return self._port

    async def start(self) -> None:
        """Listens. OSError, with a sentence for the operator as its text, when the address cannot be had."""
        app = web.Application()
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/livez", self._livez)
        app.router.add_get("/readyz", self._readyz)
        runner = web.AppRunner(app, handle_signals=False, access_log=None, shutdown_timeout=_STOP_TIMEOUT_S)
        await runner.setup()
        try:
            await web.TCPSite(runner, self._host, self._port).start()
        except OSError as error:
            await runner.cleanup()
            # asyncio puts the address and its own words around the reason; the number alone is reliable.
            reason = os.strerror(error.errno) if error.errno is not None and error.errno > 0 else str(error)
            raise OSError(error.errno, f"cannot listen on admin.address {self._address}: {reason}") from error
        self._runner = runner

    async def stop(self) -> None:
        """Stops listening and closes what is open, within about a second."""
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    async def _metrics(self, request: web.Request) -> web.Response:
        body, content_type = render(self._registry, request.headers.get("Accept", ""))
        return web.Response(body=body, headers={"Content-Type": content_type})

    async def _livez(self, request: web.Request) -> web.Response:
        return _probe(self._live(), "live")

    async def _readyz(self, request: web.Request) -> web.Response:
        ready, details = self._ready()
        if "verbose" in request.query:
            return web.json_response({"ready": ready, **details}, status=200 if ready else 503)
        return _probe(ready, "ready")


def _probe(good: bool, word: str) -> web.Response:
    return web.Response(text=f"{word}\n" if good else f"not {word}\n", status=200 if good else 503)
