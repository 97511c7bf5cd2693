"""What the data path is told of a worker's settings: seconds become nanoseconds, options become arguments.

Called by worker.worker, when it is put together and at a reload.
"""

from __future__ import annotations

from typing import Any

from proxy.ipc.settings import Backends, WorkerSettings


def ns(seconds: float) -> int:
    """Seconds as the data path's nanoseconds."""
    return round(seconds * 1e9)


def client_limits(settings: WorkerSettings) -> dict[str, Any]:
    """Arguments of forward.datapath.ClientSettings that are the same for the clients of all listeners."""
    clients = settings.clients
    return {
        "password": bool(clients.password),
        "max_pending": clients.max_pending,
        "max_pending_bytes": clients.max_pending_bytes,
        "soft_output": clients.output_soft_limit,
        "hard_output": clients.output_hard_limit,
        "max_query": clients.max_query,
        "max_bulk": clients.max_bulk,
        "max_arguments": clients.max_arguments,
        "timeout_ns": ns(settings.requests.timeout),
    }


def of_a_connection(backends: Backends) -> tuple[object, ...]:
    """What a connection to a node keeps for its life: when this changes, connections are renewed."""
    return backends.username, backends.password, backends.client_name, backends.keepalive, backends.connections
