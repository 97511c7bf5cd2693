"""Starts the next main process, with the listening sockets of this one, and waits until it says that it serves.

Why: the program is replaced as nginx and gunicorn do it, without closing a socket: for a moment both processes have
them, and the old one lets go only when the new one is ready. Called by supervisor.upgrade, in the main process.

Invariants:
- The successor has stdin, stdout, stderr and the given sockets, as 3, 4, ..., and no other descriptor of ours, not even
  one that whoever started us has left open; no signal blocked or ignored; our folder, limits and environment but for
  the variables below.
- The ready socket is closed in the very moment in which the caller has a successor: by that the successor knows.
- READY=1 counts only from the very process that was started (SCM_CREDENTIALS, unix(7)): whoever else sends something
  to the socket is not heard.

What it is told, in its environment (read by system.sockets.inherited and system.sd_notify.Notifier):
REDIS_PROXY_PREDECESSOR=<our pid>; REDIS_PROXY_PREDECESSOR_TELLS=<system.handover, read by run>; LISTEN_FDS and
LISTEN_FDNAMES as from a service manager, but no LISTEN_PID, which nobody can know beforehand; NOTIFY_SOCKET=<ours>;
REDIS_PROXY_MANAGER and WATCHDOG_USEC=<the service manager's>.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import socket
import struct
from collections.abc import Mapping, Sequence
from typing import Final

from proxy.system.process import MANAGER, PREDECESSOR, TOLD
from proxy.system.sockets import FIRST_INHERITED, joined_names

STEADY_S: Final = 1.0  # so long a successor has to serve before its predecessor goes
_END_S: Final = 5.0  # for a successor that is late to end by itself
_DATAGRAM: Final = 4096  # bytes
_MOST: Final = 64  # datagrams in one go: whoever floods the socket must not hold the loop
_CREDENTIALS: Final = struct.Struct("3i")  # pid, uid, gid
_SIGNALS: Final = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}
_TAKEN_OUT: Final = ("LISTEN_PID", "WATCHDOG_PID", "WATCHDOG_USEC", TOLD)


class SuccessorError(Exception):
    """There is no successor; the text is a sentence."""


def spawn(
    command: list[str],
    sockets: Sequence[tuple[str, int]],
    notify_socket: str,
    manager: Mapping[str, str],
    told: str = "",
) -> int:
    """Starts the command as our successor; its pid, which the caller has to wait for.

    command: the program's path, and its arguments. sockets: (name, descriptor), the names as in system.sockets; they
    stay ours. notify_socket: of a ReadySocket. manager: sd_notify.Notifier.manager. told: handover.written(),
    "" = nothing. OSError when it cannot be started.
    """
    environment = {name: value for name, value in os.environ.items() if name not in _TAKEN_OUT}
    environment |= {
        PREDECESSOR: str(os.getpid()),
        "LISTEN_FDS": str(len(sockets)),
        "LISTEN_FDNAMES": joined_names(name for name, _ in sockets),
        "NOTIFY_SOCKET": notify_socket,
        MANAGER: manager.get("NOTIFY_SOCKET", ""),
    }
    if told:
        environment[TOLD] = told
    if "WATCHDOG_USEC" in manager:
        environment["WATCHDOG_USEC"] = manager["WATCHDOG_USEC"]
    _keep_descriptors()
    beyond = FIRST_INHERITED + len(sockets)
    copies: list[int] = []
    try:
        # By way of copies with higher numbers: a descriptor that is still to be copied must not be overwritten.
        for _, descriptor in sockets:
            copies.append(fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, beyond))
        actions = [(os.POSIX_SPAWN_DUP2, copy, FIRST_INHERITED + place) for place, copy in enumerate(copies)]
        return os.posix_spawn(command[0], command, environment, file_actions=actions, setsigmask=(), setsigdef=_SIGNALS)
    finally:
        for copy in copies:
            os.close(copy)


def _keep_descriptors() -> None:
    """Has no descriptor but the first three go to a child by itself; Python sees to this for those it opens."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) >= FIRST_INHERITED:
            with contextlib.suppress(OSError):  # the one of the folder is closed already
                os.set_inheritable(int(name), False)


class ReadySocket:
    """What the successor takes for its service manager. OSError when it cannot be had.

    name: for its NOTIFY_SOCKET, an abstract one, which leaves no file behind. status: what it said last (STATUS=): the
    reason, when it fails.
    """

    def __init__(self) -> None:
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._sock.bind("")  # the kernel chooses a free name
        name: bytes = self._sock.getsockname()
        self.name = f"@{name[1:].decode()}"
        self.status = ""

    async def wait(self, pid: int) -> None:
        """Returns when this process has said READY=1, were it before the call; the caller sees to a time limit.

        And to the end of the process, which is not noticed here.
        """
        loop = asyncio.get_running_loop()
        ready = loop.create_future()

        def readable() -> None:
            if not ready.done() and self._heard_ready(pid):
                ready.set_result(None)

        loop.add_reader(self._sock.fileno(), readable)
        try:
            await ready
        finally:
            loop.remove_reader(self._sock.fileno())

    def close(self) -> None:
        """Nobody is heard from now on; after wait()."""
        self._sock.close()

    def _heard_ready(self, pid: int) -> bool:
        """Takes the datagrams there are; whether one of them, by that process, says so."""
        for _ in range(_MOST):
            try:
                data, ancillary, _, _ = self._sock.recvmsg(_DATAGRAM, socket.CMSG_SPACE(_CREDENTIALS.size))
            except OSError:  # there is none
                return False
            if pid not in (
                _CREDENTIALS.unpack(sent)[0] for _, kind, sent in ancillary if kind == socket.SCM_CREDENTIALS
            ):
                continue
            lines = data.decode("utf-8", "replace").splitlines()
            for line in lines:
                if line.startswith("STATUS="):
                    self.status = line.removeprefix("STATUS=")
            if "READY=1" in lines:
                return True
        return False


async def start(
    command: list[str],
    sockets: Sequence[tuple[str, int]],
    manager: Mapping[str, str],
    patience_s: float,
    told: str = "",
) -> int:
    """The pid of a successor that is ready; arguments as for spawn. SuccessorError: there is none, nor its process."""
    loop = asyncio.get_running_loop()
    ready = ReadySocket()
    try:
        pid = spawn(command, sockets, ready.name, manager, told)
        pidfd = _opened(pid)
    except OSError as error:
        ready.close()
        raise SuccessorError(f"the successor cannot be started: {error.strerror}") from error
    ended = asyncio.Event()
    loop.add_reader(pidfd, ended.set)
    waits = {asyncio.create_task(ready.wait(pid)), asyncio.create_task(ended.wait())}
    said_ready, patient = False, True
    try:
        done, _ = await asyncio.wait(waits, timeout=patience_s, return_when=asyncio.FIRST_COMPLETED)
        if done and not ended.is_set():
            # Both serve meanwhile. One that dies of its first clients has changed nothing.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STEADY_S):
                    await ended.wait()
        said_ready = bool(done) and not ended.is_set()
        if said_ready:
            return pid
        what = f"is not ready after {patience_s:.0f} s and is ended"
        if ended.is_set() and (found := os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)) is not None:
            what = f"has ended with {'code' if found.si_code == os.CLD_EXITED else 'signal'} {found.si_status}"
        raise SuccessorError(f"the successor {what}: {ready.status or 'see its log'}")
    except asyncio.CancelledError:
        patient = False
        raise
    finally:
        for wait in waits:
            wait.cancel()
        if not said_ready:  # else nothing may come before the caller knows of it: to be ended in between, say
            await asyncio.gather(*waits, return_exceptions=True)
            await _end(pid, pidfd, ended, patient)
        loop.remove_reader(pidfd)
        os.close(pidfd)
        ready.close()


def _opened(pid: int) -> int:
    """A descriptor of this child. OSError: none is left, and the child, whose end nobody would notice, is ended."""
    try:
        return os.pidfd_open(pid)
    except OSError:
        os.kill(pid, signal.SIGKILL)  # ours and not waited for yet: the number is still its own
        os.waitpid(pid, 0)
        raise


async def _end(pid: int, pidfd: int, ended: asyncio.Event, patient: bool) -> None:
    """Ends a successor that is not ready: SIGTERM, and after a while, or without patience at once, SIGKILL."""
    for number in (signal.SIGTERM, signal.SIGKILL) if patient else (signal.SIGKILL,):
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, number)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_END_S):
                await ended.wait()
            break
    os.waitpid(pid, 0)
