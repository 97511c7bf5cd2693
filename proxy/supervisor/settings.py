"""What the workers are told of the configuration: Settings in, plain values out.

Why: a worker imports none of what reads a configuration. Called by supervisor and reload.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, TypeVar

import msgspec

from proxy.config.models import Section, Settings
from proxy.ipc import settings as plain
from proxy.system import limits
from proxy.system.cpus import granted
from proxy.system.log import get

log = get("supervisor")

T = TypeVar("T", bound=msgspec.Struct)

_WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}


@dataclass(frozen=True)
class Shares:
    """What the configuration comes to on this machine: workers, clients in all and of one worker, bytes for clients."""

    workers: int
    max_clients: int
    per_worker: int
    max_memory: int  # of all clients together, 0 = no limit


_LEFT_SHARE: Final = 4  # of all clients, those that PROXY PAUSE keeps though they have left are this part at most


def shares(settings: Settings) -> Shares:
    """Raises the limit of open files as far as it may; says so where clients.max_clients has to be lowered."""
    workers = granted() if settings.workers == "auto" else settings.workers
    limit = limits.raise_limit(settings.clients.max_clients)
    max_clients, per_worker = limits.clients_allowed(settings.clients.max_clients, workers, limit)
    if sentence := limits.lowered(settings.clients.max_clients, workers, limit):
        log.warning(sentence)
    memory = settings.clients.max_memory
    return Shares(workers, max_clients, per_worker, limits.granted_memory() // 2 if memory == "auto" else memory)


def worker_settings(settings: Settings, share: Shares) -> plain.WorkerSettings:
    """For every worker."""
    clients, cluster = settings.clients, settings.cluster
    return plain.WorkerSettings(
        listeners={str(listener.address): listener.reads for listener in settings.listeners},
        endpoint=_tcp_endpoint(settings),
        allow=settings.commands.allow,
        deny=settings.commands.deny,
        script_memory=settings.commands.script_memory,
        clients=_plain(
            plain.Clients,
            clients,
            password=clients.secret,
            admin_password=clients.admin_secret,
            max_clients=share.max_clients,
            max_memory=share.max_memory // share.workers,
            max_left=-(-share.max_clients // share.workers // _LEFT_SHARE),
        ),
        requests=_plain(
            plain.Requests,
            settings.requests,
            max_held=-(-settings.requests.max_held // share.workers),
            max_held_bytes=-(-settings.requests.max_held_bytes // share.workers),
        ),
        backends=_plain(plain.Backends, settings.backends, username=cluster.username, password=cluster.secret),
        log=_plain(plain.Log, settings.log),
    )


def _plain(kind: type[T], section: Section, **over: Any) -> T:
    """The options of a section that the struct has, by name."""
    return kind(**{name: over.get(name, getattr(section, name, None)) for name in kind.__struct_fields__})


def _tcp_endpoint(settings: Settings) -> tuple[str, int] | None:
    """(host, port) a cluster-aware client that came by a Unix socket can use; None without a TCP listener.

    A port the kernel chose is not known here.
    """
    for listener in settings.listeners:
        host, port = listener.address.host, listener.address.port
        if port:
            return _WILDCARDS.get(host, host), port
    return None
