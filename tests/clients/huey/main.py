"""Huey: a consumer process, results, retries, schedules, pipelines, locks, revocation, stored values, a restart."""

from __future__ import annotations

import time

from checks import equal, restart
from huey.exceptions import TaskException
from jobs import add, broken, flaky, locked, now, queue
from redis import ConnectionError
from stages import RUN, Stages, raises, until, worker

WAIT_S = 15
stages = Stages()


@stages.add("tasks and results")
def tasks() -> None:
    results = [add(n, n) for n in range(50)]
    equal([result.get(blocking=True, timeout=WAIT_S) for result in results], [2 * n for n in range(50)])
    failed = broken()
    with raises(TaskException, text="as expected"):
        failed.get(blocking=True, timeout=WAIT_S)


@stages.add("retries")
def retries() -> None:
    result = flaky(RUN, 2)

    def value() -> object:
        try:
            return result.get(blocking=True, timeout=1, preserve=True)
        except TaskException:
            result.reset()
            return None

    equal(until(value, "the third call succeeds"), 3)


@stages.add("schedules")
def schedules() -> None:
    wanted = time.time() + 1
    results = [now.schedule(delay=1) for _ in range(5)]
    equal(len(queue.scheduled()) <= 5, True)
    equal(all(result.get(blocking=True, timeout=WAIT_S) >= wanted - 0.1 for result in results), True)


@stages.add("pipelines, map")
def pipelines() -> None:
    chain = queue.enqueue(add.s(1, 2).then(add, 3).then(add, 4))
    equal([result.get(blocking=True, timeout=WAIT_S) for result in chain], [3, 6, 10])
    group = add.map([(n, 1) for n in range(10)])
    equal([result.get(blocking=True, timeout=WAIT_S) for result in group], [n + 1 for n in range(10)])


@stages.add("locks, revocation, stored values")
def others() -> None:
    results = [locked(), locked()]
    got = []
    for result in results:
        try:
            got.append(result.get(blocking=True, timeout=WAIT_S))
        except TaskException as failure:
            got.append("Lock" in str(failure) or str(failure))
    equal(sorted(map(str, got)), ["True", "had the lock"])
    revoked = now.schedule(delay=1)
    revoked.revoke()
    equal(queue.is_revoked(revoked), True)
    time.sleep(1.5)
    equal(revoked.get(), None)
    queue.put("key", {"a": 1})
    equal(queue.get("key"), {"a": 1})


@stages.add("the proxy restarts", timeout_s=60)
def reconnect() -> None:
    restart()
    deadline = time.monotonic() + 40
    while True:
        try:
            value = add(20, 3).get(blocking=True, timeout=10)
            equal(value, 23)
            return
        except (ConnectionError, AssertionError):
            if time.monotonic() > deadline:
                raise


with worker("-m", "huey.bin.huey_consumer", "jobs.queue", "-w", "2", "-s", "1"):
    stages.run("huey")
