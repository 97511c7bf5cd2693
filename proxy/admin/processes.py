"""The standard process_* families over all processes of the proxy.

Why: the stock collector shows the process that is scraped, the main process, which does next to nothing; who watches
CPU and memory means the workers. Called by proxy.supervisor, which says who runs and who ended; read by MetricsPage.

Invariants: process_cpu_seconds_total never goes down when a process ends; a process that vanishes while it is read is
left out of the gauges and keeps the CPU time it was last seen to have used. collect() may run in a thread of its own:
a process that `pids` names then must not have been given to ended() before.
"""

from __future__ import annotations

import contextlib
import os
import resource
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

_SHARED = "Pages the processes share are counted for each of them."


class _Usage(NamedTuple):
    """One process now."""

    cpu_s: float
    started_s: float  # Unix time
    virtual: int  # bytes
    resident: int
    descriptors: int


class Processes(Collector):
    """pids: the processes that run now, the main process first; called on each scrape. proc: where procfs is."""

    def __init__(self, pids: Callable[[], Iterable[int]], proc: str = "/proc") -> None:
        self._pids = pids
        self._proc = Path(proc)
        self._ticks = os.sysconf("SC_CLK_TCK")
        self._page = resource.getpagesize()
        self._booted_s = self._boot_time()
        self._cpu_s: dict[int, float] = {}  # pid -> what it was last seen to have used
        self._past_s = 0.0  # of those that ended
        self._lock = threading.Lock()  # else one that ends while it is read would be counted twice

    def ended(self, pid: int, cpu_s: float = 0.0) -> None:
        """A process is gone; from now on `pids` does not name it. cpu_s: all it used, user and system, if known."""
        with self._lock:
            self._end(pid, cpu_s)

    def collect(self) -> Iterator[Metric]:
        """The families; those of gauges are left out when nothing can be read."""
        with self._lock:
            found = [usage for pid in self._pids() if (usage := self._read(pid)) is not None]
            cpu_s = self._past_s + sum(self._cpu_s.values())
        yield CounterMetricFamily(
            "process_cpu_seconds_total",
            "User and system CPU time of all processes of the proxy, those that ended included.",
            value=cpu_s,
        )
        if not found:
            return
        yield GaugeMetricFamily(
            "process_virtual_memory_bytes",
            f"Virtual memory of all processes of the proxy. {_SHARED}",
            value=sum(one.virtual for one in found),
        )
        yield GaugeMetricFamily(
            "process_resident_memory_bytes",
            f"Resident memory of all processes of the proxy. {_SHARED}",
            value=sum(one.resident for one in found),
        )
        yield GaugeMetricFamily(
            "process_open_fds",
            "Open file descriptors of all processes of the proxy.",
            value=sum(one.descriptors for one in found),
        )
        yield GaugeMetricFamily(
            "process_max_fds", "File descriptors that each process may have open.", value=_descriptor_limit()
        )
        yield GaugeMetricFamily(
            "process_start_time_seconds", "Unix time of the main process's start.", value=found[0].started_s
        )

    def _end(self, pid: int, cpu_s: float) -> None:
        self._past_s += max(cpu_s, self._cpu_s.pop(pid, 0.0))

    def _read(self, pid: int) -> _Usage | None:
        """None when it is gone."""
        folder = self._proc / str(pid)
        try:
            # From after the name, which may contain anything: field 3 of proc_pid_stat(5) is the first here.
            fields = (folder / "stat").read_bytes().rpartition(b")")[2].split()
            usage = _Usage(
                cpu_s=(int(fields[11]) + int(fields[12])) / self._ticks,
                started_s=self._booted_s + int(fields[19]) / self._ticks,
                virtual=int(fields[20]),
                resident=int(fields[21]) * self._page,
                descriptors=_count_descriptors(folder / "fd"),
            )
        except (OSError, IndexError, ValueError):
            return None
        if usage.cpu_s < self._cpu_s.get(pid, 0.0):  # another process by the same number, and nobody said `ended`
            self._end(pid, 0.0)
        self._cpu_s[pid] = usage.cpu_s
        return usage

    def _boot_time(self) -> float:
        with contextlib.suppress(OSError), (self._proc / "stat").open("rb") as lines:
            for line in lines:
                if line.startswith(b"btime "):
                    return float(line.split()[1])
        return 0.0


def _count_descriptors(folder: Path) -> int:
    # Linux 6.2 and later tell the number as the folder's size (proc_pid_fd(5)); listing 10,000 takes milliseconds.
    return folder.stat().st_size or len(os.listdir(folder))


def _descriptor_limit() -> float:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return float("inf") if soft == resource.RLIM_INFINITY else soft
