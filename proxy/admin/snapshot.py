"""What one scrape or probe knows of the proxy, as plain values.

Why: the shapes stand between those who count (the workers' data paths, the main process) and those who show (metrics,
probes, /api/state), so that neither has to know the other. Filled by proxy.supervisor and proxy.control; a worker's
own part is proxy.ipc.messages.Status. Read by proxy.admin.merge, metrics and probes.
"""

from __future__ import annotations

from typing import TypedDict

from proxy.ipc.messages import NodeStatus


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
    holds: dict[str, int]  # reason -> commands that began to be held
    refusals: dict[str, int]  # reason -> commands answered with an error of ours, without being sent
    accepted: int  # client connections ever
    rejected: int  # client connections the workers could not serve, for want of descriptors mostly
    client_in: int  # bytes
    client_out: int
    backend_in: int
    backend_out: int
    timeouts: int  # requests that ended at their deadline
    leases_refused: int  # commands for which no connection to the node was free
    monitor_dropped: int  # lines of MONITOR that were not taken in time
    internal_errors: int  # answers of the proxy's own that raised
    inflight: int  # commands not answered yet
    blocked: int  # clients that wait for the reply to a blocking command
    messages: int  # of channels, from the nodes
    deliveries: int  # of them to clients
    fan_out_pauses: int  # times that the nodes were not read, for too many messages waited
    interruptions: int  # of subscriptions
    interrupted_ms: int  # ... and how long they took in all


class TopologyValues(TypedDict):
    """What control knows of the cluster."""

    known: bool
    fresh: bool  # confirmed lately, see TopologyRefresher.fresh
    slots_covered: int
    epoch: int
    last_success_s: float | None  # time.time() of the last refresh that worked; None = never
    refreshes: dict[tuple[str, str], int]  # (trigger, outcome) -> refreshes
    error: str  # of the last refresh that failed; "" after one that did not
    down_s: float  # for how long the nodes have said that the cluster is down; 0 = they do not


class OwnValues(TypedDict):
    """What the main process knows by itself."""

    version: str  # of the proxy
    listening: list[str]  # where clients are taken now; none once the listeners are closed
    draining: bool
    workers: int  # running: started and not ended, retiring ones included
    workers_configured: int
    worker_restarts: int  # workers that were replaced because they ended unbidden
    max_clients: int  # of the whole proxy, in force: the limits of the processes may allow less than was configured
    max_memory: int  # bytes that all clients together may hold; 0 = no limit
    rejected: dict[str, int]  # reason -> client connections the main process refused; "max_clients" is always there
    reload_successful: bool  # the last attempt; the start counts as one
    reload_success_s: float  # time.time() of the last one that was
    log_dropped: int  # log lines of all processes that were dropped, of ended ones too: see merge.dropped_lines
    background_failures: dict[str, int]  # task -> how often an uncaught exception ended it; every task from the start
    topology: TopologyValues
    owners_down: dict[str, float]  # nodes that own slots -> for how long no worker has reached them, in seconds
    workers_without_primary: list[int]  # numbers of the workers that reach no node that owns slots, ascending
    primaries_missed: dict[int, list[str]]  # workers that do not reach what another one does -> these primaries
    suspected: dict[str, float]  # nodes that own slots -> for how long they have answered no PING of control, likewise
    paused: list[str]  # nodes that PROXY PAUSE holds


class Snapshot(TypedDict):
    """Everything a scrape shows of the whole proxy; proxy.admin.merge makes it."""

    own: OwnValues
    counters: CounterValues  # of all workers there ever were
    clients: int
    tracking_clients: int  # that have said CLIENT TRACKING ON
    monitors: int  # that have said MONITOR
    waiting: int  # requests parked
    output_bytes: int  # reply bytes held for clients
    client_memory: int  # bytes held for all clients, replies included
    event_loop_lag_s: float  # of the worker that is worst
    nodes: dict[str, NodeStatus]  # by "host:port"
    subscriptions: dict[str, int]  # of clients, by kind
    messages_waiting: int  # bytes of messages that are being given out
    interrupted: int  # workers whose subscriptions are not all in force
    held: int  # clients whose next command waits for the end of a pause
