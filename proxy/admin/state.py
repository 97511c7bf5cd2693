"""/api/state: everything an operator asks for, as plain JSON values.

Why: `redis-proxy status`, `reload` and `upgrade` read it, and so may anything else that watches the proxy. Called by
supervisor.status, with what it has put together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from proxy.admin.snapshot import Snapshot
from proxy.ipc.messages import Status


class Worker(Protocol):
    """One worker as the supervisor knows it."""

    number: int
    pid: int
    status: Status | None
    leaving: bool

    @property
    def clients(self) -> int:
        """Connections it has."""

    def silent_s(self) -> float:
        """Seconds since it was heard of."""


def state(
    snapshot: Snapshot,
    workers: Iterable[Worker],
    *,
    proxy: Mapping[str, Any],
    reload: Mapping[str, Any],
    upgrade: Mapping[str, Any],
) -> dict[str, Any]:
    """proxy: what identifies the process; reload, upgrade: their last attempt."""
    own = snapshot["own"]
    return {
        "proxy": {"version": own["version"], "draining": own["draining"], "listening": own["listening"], **proxy},
        "workers": {
            "configured": own["workers_configured"],
            "running": own["workers"],
            "restarts": own["worker_restarts"],
            "each": [
                {
                    "number": worker.number,
                    "pid": worker.pid,
                    "clients": worker.clients,
                    "silent_s": round(worker.silent_s(), 3),
                    "lag_s": worker.status.event_loop_lag_s if worker.status is not None else None,
                    "leaving": worker.leaving,
                    "reaches_primary": worker.number not in own["workers_without_primary"],
                    "missed": own["primaries_missed"].get(worker.number, []),
                }
                for worker in workers
            ],
        },
        "clients": {
            "connected": snapshot["clients"],
            "max": own["max_clients"],
            "memory": snapshot["client_memory"],
            "max_memory": own["max_memory"],
            "rejected": own["rejected"],
        },
        "commands": {
            "held": snapshot["waiting"],
            "clients_paused": snapshot["held"],
            "holds": snapshot["counters"]["holds"],
            "refusals": snapshot["counters"]["refusals"],
        },
        "topology": {name: value for name, value in own["topology"].items() if name != "refreshes"},
        "nodes": [
            {
                "address": address,
                "role": node.role,
                "up": node.up,
                "connections": sum(n for (_, connected), n in node.connections.items() if connected == "up"),
                "pending": node.pending,
                "connect_failures": node.connect_failures,
                "down_s": round(node.down_s, 3),
                "suspected_s": round(own["suspected"].get(address, 0.0), 3),
                "paused": node.paused,
                "outdated": node.outdated,
                "held": node.held,
                "held_bytes": node.held_bytes,
            }
            for address, node in snapshot["nodes"].items()
        ],
        "reload": reload,
        "upgrade": upgrade,
        "log": {"dropped": own["log_dropped"]},
    }
