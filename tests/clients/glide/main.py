"""valkey-glide for Python in standalone mode: its core in Rust multiplexes one connection and has others for scopes."""

from __future__ import annotations

import asyncio
import os
from typing import Any

from checks import HOST, PORT, NotTried, equal, restart
from glide import (
    BackoffStrategy,
    Batch,
    GlideClient,
    GlideClientConfiguration,
    ListDirection,
    NodeAddress,
    ProtocolVersion,
    RangeByIndex,
    RequestError,
    Script,
    StreamGroupOptions,
    StreamReadGroupOptions,
    StreamReadOptions,
)
from stages import RUN, Stages, raises, spread, tags, until_async

stages = Stages()
RESP = os.environ["RESP"]
PROTOCOL = {"2": ProtocolVersion.RESP2, "3": ProtocolVersion.RESP3}[RESP]


async def connect(**options: Any) -> GlideClient:
    return await GlideClient.create(
        GlideClientConfiguration(
            [NodeAddress(HOST, PORT)],
            protocol=PROTOCOL,
            request_timeout=3000,
            reconnect_strategy=BackoffStrategy(20, 50, 2),
            **options,
        )
    )


@stages.add("strings and structures")
async def data() -> None:
    async with await connect(client_name=f"glide-{RUN}") as db:
        keys = spread("string", 60)
        equal(await asyncio.gather(*[db.set(key, str(n)) for n, key in enumerate(keys)]), ["OK"] * 60)
        equal(await db.mget([*keys, "none"]), [*[b"%d" % n for n in range(60)], None])
        equal(await db.mset({key: str(n + 1) for n, key in enumerate(keys)}), "OK")
        equal(await asyncio.gather(*[db.incr(key) for key in keys]), [n + 2 for n in range(60)])
        equal(await db.delete(keys), 60)
        for key in spread("structure"):
            equal(await db.hset(key + "h", {"a": "1", "b": "2"}), 2)
            equal(await db.hgetall(key + "h"), {b"a": b"1", b"b": b"2"})
            equal(await db.rpush(key + "l", ["a", "b", "c"]), 3)
            equal(await db.lrange(key + "l", 0, -1), [b"a", b"b", b"c"])
            equal(await db.sadd(key + "s", ["a", "b"]), 2)
            equal(await db.smembers(key + "s"), {b"a", b"b"})
            equal(await db.zadd(key + "z", {"a": 1, "b": 2.5}), 2)
            equal(await db.zrange_withscores(key + "z", RangeByIndex(0, -1)), {b"a": 1.0, b"b": 2.5})
        equal(await db.client_getname(), f"glide-{RUN}".encode())
        large = bytes(range(256)) * 4096
        equal([await db.set(keys[0], large), await db.get(keys[0]) == large], ["OK", True])
        with raises(RequestError, text="WRONGTYPE"):
            await db.lpush(keys[0], ["x"])


@stages.add("pipelines and MULTI")
async def batches() -> None:
    async with await connect() as db:
        batch = Batch(is_atomic=False)
        for n, key in enumerate(spread("pipe", 300)):
            batch.incrby(key, n)
        equal(await db.exec(batch, raise_on_error=True), [*range(300)])
        for tag in tags("multi"):
            batch = Batch(is_atomic=True)
            batch.set(tag + "a", "1")
            batch.incr(tag + "a")
            batch.get(tag + "a")
            equal(await db.exec(batch, raise_on_error=True), ["OK", 2, b"2"])


@stages.add("WATCH")
async def watch() -> None:
    async with await connect() as db:
        for tag in tags("watch"):

            async def count(tag: str = tag) -> None:
                for _ in range(10):
                    done = None
                    while not done:
                        async with await db.scoped_connection() as scope:
                            await scope.watch(tag + "n")
                            value = int(await scope.get(tag + "n") or 0)
                            await scope.multi()
                            await scope.set(tag + "n", str(value + 1))
                            done = await scope.exec()

            await asyncio.gather(*[count() for _ in range(4)])
            equal(await db.get(tag + "n"), b"40")


@stages.add("Lua")
async def lua() -> None:
    async with await connect() as db:
        script = Script(f"-- g{RUN}\nreturn redis.call('INCRBY', KEYS[1], ARGV[1])")
        keys = spread("lua")
        equal([await db.invoke_script(script, keys=[key], args=["7"]) for key in keys], [7] * len(keys))
        await db.script_flush()
        equal([await db.invoke_script(script, keys=[key], args=["3"]) for key in keys], [10] * len(keys))


@stages.add("blocking pops")
async def blocking() -> None:
    async with await connect() as db:
        for n, key in enumerate(spread("block", 6)):
            async with await connect() as waiting:
                task = asyncio.create_task(waiting.blpop([key], 5))
                await asyncio.sleep(0.1)
                equal(task.done(), False)
                await db.rpush(key, [str(n)])
                equal(await task, [key.encode(), b"%d" % n])
                task = asyncio.create_task(waiting.bzpopmin([key + "z"], 5))
                await asyncio.sleep(0.05)
                await db.zadd(key + "z", {"m": n})
                equal(await task, [(key + "z").encode(), b"m", float(n)])
        for tag in tags("move"):
            async with await connect() as waiting:
                task = asyncio.create_task(
                    waiting.blmove(tag + "a", tag + "b", ListDirection.LEFT, ListDirection.RIGHT, 5)
                )
                await asyncio.sleep(0.05)
                await db.rpush(tag + "a", ["x"])
                equal([await task, await db.lrange(tag + "b", 0, -1)], [b"x", [b"x"]])
                equal(await waiting.blpop([tag + "none"], 0.1), None)


@stages.add("streams with consumer groups")
async def streams() -> None:
    async with await connect() as db, await connect() as waiting:
        for key in spread("stream", 3):
            equal(await db.xgroup_create(key, "group", "0", StreamGroupOptions(make_stream=True)), "OK")
            ids = [await db.xadd(key, [("n", str(n))]) for n in range(10)]
            first = await db.xreadgroup({key: ">"}, "group", "alice", StreamReadGroupOptions(count=4))
            rest = await db.xreadgroup({key: ">"}, "group", "bob")
            equal([*first[key.encode()], *rest[key.encode()]], ids)
            equal(await db.xack(key, "group", ids[4:]), 6)
            equal((await db.xpending(key, "group"))[0], 4)
            blocks = StreamReadGroupOptions(block_ms=2000)
            task = asyncio.create_task(waiting.xreadgroup({key: ">"}, "group", "bob", blocks))
            await asyncio.sleep(0.1)
            late = await db.xadd(key, [("n", "late")])
            equal([*(await task)[key.encode()]], [late])
            task = asyncio.create_task(waiting.xread({key: "$"}, StreamReadOptions(block_ms=2000)))
            await asyncio.sleep(0.1)
            later = await db.xadd(key, [("n", "later")])
            equal([*(await task)[key.encode()]], [later])


@stages.add("pub/sub")
async def pubsub() -> None:
    if RESP == "2":
        raise NotTried("the client has it with RESP3 only")
    channels = spread("channel", 3)
    modes = GlideClientConfiguration.PubSubChannelModes
    subscriptions = GlideClientConfiguration.PubSubSubscriptions(
        {modes.Exact: set(channels), modes.Pattern: {f"{RUN}:p:*"}}, None, None
    )
    async with await connect() as db, await connect(pubsub_subscriptions=subscriptions) as listening:

        async def subscribed() -> bool:
            return sum((await db.pubsub_numsub(list(channels))).values()) == 3 and await db.pubsub_numpat() >= 1

        await until_async(subscribed, "subscribed")
        wanted = [(channels[n % 3].encode(), b"%d" % n) for n in range(300)] + [(f"{RUN}:p:x".encode(), b"end")]
        for channel, text in wanted:
            await db.publish(text, channel)
        messages = [await asyncio.wait_for(listening.get_pubsub_message(), 5) for _ in range(301)]
        equal([(message.channel, message.message) for message in messages], wanted)


@stages.add("SCAN iterators")
async def scan() -> None:
    async with await connect() as db:
        keys = {f"{RUN}:scan:{n}".encode() for n in range(500)}
        await db.mset(dict.fromkeys(keys, "1"))
        found: set[bytes] = set()
        cursor = b"0"
        while True:
            cursor, part = await db.scan(cursor, match=f"{RUN}:scan:*", count=20)
            found |= set(part)
            if cursor == b"0":
                break
        equal(found, keys)


@stages.add("the proxy restarts", timeout_s=40)
async def reconnect() -> None:
    async with await connect() as db:
        keys = spread("again")
        await asyncio.gather(*[db.set(key, "1") for key in keys])
        await asyncio.to_thread(restart)

        async def works() -> bool:
            try:
                return await asyncio.gather(*[db.set(key, "2") for key in keys]) == ["OK"] * len(keys)
            except Exception:  # what was under way is not sent again; the client connects again by itself
                return False

        await until_async(works, "the client works again", 20)
        equal(await db.mget(keys), [b"2"] * len(keys))


stages.run("valkey-glide")
