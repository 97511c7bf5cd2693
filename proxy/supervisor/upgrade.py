"""SIGUSR2: the program is replaced by its successor, which this process starts with its listening sockets inherited.

Why: an upgrade must not refuse a single connection, so the sockets never close: for a moment both instances have them,
as with nginx and gunicorn. Called by supervisor.

Invariants: until the successor has said READY=1, nothing changes; one that fails, or is late, is ended and changes
nothing; a reload and an upgrade are never under way together; none begins while PROXY PAUSE holds anything, and no
pause begins before the predecessor's last client has left: it would hold for the clients of one of the two.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import TYPE_CHECKING, Any, Final

from proxy.system import log as logs
from proxy.system.successor import SuccessorError, start

if TYPE_CHECKING:
    from proxy.supervisor.supervisor import Supervisor

log = logs.get("supervisor.upgrade")

PATIENCE_S: Final = 60.0  # for the successor to be ready


class Upgrade:
    """See the module. impossible: why a successor cannot be started by the same command line; "" = it can. predecessor:
    the process that has started this one in an upgrade; 0 = none."""

    def __init__(self, supervisor: Supervisor, impossible: str, predecessor: int = 0) -> None:
        self._supervisor = supervisor
        self._predecessor = predecessor
        self._impossible = impossible
        self._attempts = 0
        self._doing = "idle"
        self._error = ""
        self._pid = 0
        self._task: asyncio.Task[None] | None = None

    @property
    def running(self) -> bool:
        """Whether a successor has been started and has not yet said that it is ready."""
        return self._task is not None

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
            self._doing, self._error, self._pid = "running", "", 0
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
        finally:
            self._attempts += 1
            self._task = None

    async def _start(self) -> int:
        """The process id of a successor that is ready; SuccessorError."""
        if os.getpid() == 1:
            reason = "this is process 1 of a container, whose end would end the container: replace the container"
            raise SuccessorError(reason)
        if self._impossible:
            raise SuccessorError(self._impossible)
        await self._supervisor.reload.idle()
        if await self._supervisor.status.paused():
            raise SuccessorError("nodes are paused: PROXY RESUME first")  # a successor would know nothing of it
        log.info("upgrading: a successor is started")
        command = [sys.executable, *sys.orig_argv[1:]]
        return await start(command, self._supervisor.sockets(), self._supervisor.notifier.manager, PATIENCE_S)
