"""Both layers of channels_redis: messages to a channel, groups over several processes' layers, expiry, a restart."""

from __future__ import annotations

import asyncio
import importlib
import os
from typing import Any

from checks import HOST, PORT, equal, restart
from stages import Stages, until_async

module, name = os.environ["LAYER"].split(".")
Layer: Any = getattr(importlib.import_module(f"channels_redis.{module}"), name)
PUBSUB = module == "pubsub"
stages = Stages()


def layer() -> Any:
    return Layer(hosts=[{"host": HOST, "port": PORT}], prefix="asgi" if PUBSUB else "{asgi}")


async def close(*layers: Any) -> None:
    for each in layers:
        await (each.flush() if PUBSUB else each.close_pools())


@stages.add("messages to a channel")
async def messages() -> None:
    first, second = layer(), layer()
    channels = [await first.new_channel() for _ in range(10)]
    for n in range(9):
        for channel in channels:
            await second.send(channel, {"type": "text", "n": n, "bytes": b"\x00\xff"})
    for channel in channels:
        got = [await asyncio.wait_for(first.receive(channel), 5) for _ in range(9)]
        equal([(message["n"], message["bytes"]) for message in got], [(n, b"\x00\xff") for n in range(9)])
    await close(first, second)


@stages.add("receiving waits")
async def waits() -> None:
    first, second = layer(), layer()
    channels = [await first.new_channel() for _ in range(5)]
    tasks = [asyncio.create_task(first.receive(channel)) for channel in channels]
    await asyncio.sleep(0.5)
    equal([task.done() for task in tasks], [False] * 5)
    for n, channel in enumerate(channels):
        await second.send(channel, {"type": "text", "n": n})
    equal([(await asyncio.wait_for(task, 5))["n"] for task in tasks], [*range(5)])
    await close(first, second)


@stages.add("groups")
async def groups() -> None:
    sender, *receivers = [layer() for _ in range(4)]
    channels = [(each, await each.new_channel()) for each in receivers for _ in range(4)]
    for n, (each, channel) in enumerate(channels):
        await each.group_add("everybody", channel)
        await each.group_add(f"group{n % 3}", channel)
    await sender.group_send("everybody", {"type": "text", "to": "everybody"})
    for each, channel in channels:
        equal((await asyncio.wait_for(each.receive(channel), 5))["to"], "everybody")
    for n in range(3):
        await sender.group_send(f"group{n}", {"type": "text", "to": n})
    for n, (each, channel) in enumerate(channels):
        equal((await asyncio.wait_for(each.receive(channel), 5))["to"], n % 3)
    for each, channel in channels[1:]:
        await each.group_discard("everybody", channel)
    await sender.group_send("everybody", {"type": "text", "to": "the last"})
    equal((await asyncio.wait_for(channels[0][0].receive(channels[0][1]), 5))["to"], "the last")
    task = asyncio.create_task(channels[1][0].receive(channels[1][1]))
    await asyncio.sleep(0.5)
    equal(task.done(), False)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await close(sender, *receivers)


@stages.add("the proxy restarts", timeout_s=40)
async def reconnect() -> None:
    first, second = layer(), layer()
    channel = await first.new_channel()
    await first.group_add("again", channel)
    await asyncio.to_thread(restart)
    found = []

    async def read() -> None:
        while True:
            try:
                found.append(await first.receive(channel))
            except Exception:  # the layer says that its connection is lost; the next call makes another
                await asyncio.sleep(0.1)

    task = asyncio.create_task(read())

    async def heard() -> bool:
        try:
            await first.group_add("again", channel)
            await second.group_send("again", {"type": "text"})
        except Exception:
            return False
        await asyncio.sleep(0.2)
        return bool(found)

    await until_async(heard, "a message after the restart", 20)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await close(first, second)


stages.run("channels-redis")
