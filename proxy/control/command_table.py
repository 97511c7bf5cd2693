"""What the servers say of themselves: their commands, their version, and what a node takes at most of one client.

Why: what a command does to which arguments is the server's to say (new versions, modules); the built-in table serves
until this has answered, and under servers too old to know key specs. Called by control_plane once a topology is known.

Invariants: one short connection; nothing is cached here.
"""

from __future__ import annotations

from dataclasses import dataclass

from proxy.cluster import node_limits
from proxy.cluster.topology import Address
from proxy.commands.rows import Row, rows_from_command_reply
from proxy.control.node_client import ErrorReply, NodeClientError, NodeClientSettings, node_client

MOST_DATABASES = 1 << 14  # what fits everywhere
MOST_ROWS = 2048  # Redis with all of its modules has a quarter of them; each worker makes a table of them on its loop


@dataclass(frozen=True, slots=True)
class ServerCommands:
    """`source` names the server for people ("valkey 9.1.2"); rows as COMMAND gave them, not merged with any others."""

    rows: tuple[Row, ...]
    server: str
    version: str
    redis_version: str = ""  # what the server says it is compatible with; what clients expect in INFO

    @property
    def source(self) -> str:
        return f"{self.server} {self.version}".strip()


async def load_rows(address: Address, settings: NodeClientSettings) -> ServerCommands:
    """COMMAND and the version of the node at the address. NodeClientError when it cannot be asked, or will not say."""
    async with node_client(address, settings) as node:
        command, info = await node.ask(("COMMAND",), ("INFO", "server"))
    if isinstance(command, ErrorReply):
        raise NodeClientError(f"{address} does not tell its commands: {command}")
    rows = tuple(rows_from_command_reply(command))
    if len(rows) > MOST_ROWS:
        raise NodeClientError(f"{address} tells {len(rows)} commands, more than {MOST_ROWS}")
    if not rows:
        raise NodeClientError(f"{address} does not tell its commands")
    text = info.decode("utf-8", "replace") if isinstance(info, bytes) else ""
    server, version = server_version(text)
    return ServerCommands(rows, server, version, _fields(text).get("redis_version", version))


async def load_limits(address: Address, settings: NodeClientSettings) -> tuple[tuple[int, int], int]:
    """((proto-max-bulk-len, client-query-buffer-limit), databases) of a node, 0 = not told. Errors as load_rows."""
    async with node_client(address, settings) as node:
        # Valkey 9 has numbered databases in a cluster; others answer with nothing.
        bulk, query, databases = await node.ask(*node_limits.COMMANDS, ("CONFIG", "GET", "cluster-databases"))
    limits = node_limits.limit(bulk), node_limits.limit(query)
    return limits, min(max(0, node_limits.number(databases)), MOST_DATABASES)


def server_version(info: str) -> tuple[str, str]:
    """(name, version) from INFO server: ("valkey", "9.1.2"), ("redis", "7.0.15"), ("", "") when it is not there.

    Valkey keeps redis_version at the last one it is compatible with and adds server_name and valkey_version
    (https://valkey.io/commands/info/).
    """
    fields = _fields(info)
    name = fields.get("server_name", "redis" if "redis_version" in fields else "")
    return name, fields.get(f"{name}_version", fields.get("redis_version", ""))


def _fields(info: str) -> dict[str, str]:
    return dict(line.split(":", 1) for line in info.splitlines() if ":" in line)
