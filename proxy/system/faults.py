"""Exceptions of our own code: logged with their trace, once per place and 10 s, counted, survived.

Why: a process that ends takes all its clients with it, which is worse than what one callback left undone. Called by
worker.conversation (callbacks, messages, tasks, __del__), worker.worker and worker.connector.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable

from proxy.system import log as logs

log = logs.get("faults")


class Faults:
    """Call it with what was being done and the exception. count: counts one; replaced once there are counters."""

    def __init__(self, count: Callable[[], None] = lambda: None) -> None:
        self.count = count

    def __call__(self, what: str, error: BaseException) -> None:
        self.count()
        self.show(what, error)

    def show(self, what: str, error: BaseException) -> None:
        """Logs one that is counted already."""
        place = error.__traceback__
        while place is not None and place.tb_next is not None:
            place = place.tb_next
        key = f"fault:{place.tb_frame.f_code.co_filename}:{place.tb_lineno}" if place else f"fault:{what}"
        trace = "".join(traceback.format_exception(error)).strip()
        logs.warn_limited(log, key, "a fault of the proxy itself, it goes on", where=what, trace=trace)
