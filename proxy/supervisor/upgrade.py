"""SIGUSR2: the program is replaced by its successor, which this process starts with its listening sockets inherited.

Why: an upgrade must not refuse a single connection, so the sockets never close: for a moment both instances have them,
as with nginx and gunicorn. Called by supervisor.

Invariants: until the successor has said READY=1, nothing changes; one that fails, or is late, is ended and changes
nothing; a reload and an upgrade are never under way together.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from typing import TYPE_CHECKING, Any, Final

from proxy.system import log as logs
from proxy.system.successor import ReadySocket, spawn

if TYPE_CHECKING:
    from proxy.supervisor.supervisor import Supervisor

log = logs.get("supervisor.upgrade")

PATIENCE_S: Final = 60.0  # for the successor to be ready
_END_S: Final = 5.0  # for a successor that is late to end by itself


class Failed(Exception):
    """There is no successor; the text says why."""


class Upgrade:
    """See the module. impossible: why a successor cannot be started by the same command line; "" = it can."""

    def __init__(self, supervisor: Supervisor, impossible: str) -> None:
        self._supervisor = supervisor
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
            await self._supervisor.reload.idle()
            log.info("upgrading: a successor is started")
            pid = await self._start()
        except Failed as failed:
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
        """The process id of a successor that is ready; Failed."""
        if os.getpid() == 1:
            raise Failed("this is process 1 of a container, whose end would end the container: replace the container")
        if self._impossible:
            raise Failed(self._impossible)
        ready = ReadySocket()
        try:
            command = [sys.executable, *sys.orig_argv[1:]]
            pid = spawn(command, self._supervisor.sockets(), ready.address, self._supervisor.notifier.manager)
        except OSError as error:
            ready.close()
            raise Failed(f"the successor cannot be started: {error.strerror}") from error
        try:
            pidfd = os.pidfd_open(pid)
            try:
                await self._ready(pid, pidfd, ready)
            finally:
                os.close(pidfd)
        finally:
            ready.close()
        return pid

    async def _ready(self, pid: int, pidfd: int, ready: ReadySocket) -> None:
        """Until it is ready; otherwise it has ended before this returns."""
        loop = asyncio.get_running_loop()
        ended = loop.create_future()
        loop.add_reader(pidfd, lambda: ended.done() or ended.set_result(None))
        waiting = asyncio.create_task(ready.wait(pid))
        try:
            await asyncio.wait((waiting, ended), timeout=PATIENCE_S, return_when=asyncio.FIRST_COMPLETED)
            if waiting.done() and not ended.done():
                return waiting.result()
            last = f": {ready.status}" if ready.status else ", see its log"
            if not ended.done():
                raise Failed(f"the successor is not ready after {PATIENCE_S:.0f} s and is ended{last}")
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            raise Failed(f"the successor has ended with {'code' if code >= 0 else 'signal'} {abs(code)}{last}")
        finally:
            waiting.cancel()
            if not (waiting.done() and not waiting.cancelled()) and not ended.done():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)
                await asyncio.wait((ended,), timeout=_END_S)
                if not ended.done():
                    os.kill(pid, signal.SIGKILL)
                    await asyncio.wait((ended,))
                os.waitpid(pid, 0)
            loop.remove_reader(pidfd)
