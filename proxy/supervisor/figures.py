"""What the supervisor shows of the proxy: probes, metrics, the state in the log, the status line.

Why: all of them tell the same story, put together from the workers' states, their counters and what the supervisor
knows itself. Called by proxy.supervisor.life; proxy.admin spells it.

Invariants: nothing is older than its question, except what a worker did not answer in time; what the dead have counted
stays counted.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from proxy import __version__
from proxy.admin.merge import Dead, merge, merge_topologies
from proxy.admin.probes import liveness, readiness
from proxy.admin.snapshot import OwnValues, Snapshot
from proxy.forward.counters import Counters
from proxy.system import log as logs

if TYPE_CHECKING:
    from proxy.supervisor.life import Supervisor

log = logs.get("supervisor")

_ANSWER_S: Final = 0.5  # how long the workers are waited for


class Figures:
    """See the module. Asks the supervisor for everything when it is asked itself."""

    def __init__(self, supervisor: Supervisor) -> None:
        self.dead = Dead(Counters().snapshot())
        self._supervisor = supervisor

    def own(self) -> OwnValues:
        """What the supervisor knows by itself."""
        supervisor = self._supervisor
        crew = supervisor.crew
        return {
            "version": __version__,
            "listening": supervisor.doors.listening,
            "draining": supervisor.draining,
            "workers": sum(member.started for member in crew.everybody()),
            "workers_configured": crew.wanted,
            "worker_restarts": crew.restarts,
            "max_clients": supervisor.settings.clients.max_clients,
            "rejected": supervisor.doors.rejected,
            "reload_successful": supervisor.reload.successful,
            "reload_success_s": supervisor.reload.success_s,
        }

    def snapshot(self) -> Snapshot:
        """The whole proxy by what the workers have told last."""
        members = self._supervisor.crew.everybody()
        # One that has not started knows nothing yet, and that is no news.
        told = [(member.counters.snapshot(), member.state if member.started else None) for member in members]
        return merge(self.own(), told, self.dead)

    async def fresh(self) -> Snapshot:
        """The whole proxy now."""
        await self._supervisor.crew.ask(_ANSWER_S)
        return self.snapshot()

    def live(self) -> tuple[bool, Mapping[str, Any]]:
        """Whether every loop answers."""
        return liveness(self._supervisor.crew.silences())

    async def ready(self) -> tuple[bool, Mapping[str, Any]]:
        """Whether clients should be sent here."""
        crew = self._supervisor.crew
        await crew.ask(_ANSWER_S)
        states = [member.state for member in crew.everybody() if member.started and member.state is not None]
        topology = merge_topologies([state["topology"] for state in states])
        return readiness(self.own(), topology, self._supervisor.settings.ready.partial)

    def status(self) -> str:
        """One line for the service manager."""
        crew = self._supervisor.crew
        live, details = self.live()
        if not live:
            return "; ".join(details["reasons"])
        states = [member.state for member in crew.everybody() if member.state is not None]
        covered = min((state["topology"]["slots_covered"] for state in states), default=0)
        doing = "draining, " if self._supervisor.draining else ""
        return f"{doing}{crew.clients} clients, {covered} of 16384 slots, {len(states)} workers"

    async def report(self) -> None:
        """The state as lines of the log."""
        snapshot = await self.fresh()
        own, topology, counters = snapshot["own"], snapshot["topology"], snapshot["counters"]
        log.info(
            "state",
            clients=snapshot["clients"],
            in_flight=counters["inflight"],
            waiting=snapshot["waiting"],
            commands=sum(command["calls"] for command in counters["commands"].values()),
            output_bytes=snapshot["output_bytes"],
            listening=" ".join(own["listening"]),
            draining=own["draining"],
            worker_restarts=own["worker_restarts"],
            rejected=counters["rejected"],
        )
        log.info(
            "state of the topology",
            known=topology["known"],
            fresh=topology["fresh"],
            slots_covered=topology["slots_covered"],
            epoch=topology["epoch"],
            error=topology["error"],
        )
        for member in self._supervisor.crew.everybody():
            log.info(
                "state of a worker",
                worker=member.number,
                pid=member.pid,
                clients=member.clients,
                silent_s=round(member.silent_s(), 3),
                lag_s=round(member.state["event_loop_lag_s"], 4) if member.state is not None else None,
                leaving=member.leaving,
            )
        for name, node in snapshot["nodes"].items():
            connections = ",".join(f"{state}:{count}" for (_, state), count in node["connections"].items() if count)
            log.info(
                "state of a node",
                node=name,
                role=node["role"],
                up=node["up"],
                pending=node["pending"],
                connections=connections,
                connect_failures=node["connect_failures"],
            )

    def pids(self) -> Sequence[int]:
        """Of all processes of the proxy, the supervisor's first."""
        forks = self._supervisor.forks.pid
        return [os.getpid(), *([forks] if forks is not None else []), *self._supervisor.crew.pids]
