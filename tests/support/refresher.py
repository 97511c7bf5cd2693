"""A topology refresher for tests: scripted nodes that answer with topologies, and a started refresher around them.

Called by: tests/unit/control/test_topology_refresh.py and test_topology_refresh_answers.py.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

from proxy.cluster.topology import SLOTS, Address, Topology
from proxy.control.topology_refresh import (
    RefreshSettings,
    TopologyRefresher,
)
from proxy.embedded import HOST
from tests.support.fake_node import FakeNode, Shard, shards_reply
from tests.support.raw import bulk

FOREVER_S = 3600.0
WHOLE = [(0, SLOTS - 1)]


def at(node: FakeNode) -> Address:
    return Address(HOST, node.port)


def tell(
    node: FakeNode, *nodes: FakeNode, epoch: int = 5, slots: list[tuple[int, int]] | None = None, state: str = "ok"
) -> None:
    """The node answers that the first of `nodes` owns the slots and the others are its replicas."""
    shard = Shard(WHOLE if slots is None else slots, [(n, "replica" if i else "master") for i, n in enumerate(nodes)])
    node.shards = shards_reply([shard])
    node.on("CLUSTER INFO", bulk(b"cluster_state:%s\r\ncluster_current_epoch:%d\r\n" % (state.encode(), epoch)))


def settings(*seeds: FakeNode | Address, **more: Any) -> RefreshSettings:
    """Only triggers and failures cause refreshes, unless said otherwise."""
    addresses = tuple(seed if isinstance(seed, Address) else at(seed) for seed in seeds)
    defaults: dict[str, Any] = {
        "refresh_interval_s": FOREVER_S,
        "min_gap_s": 0.0,
        "timeout_s": 5.0,
        "gone_after_s": FOREVER_S,
    }
    return RefreshSettings(addresses, **(defaults | more))


Scene = Callable[[TopologyRefresher, list[Topology]], Awaitable[None]]


def run(config: RefreshSettings, scene: Scene, *, seed: int = 1, **options: Any) -> TopologyRefresher:
    """The scene with a started refresher and what it published; checks that stop() leaves nothing.

    `seed` is that of the refresher's choices, so each has its own order of nodes.
    """

    async def play() -> TopologyRefresher:
        published: list[Topology] = []
        refresher = TopologyRefresher(config, published.append, rng=random.Random(seed), **options)
        await refresher.start()
        try:
            await scene(refresher, published)
        finally:
            await refresher.stop()
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return refresher

    return asyncio.run(play())


async def until(condition: Callable[[], Any], timeout_s: float = 10.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.002)


async def refreshed(refresher: TopologyRefresher, reason: str = "moved") -> str:
    """One more refresh; its outcome."""
    before = dict(refresher.outcomes)
    refresher.trigger(reason)
    await until(lambda: refresher.outcomes != before)
    (key,) = [key for key, count in refresher.outcomes.items() if count != before[key]]
    return key[1]


def counted(refresher: TopologyRefresher) -> dict[tuple[str, str], int]:
    return {key: count for key, count in refresher.outcomes.items() if count}


def closed(node: FakeNode) -> bool:
    return all(session.sock.fileno() == -1 for session in node.sessions)


def asked(node: FakeNode) -> int:
    return sum(words[1] == b"SHARDS" for words in node.seen("CLUSTER"))
