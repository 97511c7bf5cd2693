"""Whether the servers take credentials, found out before these are put in force.

Why: new credentials mean new connections for every node at once; a mistyped password would be an outage of everything
that works. Called by control_plane, for a reload.

Invariants: a node refuses them that says so in so many words; one that does not answer says nothing about it. The
answer comes within WITHIN_S; nothing is left open. A node is told what the data path's handshake tells it. While a
password is rotated from node to node some refuse it and some take it: then whoever asks goes on, and has to know which
do not.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Final, NamedTuple

from proxy.cluster import handshake
from proxy.cluster.topology import Address
from proxy.control.node_client import ErrorReply, NodeAuthError, NodeClientError, NodeClientSettings, node_client
from proxy.system.log import get

WITHIN_S: Final = 2.0
_AT_ONCE: Final = 8

log = get("control.credentials")


class Tried(NamedTuple):
    """refused: "host:port" of each node that refuses the credentials -> its line, in the order of the nodes; taken:
    whether any node takes them; unsaid: of each that says nothing about them -> why, as far as that is known."""

    refused: dict[str, str]
    taken: bool
    unsaid: dict[str, str] = {}  # noqa: RUF012 (nobody writes to it)


class _Told(NamedTuple):
    """verdict: True = it takes them, False = it refuses them with `line`, None = it has not said."""

    verdict: bool | None
    line: str = ""


async def tried(nodes: Sequence[Address], settings: NodeClientSettings, name: str = "") -> Tried:
    """What the nodes make of the credentials, of connections of that name. They are asked in their order, a few at a
    time."""
    left = iter(nodes)
    answers = dict.fromkeys(nodes, _Told(None, "no answer in time"))

    async def ask() -> None:
        for node in left:
            answers[node] = await _told(node, settings, name)

    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(WITHIN_S), asyncio.TaskGroup() as group:
            for _ in nodes[:_AT_ONCE]:
                group.create_task(ask())
    refused = {str(node): told.line for node, told in answers.items() if told.verdict is False}
    unsaid = {str(node): told.line for node, told in answers.items() if told.verdict is None}
    return Tried(refused, any(told.verdict for told in answers.values()), unsaid)


async def _told(node: Address, settings: NodeClientSettings, name: str) -> _Told:
    # PING needs a login where there is a password; a user that may have neither of the last two learns no topology.
    greeting = [handshake.PING, *handshake.words(2, "", "", name)]
    try:
        async with node_client(node, settings) as client:
            replies = await client.ask(*greeting, ("CLUSTER", "SHARDS"), ("CLUSTER", "SLOTS"))
    except NodeAuthError as error:
        return _Told(False, str(error))
    except NodeClientError as error:
        return _Told(None, str(error))
    except Exception as error:
        log.exception("trying the new credentials at a node failed", node=node)
        return _Told(None, repr(error))
    lines = [str(reply) if isinstance(reply, ErrorReply) else "" for reply in replies]
    for command, line in zip(greeting, lines, strict=False):
        if line.startswith(("NOPERM ", "ERR ")) and handshake.fatal(command, line):  # (not one that is busy, or loads)
            return _Told(False, line)
    topology = lines[len(greeting) :]
    return _Told(False, topology[0]) if all(line.startswith("NOPERM ") for line in topology) else _Told(True)
