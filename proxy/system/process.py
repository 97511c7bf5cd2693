"""A process as the kernel has it: its title in ps, its end when its parent ends, the time of its start.

Why: an operator tells the processes apart by their titles, and a worker must not live on without the main process, even
when that was killed and could say nothing. Called by run and worker.main when they start, by cli and worker.main when
they end, and by who finds a process by its pid later, when the number may be another's.

Invariant: what is imported here costs a worker less than 0.5 MB (ctypes, in die_with_parent: 0.3 MB of resident memory,
measured on Python 3.11).
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Container
from typing import Final, NoReturn

import setproctitle

from proxy.system import log as logs

# In the environment of a successor (system.successor): the pid of the process that started it, what that one tells
# (system.handover), and the service manager's NOTIFY_SOCKET, empty when there is none.
PREDECESSOR: Final = "REDIS_PROXY_PREDECESSOR"
TOLD: Final = "REDIS_PROXY_PREDECESSOR_TELLS"
MANAGER: Final = "REDIS_PROXY_MANAGER"

_PR_SET_PDEATHSIG: Final = 1  # prctl(2)
# Fields of /proc/<pid>/stat after the name, which begin with the third, proc_pid_stat(5).
_STATE: Final = 3 - 3
_START_TICKS: Final = 22 - 3


def set_title(text: str) -> None:
    """What ps and top show for this process: `redis-proxy: worker 0`."""
    os.environ.setdefault("SPT_NOENV", "1")  # or it would take the place of the environment too, in /proc/<pid>
    setproctitle.setproctitle(text)


def die_with_parent(parent: int) -> None:
    """Has the kernel kill this process (SIGKILL) when the thread that started it ends; parent: that process's pid.

    ProcessLookupError when the parent is another one already, because the expected one ended before this call: then
    nothing will be sent, and the caller has to end by itself. OSError when the kernel refuses.

    The parent must start this process from its main thread, for the end of any other thread would count as well.
    """
    import ctypes  # only here: most of what this module costs

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    if os.getppid() != parent:
        raise ProcessLookupError(f"the process that started this one, {parent}, has ended")


def end(code: int) -> NoReturn:
    """Ends this process, of which all is closed that has to be, once its log and its output are written.

    Python would first take apart every module and object, a tenth of a second for nothing: the kernel frees them all.
    """
    logs.close()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            with contextlib.suppress(OSError, ValueError):  # nobody reads it any more; it was closed
                stream.flush()
    os._exit(code)


def is_predecessor(written: str | None) -> bool:
    """Whether the pid in PREDECESSOR is that of the process that started this one, which may have ended meanwhile.

    Nobody may have waited for that one yet, and its number may be another's since.
    """
    if not written or not written.isdecimal():
        return False
    if int(written) == os.getppid():
        return True
    try:
        stat, own_ticks = _stat(int(written)), start_ticks()
    except OSError:
        return True
    # It had started us before it ended: whoever has got its number started after us.
    return stat[_STATE] in "ZX" or int(stat[_START_TICKS]) > own_ticks


def start_ticks(pid: int | None = None) -> int:
    """When the process started, in clock ticks since the machine did: together with its pid this names it for good.

    pid: None = this process, as /proc has it, where it may have another number (a pid namespace without a /proc of its
    own). ProcessLookupError when there is no such process (any more).
    """
    return int(_stat(pid)[_START_TICKS])


def runs(pid: int, ticks: int) -> bool:
    """Whether the process that started then (start_ticks) has not ended; one that nobody has waited for yet has."""
    try:
        stat = _stat(pid)
    except OSError:
        return False
    return stat[_STATE] not in "ZX" and int(stat[_START_TICKS]) == ticks


def _stat(pid: int | None) -> list[str]:
    try:
        with open(f"/proc/{pid or 'self'}/stat", encoding="utf-8", errors="replace") as file:
            stat = file.read()
    except (FileNotFoundError, ProcessLookupError):
        raise ProcessLookupError(f"there is no process {pid}") from None
    # The name, in parentheses, may contain anything, parentheses and blanks too.
    return stat.rpartition(")")[2].split()


def reap_orphans(own: Container[int]) -> None:
    """Waits for ended children that are none of these: process 1 of a container inherits everybody's orphans."""
    with contextlib.suppress(ChildProcessError):
        while (found := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
            if found.si_pid in own:
                break  # whoever waits for it is about to; the rest when it has
            os.waitpid(found.si_pid, 0)
