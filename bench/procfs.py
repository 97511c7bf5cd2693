"""CPU time and memory of other processes, as the kernel counts them.

Why: throughput on a machine that runs the load, the proxy and the servers at once says little; CPU per command says
what the proxy costs. Called by bench.load and bench.memory. Linux only.

Invariants:
- Totals come from /proc/PID/task/TID/schedstat (nanoseconds the scheduler has charged), so short runs are not blurred
  by the 10 ms ticks of /proc/PID/stat; the ticks only give the share of user and system.
- A process is counted with its descendants, so a supervisor and its workers are one thing.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
# Fields of /proc/PID/stat after the command name in parentheses (proc(5): 4 ppid, 14 utime, 15 stime, 22 starttime).
PPID, UTIME, STIME, STARTTIME = 1, 11, 12, 19


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
    """The process and all its living descendants."""
    children: dict[int, list[int]] = {}
    for entry in PROC.iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                children.setdefault(int(stat_fields(int(entry.name))[PPID]), []).append(int(entry.name))
    found = [pid]
    for member in found:  # grows while it is walked
        found.extend(children.get(member, []))
    return found


def started_at(pid: int) -> int:
    """When the process started, in ticks since boot; 0 when there is none. Tells a reused id from the first owner."""
    try:
        return int(stat_fields(pid)[STARTTIME])
    except (OSError, IndexError):
        return 0


def cpu_time(pids: Iterable[int]) -> CpuTime:
    """CPU time of all threads of these processes together; OSError when one is gone."""
    total_ns = user = system = 0
    for pid in pids:
        fields = stat_fields(pid)
        user += int(fields[UTIME])
        system += int(fields[STIME])
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
