"""The admin side put together: HTTP server, metrics page and the processes they tell of.

Why: aiohttp and prometheus_client take a quarter of a second to import, which the workers' start need not wait for; so
supervisor imports this module, and with it those, in a thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from proxy.admin.http import AdminServer
from proxy.admin.metrics import MetricsPage
from proxy.admin.processes import Processes
from proxy.admin.snapshot import Snapshot
from proxy.forward.counters import BOUNDS_S


class Answers(Protocol):
    """Who knows what is asked for: supervisor.status."""

    async def snapshot(self) -> Snapshot:
        """The whole proxy, now."""

    async def live(self) -> tuple[bool, Mapping[str, Any]]:
        """Whether every loop answers."""

    async def ready(self) -> tuple[bool, Mapping[str, Any]]:
        """Whether clients should be sent here."""

    async def state(self) -> Mapping[str, Any]:
        """/api/state."""

    def pids(self) -> Iterable[int]:
        """Of all processes of the proxy, the main process first."""


def admin_service(answers: Answers) -> tuple[AdminServer, Callable[[int, float], None]]:
    """A server that answers nothing yet, and whom to tell (pid, CPU seconds it used) when a process has ended."""
    processes = Processes(answers.pids)
    page = MetricsPage(BOUNDS_S, processes)

    async def scrape(accept: str) -> tuple[bytes, str]:
        snapshot = await answers.snapshot()
        return await asyncio.to_thread(page.render, snapshot, accept)  # the loop has clients to accept meanwhile

    return AdminServer(scrape, answers.live, answers.ready, answers.state), processes.ended
