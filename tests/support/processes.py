"""What /proc says of the daemon's processes: which belong together, what they hold.

Called by: tests/support/proxyd.py and the tests of tests/daemon. A process that has just ended is not an error here: it
has no children, no descriptors and no memory.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
from pathlib import Path


def session_members(session: int) -> list[int]:
    """Live (not zombie) processes of a session id; empty where there is no /proc."""
    return [pid for pid, (_, sid) in _table().items() if sid == session]


def children(parent: int) -> list[int]:
    """Live processes started by this one, the oldest first."""
    return sorted(pid for pid, (ppid, _) in _table().items() if ppid == parent)


def alive(pid: int) -> bool:
    """Whether it runs or is stopped; a zombie does not."""
    return _stat(pid) is not None


def command_line(pid: int) -> str:
    """As ps shows it: the arguments, or the title the process has given itself."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    return ""


def descriptors(pid: int) -> list[str]:
    """What each of the process's descriptors leads to, as /proc/<pid>/fd has it."""
    found = []
    with contextlib.suppress(OSError):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                found.append(os.readlink(entry))
    return found


def tcp_inodes(port: int) -> dict[int, int]:
    """Established IPv4 connections to a local port: the other side's port -> inode of this side's socket."""
    found = {}
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        (
            _,
            here,
            there,
            state,
            *_,
        ) = fields = line.split()
        if state == "01" and int(here.partition(":")[2], 16) == port:
            found[int(there.partition(":")[2], 16)] = int(fields[9])
    return found


def memory(pid: int, field: str = "VmRSS") -> int:
    """Bytes of a field of /proc/<pid>/status; 0 when there is none."""
    with contextlib.suppress(OSError):
        if match := re.search(rf"^{field}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE):
            return int(match[1]) * 1024
    return 0


def kill_session(session: int) -> None:
    """SIGKILL to whatever is left of a session that a test started."""
    for pid in session_members(session):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _table() -> dict[int, tuple[int, int]]:
    """Every live process -> (parent, session)."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        if (stat := _stat(int(entry.name))) is not None:
            found[int(entry.name)] = stat
    return found


def _stat(pid: int) -> tuple[int, int] | None:
    with contextlib.suppress(OSError):
        # pid (comm) state ppid pgrp session ...; comm may hold anything, parentheses included
        state, ppid, _, session = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:4]
        if state not in "ZX":
            return int(ppid), int(session)
    return None
