"""The application; every key of Huey's is used by itself, so it needs no hash tag."""

from __future__ import annotations

import os
import time

import huey
from checks import HOST, PORT

queue = getattr(huey, os.environ["KIND"])("app", host=HOST, port=PORT)
calls: dict[str, int] = {}


@queue.task()
def add(x: int, y: int) -> int:
    return x + y


@queue.task(retries=5, retry_delay=0)
def flaky(name: str, failures: int) -> int:
    calls[name] = calls.get(name, 0) + 1
    if calls[name] <= failures:
        raise ValueError("as expected")
    return calls[name]


@queue.task()
def broken() -> None:
    raise ValueError("as expected")


@queue.task()
def now() -> float:
    return time.time()


@queue.task()
@queue.lock_task("one-at-a-time")
def locked() -> str:
    time.sleep(1)
    return "had the lock"


@queue.periodic_task(huey.crontab(minute="*"))
def every_minute() -> None:
    queue.put("ticked", True)
