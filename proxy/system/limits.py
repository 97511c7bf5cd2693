"""What the machine allows the processes of the proxy: open files, and clients for them; memory; no core dumps.

Why: a limit that is too low shows itself only under load, as refused clients or a killed worker; so it is raised, or
what the proxy takes upon itself is lowered, at the start. Called by run before there are workers, who inherit the
limits of processes, and by reload.

Invariant: never less than one client, and never fails: what cannot be read limits nothing.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from proxy.system import log as logs
from proxy.system.cgroups import folders, text

# Besides its clients a process holds connections to nodes, listeners, epoll instances, logs.
OTHER: Final = 512
_LEAST_OTHER: Final = 64
_NO_LIMIT: Final = 2**32 - 1

log = logs.get("supervisor.limits")


def raise_limit(max_clients: int) -> int:
    """Raises this process's soft limit of open files as far as it may and must; warns when that is not enough.

    The soft limit now in force, resource.RLIM_INFINITY (-1) = none.
    """
    wanted = max_clients + OTHER
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return soft
    limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    if limit < wanted:
        log.warning(
            "the file descriptor limit is too low for clients.max_clients",
            limit=limit,
            wanted=wanted,
            missing=wanted - limit,
        )
    return limit


def share_limit(pids: Iterable[int]) -> None:
    """Gives these processes the limit this one has."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    for pid in pids:
        try:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
        except OSError as error:
            log.warning("a process keeps its file descriptor limit", pid=pid, reason=error.strerror)


def reserve(soft_limit: int) -> int:
    """Open files that each process keeps for what is no client: a quarter of the limit, at least 64, at most 512."""
    return min(OTHER, max(_LEAST_OTHER, soft_limit // 4))


def clients_allowed(max_clients: int, workers: int, soft_limit: int) -> tuple[int, int]:
    """(clients that the proxy can have, clients that each worker can have), both at least 1.

    max_clients: as configured. soft_limit: of open files, of every process (raise_limit). A worker may then refuse
    clients although the proxy could have more, when the others have died and it is alone; that passes in a moment.
    """
    if soft_limit == resource.RLIM_INFINITY:
        return max_clients, max_clients
    each = max(1, soft_limit - reserve(soft_limit))
    return max(1, min(max_clients, each * workers)), each


def leases_allowed(clients: int, soft_limit: int) -> int:
    """Connections to nodes that a process with so many clients may give to single ones (WATCH).

    A quarter of the limit of open files, out of what its clients do not use; a quarter of the reserve in any case, for
    the rest of it has to do for the connections that all share.
    """
    if soft_limit == resource.RLIM_INFINITY:
        return _NO_LIMIT
    kept = reserve(soft_limit)
    return max(kept // 4, min(soft_limit // 4, soft_limit - kept - clients))


def lowered(max_clients: int, workers: int, soft_limit: int) -> str:
    """Why fewer clients are allowed than configured, a sentence for the log; empty when they are not fewer."""
    allowed, _ = clients_allowed(max_clients, workers, soft_limit)
    if allowed >= max_clients:
        return ""
    processes = f"each of {workers} workers" if workers > 1 else "the worker"
    return (
        f"max_clients lowered from {max_clients} to {allowed}: the limit of open files is {soft_limit} and {processes}"
        f" keeps {reserve(soft_limit)} for other than clients; all clients need {-(-max_clients // workers) + OTHER}"
        " (ulimit -n, LimitNOFILE= of systemd)"
    )


def forbid_core_dumps() -> None:
    """No core file of this process and of those it starts: it would hold what clients sent. The hard limit stays."""
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))


def granted_memory(root: Path = Path("/")) -> int:
    """Bytes of memory that the machine has or, when that is less, a cgroup around this process allows.

    root: where proc and the mount points are.
    """
    limits = [_physical(root)]
    for version, folder in folders("memory", root):
        # v2 says `max` where there is no limit, v1 a number beyond all memory.
        written = text(folder / ("memory.max" if version == 2 else "memory.limit_in_bytes")).strip()
        if written.isdecimal():
            limits.append(int(written))
    return min(limits)


def _physical(root: Path) -> int:
    # Not sysconf: where a container is shown its own /proc/meminfo (lxcfs), that is what counts.
    for line in text(root / "proc/meminfo").splitlines():
        words = line.split()
        if words[:1] == ["MemTotal:"] and len(words) == 3 and words[1].isdecimal():
            return int(words[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
