"""Celery: a worker of its own process, tasks with results, retries, ETA, groups, chords, priorities, beat, control."""

from __future__ import annotations

import os
import tempfile
import time
from datetime import UTC, datetime, timedelta

import redis
from celery import chain, chord, group
from checks import HOST, PORT, equal, restart
from jobs import add, app, broken, flaky, slow, started_at, tick, total
from stages import Stages, raises, until, worker

WAIT_S = 15.0
stages = Stages()
folder = tempfile.mkdtemp()


@stages.add("tasks and results")
def tasks() -> None:
    results = [add.delay(n, n) for n in range(50)]
    equal([result.get(timeout=WAIT_S) for result in results], [2 * n for n in range(50)])
    equal(results[0].state, "SUCCESS")
    with raises(ValueError, text="as expected"):
        broken.delay().get(timeout=WAIT_S)


@stages.add("the proxy restarts", timeout_s=60)
def reconnect() -> None:
    equal(add.delay(1, 1).get(timeout=WAIT_S), 2)
    restart()
    deadline = time.monotonic() + 40
    while True:  # a worker tries again after 2, 4, 6 ... seconds; once `control` was used it may never
        try:
            equal(add.delay(20, 3).get(timeout=5), 23)
            return
        except Exception:
            if time.monotonic() > deadline:
                raise


@stages.add("retries")
def retries() -> None:
    results = [flaky.delay(n) for n in range(4)]
    equal([result.get(timeout=WAIT_S) for result in results], [0, 1, 2, 3])


@stages.add("ETA and countdown")
def eta() -> None:
    wanted = time.time() + 1.5
    result = started_at.apply_async(eta=datetime.fromtimestamp(wanted, UTC))
    later = started_at.apply_async(countdown=1)
    equal(0 <= result.get(timeout=WAIT_S) - wanted < 2, True)
    equal(later.get(timeout=WAIT_S) > 0, True)
    expired = add.apply_async((1, 1), countdown=1, expires=datetime.now(UTC) + timedelta(seconds=0.2))
    until(lambda: expired.state == "REVOKED", "the expired task is revoked", WAIT_S)


@stages.add("group, chain, chord")
def canvas() -> None:
    equal(group(add.s(n, 1) for n in range(10))().get(timeout=WAIT_S), [n + 1 for n in range(10)])
    equal(chain(add.s(1, 2), add.s(3), add.s(4))().get(timeout=WAIT_S), 10)
    equal(chord((add.s(n, n) for n in range(10)), total.s())().get(timeout=WAIT_S), 90)


@stages.add("priorities and queues")
def priorities() -> None:
    results = [add.apply_async((n, 0), priority=n) for n in range(10)]
    results += [add.apply_async((n, 0), queue="other") for n in range(10)]
    equal([result.get(timeout=WAIT_S) for result in results], [*range(10)] * 2)


@stages.add("control and inspect")
def control() -> None:
    equal(app.control.ping(timeout=3), [{"one@localhost": {"ok": "pong"}}])
    inspected = app.control.inspect(timeout=3).registered() or {}
    equal("jobs.add" in inspected["one@localhost"], True)
    waiting = add.apply_async((1, 1), countdown=60)
    until(lambda: (app.control.inspect(timeout=1).scheduled() or {}).get("one@localhost"), "it is scheduled", WAIT_S)
    waiting.revoke()
    until(lambda: waiting.id in app.control.inspect(timeout=1).revoked()["one@localhost"], "it is revoked", WAIT_S)


@stages.add("beat")
def beat() -> None:
    file = os.path.join(folder, "beat")
    with redis.Redis(host=HOST, port=PORT) as db, worker("-m", "celery", "-A", "jobs", "beat", "-s", file):
        until(lambda: int(db.get("{celery}:ticks") or 0) >= 3, f"{tick.name} ran thrice", WAIT_S)


@stages.add("a task survives the end of its worker", timeout_s=60)
def redelivery() -> None:
    """Acknowledged late: what a worker that is told to end has not begun goes to the next one."""
    with worker(*WORKER, "-c", "1", "-Q", "survivors", "-n", "two@localhost"):
        until(lambda: "two@localhost" in str(app.control.ping(timeout=1)), "the second worker is there", WAIT_S)
        results = [slow.apply_async((0.3,), queue="survivors") for _ in range(4)]
        results[0].get(timeout=WAIT_S)
    with worker(*WORKER, "-c", "1", "-Q", "survivors", "-n", "three@localhost"):
        equal([result.get(timeout=WAIT_S) for result in results], ["slept"] * 4)


WORKER = ["-m", "celery", "-A", "jobs", "worker", "-P", os.environ["POOL"], "-l", "WARNING"]
with worker(*WORKER, "-c", "2", "-Q", "celery,other", "-n", "one@localhost"):
    stages.run("celery")
