"""Two probers side by side, as a program: one asks the nodes themselves who takes writes, one asks the proxy.

    python -m tests.chaos.prober        (its task as a JSON line on stdin; when stdin ends, what it found on stdout)

Why: "service was back after 2.4 s" says nothing about a proxy before one knows when the cluster itself was back. Both
probers live in one process and loop, so that a machine that is busy delays both alike. Every 20 ms each of them tries a
write of one key of each shard. The direct one goes to the node that took the last, and if that does not answer, or
refuses, to all of them. It takes the links, too, from an address of its own: what concerns the proxy alone does not
concern it, and a node that nobody reaches is out of its reach. The one through the proxy takes a connection that waits
for nothing, or makes one: a command that is held does not keep others from being tried.

Called by: tests.chaos.gaps.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

import hiredis
import uvloop

from tests.chaos.link import SOURCE_PREFIX
from tests.support.connection import Connection, Lost

EVERY_S = 0.02
PATIENCE_S = 0.06  # the direct prober's, before it tries the other nodes as well
CONNECTIONS = 100  # of the proxy prober, per key, that may wait
ANSWER_S = 15.0
SOURCE = f"{SOURCE_PREFIX}99"

Where = tuple[str, int]


class Probe:
    """Connections to one address, and what was written over them: (key, began, ended, error or "")."""

    def __init__(self, address: Where, most: int, source: str | None = None) -> None:
        self.address = address
        self.source = source
        self.most = most
        self.idle: list[Connection] = []
        self.busy = 0

    async def write(self, key: str, value: str) -> str | None:
        """ "" when it was taken, an error in words, or None: no connection was free."""
        wire: Connection | None = None
        while self.idle and (wire is None or wire.gone):
            wire = self.idle.pop()
        if (wire is None or wire.gone) and self.busy >= self.most:
            return None
        self.busy += 1
        try:
            async with asyncio.timeout(ANSWER_S):
                if wire is None or wire.gone:
                    wire = await Connection.open(self.address, source=self.source)
                reply, _ = await wire.send("SET", key, value)
        except TimeoutError:
            if wire is not None:
                wire.close()
            return "no answer"
        except (OSError, Lost) as lost:
            return f"CONNECTION {lost}"
        finally:
            self.busy -= 1
        self.idle.append(wire)
        return str(reply) if isinstance(reply, hiredis.ReplyError) else ""

    def close(self) -> None:
        for wire in self.idle:
            wire.close()


class Prober:
    """See the module."""

    def __init__(self, task: dict[str, Any]) -> None:
        self.keys: list[str] = task["keys"]
        self.nodes = [Probe((host, port), 4, SOURCE) for host, port in task["nodes"]]
        self.proxy = Probe(tuple(task["proxy"]), CONNECTIONS)
        self.direct_found: list[tuple[int, float, float, str]] = []
        self.proxy_found: list[tuple[int, float, float, str]] = []
        self.last: list[int] = [0] * len(self.keys)
        self.tasks: set[asyncio.Task[Any]] = set()

    async def run(self) -> None:
        ended = asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
        number = 0
        while not ended.done():
            number += 1
            for place, key in enumerate(self.keys):
                self._start(self._direct(place, key, number))
                self._start(self._through(place, key, number))
            await asyncio.sleep(EVERY_S)
        await asyncio.sleep(0.1)
        for task in self.tasks:
            task.cancel()

    def _start(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _through(self, place: int, key: str, number: int) -> None:
        began = time.monotonic()
        error = await self.proxy.write(f"{key}:proxy", str(number))
        if error is not None:
            self.proxy_found.append((place, began, time.monotonic(), error))

    async def _direct(self, place: int, key: str, number: int) -> None:
        began = time.monotonic()
        name = f"{key}:direct"
        first = asyncio.get_running_loop().create_task(self._ask(self.last[place], place, name, number, began))
        done, _ = await asyncio.wait([first], timeout=PATIENCE_S)
        if done and first.result():
            return
        others = [n for n in range(len(self.nodes)) if n != self.last[place]]
        await asyncio.gather(first, *(self._ask(n, place, name, number, began) for n in others))

    async def _ask(self, node: int, place: int, key: str, number: int, began: float) -> bool:
        error = await self.nodes[node].write(key, str(number))
        if error == "":
            self.direct_found.append((place, began, time.monotonic(), ""))
            self.last[place] = node
        return error == ""


async def main() -> None:
    prober = Prober(json.loads(sys.stdin.readline()))
    await prober.run()
    print(json.dumps({"direct": prober.direct_found, "proxy": prober.proxy_found}), flush=True)


if __name__ == "__main__":
    uvloop.run(main())
