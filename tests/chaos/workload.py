"""Clients that use what applications use, through the proxy, and write down every operation with its times and outcome.

Each kind of client is in tests.chaos.clients; here is the thread they live in, what they share, and what is read from
the nodes at the end. All keys are named after the run and have one hash tag per shard, so that each kind of client
works on every shard.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import hiredis

from proxy.embedded import EmbeddedCluster
from tests.chaos.history import History, Op
from tests.support.cluster import slot_of, spread_keys
from tests.support.connection import Connection, Lost
from tests.support.loop_thread import LoopThread
from tests.support.raw import Word

UNANSWERED_S = 12.0  # an operation's clients stop waiting for it; more than any timeout of the proxy
RECONNECT_S = 0.05


@dataclass
class Contents:
    """What the cluster holds at the end, as its primaries say: key -> value."""

    lists: dict[str, list[str]] = field(default_factory=dict)
    streams: dict[str, list[str]] = field(default_factory=dict)  # the tokens of the entries, in order
    strings: dict[str, str] = field(default_factory=dict)


class Client:
    """Something that keeps a connection and does one thing after another; kinds of clients override `step`."""

    pace_s = 0.02
    control = False  # whether it goes past the proxy

    def __init__(self, workload: Workload, number: int, address: tuple[str, int]) -> None:
        self.workload = workload
        self.name = f"{type(self).__name__.lower()}{number}"
        self.number = number
        self.address = address
        self.replicas = address != workload.address
        self.connections = 0
        self.wire: Connection | None = None
        self._counts: dict[str, int] = {}

    def keys(self, kind: str) -> list[str]:
        """One key of this kind for each shard, shared by all clients."""
        return [f"{{{tag}}}:{kind}" for tag in self.workload.tags]

    def own(self, kind: str) -> list[str]:
        """One key of this kind for each shard that no other client writes."""
        return [f"{{{tag}}}:{kind}:{self.number}" for tag in self.workload.tags]

    async def prepare(self, wire: Connection) -> None:
        """What a new connection needs first."""

    async def step(self, wire: Connection) -> None:
        raise NotImplementedError

    async def run(self) -> None:
        """Until the workload ends. An error is written down where it came; a lost connection is made anew."""
        while self.workload.running:
            try:
                if self.wire is None or self.wire.gone:
                    self.wire = await Connection.open(self.address, self.push())
                    self.connections += 1
                    await self.prepare(self.wire)
                await self.step(self.wire)
                if self.wire.strange:
                    self.workload.history.strange += self.wire.strange
                    self.wire.strange.clear()
                await asyncio.sleep(self.pace_s * self.workload.pace)
            except (Lost, OSError, TimeoutError, hiredis.ReplyError) as trouble:
                wire, self.wire = self.wire, None
                if wire is not None:
                    if not self.workload.running:
                        break
                    if not isinstance(trouble, hiredis.ReplyError) and not self.control:
                        how = str(trouble) if isinstance(trouble, Lost) else "not connected"
                        self.workload.history.closed[how] += 1
                    wire.close()
                elif not self.control:
                    self.workload.history.closed["connection refused"] += 1
                await asyncio.sleep(RECONNECT_S)
        if self.wire is not None:
            self.wire.close()

    def push(self) -> Any:
        """Who takes pushes; None: nobody."""
        return None

    # -- recorded operations

    def op(self, kind: str, key: str, *, token: str = "", limit_s: float = 0.0) -> Op:
        """A new operation that begins now. Without a token it gets one of its own."""
        self._counts[key] = number = self._counts.get(key, 0) + 1
        made = Op(
            self.name, kind, key, token or f"<{self.name}.{key}.{number}>", time.monotonic(), number=number,
            limit_s=limit_s, replicas=self.replicas,
        )  # fmt: skip
        self.workload.history.ops.append(made)
        return made

    def begin(self, wire: Connection, op: Op, *words: Word, unsure: bool = False) -> asyncio.Future[Any]:
        """Sends it; the reply is written down when it comes. unsure: an error may concern a part of it only."""
        future = wire.send(*words)
        future.add_done_callback(lambda done: self._note(op, done, unsure))
        return future

    async def do(self, wire: Connection, op: Op, *words: Word, unsure: bool = False) -> Any:
        """begin(), and waits. The reply, or None when it was an error; Lost is raised, and what does not come."""
        future = self.begin(wire, op, *words, unsure=unsure)
        try:
            async with asyncio.timeout(UNANSWERED_S + op.limit_s):
                reply, _ = await future
        except TimeoutError:
            raise Lost("no answer") from None
        return None if isinstance(reply, hiredis.ReplyError) else reply

    @staticmethod
    def _note(op: Op, done: asyncio.Future[Any], unsure: bool) -> None:
        if done.cancelled():
            return
        if (failure := done.exception()) is not None:
            op.error = "" if "closed by us" in str(failure) else f"CONNECTION {failure}"
            if op.error:
                op.fail(op.error, time.monotonic(), unsure=True)
            return
        reply, at = done.result()
        if isinstance(reply, hiredis.ReplyError):
            op.fail(str(reply), at, unsure=unsure)
        else:
            op.answer(reply, at)


class Workload:
    """All clients in a thread of their own, as a context manager.

    address: of the proxy; relaxed: its listener that prefers replicas; nodes: of the nodes themselves. pace: how many
    times slower than usual clients are.
    """

    def __init__(
        self,
        address: tuple[str, int],
        relaxed: tuple[str, int],
        run: str,
        nodes: Sequence[tuple[str, int]] = (),
        *,
        pace: float = 1.0,
    ) -> None:
        self.address = address
        self.relaxed = relaxed
        self.run = run
        self.nodes = nodes
        self.pace = pace
        self.tags = spread_keys(3, run)  # hash tags, one in each third of the slots: one for each primary
        self.history = History()
        self.running = True
        self.clients: list[Client] = []
        self.failures: list[BaseException] = []
        self._thread = LoopThread("workload")

    def __enter__(self) -> Workload:
        from tests.chaos.clients import crew

        self._thread.start()
        self.clients = crew(self)
        self._tasks = [self._thread.submit(self._guard(client)) for client in self.clients]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.finish()

    def done(self) -> int:
        """Operations answered so far."""
        return sum(op.outcome == "ok" for op in list(self.history.ops))

    def finish(self) -> None:
        """Ends every client when what it is doing is answered (or never will be)."""
        if not self._thread.running:
            return
        self.running = False
        deadline = time.monotonic() + UNANSWERED_S + 5
        for task in self._tasks:
            try:
                task.result(max(0.1, deadline - time.monotonic()))
            except TimeoutError:
                task.cancel()
        self._thread.stop()
        if self.failures:
            raise self.failures[0]

    async def _guard(self, client: Client) -> None:
        try:
            await client.run()
        except asyncio.CancelledError:
            raise
        except BaseException as failure:
            self.failures.append(failure)

    def contents(self, cluster: EmbeddedCluster) -> Contents:
        """Reads every key of the run from the node that owns it."""
        found = Contents()
        for node in cluster.primaries():
            for key in self._keys(cluster, node):
                match node.command("TYPE", key):
                    case "list":
                        found.lists[key] = node.command("LRANGE", key, 0, -1)
                    case "stream":
                        found.streams[key] = [fields[1] for _, fields in node.command("XRANGE", key, "-", "+")]
                    case "string":
                        found.strings[key] = node.command("GET", key)
        return found

    def _keys(self, cluster: EmbeddedCluster, node: Any) -> Iterable[str]:
        owned = set(cluster.slots_of(node))
        for tag in self.tags:
            if slot_of(f"{{{tag}}}") in owned:
                yield from node.client.scan_iter(f"{{{tag}}}:*", count=1000)
