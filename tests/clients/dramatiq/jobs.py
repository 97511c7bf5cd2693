"""The application: a broker with results, actors that retry, are delayed, or are rate limited."""

from __future__ import annotations

import time

import dramatiq
from checks import HOST, PORT
from dramatiq.brokers.redis import RedisBroker
from dramatiq.rate_limits import ConcurrentRateLimiter
from dramatiq.rate_limits.backends import RedisBackend as Limits
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend

broker = RedisBroker(host=HOST, port=PORT, namespace="{dramatiq}")
broker.add_middleware(Results(backend=RedisBackend(host=HOST, port=PORT, namespace="{dramatiq-results}")))
dramatiq.set_broker(broker)
limiter = ConcurrentRateLimiter(Limits(host=HOST, port=PORT), "one-at-a-time", limit=1)
calls: dict[str, int] = {}


@dramatiq.actor(store_results=True)
def add(x: int, y: int) -> int:
    return x + y


@dramatiq.actor(store_results=True, max_retries=5, min_backoff=100, max_backoff=200)
def flaky(name: str, failures: int) -> int:
    """Its number of calls; the worker has one process."""
    calls[name] = calls.get(name, 0) + 1
    if calls[name] <= failures:
        raise ValueError("as expected")
    return calls[name]


@dramatiq.actor(store_results=True, max_retries=0)
def broken() -> None:
    raise ValueError("as expected")


@dramatiq.actor(store_results=True)
def now() -> float:
    return time.time()


@dramatiq.actor(store_results=True, queue_name="other", max_retries=100, min_backoff=50, max_backoff=100)
def alone() -> list[float]:
    with limiter.acquire():
        begun = time.time()
        time.sleep(0.1)
        return [begun, time.time()]
