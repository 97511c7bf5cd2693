"""RQ: a worker process with scheduler, results, retries, dependencies, scheduling, stopping, registries, cron."""

from __future__ import annotations

import os
import tempfile
import time
from datetime import timedelta

import jobs
import redis
from checks import HOST, PORT, equal, restart
from rq import Queue, Retry
from rq.command import send_stop_job_command
from rq.job import Job
from rq.registry import FailedJobRegistry, FinishedJobRegistry
from stages import RUN, Stages, until, worker

URL = f"redis://{HOST}:{PORT}"
WAIT_S = 15.0
stages = Stages()
db = redis.Redis(host=HOST, port=PORT)
folder = tempfile.mkdtemp()


def result(job: Job, status: str = "finished") -> object:
    until(lambda: job.get_status(refresh=True).value == status, f"{status}, is {job.get_status()}", WAIT_S)
    return job.return_value(refresh=True)


@stages.add("jobs and results")
def results() -> None:
    queue = Queue("default", connection=db)
    found = [queue.enqueue(jobs.add, n, n) for n in range(10)]
    equal([result(job) for job in found], [2 * n for n in range(10)])
    many = queue.enqueue_many([Queue.prepare_data(jobs.add, (n, 1)) for n in range(10)])
    equal([result(job) for job in many], [n + 1 for n in range(10)])
    until(lambda: len(FinishedJobRegistry(queue=queue)) == 20, "20 jobs in the registry")
    equal(Job.fetch(found[0].id, connection=db).return_value(), 0)


@stages.add("retries and failures")
def retries() -> None:
    queue = Queue("default", connection=db)
    job = queue.enqueue(jobs.fails_first, os.path.join(folder, RUN), retry=Retry(max=3, interval=[0, 1, 1]))
    equal(result(job), "at last")
    job = queue.enqueue(jobs.broken)
    result(job, "failed")
    equal("as expected" in (job.latest_result().exc_string or ""), True)
    registry = FailedJobRegistry(queue=queue)
    equal(job.id in registry.get_job_ids(), True)
    registry.requeue(job.id)
    result(job, "failed")


@stages.add("scheduled jobs")
def scheduled() -> None:
    queue = Queue("default", connection=db)
    wanted = time.time() + 1
    job = queue.enqueue_in(timedelta(seconds=1), jobs.now)
    equal(float(str(result(job))) >= wanted - 1, True)  # RQ counts in whole seconds


@stages.add("dependencies")
def dependencies() -> None:
    queue = Queue("default", connection=db)
    first = queue.enqueue(jobs.sleep, 0.3)
    second = queue.enqueue(jobs.add, 1, 2, depends_on=first)
    third = queue.enqueue(jobs.add, 3, 4, depends_on=[first, second])
    equal(second.get_status().value, "deferred")
    equal([result(third), result(second), result(first)], [7, 3, "slept"])
    first.refresh()
    second.refresh()
    equal(second.ended_at >= first.ended_at, True)


@stages.add("a job is stopped, a queue is emptied")
def stopped() -> None:
    queue = Queue("default", connection=db)
    job = queue.enqueue(jobs.sleep, 60)
    result(job, "started")
    time.sleep(0.5)  # RQ: a job that has only just begun has no process yet that could be stopped
    send_stop_job_command(db, job.id)
    result(job, "stopped")
    idle = Queue("idle", connection=db)
    for n in range(5):
        idle.enqueue(jobs.add, n, n)
    equal([len(idle), idle.empty(), len(idle)], [5, 5, 0])


@stages.add("priorities: the order of a worker's queues")
def priorities() -> None:
    low, high = Queue("low", connection=db), Queue("high", connection=db)
    found = [low.enqueue(jobs.now) for _ in range(2)] + [high.enqueue(jobs.now) for _ in range(2)]
    with worker("-m", "rq.cli", "worker", "-u", URL, "--burst", "high", "low"):
        times = [result(job) for job in found]
    equal(max(times[2:]) < min(times[:2]), True)


@stages.add("the proxy restarts", timeout_s=60)
def reconnect() -> None:
    restart()
    queue = Queue("default", connection=db)
    deadline = time.monotonic() + 40
    while True:
        try:
            equal(result(queue.enqueue(jobs.add, 20, 3)), 23)
            return
        except redis.ConnectionError:
            if time.monotonic() > deadline:
                raise


with worker("-m", "rq.cli", "worker", "-u", URL, "--with-scheduler", "--worker-ttl", "30", "default"):
    stages.run("rq")
