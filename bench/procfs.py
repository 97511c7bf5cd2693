"""CPU time and memory of other processes, as the kernel counts them.

Why: on a machine that runs the load, the proxy and the servers at once, throughput says little; CPU per command says
what the proxy costs. Called by whatever measures: bench.load, memory, churn, startup. Linux only.

Invariants:
- Totals come from /proc/PID/task/TID/schedstat (nanoseconds the scheduler has charged), because the 10 ms ticks of
  /proc/PID/stat are too coarse for short runs; the ticks only give the share of user and system.
- A contestant is all of its processes: the main process, what that has started, and what those have started. What ended
  and was waited for is counted too (in ticks), with the process that waited for it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
# Fields of /proc/PID/stat after the command name in parentheses (proc(5): 3 state, 4 ppid, 6 session, 14 utime,
# 15 stime, 16 cutime, 17 cstime, 20 num_threads, 22 starttime).
STATE, PPID, SESSION, UTIME, STIME, CUTIME, CSTIME, THREADS, STARTTIME = 0, 1, 3, 11, 12, 13, 14, 17, 19


@dataclass(frozen=True)
class CpuTime:
    """CPU time charged so far: `total_ns` by the scheduler, `user_ticks` and `system_ticks` by sampling."""

    total_ns: int
    user_ticks: int
    system_ticks: int

    def since(self, before: CpuTime) -> CpuTime:
        """What was charged between two samples of the same processes."""
        return CpuTime(
            self.total_ns - before.total_ns,
            self.user_ticks - before.user_ticks,
            self.system_ticks - before.system_ticks,
        )

    @property
    def user_ns(self) -> float:
        """The user part of total_ns, in the proportion of the ticks."""
        ticks = self.user_ticks + self.system_ticks
        return self.total_ns * self.user_ticks / ticks if ticks else 0.0

    @property
    def system_ns(self) -> float:
        """The system part of total_ns."""
        return self.total_ns - self.user_ns


def stat_fields(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the third on; OSError when the process is gone."""
    return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()


def family(pid: int) -> list[int]:
    """The process, all its living descendants, and all other processes of the session it leads.

    The session: when the process between them dies, a worker is no descendant any more, but still part of the whole.
    """
    return [member for member, _ in _tree(pid)]


def roles(pid: int) -> list[tuple[str, int]]:
    """(role, process id) for each process of the family, by its place in it: supervisor, worker 0, ...

    The role is `process` when there is only one. Below the first, one with children is the fork server (0.1.0), one
    without is a worker; ids are given in order, so worker numbers here are those of the proxy unless one was replaced.
    """
    tree = _tree(pid)
    if len(tree) == 1:
        return [("process", pid)]
    parents = {parent for _, parent in tree}
    below = [member for member, _ in tree[1:]]
    workers = sorted(member for member in below if member not in parents)
    servers = [member for member in below if member in parents]
    named = [("supervisor", pid), *(("fork server", member) for member in servers)]
    return named + [(f"worker {number}", member) for number, member in enumerate(workers)]


def _tree(pid: int) -> list[tuple[int, int]]:
    """(process, its parent) for the family, the given one first, parents before children."""
    children: dict[int, list[int]] = {}
    session = []
    for entry in PROC.iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError, IndexError):
            fields = stat_fields(member := int(entry.name))
            if fields[STATE] in "ZX" and member != pid:
                continue  # ended; counted with its parent once that has waited for it
            children.setdefault(int(fields[PPID]), []).append(member)
            if int(fields[SESSION]) == pid:
                session.append((member, int(fields[PPID])))
    found = [(pid, 0)]
    for member, _ in found:  # grows while it is walked
        found.extend((child, member) for child in children.get(member, ()))
    known = {member for member, _ in found}
    return found + [(member, parent) for member, parent in session if member not in known]


def started_at(pid: int) -> int:
    """When the process started, in ticks since boot; 0 when there is none. Tells a reused id from the first owner."""
    try:
        return int(stat_fields(pid)[STARTTIME])
    except (OSError, IndexError):
        return 0


def cpu_time(pids: Iterable[int]) -> CpuTime:
    """CPU time of all threads of these processes, and of children they have waited for; OSError when one is gone.

    A worker that ends and is waited for within a measurement is thereby counted to its end, to a tick (10 ms).
    """
    total_ns = user = system = 0
    for pid in pids:
        fields = stat_fields(pid)
        user += int(fields[UTIME]) + int(fields[CUTIME])
        system += int(fields[STIME]) + int(fields[CSTIME])
        total_ns += (int(fields[CUTIME]) + int(fields[CSTIME])) * TICK_NS
        try:
            for task in (PROC / str(pid) / "task").iterdir():
                with contextlib.suppress(FileNotFoundError):  # a thread that ended meanwhile
                    total_ns += int((task / "schedstat").read_text().split()[0])
        except (ValueError, IndexError, PermissionError):
            total_ns += (int(fields[UTIME]) + int(fields[STIME])) * TICK_NS
    return CpuTime(total_ns, user, system)


def machine_busy_ns() -> int:
    """CPU time the whole machine has spent on anything (all cores, interrupts and stolen time included)."""
    words = (PROC / "stat").read_text().splitlines()[0].split()[1:9]
    user, nice, system, _idle, _iowait, irq, softirq, steal = (int(word) for word in words)
    return (user + nice + system + irq + softirq + steal) * TICK_NS


def descriptors(pid: int) -> int:
    """Open descriptors of the process."""
    return len(os.listdir(PROC / str(pid) / "fd"))


def threads(pid: int) -> int:
    """Threads of the process."""
    return int(stat_fields(pid)[THREADS])


def rss_and_pss_bytes(pid: int) -> tuple[int, int]:
    """Resident memory, and the process's share of it (a page that n processes map counts 1/n): sums of it are true."""
    found = {"Rss": 0, "Pss": 0}
    for line in (PROC / str(pid) / "smaps_rollup").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in found:
            found[name] = int(value.split()[0]) * 1024
    return found["Rss"], found["Pss"]


def _status_bytes(pid: int, key: str) -> int:
    for line in (PROC / str(pid) / "status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return int(value.split()[0]) * 1024
    return 0


def rss_bytes(pids: Iterable[int]) -> int:
    """Resident memory of these processes, summed (pages they share count once for each)."""
    return sum(_status_bytes(pid, "VmRSS") for pid in pids)


def peak_rss_bytes(pids: Iterable[int]) -> int:
    """The highest resident memory since start or reset_peak(), summed over the processes."""
    return sum(_status_bytes(pid, "VmHWM") for pid in pids)


def reset_peak(pids: Iterable[int]) -> None:
    """Makes peak_rss_bytes() start again from now (proc(5), clear_refs: 5 resets VmHWM)."""
    for pid in pids:
        (PROC / str(pid) / "clear_refs").write_text("5")
