"""Tasks that run beside everything else and that nobody awaits.

Why: a task that dies of a fault of ours must not go unnoticed, for what it kept up (a topology, a connection) would be
missing until a restart. Called by proxy.control and proxy.worker.

Invariant: an exception that ends such a task reaches the loop's exception handler at once, as that of a callback.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


def background(work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
    """A task of the running loop. Whoever asked for it keeps it, and cancels it."""
    task = asyncio.get_running_loop().create_task(work, name=name)
    task.add_done_callback(_surface)
    return task


def _surface(task: asyncio.Task[None]) -> None:
    if not task.cancelled():
        task.result()
