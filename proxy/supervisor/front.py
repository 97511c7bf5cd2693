"""The admin HTTP server as the supervisor runs it: opened, moved, handed over, closed.

Why: aiohttp and prometheus_client take a quarter of a second to import, which the workers' start need not wait for; so
they are imported here, when the server is opened. Called by proxy.supervisor.life and reload.
"""

from __future__ import annotations

import asyncio
import importlib
import socket
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from proxy.config.units import Address
from proxy.forward.counters import BOUNDS_S
from proxy.supervisor.figures import Figures

if TYPE_CHECKING:
    from proxy.admin.http import AdminServer
    from proxy.admin.metrics import MetricsPage
    from proxy.admin.processes import Processes


class Front:
    """See the module. Before open() and without an address it does nothing."""

    def __init__(self, figures: Figures) -> None:
        self._figures = figures
        self._server: AdminServer | None = None
        self._page: MetricsPage
        self._processes: Processes | None = None
        self._cpu_s: dict[int, float] = {}  # of processes that ended before anybody counted them

    async def open(self, address: Address | None, sockets: Sequence[socket.socket] = ()) -> None:
        """Begins to answer, on these sockets if there are any; OSError, a sentence, when the address cannot be had."""
        # In a thread, for the loop has the workers' start to see to.
        http, metrics, processes = await asyncio.to_thread(
            lambda: [importlib.import_module(f"proxy.admin.{name}") for name in ("http", "metrics", "processes")]
        )
        self._processes = processes.Processes(self._figures.pids)
        self._page = metrics.MetricsPage(BOUNDS_S, self._processes)
        for pid, cpu_s in self._cpu_s.items():
            self._processes.ended(pid, cpu_s)
        self._server = http.AdminServer(self._metrics, self._live, self._figures.ready)
        if address is not None:
            await self._server.listen(str(address), sockets)

    async def move(self, address: Address | None) -> None:
        """Answers at another address from now on (None: at none); OSError, and all as it was, when that cannot be."""
        if self._server is None:
            return
        if address is not None:
            await self._server.move(str(address))
        else:
            await self._server.release()

    @property
    def sockets(self) -> list[socket.socket]:
        """Those it listens on."""
        return self._server.sockets if self._server is not None else []

    async def release(self) -> None:
        """Takes no more connections: a successor does."""
        if self._server is not None:
            await self._server.release()

    def process_ended(self, pid: int, cpu_s: float) -> None:
        """A process of the proxy is gone; it had used so much CPU time."""
        if self._processes is not None:
            self._processes.ended(pid, cpu_s)
        else:
            self._cpu_s[pid] = cpu_s

    async def close(self) -> None:
        """Answers no more."""
        if self._server is not None:
            await self._server.stop()

    async def _metrics(self, accept: str) -> tuple[bytes, str]:
        snapshot = await self._figures.fresh()
        # In a thread: the loop has clients to accept meanwhile.
        return await asyncio.to_thread(self._page.render, snapshot, accept)

    async def _live(self) -> tuple[bool, Mapping[str, Any]]:
        return self._figures.live()
