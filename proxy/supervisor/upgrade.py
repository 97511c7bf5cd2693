"""SIGUSR2: the program is replaced by its successor, which this process starts with its listening sockets inherited.

Why: an upgrade must not refuse a single connection, so the sockets never close: for a moment both instances have them,
as with nginx and gunicorn. Called by supervisor.

Invariants: until the successor has said READY=1, nothing changes; one that fails, or is late, is ended and changes
nothing; while its predecessor has a cluster that works, it is ready only when each of its workers reaches the primaries
of as many slots as the predecessor has reached lately, in the same cluster unless other seeds ask for another one; a
reload and an upgrade are never under way together; none begins before this process's own predecessor has handed over,
which ends this one and would leave the third behind; none begins while PROXY PAUSE or CLIENT PAUSE holds anything, and
neither pause begins before the last client of every process before this one has left: it would hold for the clients of
one of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from proxy.system import log as logs
from proxy.system.handover import Handover, seeds_word, some_ids, written
from proxy.system.process import runs, start_ticks
from proxy.system.successor import SuccessorError, start

if TYPE_CHECKING:
    from proxy.cluster.topology import Topology
    from proxy.supervisor.supervisor import Supervisor

log = logs.get("supervisor.upgrade")

PATIENCE_S: Final = 60.0  # for the successor to be ready
CLUSTER_S: Final = 20.0  # of these for the cluster's topology, and connections to its primaries
_LOOK_S: Final = 0.5
_SOON_S: Final = 0.02  # before the second look, then ever later: connections are made in no time
_TRIAL_S: Final = 5.0  # for our own predecessor to hand over, which takes successor.STEADY_S
_NAMED: Final = 8  # nodes in a reason


class Upgrade:
    """See the module. impossible: why a successor cannot be started by the same command line; "" = it can. predecessor:
    the process that has started this one in an upgrade; 0 = none; before: what it tells."""

    def __init__(
        self, supervisor: Supervisor, impossible: str, predecessor: int = 0, before: Handover | None = None
    ) -> None:
        self._supervisor = supervisor
        self._predecessor = predecessor
        self._before = before or Handover()
        self._impossible = impossible
        self._attempts = 0
        self._doing = "idle"
        self._error = ""
        self._pid = 0
        self._reopen = False  # SIGUSR1 came meanwhile
        self._task: asyncio.Task[None] | None = None

    @property
    def running(self) -> bool:
        """Whether a successor has been started and has not yet said that it is ready."""
        return self._task is not None

    @property
    def predecessor(self) -> int:
        """The process that has started this one, were it long gone; 0 = none."""
        return self._predecessor

    @property
    def successor(self) -> int:
        """The process that has taken over; 0 = none."""
        return self._pid

    @property
    def outlived(self) -> bool:
        """Whether the successor has ended before this process: of upgrades since then, nothing is known here."""
        if not self._pid:
            return False
        try:  # our child, and never waited for: the number is its own though it may have ended
            return os.waitid(os.P_PID, self._pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:
            return True

    def pass_on(self, number: signal.Signals) -> None:
        """Sends a signal on to the successor, if there is one: whoever sent it means the proxy."""
        if self.outlived:
            reason = "the successor has ended, too: signal the process that serves now"
            log.warning("the signal is not passed on", signal=number.name, successor=self._pid, reason=reason)
        elif self._pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, number)

    def reopen(self) -> None:
        """The log file was moved away: so it was for the successor, which has it open, or may, before it is ready."""
        self._reopen = self.running
        self.pass_on(signal.SIGUSR1)

    async def unfit(self) -> str:
        """Why this process cannot take over from one that works, "" = it can, or there is none; within CLUSTER_S or so.

        A password that is mistyped or has been changed, or wrong seeds, would be an outage of everything that works.
        What the nodes say of the topology is not enough: the workers may be refused, or not get through to some.
        """
        control, until_s = self._supervisor.control, time.monotonic() + CLUSTER_S
        pause_s = _SOON_S
        while self._before.works and self._beside():
            await control.ready(_LOOK_S)
            if (found := control.refresher.topology) is not None and found.covered:
                if self._strange(found):
                    return (
                        "the seeds lead to another cluster than the one in use, none of whose nodes is in it: "
                        "to move there, change cluster.seeds"
                    )
                slots, without = await self._supervisor.status.reached()
                if slots >= self._before.slots:
                    return ""
                what = f"only {slots} of {self._before.slots} slots are reached within {CLUSTER_S:.0f} s"
                why = _listed(without) or "the others have no primary"
            elif refused := await control.refused():
                return f"cluster.password: the nodes refuse it: {refused}"
            else:
                what = f"the seeds yield no topology within {CLUSTER_S:.0f} s"
                why = control.refresher.last_error or ("no node has slots" if found else "no answer yet")
            if time.monotonic() >= until_s:
                return f"{what}: {why}"
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LOOK_S)
        return ""

    def _strange(self, found: Topology) -> bool:
        """Whether this is another cluster than the predecessor's, though nobody has asked for one."""
        before = self._before
        known = not before.nodes or any(one in found.by_id for one in before.nodes)
        return not known and seeds_word(self._supervisor.settings.cluster.seeds) == before.seeds

    async def _told(self) -> Handover:
        """What the successor has to know."""
        this = self._supervisor
        processes = [one for one in self._before.processes if runs(*one)]
        with contextlib.suppress(ProcessLookupError):  # without /proc
            processes.append((os.getpid(), start_ticks()))
        topology = this.control.refresher.topology
        slots = await this.status.reached_lately()
        if topology is None or not (slots or this.status.works()):
            return Handover(tuple(processes))
        owners = [shard.primary.id for shard in topology.shards if shard.slots and shard.primary is not None]
        return Handover(tuple(processes), True, slots, some_ids(owners), seeds_word(this.settings.cluster.seeds))

    def _beside(self) -> bool:
        """Whether the process that has started this one in an upgrade has not ended."""
        return bool(self._predecessor) and os.getppid() == self._predecessor

    def passing(self) -> str:
        """Why nothing may begin that is to hold for all clients and to last; "" = it may."""
        if self.running:
            return "an upgrade is under way, and the successor would know nothing of this"
        if self._supervisor.ending:
            return "the proxy is shutting down"
        if self._beside() or any(runs(pid, ticks) for pid, ticks in self._before.processes):
            return "an upgrade is under way: the process before this one still has clients"
        return ""

    def ask(self) -> None:
        """Starts a successor, unless one is being started."""
        if self._task is None and not self._supervisor.ending:
            self._doing, self._error, self._pid, self._reopen = "running", "", 0, False
            self._task = asyncio.create_task(self._run(), name="upgrade")

    async def stop(self) -> None:
        """Ends a successor that is not ready yet."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def state(self) -> dict[str, Any]:
        """For /api/state; pid: of the successor, once it is ready."""
        return {"attempts": self._attempts, "state": self._doing, "error": self._error, "pid": self._pid}

    async def _run(self) -> None:
        try:
            pid = await self._start()
        except SuccessorError as failed:
            self._doing, self._error = "failed", str(failed)
            log.error("not upgraded, this process goes on", reason=str(failed))
        except Exception as failure:
            self._doing, self._error = "failed", repr(failure)
            log.exception("not upgraded, this process goes on")
        else:
            self._doing, self._pid = "done", pid
            log.info("upgraded: the successor is ready, this process drains", successor=pid)
            self._supervisor.replaced(pid)
            if self._reopen:
                self.pass_on(signal.SIGUSR1)
        finally:
            self._attempts += 1
            self._task = None
            self._supervisor.reload.upgrade_ended(self._pid)

    async def _start(self) -> int:
        """The process id of a successor that is ready; SuccessorError."""
        if os.getpid() == 1:
            reason = "this is process 1 of a container, whose end would end the container: replace the container"
            raise SuccessorError(reason)
        if self._impossible:
            raise SuccessorError(self._impossible)
        until_s = time.monotonic() + _TRIAL_S
        while self._beside() and self._supervisor.notifier.on_trial():
            if time.monotonic() >= until_s:
                raise SuccessorError("the process before this one has not handed over yet: try again")
            await asyncio.sleep(_SOON_S)
        await self._supervisor.reload.idle()
        nodes, clients = await self._supervisor.status.paused()
        if nodes or clients:  # a successor would know nothing of it
            # CLIENT PAUSE ALL holds CLIENT UNPAUSE, too.
            paused = "clients are paused: CLIENT UNPAUSE first, or wait for the pause's end"
            raise SuccessorError("nodes are paused: PROXY RESUME first" if nodes else paused)
        log.info("upgrading: a successor is started")
        command = [sys.executable, *sys.orig_argv[1:]]
        sockets, manager = self._supervisor.sockets(), self._supervisor.notifier.manager
        return await start(command, sockets, manager, PATIENCE_S, written(await self._told()))


def _listed(without: Mapping[str, str]) -> str:
    """Nodes, and why they are not reached."""
    named = "; ".join(f"{name}: {why or 'no answer yet'}" for name, why in list(without.items())[:_NAMED])
    return f"{named}; and {len(without) - _NAMED} more" if len(without) > _NAMED else named
