"""coredis: one multiplexed connection for most, a pool for the rest; structured concurrency; a cache of its own."""

from __future__ import annotations

import asyncio
from typing import Any

import coredis
from checks import HOST, PORT, equal, restart
from coredis.exceptions import ConnectionError
from coredis.patterns.cache import LRUCache
from coredis.retry import ConstantRetryPolicy
from stages import RUN, Stages, raises, spread, tags, until_async

stages = Stages()


def connect(**options: Any) -> Any:
    return coredis.Redis(host=HOST, port=PORT, decode_responses=True, **options)


@stages.add("strings and structures")
async def data() -> None:
    async with connect() as db:
        keys = spread("string", 60)
        equal(await asyncio.gather(*[db.set(key, str(n)) for n, key in enumerate(keys)]), [True] * 60)
        equal(await db.mget([*keys, "none"]), (*[str(n) for n in range(60)], None))
        equal(await db.mset({key: str(n + 1) for n, key in enumerate(keys)}), True)
        equal(await asyncio.gather(*[db.incr(key) for key in keys]), [n + 2 for n in range(60)])
        equal(await db.delete(keys), 60)
        for key in spread("structure"):
            equal(await db.hset(key + "h", {"a": "1", "b": "2"}), 2)
            equal(await db.hgetall(key + "h"), {"a": "1", "b": "2"})
            equal(await db.rpush(key + "l", ["a", "b", "c"]), 3)
            equal(await db.lrange(key + "l", 0, -1), ["a", "b", "c"])
            equal(await db.sadd(key + "s", ["a", "b"]), 2)
            equal(await db.smembers(key + "s"), {"a", "b"})
            equal(await db.zadd(key + "z", {"a": 1, "b": 2.5}), 2)
            equal([tuple(each) for each in await db.zrange(key + "z", 0, -1, withscores=True)], [("a", 1), ("b", 2.5)])


@stages.add("pipelines and MULTI")
async def pipeline() -> None:
    async with connect() as db:
        keys = spread("pipe", 300)
        async with db.pipeline(transaction=False) as pipe:
            answers = [pipe.incrby(key, n) for n, key in enumerate(keys)]
        equal([await answer for answer in answers], [*range(300)])
        for tag in tags("multi"):
            async with db.pipeline(transaction=True) as pipe:
                first, second, third = pipe.set(tag + "a", "1"), pipe.incr(tag + "a"), pipe.lrange(tag + "none", 0, -1)
            equal([await first, await second, await third], [True, 2, []])


@stages.add("WATCH")
async def watch() -> None:
    async with connect() as db:
        for tag in tags("watch"):

            async def one(pipe: Any, tag: str = tag) -> None:
                value = int(await db.get(tag + "n") or 0)
                pipe.set(tag + "n", str(value + 1))

            async def count(one: Any = one, tag: str = tag) -> None:
                for _ in range(10):
                    await db.transaction(one, tag + "n")

            await asyncio.gather(*[count() for _ in range(4)])
            equal(await db.get(tag + "n"), "40")


@stages.add("Lua")
async def lua() -> None:
    async with connect() as db:
        script = db.register_script(f"-- c{RUN}\nreturn redis.call('INCRBY', KEYS[1], ARGV[1])")
        keys = spread("lua")
        equal([await script(keys=[key], args=[7]) for key in keys], [7] * len(keys))
        await db.script_flush()
        equal([await script(keys=[key], args=[3]) for key in keys], [10] * len(keys))


async def pop(db: Any, key: str) -> Any:
    return await db.blpop([key], timeout=5)


@stages.add("blocking pops")
async def blocking() -> None:
    async with connect() as db:
        keys = spread("block", 12)
        waiting = [asyncio.ensure_future(pop(db, key)) for key in keys]
        await asyncio.sleep(0.2)
        equal([task.done() for task in waiting], [False] * 12)
        for n, key in enumerate(keys):
            await db.rpush(key, [str(n)])
        equal(
            [list(answer) for answer in await asyncio.gather(*waiting)], [[key, str(n)] for n, key in enumerate(keys)]
        )
        equal(await db.blpop(keys[:1], timeout=0.1), None)


@stages.add("streams with consumer groups")
async def streams() -> None:
    async with connect() as db:
        for key in spread("stream", 3):
            await db.xgroup_create(key, "group", "0", mkstream=True)
            consumer = db.xconsumer([key], group="group", consumer="alice", timeout=2000)
            other = db.xconsumer([key], group="group", consumer="bob", timeout=2000)
            ids = [await db.xadd(key, {"n": str(n)}) for n in range(10)]
            found = []
            for _ in range(5):
                for each in (consumer, other):
                    _, entry = await each.get_entry()
                    found.append(entry.field_values["n"])
                    await db.xack(key, "group", [entry.identifier])
            equal(found, [str(n) for n in range(10)])
            equal(len(ids), (await db.xinfo_stream(key))["length"])
            waiting = asyncio.create_task(consumer.get_entry())
            await asyncio.sleep(0.1)
            await db.xadd(key, {"n": "late"})
            equal((await waiting)[1].field_values["n"], "late")


@stages.add("pub/sub")
async def pubsub() -> None:
    async with connect() as db:
        channels = spread("channel", 3)
        async with db.pubsub(channels=channels, patterns=[f"{RUN}:p:*"], ignore_subscribe_messages=True) as listening:
            wanted = [(channels[n % 3], str(n)) for n in range(300)] + [(f"{RUN}:p:x", "end")]
            for channel, text in wanted:
                await db.publish(channel, text)
            got = []
            while len(got) < 301:
                if (message := await listening.get_message(timeout=5)) is None:
                    continue
                got.append((message["channel"], message["data"]))
            equal(got, wanted)


@stages.add("SCAN iterators")
async def scan() -> None:
    async with connect() as db:
        keys = {f"{RUN}:scan:{n}" for n in range(500)}
        await db.mset(dict.fromkeys(keys, "1"))
        equal({key async for key in db.scan_iter(match=f"{RUN}:scan:*", count=20)}, keys)


@stages.add("its lock")
async def lock() -> None:
    async with connect() as db:
        for name in spread("lock", 3):
            inside = most = 0

            async def work(name: str = name) -> None:
                nonlocal inside, most
                async with db.lock(name, timeout=10, sleep=0.01):
                    inside += 1
                    most = max(most, inside)
                    await asyncio.sleep(0.005)
                    inside -= 1

            await asyncio.gather(*[work() for _ in range(10)])
            equal(most, 1)


@stages.add("its cache")
async def cache() -> None:
    async with connect(cache=LRUCache()) as reader, connect() as writer:
        keys = spread("cached")
        for key in keys:
            await writer.set(key, "0")
            equal([await reader.get(key), await reader.get(key)], ["0", "0"])
        for value in range(1, 20):
            for key in keys:
                await writer.set(key, str(value))
            for key in keys:

                async def seen(key: str = key, value: int = value) -> bool:
                    return bool(await reader.get(key) == str(value))

                await until_async(seen, "the new value is seen", 5)


@stages.add("the proxy restarts")
async def reconnect() -> None:
    policy = ConstantRetryPolicy((ConnectionError, TimeoutError), retries=20, delay=0.1)
    async with connect(retry_policy=policy) as db:
        keys = spread("again")
        await asyncio.gather(*[db.set(key, "1") for key in keys])
        await asyncio.to_thread(restart)
        equal(await asyncio.gather(*[db.set(key, "2") for key in keys]), [True] * len(keys))
        equal(await db.mget(keys), ("2",) * len(keys))
        with raises(coredis.exceptions.ResponseError):
            await db.lpush(keys[0], ["x"])


stages.run("coredis")
