"""What RQ's workers run."""

from __future__ import annotations

import os
import time
from pathlib import Path


def add(x: int, y: int) -> int:
    return x + y


def fails_first(file: str) -> str:
    """Fails until it was called twice."""
    path = Path(file)
    count = int(path.read_text()) if path.exists() else 0
    path.write_text(str(count + 1))
    if count < 2:
        raise ValueError(f"failure {count + 1}")
    return "at last"


def broken() -> None:
    raise ValueError("as expected")


def now() -> float:
    return time.time()


def worker_pid() -> int:
    return os.getppid()


def sleep(seconds: float) -> str:
    time.sleep(seconds)
    return "slept"
