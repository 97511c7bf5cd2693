"""SIGUSR2: the program is replaced by its successor, which this process starts with its listening sockets inherited.

Why: an upgrade must not refuse a single connection, so the sockets never close: for a moment both instances have them,
as with nginx and gunicorn. Called by supervisor.

Invariants: until the successor has said READY=1, nothing changes; one that fails, or is late, is ended and changes
nothing; one that cannot find the cluster, or is refused by it, is never ready while its predecessor has one that works;
a reload and an upgrade are never under way together; none begins while PROXY PAUSE or CLIENT PAUSE holds anything, and
neither pause begins before the predecessor's last client has left: it would hold for the clients of one of the two.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from typing import TYPE_CHECKING, Any, Final

from proxy.system import log as logs
from proxy.system.successor import SuccessorError, start

if TYPE_CHECKING:
    from proxy.supervisor.supervisor import Supervisor

log = logs.get("supervisor.upgrade")

PATIENCE_S: Final = 60.0  # for the successor to be ready
CLUSTER_S: Final = 20.0  # of these for the cluster's topology
_LOOK_S: Final = 0.5


class Upgrade:
    """See the module. impossible: why a successor cannot be started by the same command line; "" = it can. predecessor:
    the process that has started this one in an upgrade; 0 = none; follows_working: it has a cluster that works."""

    def __init__(
        self, supervisor: Supervisor, impossible: str, predecessor: int = 0, follows_working: bool = False
    ) -> None:
        self._supervisor = supervisor
        self._predecessor = predecessor
        self._follows_working = follows_working
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

    def pass_on(self, number: signal.Signals) -> None:
        """Sends a signal on to the successor, if there is one: whoever sent it means the proxy."""
        if self._pid:
            # Our child, and never waited for: the number is its own though it may have ended.
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, number)

    def reopen(self) -> None:
        """The log file was moved away: so it was for the successor, which has it open, or may, before it is ready."""
        self._reopen = self.running
        self.pass_on(signal.SIGUSR1)

    async def unfit(self) -> str:
        """Why this process cannot take over from one that works, "" = it can, or there is none; within CLUSTER_S or so.

        A password that is mistyped or has been changed, or wrong seeds, would be an outage of everything that works.
        """
        control, until_s = self._supervisor.control, time.monotonic() + CLUSTER_S
        while self._follows_working and os.getppid() == self._predecessor:
            await control.ready(_LOOK_S)
            if (found := control.refresher.topology) is not None and found.covered:
                return ""
            if refused := await control.refused():
                return f"cluster.password: the nodes refuse it: {refused}"
            if time.monotonic() >= until_s:
                why = control.refresher.last_error or ("no node has slots" if found else "no answer yet")
                return f"the seeds yield no topology within {CLUSTER_S:.0f} s: {why}"
            await asyncio.sleep(_LOOK_S)
        return ""

    def passing(self) -> str:
        """Why nothing may begin that is to hold for all clients and to last; "" = it may."""
        if self.running:
            return "an upgrade is under way, and the successor would know nothing of this"
        if self._supervisor.ending:
            return "the proxy is shutting down"
        if self._predecessor and os.getppid() == self._predecessor:
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
        await self._supervisor.reload.idle()
        nodes, clients = await self._supervisor.status.paused()
        if nodes or clients:  # a successor would know nothing of it
            # CLIENT PAUSE ALL holds CLIENT UNPAUSE, too.
            paused = "clients are paused: CLIENT UNPAUSE first, or wait for the pause's end"
            raise SuccessorError("nodes are paused: PROXY RESUME first" if nodes else paused)
        log.info("upgrading: a successor is started")
        command = [sys.executable, *sys.orig_argv[1:]]
        sockets, manager = self._supervisor.sockets(), self._supervisor.notifier.manager
        return await start(command, sockets, manager, PATIENCE_S, self._supervisor.status.works())
