"""What the proxy shows of itself: put together from the workers, the control plane and the main process.

Why: probes, metrics, `redis-proxy status` and the service manager's line tell the same story. Called by supervisor;
proxy.admin has the rules and the formats.

Invariants: nothing is older than its question, except what a worker did not answer in time; what workers that are gone
have counted stays counted.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from math import inf
from typing import TYPE_CHECKING, Any, Final

from proxy import __version__
from proxy.admin.merge import Past, dropped_lines, merge, owners_down, paused_nodes
from proxy.admin.probes import liveness, readiness
from proxy.admin.snapshot import OwnValues, Snapshot
from proxy.admin.state import state
from proxy.control.tasks import failures
from proxy.forward.counters import Counters
from proxy.ipc.messages import Status
from proxy.supervisor.worker_pool import Worker
from proxy.system import log as logs
from proxy.system.process import start_ticks

if TYPE_CHECKING:
    from proxy.supervisor.supervisor import Supervisor

_ANSWER_S: Final = 0.5  # how long the workers are waited for
_SURE_S: Final = 5.0  # ... where an old answer would do harm
LATELY_S: Final = 60.0  # so long a primary that hangs or is away may yet come back
_SPARE: Final = 100  # nodes that are in no topology any more and are kept nevertheless


class StatusReport:
    """See the module. Asks the supervisor's members for everything when it is asked itself."""

    def __init__(self, supervisor: Supervisor, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.past = Past(Counters().snapshot())
        self._supervisor = supervisor
        self._clock = clock
        self._reached: dict[str, float] = {}  # "host:port" -> when a worker last was connected to it, and it answered

    def gone(self, worker: Worker) -> None:
        """A worker is gone: what it counted is kept."""
        self.past.ended(worker.counters.snapshot(), worker.status)

    def own(self) -> OwnValues:
        """What the main process knows by itself."""
        this = self._supervisor
        refresher = this.control.refresher
        told = [worker.status for worker in this.pool.present if worker.status is not None]
        return {
            "version": __version__,
            "listening": this.acceptor.listening,
            "draining": this.draining,
            "workers": sum(worker.started for worker in this.pool.present),
            "workers_configured": this.pool.wanted,
            "worker_restarts": this.pool.restarts,
            "max_clients": this.acceptor.max_clients,
            "max_memory": this.shares.max_memory,
            "rejected": {"max_clients": this.acceptor.rejected},
            "reload_successful": this.reload.successful,
            "reload_success_s": this.reload.success_s,
            "log_dropped": dropped_lines(logs.dropped(), told, self.past),
            "background_failures": dict(failures),
            "owners_down": owners_down([status.nodes for status in told]),
            "workers_without_primary": sorted(one.number for one in this.pool.present if not one.reaches),
            "primaries_missed": {one.number: one.missed for one in this.pool.present if one.missed},
            "suspected": {str(address): age_s for address, age_s in this.control.suspects.ages.items()},
            "paused": paused_nodes([status.nodes for status in told]),
            "topology": {
                "known": refresher.topology is not None,
                "fresh": refresher.fresh,
                "slots_covered": refresher.topology.covered if refresher.topology is not None else 0,
                "epoch": refresher.topology.epoch if refresher.topology is not None else 0,
                "last_success_s": refresher.last_success or None,
                "refreshes": dict(refresher.outcomes),
                "error": refresher.last_error,
                "down_s": refresher.down_s,
            },
        }

    async def snapshot(self) -> Snapshot:
        """The whole proxy, now."""
        pool = self._supervisor.pool
        await pool.ask(_ANSWER_S)
        # One that has not started knows nothing yet, and that is no news.
        told = [(one.counters.snapshot(), one.status if one.started else None) for one in pool.present]
        return merge(self.own(), told, self.past, clients=pool.clients)

    async def paused(self) -> tuple[list[str], bool]:
        """The nodes that PROXY PAUSE holds, and whether CLIENT PAUSE holds clients, by what the workers say now."""
        pool = self._supervisor.pool
        await pool.ask(_SURE_S)
        told = [worker.status for worker in pool.present if worker.status is not None]
        return paused_nodes([status.nodes for status in told]), any(status.clients_paused for status in told)

    def works(self) -> bool:
        """Whether there is a cluster: one whose nodes have told the topology lately, or are connected, as they stay
        when they take the password no more."""
        this = self._supervisor
        topology = this.control.refresher.topology
        told = [worker.status for worker in this.pool.present if worker.status is not None]
        connected = any(node.up for status in told for node in status.nodes.values())
        return topology is not None and topology.covered > 0 and (this.control.refresher.fresh or connected)

    def heard(self, status: Status) -> None:
        """A worker tells this: whom it reaches is kept for a while."""
        now_s, suspected = self._clock(), self._suspected()
        self._reached |= {name: now_s for name, node in status.nodes.items() if node.up and name not in suspected}
        if len(self._reached) > 2 * len(status.nodes) + _SPARE:
            self._reached = {name: at_s for name, at_s in self._reached.items() if now_s - at_s <= LATELY_S}

    def _suspected(self) -> set[str]:
        return {str(address) for address, age_s in self._supervisor.control.suspects.ages.items() if age_s}

    async def reached_lately(self) -> int:
        """How many slots have a primary that a worker has reached within LATELY_S: what an upgrade must not lose.

        One that hangs, or is away, now may be back in a moment; one that is away for good is not waited for for ever.
        """
        await self._supervisor.pool.ask(_ANSWER_S)
        for worker in self._supervisor.pool.present:
            if worker.status is not None:
                self.heard(worker.status)
        topology = self._supervisor.control.refresher.topology
        since_s = self._clock() - LATELY_S
        return sum(
            last - first + 1
            for shard in (topology.shards if topology is not None else ())
            if shard.primary is not None and self._reached.get(str(shard.primary.address), -inf) >= since_s
            for first, last in shard.slots
        )

    async def reached(self) -> tuple[int, dict[str, str]]:
        """How many slots have a primary that answers and that every worker is connected to.

        And the other primaries, by "host:port" -> why not, "" = nobody knows.
        """
        this = self._supervisor
        await this.pool.ask(_ANSWER_S)
        told = [worker.status.nodes if worker.status is not None else {} for worker in this.pool.present]
        suspected = self._suspected()
        topology = this.control.refresher.topology
        slots, without = 0, dict[str, str]()
        for shard in topology.shards if topology is not None else ():
            if shard.primary is None or not shard.slots:
                continue
            name = str(shard.primary.address)
            seen = [nodes.get(name) for nodes in told]
            if seen and all(node is not None and node.up for node in seen) and name not in suspected:
                slots += sum(last - first + 1 for first, last in shard.slots)
            else:
                without[name] = next((node.trouble for node in seen if node is not None and node.trouble), "")
        return slots, without

    async def live(self) -> tuple[bool, Mapping[str, Any]]:
        """Whether every loop answers."""
        return liveness(self._supervisor.pool.silences())

    def alive(self) -> bool:
        """The same, for the service manager's watchdog."""
        return liveness(self._supervisor.pool.silences())[0]

    async def ready(self) -> tuple[bool, Mapping[str, Any]]:
        """Whether clients should be sent here."""
        settings = self._supervisor.settings
        return readiness(self.own(), settings.ready.partial, settings.requests.failover_timeout)

    def line(self) -> str:
        """One line for the service manager."""
        this = self._supervisor
        live, details = liveness(this.pool.silences())
        if not live:
            return "; ".join(details["reasons"])
        own = self.own()
        doing = "draining, " if own["draining"] else ""
        covered = own["topology"]["slots_covered"]
        return f"{doing}{this.pool.clients} clients, {covered} of 16384 slots, {own['workers']} workers"

    async def state(self) -> Mapping[str, Any]:
        """/api/state."""
        this = self._supervisor
        proxy = {
            "pid": os.getpid(),
            "predecessor": this.upgrade.predecessor,
            "start_ticks": start_ticks() if os.path.exists("/proc/self") else 0,
            "started_s": this.started_s,
            "run_id": this.run_id,
            "source": this.source,
            "admin": str(this.settings.admin.address or "off"),
            "log_error": logs.trouble(),
        }
        snapshot = await self.snapshot()
        return state(snapshot, this.pool.present, proxy=proxy, reload=this.reload.state(), upgrade=this.upgrade.state())

    def pids(self) -> list[int]:
        """Of all processes of the proxy, the main process first."""
        return [os.getpid(), *list(self._supervisor.pool.processes)]  # atomic: a thread asks
