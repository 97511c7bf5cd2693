"""What one scrape or probe knows of the proxy, as plain values; merged from the supervisor and its workers.

Why: the shapes stand between those who count (data path, worker) and those who show (metrics, probes, INFO), and are
plain so that they travel between processes. Called by proxy.worker (fills a WorkerState), proxy.ipc.messages (carries it),
proxy.supervisor (fills OwnValues), proxy.admin.merge and proxy.admin.metrics (shows).
"""

from __future__ import annotations

from typing import TypedDict


class CommandValues(TypedDict):
    """One command's counts since the start."""

    calls: int  # answered, errors included
    errors: dict[str, int]  # error word -> answers that began with it
    buckets: list[int]  # answers per duration bucket, not cumulative: one more than there are bounds
    sum_s: float  # of all durations
    split: int  # calls that were split by slot


class CounterValues(TypedDict):
    """What proxy.forward.counters.Counters.snapshot() gives."""

    commands: dict[str, CommandValues]  # every command of the table, and `other`
    closed: dict[str, int]  # why clients were closed -> clients
    redirections: dict[str, int]  # kind -> replies
    retries: dict[tuple[str, str], int]  # (reason, outcome) -> requests
    accepted: int  # client connections ever
    rejected: int  # client connections refused for max_clients
    client_in: int  # bytes
    client_out: int
    backend_in: int
    backend_out: int
    timeouts: int  # requests that ended at their deadline
    internal_errors: int  # answers of the proxy's own that raised
    inflight: int  # commands not answered yet


class NodeValues(TypedDict):
    """One server of the present topology."""

    role: str  # "primary" or "replica"
    up: bool
    connections: dict[tuple[str, str], int]  # (purpose, state) -> connections
    connect_failures: int
    pending: int  # commands sent and not answered
    buckets: list[int]  # round trips per duration bucket, as CommandValues.buckets
    sum_s: float


class TopologyValues(TypedDict):
    """What is known of the cluster."""

    known: bool
    fresh: bool  # confirmed lately, see TopologyRefresher.fresh
    slots_covered: int
    epoch: int
    last_success_s: float | None  # time.time() of the last refresh that worked; None = never
    refreshes: dict[tuple[str, str], int]  # (trigger, outcome) -> refreshes
    error: str  # of the last refresh that failed; "" after one that did not


class WorkerState(TypedDict):
    """One worker as it describes itself; its counters are in memory the supervisor sees."""

    clients: int
    waiting: int  # requests parked by retry
    output_bytes: int  # reply bytes held for clients
    event_loop_lag_s: float
    nodes: dict[str, NodeValues]  # "host:port" -> values
    topology: TopologyValues


class OwnValues(TypedDict):
    """What the supervisor knows by itself."""

    version: str  # of the proxy
    listening: list[str]  # where clients are taken now; none once the listeners are closed
    draining: bool
    workers: int  # running: started and not ended, retiring ones included
    workers_configured: int
    worker_restarts: int  # workers that were replaced because they ended unbidden
    max_clients: int  # of the whole proxy
    rejected: int  # connections the supervisor refused for max_clients
    reload_successful: bool  # the last attempt; the start counts as one
    reload_success_s: float  # time.time() of the last one that was


class Snapshot(TypedDict):
    """Everything a scrape shows of the whole proxy; proxy.admin.merge makes it."""

    own: OwnValues
    counters: CounterValues  # of all workers there ever were; `rejected` with the supervisor's
    clients: int  # as the workers count them
    waiting: int
    output_bytes: int
    event_loop_lag_s: float  # of the worker that is worst
    nodes: dict[str, NodeValues]
    topology: TopologyValues
