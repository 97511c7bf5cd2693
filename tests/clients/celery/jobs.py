"""The application as its users write it: broker and results in Redis, everything of it under one hash tag."""

from __future__ import annotations

import os
import time
from typing import Any

from celery import Celery
from checks import HOST, PORT

PREFIX = {"global_keyprefix": "{celery}:"}
app = Celery("jobs", broker=f"redis://{HOST}:{PORT}/0", backend=f"redis://{HOST}:{PORT}/0")
app.conf.update(
    broker_transport_options={**PREFIX, "visibility_timeout": 3600},
    result_backend_transport_options=PREFIX,
    task_acks_late=True,
    worker_prefetch_multiplier=1,
    broker_connection_retry_on_startup=True,
    result_expires=600,
    beat_schedule={"tick": {"task": "jobs.tick", "schedule": 0.3}},
    beat_schedule_filename=os.environ.get("BEAT_FILE", "celerybeat-schedule"),
)


@app.task
def add(x: int, y: int) -> int:
    return x + y


@app.task
def total(numbers: list[int]) -> int:
    return sum(numbers)


@app.task(bind=True, max_retries=5)
def flaky(self: Any, failures: int) -> int:
    """Its number of retries, after that many failures."""
    if self.request.retries < failures:
        raise self.retry(countdown=0.2)
    return int(self.request.retries)


@app.task
def broken() -> None:
    raise ValueError("as expected")


@app.task
def started_at() -> float:
    return time.time()


@app.task
def slow(seconds: float) -> str:
    time.sleep(seconds)
    return "slept"


@app.task
def tick() -> None:
    app.backend.client.incr("{celery}:ticks")
