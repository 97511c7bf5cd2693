"""The file-descriptor limit: raised to what clients.max_clients needs, for every process of the proxy.

Why: a limit that is too low shows itself only under load, as refused clients; so it is raised, or missed, at the start.
Called by proxy.run before there are workers, who inherit it, and by reload.
"""

from __future__ import annotations

import resource
from collections.abc import Iterable
from typing import Final

from proxy.system import log as logs

# Besides its clients a process holds connections to nodes, listeners, epoll instances, logs.
OTHER: Final = 512

log = logs.get("supervisor.descriptors")


def raise_limit(max_clients: int) -> None:
    """Raises this process's soft limit as far as it may and must; warns when that is not enough."""
    wanted = max_clients + OTHER
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    if limit < wanted:
        log.warning(
            "the file descriptor limit is too low for clients.max_clients",
            limit=limit,
            wanted=wanted,
            missing=wanted - limit,
        )


def share_limit(pids: Iterable[int]) -> None:
    """Gives these processes the limit this one has."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    for pid in pids:
        try:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
        except OSError as error:
            log.warning("a process keeps its file descriptor limit", pid=pid, reason=error.strerror)
