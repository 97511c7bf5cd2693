"""notify-keyspace-events: which nodes are told what, and until when."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from proxy.cluster.topology import Address
from proxy.control import keyspace_events
from proxy.control.keyspace_events import KeyspaceEvents
from proxy.control.node_client import NodeClientError, NodeClientSettings
from tests.support.refresher import until

NODES = [Address("127.0.0.1", port) for port in (1, 2)]


class Told:
    """Stands for the nodes."""

    def __init__(self) -> None:
        self.down: set[Address] = set()
        self.has: dict[Address, bytes] = {}

    @asynccontextmanager
    async def connected(self, address: Address, settings: NodeClientSettings) -> AsyncIterator[Node]:
        if address in self.down:
            raise NodeClientError("it is down")
        yield Node(self, address)


class Node:
    def __init__(self, told: Told, address: Address) -> None:
        self.told, self.address = told, address

    async def ask(self, words: tuple[str | bytes, ...]) -> tuple[bytes]:
        if words[0] == "INFO":
            return (b"run_id:a\r\n",)
        assert isinstance(words[3], bytes)
        self.told.has[self.address] = words[3]
        return (b"OK",)


@pytest.mark.parametrize("value", [b"KEA", b""])
def test_what_some_nodes_have_taken_all_are_told(value: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    told = Told()
    told.down.add(NODES[1])
    monkeypatch.setattr(keyspace_events, "node_client", told.connected)
    monkeypatch.setattr(keyspace_events, "EVERY_S", 0.01)

    async def play() -> None:
        events = KeyspaceEvents(lambda: NODES, NodeClientSettings)
        events.remember(value, whole=False)
        try:
            await until(lambda: NODES[0] in told.has)
            told.down.clear()
            await until(lambda: told.has == dict.fromkeys(NODES, value))
        finally:
            await events.stop()

    asyncio.run(play())


def test_nothing_is_done_when_all_have_taken_it_and_it_is_nothing() -> None:
    events = KeyspaceEvents(lambda: NODES, NodeClientSettings)
    events.remember(b"")  # without a loop a task would raise
