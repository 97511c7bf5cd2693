"""Whether the servers take credentials, found out before these are put in force.

Why: new credentials mean new connections for every node at once; a mistyped password would be an outage of everything
that works. Called by control_plane, for a reload.

Invariants: refused are only credentials that some node has refused in so many words and no node has taken: while a
password is rotated from node to node some refuse it, and nodes that do not answer say nothing about it. The answer
comes within WITHIN_S; nothing is left open.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from proxy.cluster.topology import Address
from proxy.control.node_client import ErrorReply, NodeAuthError, NodeClientError, NodeClientSettings, node_client
from proxy.system.log import get

WITHIN_S: Final = 2.0
_AT_ONCE: Final = 8

log = get("control.credentials")


class _Taken(Exception):
    """A node has taken them: nobody else needs to be asked."""


async def refusal(nodes: Sequence[Address], settings: NodeClientSettings) -> str:
    """The server's line where the credentials are refused, "" where they are taken or nobody answers.

    nodes are asked in their order, a few at a time, until one takes the credentials.
    """
    left = iter(nodes)
    refusals: list[str] = []
    taken = False

    async def ask() -> None:
        for node in left:
            told = await _told(node, settings)
            if told == "":
                raise _Taken
            if told is not None:
                refusals.append(told)

    try:
        async with asyncio.timeout(WITHIN_S), asyncio.TaskGroup() as group:
            for _ in nodes[:_AT_ONCE]:
                group.create_task(ask())
    except* _Taken:
        taken = True
    except* TimeoutError:
        pass
    return "" if taken or not refusals else refusals[0]


async def _told(node: Address, settings: NodeClientSettings) -> str | None:
    """What the node refuses them with; "" = taken, None = no answer."""
    try:
        async with node_client(node, settings) as client:
            # PING needs a login where there is a password; a user that may have neither of the others learns nothing.
            _, *replies = await client.ask(("PING",), ("CLUSTER", "SHARDS"), ("CLUSTER", "SLOTS"))
    except NodeAuthError as error:
        return str(error)
    except NodeClientError:
        return None
    except Exception:
        log.exception("trying the new credentials at a node failed", node=node)
        return None
    denied = [str(reply) for reply in replies if isinstance(reply, ErrorReply) and str(reply).startswith("NOPERM")]
    return denied[0] if len(denied) == len(replies) else ""
