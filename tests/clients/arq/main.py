"""arq: a worker in this process, results, retries, deferred jobs, a job's identity, abort, cron."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from arq import Retry, create_pool, cron
from arq.connections import RedisSettings
from arq.jobs import Job, JobStatus
from arq.worker import Worker, func
from checks import HOST, PORT, equal, restart
from stages import RUN, Stages, raises, until_async

TAG = "{arq:abort}"  # arq:abort is a key that arq gives no other name: this hash tag means its slot
QUEUE = f"arq:queue:{TAG}"
stages = Stages()
ticks: list[float] = []
numbers = iter(range(10**6))


def settings() -> RedisSettings:
    return RedisSettings(host=HOST, port=PORT, conn_retries=20, conn_retry_delay=0.2)


def name() -> str:
    return f"{TAG}:{RUN}:{next(numbers)}"


async def add(_: dict[str, Any], x: int, y: int) -> int:
    return x + y


async def flaky(context: dict[str, Any], failures: int) -> int:
    if context["job_try"] <= failures:
        raise Retry(defer=0.1)
    return int(context["job_try"])


async def broken(_: dict[str, Any]) -> None:
    raise ValueError("as expected")


async def now(_: dict[str, Any]) -> float:
    return time.time()


async def sleep(_: dict[str, Any]) -> None:
    await asyncio.sleep(60)


async def tick(_: dict[str, Any]) -> None:
    ticks.append(time.time())


async def working(body: Callable[[Any], Awaitable[None]]) -> None:
    """Runs body(pool) beside a worker."""
    pool = await create_pool(settings(), default_queue_name=QUEUE)
    worker = Worker(
        functions=[add, func(flaky, max_tries=10), broken, now, sleep],
        cron_jobs=[cron(tick, name=f"{TAG}:tick", second=set(range(60)), run_at_startup=False)],
        queue_name=QUEUE,
        redis_settings=settings(),
        poll_delay=0.05,
        allow_abort_jobs=False,
        handle_signals=False,
    )
    task = asyncio.create_task(worker.async_run())
    try:
        await body(pool)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await worker.close()
        await pool.aclose()


async def result(job: Job | None) -> Any:
    assert job is not None
    return await job.result(timeout=15, poll_delay=0.05)


@stages.add("jobs and results")
async def results() -> None:
    async def body(pool: Any) -> None:
        jobs = [await pool.enqueue_job("add", n, n, _job_id=name()) for n in range(50)]
        equal([await result(job) for job in jobs], [2 * n for n in range(50)])
        job = await pool.enqueue_job("broken", _job_id=name())
        with raises(ValueError, text="as expected"):
            await result(job)
        equal(await job.status(), JobStatus.complete)
        equal(len(await pool.all_job_results()), 51)

    await working(body)


@stages.add("a job is enqueued once")
async def unique() -> None:
    async def body(pool: Any) -> None:
        same = name()
        later = {"_defer_by": 1, "_job_id": same}
        jobs = await asyncio.gather(*[pool.enqueue_job("add", 1, 2, **later) for _ in range(20)])
        equal(len([job for job in jobs if job]), 1)
        equal(await result(next(job for job in jobs if job)), 3)

    await working(body)


@stages.add("retries, deferred jobs")
async def retries() -> None:
    async def body(pool: Any) -> None:
        jobs = [await pool.enqueue_job("flaky", n, _job_id=name()) for n in range(4)]
        equal([await result(job) for job in jobs], [1, 2, 3, 4])
        wanted = time.time() + 1
        equal(await result(await pool.enqueue_job("now", _defer_by=1, _job_id=name())) >= wanted - 0.01, True)

    await working(body)


@stages.add("cron")
async def scheduled() -> None:
    async def body(_: Any) -> None:
        await until_async(lambda: len(ticks) >= 3, "three ticks")
        equal(len(ticks) == len({round(when) for when in ticks}), True)

    ticks.clear()
    await working(body)


@stages.add("the proxy restarts", timeout_s=60)
async def reconnect() -> None:
    pool = await create_pool(settings(), default_queue_name=QUEUE)
    await asyncio.to_thread(restart)
    await pool.aclose()

    async def body(pool: Any) -> None:
        equal(await result(await pool.enqueue_job("add", 20, 3, _job_id=name())), 23)

    await working(body)


stages.run("arq")
