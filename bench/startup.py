"""How long a start takes, and what the processes hold before anybody has connected (--startup).

Why: without a second proxy, a restart is an outage of this length; and each process needs the base memory. Called by
bench.run; starts its contestants itself, several times, in rotating order.

Invariants: the time begins just before fork and exec and ends with the first 200 of the endpoint's readiness path,
which is asked every POLL_S, on a connection of its own; the cluster is there before the first start.
"""

from __future__ import annotations

import http.client
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from bench import procfs
from bench.contestants import READY_S, BenchError, Contestant, settled
from proxy.embedded import HOST

RUNS, QUICK_RUNS = 10, 3
POLL_S = 0.005

Launch = Callable[[], tuple[Contestant, int]]


@dataclass(frozen=True)
class Start:
    """One start: seconds to the first 200, CPU seconds of all processes until then, role -> (RSS, PSS) in bytes."""

    ready_s: float
    cpu_s: float
    memory: dict[str, tuple[int, int]]


@dataclass(frozen=True)
class StartupRow:
    """The starts of one endpoint; memory: role -> medians of (RSS, PSS) in bytes."""

    endpoint: str
    workers: str
    starts: Sequence[Start]

    @property
    def memory(self) -> dict[str, tuple[float, float]]:
        """Of every process that was there in each of the starts."""
        roles = [role for role in self.starts[0].memory if all(role in one.memory for one in self.starts)]
        return {
            role: (
                statistics.median(one.memory[role][0] for one in self.starts),
                statistics.median(one.memory[role][1] for one in self.starts),
            )
            for role in roles
        }


def trials(launches: Mapping[str, Launch], runs: int) -> list[StartupRow]:
    """Starts everything `runs` times, one at a time, and ends it again. launches: endpoint -> starts one, with its
    number of workers that are processes (0: none are)."""
    names = list(launches)
    starts: dict[str, list[Start]] = {name: [] for name in names}
    workers = {}
    for number in range(runs):
        turn = -number % len(names)
        for name in names[turn:] + names[:turn]:
            contestant, processes = launches[name]()
            try:
                workers[name] = contestant.workers
                starts[name].append(start := _measure(contestant, processes))
            finally:
                contestant.stop()
            print(f"{name} start {number + 1}: {start.ready_s:.3f} s", file=sys.stderr, flush=True)
    return [StartupRow(name, workers[name], starts[name]) for name in names]


def _measure(contestant: Contestant, processes: int) -> Start:
    began = contestant.launched_s
    while not _ready(contestant):
        assert contestant.process is not None
        if contestant.process.poll() is not None or time.monotonic() - began > READY_S:
            raise BenchError(f"{contestant.name} is not ready: {contestant.log_tail()}")
        time.sleep(POLL_S)
    ready_s = time.monotonic() - began
    cpu_s = procfs.cpu_time(contestant.family()).total_ns / 1e9
    settled(contestant, processes)
    memory = {role: procfs.rss_and_pss_bytes(pid) for role, pid in contestant.roles()}
    return Start(ready_s, cpu_s, memory)


def _ready(contestant: Contestant) -> bool:
    connection = http.client.HTTPConnection(HOST, contestant.admin_port, timeout=READY_S)
    try:
        connection.request("GET", contestant.ready)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
