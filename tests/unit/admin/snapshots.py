"""One filled snapshot for the tests of proxy.admin."""

from __future__ import annotations

from proxy.admin.metrics import CommandValues, Snapshot

BOUNDS_S = (0.001, 0.01, 1.0)


def command(
    buckets: list[int], sum_s: float = 0.0, errors: dict[str, int] | None = None, split: int = 0
) -> CommandValues:
    return {"calls": sum(buckets), "errors": errors or {}, "buckets": buckets, "sum_s": sum_s, "split": split}


def snapshot() -> Snapshot:
    """A busy moment: two nodes, one of them down."""
    return {
        "version": "0.1.0",
        "connections": 3,
        "event_loop_lag_s": 0.002,
        "counters": {
            "commands": {
                "other": command([0, 0, 0, 0]),
                "get": command([5, 3, 0, 1], 2.5, {"WRONGTYPE": 2}),
                "mget": command([1, 0, 0, 0], 0.0005, split=1),
                "del": command([0, 0, 0, 0]),
            },
            "closed": {"client": 4, "idle": 0},
            "redirections": {"moved": 6, "ask": 0},
            "retries": {("moved", "retried"): 6, ("connection_lost", "unsafe"): 0},
            "accepted": 10,
            "rejected": 2,
            "client_in": 100,
            "client_out": 200,
            "backend_in": 300,
            "backend_out": 400,
            "inflight": 7,
            "output_bytes": 4096,
        },
        "nodes": {
            "10.0.0.1:7000": {
                "role": "primary",
                "up": True,
                "connections": {("shared", "open"): 2, ("shared", "connecting"): 0},
                "connect_failures": 0,
                "pending": 5,
                "buckets": [2, 2, 0, 0],
                "sum_s": 0.01,
            },
            "10.0.0.2:7000": {
                "role": "replica",
                "up": False,
                "connections": {("shared", "open"): 0},
                "connect_failures": 9,
                "pending": 0,
                "buckets": [0, 0, 0, 0],
                "sum_s": 0.0,
            },
        },
        "topology": {
            "slots_covered": 16384,
            "epoch": 12,
            "last_success_s": 1700000000.5,
            "refreshes": {("startup", "success"): 1, ("moved", "failure"): 0},
        },
    }
