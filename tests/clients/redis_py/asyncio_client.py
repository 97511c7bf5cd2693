"""The asyncio client: as sync_client, many tasks at once."""

from __future__ import annotations

import asyncio
import importlib
from typing import Any

from checks import HOST, PORT, equal, restart
from stages import RUN, Stages, raises, spread, tags, until_async
from sync_client import MODULE, RESP, flat, lib

aio: Any = importlib.import_module(f"{MODULE}.asyncio")
Client = aio.Redis if MODULE == "redis" else aio.Valkey


def connect(**options: Any) -> Any:
    return Client(**{"host": HOST, "port": PORT, "protocol": RESP, "decode_responses": True} | options)


async def data() -> None:
    async with connect() as db:
        keys = spread("astring", 60)
        equal(await asyncio.gather(*[db.set(key, n) for n, key in enumerate(keys)]), [True] * 60)
        equal(await asyncio.gather(*[db.get(key) for key in keys]), [str(n) for n in range(60)])
        equal(await db.mget(keys), [str(n) for n in range(60)])
        for key in spread("ahash"):
            await db.hset(key, mapping={"a": 1, "b": 2})
            equal(await db.hgetall(key), {"a": "1", "b": "2"})
        for key in spread("azset"):
            await db.zadd(key, {"a": 1, "b": 2})
            equal([list(pair) for pair in await db.zrange(key, 0, -1, withscores=True)], [["a", 1.0], ["b", 2.0]])
        equal(await db.delete(*keys), 60)


async def pipeline() -> None:
    async with connect() as db:
        keys = spread("apipe", 300)
        async with db.pipeline(transaction=False) as pipe:
            for n, key in enumerate(keys):
                pipe.set(key, n).incr(key)
            equal(await pipe.execute(), [answer for n in range(300) for answer in (True, n + 1)])
        for tag in tags("amulti"):
            async with db.pipeline(transaction=True) as pipe:
                equal(await pipe.set(tag + "a", 1).incr(tag + "a").get(tag + "a").execute(), [True, 2, "2"])


async def watch() -> None:
    async with connect() as db:
        for tag in tags("awatch"):

            async def count(tag: str = tag) -> None:
                for _ in range(10):
                    while True:
                        async with db.pipeline() as pipe:
                            try:
                                await pipe.watch(tag + "n")
                                value = int(await pipe.get(tag + "n") or 0)
                                pipe.multi()
                                pipe.set(tag + "n", value + 1)
                                await pipe.execute()
                                break
                            except lib.WatchError:
                                continue

            await asyncio.gather(*[count() for _ in range(4)])
            equal(await db.get(tag + "n"), "40")


async def lua() -> None:
    async with connect() as db:
        script = db.register_script(f"-- a{RUN}\nreturn redis.call('INCRBY', KEYS[1], ARGV[1])")
        keys = spread("alua")
        equal([await script(keys=[key], args=[7]) for key in keys], [7] * len(keys))
        await db.script_flush()
        equal([await script(keys=[key], args=[3]) for key in keys], [10] * len(keys))
        with raises(lib.exceptions.NoScriptError):
            await db.evalsha("0" * 40, 1, keys[0])


async def blocking() -> None:
    async with connect() as db:
        keys = spread("ablock", 30)
        waiting = [asyncio.create_task(db.blpop(key, timeout=0)) for key in keys]
        waiting += [asyncio.create_task(db.bzpopmin(key + "z", timeout=5)) for key in keys]
        await asyncio.sleep(0.2)
        equal([task.done() for task in waiting], [False] * 60)
        for n, key in enumerate(keys):
            await db.rpush(key, n)
            await db.zadd(key + "z", {"m": n})
        got = [list(answer) for answer in await asyncio.gather(*waiting)]
        equal(got[:30], [[key, str(n)] for n, key in enumerate(keys)])
        equal(got[30:], [[key + "z", "m", float(n)] for n, key in enumerate(keys)])
        task = asyncio.create_task(db.blpop(keys[0], timeout=0))
        await asyncio.sleep(0.1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await db.rpush(keys[0], "not for nobody")

        async def still_there() -> bool:  # the cancelled client's connection is closed: the element waits for another
            return bool(await db.llen(keys[0]) == 1)

        await until_async(still_there, "the element is there")


async def streams() -> None:
    async with connect() as db:
        for key in spread("astream", 3):
            await db.xgroup_create(key, "group", mkstream=True)

            async def consume(name: str, key: str = key) -> list[str]:
                found: list[str] = []
                while True:
                    for entry, fields in flat(
                        await db.xreadgroup("group", name, {key: ">"}, count=5, block=3000) or []
                    ):
                        await db.xack(key, "group", entry)
                        if fields["n"] == "end":
                            return found
                        found.append(fields["n"])

            readers = [asyncio.create_task(consume(f"c{n}")) for n in range(2)]
            for n in range(40):
                await db.xadd(key, {"n": n})
            for _ in readers:  # one at a time: an `end` is for whoever reads it
                await db.xadd(key, {"n": "end"})
                await asyncio.wait([r for r in readers if not r.done()], return_when=asyncio.FIRST_COMPLETED)
            found = [n for reader in readers for n in await reader]
            equal(sorted(map(int, found)), [*range(40)])
            equal((await db.xpending(key, "group"))["pending"], 0)


async def pubsub() -> None:
    async with connect() as db, db.pubsub(ignore_subscribe_messages=True) as listening:
        channels = spread("achannel", 3)
        await listening.subscribe(*channels)
        await listening.psubscribe(f"{RUN}:apattern:*")
        got: list[tuple[str, str]] = []

        async def read() -> None:
            async for message in listening.listen():
                got.append((message["channel"], message["data"]))

        task = asyncio.create_task(read())

        async def all_subscribed() -> bool:
            numbers = dict(await db.pubsub_numsub(*channels))
            return sum(numbers.values()) == 3 and await db.pubsub_numpat() >= 1

        await until_async(all_subscribed, "subscribed")
        wanted = [(channels[n % 3], str(n)) for n in range(300)] + [(f"{RUN}:apattern:x", "end")]
        for channel, text in wanted:
            await db.publish(channel, text)
        await until_async(lambda: len(got) >= 301, "301 messages")
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        equal(got, wanted)


async def scan() -> None:
    async with connect() as db:
        keys = {f"{RUN}:ascan:{n}" for n in range(500)}
        await db.mset(dict.fromkeys(keys, 1))
        equal({key async for key in db.scan_iter(match=f"{RUN}:ascan:*", count=20)}, keys)


async def lock() -> None:
    async with connect() as db:
        for name in spread("alock", 3):
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


async def reconnect() -> None:
    async with connect() as db:
        keys = spread("arestart", 6)
        await asyncio.gather(*[db.set(key, 1) for key in keys])
        await asyncio.to_thread(restart)
        equal(await asyncio.gather(*[db.incr(key + "new") for key in keys]), [1] * 6)


def add_to(stages: Stages) -> None:
    for function in (data, pipeline, watch, lua, blocking, streams, pubsub, scan, lock, reconnect):
        stages.add(f"asyncio: {function.__name__}")(function)
