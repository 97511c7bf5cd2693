"""Whether the servers take credentials, found out before these are put in force.

Why: new credentials mean new connections for every node at once; a mistyped password would be an outage of everything
that works. Called by control_plane, for a reload.

Invariants: a node refuses them that says so in so many words; one that does not answer says nothing about it. The
answer comes within WITHIN_S; nothing is left open. While a password is rotated from node to node some refuse it and
some take it: then whoever asks goes on, and has to know which do not.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Final, NamedTuple

from proxy.cluster.topology import Address
from proxy.control.node_client import ErrorReply, NodeAuthError, NodeClientError, NodeClientSettings, node_client
from proxy.system.log import get

WITHIN_S: Final = 2.0
_AT_ONCE: Final = 8

log = get("control.credentials")


class Tried(NamedTuple):
    """refused: "host:port" of each node that refuses the credentials -> its line, in the order of the nodes; taken:
    whether any node takes them."""

    refused: dict[str, str]
    taken: bool


async def tried(nodes: Sequence[Address], settings: NodeClientSettings) -> Tried:
    """What the nodes make of the credentials. They are asked in their order, a few at a time."""
    left = iter(nodes)
    answers: dict[Address, str] = {}

    async def ask() -> None:
        for node in left:
            if (told := await _told(node, settings)) is not None:
                answers[node] = told

    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(WITHIN_S), asyncio.TaskGroup() as group:
            for _ in nodes[:_AT_ONCE]:
                group.create_task(ask())
    return Tried({str(node): answers[node] for node in nodes if answers.get(node)}, "" in answers.values())


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
