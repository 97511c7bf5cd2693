"""The settings of a worker, as plain values: what the main process has read of the configuration and a worker needs.

Why: a worker imports no pydantic and no YAML, which would be half of its memory. Filled by supervisor.settings, carried
by ipc.messages, read by worker.

The fields of Clients, Requests, Backends and Log have the names and units of the options in proxy.config.models
(seconds, bytes), whose texts say what they mean.
"""

from __future__ import annotations

from typing import Final

import msgspec

_HIDDEN: Final = frozenset({"password", "admin_password"})


class _Plain(msgspec.Struct, frozen=True, array_like=True):
    """Its repr, which may end up in a log, shows no secret."""

    def __repr__(self) -> str:
        shown = (f"{name}={'***' if name in _HIDDEN else repr(getattr(self, name))}" for name in self.__struct_fields__)
        return f"{type(self).__name__}({', '.join(shown)})"


class Clients(_Plain, frozen=True, array_like=True):
    """What a client may use. max_clients is the proxy's, in force; max_memory is this worker's share, 0 = no limit, and
    so is max_left: clients that end their input while PROXY PAUSE holds them, and stay until it is carried out.
    """

    max_clients: int
    max_memory: int
    password: str
    idle_timeout: float
    max_pending: int
    max_pending_bytes: int
    output_soft_limit: int
    output_hard_limit: int
    max_query: int
    max_bulk: int
    max_arguments: int
    tcp_keepalive: float
    pubsub_output_limit: int = 32 << 20
    pubsub_soft_limit: int = 8 << 20
    pubsub_soft_time: float = 60.0
    max_subscriptions: int = 100_000
    admin_password: str = ""  # "" = nobody is an administrator
    frame_timeout: float = 0.0
    max_left: int = 1024


class Requests(_Plain, frozen=True, array_like=True):
    """What one command is given. max_held and max_held_bytes are this worker's share."""

    timeout: float
    failover_timeout: float
    retry_backoff_min: float
    retry_backoff_max: float
    max_redirections: int
    max_held: int = 50000
    max_held_bytes: int = 64 << 20


class Backends(_Plain, frozen=True, array_like=True):
    """Connections to the nodes. username and password: as AUTH takes them, "" = none."""

    username: str
    password: str
    connections: int
    connect_timeout: float
    max_window: int
    max_leased: int
    batch_pause: float
    stall_timeout: float
    backoff_min: float
    backoff_max: float
    client_name: str
    keepalive: float
    suspect_timeout: float = 1.0


class Log(_Plain, frozen=True, array_like=True):
    """What is logged, how and where."""

    level: str
    format: str
    file: str


class WorkerSettings(_Plain, frozen=True, array_like=True):
    """Everything a worker is told of the configuration.

    listeners: str(address) -> read policy. endpoint: (host, port) of a TCP listener to name to a cluster-aware client
    that came by a Unix socket; None = there is none. allow: commands let through although refused by default; deny:
    those refused although served. script_memory: bytes of scripts that the whole proxy remembers.
    """

    listeners: dict[str, str]
    endpoint: tuple[str, int] | None
    allow: tuple[str, ...]
    deny: tuple[str, ...]
    clients: Clients
    requests: Requests
    backends: Backends
    log: Log
    script_memory: int = 16 << 20
