"""The supervisor's end of the fork server: start it, have it fork, hear of ends.

Why: see proxy.worker.forkserver. Called by cli, which starts it as early as possible (it imports for a third of a
second, meanwhile the configuration is read), and by crew.

Invariants: a process is only ever signalled through its pidfd, so never another that has got its number; a fork server
that dies is replaced by the next fork; what is asked of it is answered or fails, never forgotten.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from array import array
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from proxy.system import log as logs

log = logs.get("supervisor.forks")

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_MESSAGE = 4096
# What the service manager tells the supervisor is for it alone: a child must not speak for the daemon.
_NOT_FOR_CHILDREN = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")


class ForkError(Exception):
    """No worker could be forked; the text is a sentence."""


@dataclass(frozen=True)
class Process:
    """A worker's process. pidfd: readable once it has ended; closed by whoever asked for the fork."""

    pid: int
    pidfd: int

    def kill(self, number: signal.Signals) -> None:
        """Sends the signal; nothing when it has ended."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, number)


@dataclass(frozen=True)
class Ended:
    """How a worker ended: its exit code or, when negative, the signal; and the CPU seconds it had used."""

    pid: int
    code: int
    cpu_s: float


class Forks:
    """See the module. on_ended(Ended): for every worker, in whatever order against the end of its channel."""

    def __init__(self) -> None:
        self.on_ended: Callable[[Ended], None] = lambda ended: None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._sock: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._asked: deque[asyncio.Future[Process]] = deque()

    @property
    def pid(self) -> int | None:
        """Of the fork server; None when there is none at the moment."""
        return self._process.pid if self._process is not None else None

    def start(self) -> None:
        """Starts the fork server, without a loop if need be; OSError when it cannot be."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        environment = {name: value for name, value in os.environ.items() if name not in _NOT_FOR_CHILDREN}
        environment["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
        # It must not be ended by a signal before it ignores them, and it finds modules where we have found them.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "proxy.worker.forkserver", str(theirs.fileno())],
                    stdin=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    env=environment,
                )
        except BaseException:
            ours.close()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        ours.setblocking(False)
        self._sock = ours
        if self._loop is not None:
            self._loop.add_reader(ours.fileno(), self._readable)

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """From now on ends are heard of, and fork() may be called."""
        self._loop = loop
        if self._sock is not None:
            loop.add_reader(self._sock.fileno(), self._readable)

    async def fork(self, channel: socket.socket) -> Process:
        """A new worker with this end of a channel, which is closed here; ForkError when there is none."""
        assert self._loop is not None
        with channel:
            if self._sock is None:
                try:
                    self.start()
                except OSError as error:
                    raise ForkError(f"cannot start the fork server: {error.strerror}") from error
            assert self._sock is not None
            asked: asyncio.Future[Process] = self._loop.create_future()
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [channel.fileno()]))]
            try:
                self._sock.sendmsg([b"fork"], rights, socket.MSG_NOSIGNAL)
            except OSError as error:  # gone, or so far behind that the socket is full
                raise ForkError(f"the fork server does not answer: {error.strerror}") from error
            self._asked.append(asked)
        try:
            return await asked
        except asyncio.CancelledError:
            if asked.done() and not asked.cancelled() and asked.exception() is None:
                os.close(asked.result().pidfd)  # answered in the same turn: nobody else will
            raise

    def close(self) -> None:
        """Ends the fork server; the workers have ended before, or are ended by it."""
        self._lost()
        if self._process is not None:
            self._process.wait()
            self._process = None

    def abandon(self) -> None:
        """Ends the fork server at once; workers it may have go on."""
        if self._process is not None:
            self._process.kill()
        self.close()

    def _readable(self) -> None:
        assert self._sock is not None
        while self._sock is not None:
            try:
                data, ancillary, _, _ = self._sock.recvmsg(_MESSAGE, socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                data, ancillary = b"", []
            if not data:
                log.error("the fork server has ended; the workers go on", pid=self.pid)
                self._lost()
                self.abandon()
                return
            pidfds = array("i")
            for _, _, rights in ancillary:
                pidfds.frombytes(rights)
            self._heard(json.loads(data), pidfds)

    def _heard(self, what: dict[str, float | str], pidfds: array[int]) -> None:
        if "status" in what:
            code = os.waitstatus_to_exitcode(int(what["status"]))
            self.on_ended(Ended(int(what["pid"]), code, float(what["cpu_s"])))
            return
        asked = self._asked.popleft()
        if asked.cancelled():  # nobody wants it any more; without a reader its channel ends, and so does it
            for pidfd in pidfds:
                os.close(pidfd)
        elif "error" in what:
            asked.set_exception(ForkError(str(what["error"])))
        elif not pidfds:
            asked.set_exception(ForkError("the worker's pidfd was lost: out of descriptors"))
        else:
            asked.set_result(Process(int(what["pid"]), pidfds[0]))

    def _lost(self) -> None:
        """The fork server has ended, or shall. Workers that are there go on; the next fork starts another."""
        if self._sock is None:
            return
        if self._loop is not None:
            self._loop.remove_reader(self._sock.fileno())
        self._sock.close()
        self._sock = None
        while self._asked:
            asked = self._asked.popleft()
            if not asked.done():
                asked.set_exception(ForkError("the fork server has ended"))
