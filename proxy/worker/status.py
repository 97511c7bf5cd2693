"""What a worker tells of itself: Status for the main process, figures and nodes for INFO.

Called by worker.worker, by the answer to INFO (stats, nodes) and by worker.conversation (status, others).

Invariant: stats() are figures of the whole proxy: this worker's own and those of the others, as last told; only figures
of this worker's event loop, which nobody adds up, are its own alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping

from proxy.forward.clients import output_bytes
from proxy.forward.counters import Counters
from proxy.forward.datapath import DataPath
from proxy.forward.exchange import Exchange
from proxy.forward.gate import held as gated
from proxy.forward.hold import held, paused
from proxy.forward.hub import Hub
from proxy.forward.reactor import Reactor
from proxy.ipc.messages import TOPIC_STATS, NodeStatus, Status
from proxy.ipc.settings import Clients
from proxy.serve.context import NodeState
from proxy.system import log as logs


class WorkerStatus:
    """See the module. lag_s: how late the event loop was when it was last looked at. limits: the settings in force.

    hub: whose topics are told; interrupted(): whether subscriptions are not in force that were; monitors(): clients
    that have said MONITOR.
    """

    def __init__(
        self, path: DataPath, exchange: Exchange, reactor: Reactor, counters: Counters, limits: Clients
    ) -> None:
        self.lag_s = 0.0
        self.limits = limits
        self.hub: Hub | None = None
        self.interrupted: Callable[[], bool] = lambda: False
        self.monitors: Callable[[], int] = lambda: 0
        self.node_ids: Callable[[], Mapping[str, str]] = dict  # "host:port" -> id
        self.troubles: Mapping[str, str] = {}  # the same -> why it could not be connected to
        self.outdated: Callable[[], Collection[str]] = tuple  # the same, of those with connections of before a reload
        self.others: Mapping[str, int] = {}  # what the other workers count, by the names of stats()
        self._path = path
        self._exchange = exchange
        self._reactor = reactor
        self._counters = counters

    def status(self, number: int) -> Status:
        """The worker as the main process merges it."""
        waiting, output, memory = self._exchange.parking.waiting, output_bytes(self._path), self._path.client_memory
        dropped = logs.dropped()
        told = Status(number, waiting, output, memory, self.lag_s, dropped, self._nodes())
        told.tracking_clients, told.monitors = len(self._path.tracking), self.monitors()
        told.held = gated(self._path) + held(self._path)
        told.clients_paused = paused(self._path)[0] > 0
        if (hub := self.hub) is not None:
            channels, patterns, shards = hub.subscriptions
            told.subscriptions, told.topics = (channels, patterns, shards), self._topics(hub)
            told.messages_waiting, told.interrupted = hub.waiting, self.interrupted()
        return told

    @staticmethod
    def _topics(hub: Hub) -> tuple[int, int, int]:
        channels, patterns, shards = map(len, hub.topics)
        return channels, patterns, shards

    def stats(self) -> Mapping[str, int | float]:
        """Figures for INFO, under Redis's names."""
        stats: dict[str, int | float] = {
            **self._counters.totals(),
            "connected_clients": len(self._path.clients),
            "tracking_clients": len(self._path.tracking),
            "proxy_requests_waiting": self._exchange.parking.waiting,
            "proxy_client_memory": self._path.client_memory,
            "proxy_client_memory_max": self.limits.max_memory,
        }
        if self.hub is not None:
            stats |= zip(TOPIC_STATS, self._topics(self.hub), strict=True)
        for name, value in self.others.items():
            stats[name] = stats.get(name, 0) + value
        return stats | {
            "maxclients": self.limits.max_clients,
            "proxy_event_batches": self._reactor.batches,
            "proxy_events": self._reactor.events,
        }

    def nodes(self) -> list[NodeState]:
        """The nodes for INFO, with this worker's connections."""
        ids = self.node_ids()
        return [
            NodeState(
                label,
                node.role,
                node.up,
                node.connections["shared", "up"],
                node.pending,
                ids.get(label, ""),
                node.paused,
            )
            for label, node in self._nodes().items()
        ]

    def _nodes(self) -> dict[str, NodeStatus]:
        nodes, outdated = {}, set(self.outdated())
        for node in self._exchange.router.nodes.values():
            seen = node.figures()
            rest = (seen[name] for name in ("connect_failures", "pending", "buckets", "sum_s", "owner"))
            told = nodes[node.label] = NodeStatus(seen["role"], seen["up"], seen["connections"], *rest)
            told.paused, told.trouble = seen["paused"], "" if told.up else self.troubles.get(node.label, "")
            told.outdated = node.label in outdated
            if (since_ns := seen["down_since_ns"]) and not told.paused:  # then nobody tries, and nothing is refused
                told.down_s, told.breakers = max((time.monotonic_ns() - since_ns) / 1e9, 1e-9), 1
            told.held, told.held_bytes = self._exchange.parking.held_of(node.number)
        return nodes
