"""aiocache: values, many at once, counters, times to live, decorators, locks, clearing a namespace."""

from __future__ import annotations

import asyncio
from typing import Any

from aiocache import Cache, cached, multi_cached
from aiocache.lock import OptimisticLock, OptimisticLockError, RedLock
from aiocache.serializers import JsonSerializer
from checks import HOST, PORT, equal, restart
from redis.exceptions import ConnectionError
from stages import RUN, Stages, raises, spread, until_async

stages = Stages()


def cache(**options: Any) -> Any:
    return Cache(Cache.REDIS, endpoint=HOST, port=PORT, serializer=JsonSerializer(), **options)


@stages.add("values, many at once, counters")
async def values() -> None:
    async with cache(namespace=RUN) as db:
        keys = spread("aiocache", 60)
        equal(await asyncio.gather(*[db.set(key, {"n": n}) for n, key in enumerate(keys)]), [True] * 60)
        equal(await db.multi_get([*keys, "none"]), [*[{"n": n} for n in range(60)], None])
        equal(await db.multi_set([(key, n) for n, key in enumerate(keys)]), True)
        equal(await db.multi_get(keys), [*range(60)])
        with raises(ValueError):
            await db.add(keys[0], 1)
        equal([await db.exists(keys[0]), await db.delete(keys[0]), await db.exists(keys[0])], [True, 1, False])
        await db.set(keys[1], 1, ttl=0.3)

        async def gone() -> bool:
            return await db.get(keys[1]) is None

        await until_async(gone, "it expires")
        equal([await db.increment("counter"), await db.increment("counter", 5)], [1, 6])
        equal(await db.raw("strlen", db.build_key("counter", RUN)), 1)


@stages.add("many at once with a time to live, in one slot")
async def with_ttl() -> None:
    async with cache(namespace="{" + RUN + "}") as db:
        equal(await db.multi_set([(f"k{n}", n) for n in range(20)], ttl=60), True)
        equal(await db.multi_get([f"k{n}" for n in range(20)]), [*range(20)])


@stages.add("decorators")
async def decorators() -> None:
    calls: list[object] = []
    options = {"endpoint": HOST, "port": PORT, "namespace": RUN}

    @cached(ttl=60, cache=Cache.REDIS, key_builder=lambda _, n: f"one:{n}", **options)
    async def one(n: int) -> int:
        calls.append(n)
        return n * 2

    @multi_cached("ns", cache=Cache.REDIS, **options)
    async def many(ns: list[str]) -> dict[str, int]:
        calls.extend(ns)
        return {n: int(n) * 3 for n in ns}

    for _ in range(2):
        equal([int(await one(n)) for n in range(10)], [2 * n for n in range(10)])
        got = await many(ns=[f"{n}" for n in range(10)])
        equal([int(got[f"{n}"]) for n in range(10)], [3 * n for n in range(10)])
    equal(len(calls), 20)


@stages.add("locks")
async def locks() -> None:
    async with cache(namespace=RUN) as db:
        inside = most = 0

        async def work() -> None:
            nonlocal inside, most
            async with RedLock(db, "locked", lease=5):
                inside += 1
                most = max(most, inside)
                await asyncio.sleep(0.01)
                inside -= 1

        # All that wait go on together when the first is done: what RedLock is for is that one computes a value.
        async with RedLock(db, "locked", lease=5):
            waiting = asyncio.create_task(work())
            await asyncio.sleep(0.1)
            equal(inside, 0)
        await waiting
        equal(most, 1)
        await db.set("cas", 1)
        with raises(OptimisticLockError):
            async with OptimisticLock(db, "cas") as lock:
                await db.set("cas", 2)
                await lock.cas(3)
        async with OptimisticLock(db, "cas") as lock:
            await lock.cas(4)
        equal(await db.get("cas"), 4)


@stages.add("a namespace is cleared")
async def clear() -> None:
    async with cache(namespace=f"{RUN}c") as db, cache(namespace=f"{RUN}d") as other:
        for n in range(60):
            await db.set(f"k{n}", n)
            await other.set(f"k{n}", n)
        equal(await db.clear(namespace=f"{RUN}c"), True)
        equal([await db.get(f"k{n}") for n in range(60)], [None] * 60)
        equal([await other.get(f"k{n}") for n in range(60)], [*range(60)])


@stages.add("the proxy restarts")
async def reconnect() -> None:
    async with cache() as db:
        keys = spread("again")
        await asyncio.gather(*[db.set(key, 1) for key in keys])
        await asyncio.to_thread(restart)
        for key in keys:  # the pool that aiocache makes has no retries: each connection that it held fails once

            async def works(key: str = key) -> bool:
                try:
                    return bool(await db.set(key, 2))
                except ConnectionError:
                    return False

            await until_async(works, "the cache answers again")
        equal(await db.multi_get(keys), [2] * len(keys))


stages.run("aiocache")
