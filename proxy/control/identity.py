"""Which nodes answer at some addresses: so that it is known whether new seeds belong to the cluster in use.

Called by control_plane, for a reload. The answer comes within WITHIN_S; nothing is left open.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Final

from proxy.cluster.topology import Address
from proxy.control.node_client import NodeClientError, NodeClientSettings, node_client

WITHIN_S: Final = 2.0


async def ids(nodes: Sequence[Address], settings: NodeClientSettings) -> set[str]:
    """Of those that tell theirs."""
    found = set[str]()

    async def ask(node: Address) -> None:
        with contextlib.suppress(NodeClientError):
            async with node_client(node, settings) as client:
                (told,) = await client.ask(("CLUSTER", "MYID"))
            if isinstance(told, bytes):
                found.add(told.decode("ascii", "replace"))

    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(WITHIN_S), asyncio.TaskGroup() as group:
            for node in nodes:
                group.create_task(ask(node))
    return found
