"""notify-keyspace-events as a client has set it through the proxy, on nodes that join or restart later.

Why: one Redis that was told to send events goes on doing so. CONFIG SET reaches the nodes there are; a node that comes
later, or has restarted, begins with what its own configuration says. Called by control_plane.

Invariants: nothing is asked or set before a client has set it, nor after all nodes have been told that it is nothing; a
node is told once in each of its lives (run_id), so that whoever changes it there by hand is not contradicted; what goes
wrong is tried again. It is remembered for the life of the main process: an upgrade or a restart forgets it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Final

from proxy.cluster.topology import Address
from proxy.control.node_client import ErrorReply, NodeClientError, NodeClientSettings, node_client
from proxy.control.tasks import keep
from proxy.system.log import get, warn_limited

EVERY_S: Final = 2.0
AT_ONCE: Final = 8  # nodes asked at the same time
OPTION: Final = "notify-keyspace-events"

log = get("control.keyspace_events")


class KeyspaceEvents:
    """See the module. nodes(): all that are up; settings(): how to talk to them."""

    def __init__(self, nodes: Callable[[], Iterable[Address]], settings: Callable[[], NodeClientSettings]) -> None:
        self.value = b""
        self._owed = False  # nodes are to be told, now or when they come
        self._nodes = nodes
        self._settings = settings
        self._told: dict[Address, bytes] = {}  # the run_id it was told in
        self._due = asyncio.Event()
        self._room = asyncio.Semaphore(AT_ONCE)
        self._task: asyncio.Task[None] | None = None

    def remember(self, value: bytes, *, whole: bool = True) -> None:
        """A client has set it on all nodes, or (not whole) on some: the last value is for all. Empty: to nothing."""
        self.value = value
        self._owed = bool(value) or not whole
        self._told.clear()
        self.look()
        if self._owed and self._task is None:
            self._task = keep(self._keep, "keyspace-events")

    def look(self) -> None:
        """Nodes may have come or gone."""
        self._due.set()

    async def stop(self) -> None:
        """Returns when the task and its connections are gone."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _keep(self) -> None:
        while True:
            self._due.clear()
            if self._owed:
                nodes = set(self._nodes())
                self._told = {address: life for address, life in self._told.items() if address in nodes}
                await asyncio.gather(*(self._tell(address, self.value) for address in nodes))
                self._owed = bool(self.value) or not nodes <= self._told.keys()
            try:
                async with asyncio.timeout(EVERY_S):
                    await self._due.wait()
            except TimeoutError:
                pass

    async def _tell(self, address: Address, value: bytes) -> None:
        try:
            async with self._room, node_client(address, self._settings()) as node:
                (info,) = await node.ask(("INFO", "server"))
                life = _run_id(info)
                if self._told.get(address) == life:
                    return
                (answer,) = await node.ask(("CONFIG", "SET", OPTION, value))
        except NodeClientError as error:
            log.debug("node cannot be told what events to send", node=str(address), error=str(error))
            return
        if isinstance(answer, ErrorReply):
            warn_limited(log, f"events:{address}", f"node refuses {OPTION}", node=str(address), error=str(answer))
        elif self.value == value:
            self._told[address] = life


def _run_id(info: object) -> bytes:
    """Of INFO server; empty when the node does not tell."""
    lines = info.splitlines() if isinstance(info, bytes) else ()
    return next((line[7:] for line in lines if line.startswith(b"run_id:")), b"")
