"""One filled snapshot for the tests of proxy.admin, and the pieces it is made of."""

from __future__ import annotations

from proxy.admin.snapshot import CommandValues, CounterValues, OwnValues, Snapshot, TopologyValues
from proxy.ipc.messages import NodeStatus, Status

BOUNDS_S = (0.001, 0.01, 1.0)


def command(
    buckets: list[int], sum_s: float = 0.0, errors: dict[str, int] | None = None, split: int = 0
) -> CommandValues:
    return {"calls": sum(buckets), "errors": errors or {}, "buckets": buckets, "sum_s": sum_s, "split": split}


def counters(n: int = 1) -> CounterValues:
    """Every count of a busy worker, times n; 0 gives those of one that has done nothing."""
    return {
        "commands": {
            "other": command([0, 0, 0, 0]),
            "get": command([5 * n, 3 * n, 0, n], 2.5 * n, {"WRONGTYPE": 2 * n} if n else {}),
            "mget": command([n, 0, 0, 0], 0.0005 * n, split=n),
            "del": command([0, 0, 0, 0]),
        },
        "closed": {"client": 4 * n, "idle": 0},
        "redirections": {"moved": 6 * n, "ask": 0},
        "retries": {("moved", "retried"): 6 * n, ("connection_lost", "unsafe"): 0},
        "holds": {"node_down": 3 * n, "loading": 0},
        "refusals": {"node_down": 2 * n, "too_many_held": 0},
        "accepted": 10 * n,
        "rejected": 2 * n,
        "client_in": 100 * n,
        "client_out": 200 * n,
        "backend_in": 300 * n,
        "backend_out": 400 * n,
        "timeouts": 8 * n,
        "leases_refused": 2 * n,
        "monitor_dropped": 3 * n,
        "internal_errors": 9 * n,
        "inflight": 7 * n,
        "blocked": 5 * n,
        "messages": 11 * n,
        "deliveries": 12 * n,
        "fan_out_pauses": 13 * n,
        "interruptions": 14 * n,
        "interrupted_ms": 1500 * n,
    }


def node(
    role: str = "primary",
    up: int = 2,
    failures: int = 0,
    pending: int = 0,
    buckets: tuple[int, ...] = (0, 0, 0, 0),
    sum_s: float = 0.0,
    down_s: float = 0.0,
    held: int = 0,
    outdated: bool = False,
) -> NodeStatus:
    """up: connections in that state; down_s: for how long it has not been reached."""
    return NodeStatus(
        role=role,
        up=up > 0,
        connections={("shared", "up"): up, ("shared", "connecting"): 0},
        connect_failures=failures,
        pending=pending,
        buckets=list(buckets),
        sum_s=sum_s,
        owner=role == "primary",
        down_s=down_s,
        breakers=int(down_s > 0),
        held=held,
        outdated=outdated,
        held_bytes=held * 100,
    )


def topology(
    known: bool = True,
    fresh: bool = True,
    slots: int = 16384,
    epoch: int = 12,
    success_s: float | None = 1700000000.5,
    refreshes: int = 1,
    error: str = "",
    down_s: float = 0.0,
) -> TopologyValues:
    return {
        "known": known,
        "fresh": fresh,
        "slots_covered": slots,
        "epoch": epoch,
        "last_success_s": success_s,
        "refreshes": {("start", "changed"): refreshes, ("moved", "failed"): 0},
        "error": error,
        "down_s": down_s,
    }


def status(nodes: dict[str, NodeStatus] | None = None, lag_s: float = 0.002, dropped: int = 0) -> Status:
    """What a worker tells of itself."""
    return Status(
        number=0,
        waiting=1,
        output_bytes=4096,
        client_memory=10000,
        event_loop_lag_s=lag_s,
        log_dropped=dropped,
        nodes=nodes or {},
        subscriptions=(5, 6, 7),
        topics=(1, 2, 3),
        messages_waiting=9,
        interrupted=True,
        held=25,
    )


def own(workers: int = 2, known: TopologyValues | None = None) -> OwnValues:
    return {
        "version": "0.1.0",
        "listening": ["127.0.0.1:7617"],
        "draining": False,
        "workers": workers,
        "workers_configured": 2,
        "worker_restarts": 5,
        "max_clients": 10000,
        "max_memory": 1000000,
        "rejected": {"max_clients": 3},
        "reload_successful": True,
        "reload_success_s": 1600000000.25,
        "log_dropped": 4,
        "background_failures": {"topology": 1, "health": 0},
        "topology": known or topology(),
        "workers_without_primary": [1],
        "primaries_missed": {0: ["10.0.0.1:7000", "10.0.0.3:7000"]},
        "owners_down": {"10.0.0.1:7000": 0.0, "10.0.0.3:7000": 0.0},
        "suspected": {"10.0.0.1:7000": 0.0, "10.0.0.3:7000": 1.5},
        "paused": [],
    }


def snapshot() -> Snapshot:
    """A busy moment: two nodes, one of them down."""
    return {
        "own": own(),
        "counters": counters(),
        "clients": 3,
        "waiting": 1,
        "output_bytes": 4096,
        "tracking_clients": 0,
        "monitors": 0,
        "client_memory": 10000,
        "event_loop_lag_s": 0.002,
        "nodes": {
            "10.0.0.1:7000": node(pending=5, buckets=(2, 2, 0, 0), sum_s=0.01, held=4),
            "10.0.0.2:7000": node("replica", up=0, failures=9, down_s=2.5),
        },
        "subscriptions": {"channel": 21, "pattern": 22, "shard": 23},
        "messages_waiting": 24,
        "interrupted": 1,
        "held": 25,
    }
