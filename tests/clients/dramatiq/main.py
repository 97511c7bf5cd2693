"""Dramatiq: a worker process, results, retries, delays, groups, pipelines, a concurrency limit, a restart."""

from __future__ import annotations

import time
from itertools import pairwise

import dramatiq
import redis
from checks import HOST, PORT, equal, restart
from dramatiq.results import ResultFailure
from jobs import add, alone, broken, broker, flaky, now
from stages import RUN, Stages, raises, until, worker

WAIT_MS = 15_000
stages = Stages()


@stages.add("messages and results")
def messages() -> None:
    sent = [add.send(n, n) for n in range(100)]
    equal([message.get_result(block=True, timeout=WAIT_MS) for message in sent], [2 * n for n in range(100)])
    with raises(ResultFailure):
        broken.send().get_result(block=True, timeout=WAIT_MS)


@stages.add("retries")
def retries() -> None:
    sent = [flaky.send(f"{RUN}{n}", n) for n in range(4)]
    equal([message.get_result(block=True, timeout=WAIT_MS) for message in sent], [1, 2, 3, 4])


@stages.add("delayed messages")
def delayed() -> None:
    wanted = time.time() + 1
    message = now.send_with_options(delay=1000)
    equal(message.get_result(block=True, timeout=WAIT_MS) >= wanted - 0.01, True)


@stages.add("groups and pipelines")
def composed() -> None:
    group = dramatiq.group([add.message(n, 1) for n in range(10)]).run()
    equal(list(group.get_results(block=True, timeout=WAIT_MS)), [n + 1 for n in range(10)])
    pipe = (add.message(1, 2) | add.message(3) | add.message(4)).run()
    equal(pipe.get_result(block=True, timeout=WAIT_MS), 10)


@stages.add("concurrency limit")
def limited() -> None:
    sent = [alone.send() for _ in range(4)]
    times = sorted(message.get_result(block=True, timeout=WAIT_MS) for message in sent)
    equal(all(end <= begin for (_, end), (begin, _) in pairwise(times)), True)


@stages.add("queues are empty, dead letters are kept")
def queues() -> None:
    broker.join("default", timeout=WAIT_MS)
    with redis.Redis(host=HOST, port=PORT) as db:
        until(lambda: db.zcard("{dramatiq}:default.XQ") >= 1, "the broken message is a dead letter")
        equal(db.llen("{dramatiq}:default"), 0)


@stages.add("the proxy restarts", timeout_s=60)
def reconnect() -> None:
    restart()
    deadline = time.monotonic() + 40
    while True:
        try:
            equal(add.send(20, 3).get_result(block=True, timeout=10_000), 23)
            return
        except (dramatiq.errors.ConnectionError, redis.ConnectionError, dramatiq.results.ResultTimeout):
            if time.monotonic() > deadline:
                raise


with worker("-m", "dramatiq", "jobs", "-p", "1", "-t", "4"):
    stages.run("dramatiq")
