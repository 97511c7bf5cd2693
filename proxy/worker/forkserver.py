"""The process that forks the workers: everything of the worker is imported once, here, before any of them exists.

Why: a killed worker must be back within a second, also on a machine that is busy; importing takes a third of one, a
fork some milliseconds. And a package that is upgraded while the proxy runs must not put new workers under an old
supervisor. The supervisor itself has an event loop and an HTTP server, which are no state to fork from; this process
has one thread, no loop and few descriptors. proxy.supervisor.forks starts it: `python -m proxy.worker.forkserver FD`.

FD is a SOCK_SEQPACKET socket. In: b"fork" with one descriptor, the worker's end of its channel. Out, as JSON: {"pid"}
with the pidfd of the new worker, or {"error"}; and, when a worker has ended, {"pid", "status" (wait(2)), "cpu_s"}.

Invariants: a worker holds its channel and nothing else of the supervisor's; when the supervisor is gone, so is this
process, and no worker outlives it by more than ORPHANS_S.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import signal
import socket
import sys
import time
import traceback
from array import array
from collections.abc import Callable

ORPHANS_S = 2.0
_IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)

Work = Callable[[socket.socket], int]


def main() -> int:
    """Serves until the supervisor is gone."""
    # A terminal's Ctrl-C and a manager's SIGTERM reach the whole group; the supervisor tells us what they mean.
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _IGNORED)  # blocked by forks, until now
    name("redis-proxy:f")  # f: forks, the workers are w0, w1 ...
    sock = socket.socket(fileno=int(sys.argv[1]))
    from proxy.worker.main import main as work  # after the signals: it takes a while

    gc.collect()
    gc.freeze()  # the workers share these pages as long as nobody writes to them, and a collection would
    ForkServer(sock, work).serve()
    return 0


class ForkServer:
    """See the module. work: what a worker does with its end of the channel; returns its exit code."""

    def __init__(self, sock: socket.socket, work: Work) -> None:
        self._sock = sock
        self._work = work
        self._workers: dict[int, int] = {}  # pidfd -> pid
        self._poll = select.poll()

    def serve(self) -> None:
        """Forks and reports ends; returns when the supervisor and all workers are gone."""
        self._poll.register(self._sock, select.POLLIN)
        while True:
            for descriptor, _ in self._poll.poll():
                if descriptor != self._sock.fileno():
                    self._ended(descriptor)
                elif not self._request():
                    self._orphaned()
                    return

    def _request(self) -> bool:
        """One fork; False when the supervisor is gone."""
        try:
            data, ancillary, _, _ = self._sock.recvmsg(64, socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC)
        except ConnectionError:
            return False
        if not data:
            return False
        descriptors = array("i")
        for _, _, rights in ancillary:
            descriptors.frombytes(rights)
        if data != b"fork" or len(descriptors) != 1:
            for descriptor in descriptors:
                os.close(descriptor)
            self._say({"error": "not understood"})
            return True
        with socket.socket(fileno=descriptors[0]) as channel:
            try:
                pid = os.fork()
            except OSError as error:
                self._say({"error": f"cannot fork: {error.strerror}"})
                return True
            if pid == 0:
                self._become_worker(channel)
        pidfd = os.pidfd_open(pid)  # ours, and not waited for yet: the number cannot be anybody else's
        self._workers[pidfd] = pid
        self._poll.register(pidfd, select.POLLIN)
        self._say({"pid": pid}, pidfd)
        return True

    def _become_worker(self, channel: socket.socket) -> None:
        """Never returns."""
        code = 1
        try:
            self._sock.close()
            for pidfd in self._workers:
                os.close(pidfd)
            code = self._work(channel)
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    def _ended(self, pidfd: int) -> None:
        pid = self._workers.pop(pidfd)
        self._poll.unregister(pidfd)
        os.close(pidfd)
        _, status, usage = os.wait4(pid, 0)
        self._say({"pid": pid, "status": status, "cpu_s": usage.ru_utime + usage.ru_stime})

    def _orphaned(self) -> None:
        """The workers' channels have ended with the supervisor: they go by themselves, all but those that hang."""
        self._poll.unregister(self._sock)
        self._sock.close()
        deadline_s = time.monotonic() + ORPHANS_S
        while self._workers and (left_s := deadline_s - time.monotonic()) > 0:
            for pidfd, _ in self._poll.poll(left_s * 1000):
                self._poll.unregister(pidfd)
                os.wait4(self._workers.pop(pidfd), 0)
        for pidfd in self._workers:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)

    def _say(self, what: dict[str, object], *descriptors: int) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", descriptors))] if descriptors else []
        with contextlib.suppress(ConnectionError):  # gone: the next poll says so
            self._sock.sendmsg([json.dumps(what).encode()], rights, socket.MSG_NOSIGNAL)


def name(text: str) -> None:
    """How top and ps show this process (15 characters)."""
    with contextlib.suppress(OSError), open("/proc/self/comm", "w", encoding="ascii") as comm:
        comm.write(text)


if __name__ == "__main__":
    sys.exit(main())
