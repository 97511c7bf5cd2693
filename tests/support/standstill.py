"""How long the machine stood still for this process: what took long meanwhile was not slow for that time.

Called by: tests of how long something takes, whose bounds it widens.
"""

from __future__ import annotations

import threading
import time
from types import TracebackType

STEP_S = 0.005


class Standstill:
    """Measures from a thread of its own, as a context manager. longest_s: by how much it woke too late at most."""

    def __init__(self) -> None:
        self.longest_s = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._measure, daemon=True)

    def __enter__(self) -> Standstill:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()

    def _measure(self) -> None:
        last_s = time.monotonic()
        while not self._over.wait(STEP_S):
            now_s = time.monotonic()
            self.longest_s = max(self.longest_s, now_s - last_s - STEP_S)
            last_s = now_s
