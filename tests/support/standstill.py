"""How long the machine stood still for this process: what took long meanwhile was not slow for that time.

Called by: tests of how long something takes, whose bounds it widens.
"""

from __future__ import annotations

import threading
import time
from types import TracebackType

STEP_S = 0.005


class Standstill:
    """Measures from a thread of its own, as a context manager. late_s: by how much it woke too late, each time."""

    def __init__(self) -> None:
        self.late_s: list[float] = [0.0]
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._measure, daemon=True)

    def __enter__(self) -> Standstill:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()

    @property
    def longest_s(self) -> float:
        """At once."""
        return max(self.late_s)

    def quantile_s(self, part: float) -> float:
        """What a part of the times (0 to 1) did not exceed."""
        return sorted(self.late_s)[int((len(self.late_s) - 1) * part)]

    def _measure(self) -> None:
        last_s = time.monotonic()
        while not self._over.wait(STEP_S):
            now_s = time.monotonic()
            self.late_s.append(now_s - last_s - STEP_S)
            last_s = now_s
