"""Work that may block for any time, such as reading a file or resolving a name, off the event loop.

Why: asyncio.to_thread does it in threads that the end of the process waits for, and a file on a dead network disk, or a
pipe that nobody writes to, can never be read. Called by supervisor.reload and admin.listener; nodes are looked up by
system.names.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def in_thread(work: Callable[[], T], name: str, unwanted: Callable[[T], object] = lambda result: None) -> T:
    """What work() returns, or raises. The process does not wait for the thread when it ends.

    unwanted: what becomes of a result that comes when this has been cancelled; called in either thread.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def returned(result: T) -> None:
        if future.done():  # cancelled
            unwanted(result)
        else:
            future.set_result(result)

    def raised(error: BaseException) -> None:
        if not future.done():
            future.set_exception(error)

    def run() -> None:
        try:
            result = work()
        except BaseException as error:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(raised, error)
            return
        try:
            loop.call_soon_threadsafe(returned, result)
        except RuntimeError:
            unwanted(result)

    threading.Thread(target=run, name=name, daemon=True).start()
    try:
        return await future
    except asyncio.CancelledError:
        if future.done() and not future.cancelled() and future.exception() is None:
            unwanted(future.result())
        raise
