"""What a worker tells of itself: its state for the supervisor, figures and nodes for INFO.

Why: counting is the parts' business, showing is others'; between them stand plain values (proxy.admin.snapshot). Called
by proxy.worker.worker, by the data path's INFO (stats, nodes) and by proxy.worker.main (state, others).

Invariant: stats() are figures of the whole proxy: this worker's own and those of the others, as last told; only figures
of this worker's event loop, which nobody adds up, are its own alone.
"""

from __future__ import annotations

from collections.abc import Mapping

from proxy.admin.snapshot import NodeValues, WorkerState
from proxy.control.topology_refresh import TopologyRefresher
from proxy.forward.clients import output_bytes
from proxy.forward.counters import Counters
from proxy.forward.datapath import DataPath
from proxy.forward.parking import Parking
from proxy.forward.reactor import Reactor
from proxy.forward.router import Router
from proxy.serve.context import NodeState


class Figures:
    """See the module. lag_s: how late the event loop was when it was last looked at."""

    def __init__(
        self,
        path: DataPath,
        parking: Parking,
        router: Router,
        reactor: Reactor,
        counters: Counters,
        refresher: TopologyRefresher,
        max_clients: int,
    ) -> None:
        self.lag_s = 0.0
        self.max_clients = max_clients
        self.others: Mapping[str, int] = {}  # what the other workers count, by the names of stats()
        self._path = path
        self._parking = parking
        self._router = router
        self._reactor = reactor
        self._counters = counters
        self._refresher = refresher

    @property
    def readiness(self) -> tuple[bool, bool, int]:
        """(a topology is known, it is fresh, slots covered): what /readyz asks of a worker."""
        refresher = self._refresher
        return refresher.topology is not None, refresher.fresh, self._router.slots.covered

    def state(self) -> WorkerState:
        """The worker as the supervisor merges it."""
        known, fresh, covered = self.readiness
        refresher = self._refresher
        return {
            "clients": len(self._path.clients),
            "waiting": self._parking.waiting,
            "output_bytes": output_bytes(self._path),
            "event_loop_lag_s": self.lag_s,
            "nodes": self._nodes(),
            "topology": {
                "known": known,
                "fresh": fresh,
                "slots_covered": covered,
                "epoch": refresher.topology.epoch if refresher.topology is not None else 0,
                "last_success_s": refresher.last_success or None,
                "refreshes": dict(refresher.outcomes),
                "error": refresher.last_error,
            },
        }

    def stats(self) -> Mapping[str, int | float]:
        """Figures for INFO, under Redis's names."""
        values = self._counters.snapshot()
        stats: dict[str, int | float] = {
            "connected_clients": len(self._path.clients),
            "total_connections_received": values["accepted"],
            "total_commands_processed": sum(command["calls"] for command in values["commands"].values()),
            "total_net_input_bytes": values["client_in"],
            "total_net_output_bytes": values["client_out"],
            "rejected_connections": values["rejected"],
            "proxy_commands_in_flight": values["inflight"],
            "proxy_requests_waiting": self._parking.waiting,
        }
        for name, value in self.others.items():
            stats[name] = stats.get(name, 0) + value
        return stats | {
            "maxclients": self.max_clients,
            "proxy_event_batches": self._reactor.batches,
            "proxy_events": self._reactor.events,
        }

    def nodes(self) -> list[NodeState]:
        """The nodes for INFO, with this worker's connections."""
        return [
            NodeState(label, values["role"], values["up"], values["connections"]["shared", "up"], values["pending"])
            for label, values in self._nodes().items()
        ]

    def _nodes(self) -> dict[str, NodeValues]:
        nodes: dict[str, NodeValues] = {}
        for node in self._router.nodes.values():
            figures = node.figures()
            nodes[node.label] = {
                "role": figures["role"],
                "up": figures["up"],
                "connections": {("shared", state): n for state, n in figures["connections"].items()},
                "connect_failures": figures["connect_failures"],
                "pending": figures["pending"],
                "buckets": figures["buckets"],
                "sum_s": figures["sum_s"],
            }
        return nodes
