"""What clients that come and go cost: connect, PING, disconnect, thousands of times a second (--churn).

Why: many programs connect for every request, and what a proxy leaks or spends with each connection (a descriptor, a
buffer, a thread, CPU) shows only after many. Called by bench.run; the load is bench.churn_client, a process of its own.

Invariants: all processes of the endpoint are looked at while nobody is connected, before and after, and after a first
burst that is not counted, because a process stays larger after the first use of anything.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from bench import procfs
from bench.churn_client import ANSWER_S
from bench.contestants import ROOT, BenchError, Contestant
from proxy.embedded import die_with_parent

RATE, SECONDS = 5_000.0, 30.0
FIRST_BURST = 0.1  # share of the run that is spent on warming up
SETTLE_S = 10.0
EVERY_S = 0.25
START_S = 15.0


@dataclass(frozen=True)
class ProcessFigures:
    """One process at one moment."""

    descriptors: int
    threads: int
    rss_bytes: int


@dataclass(frozen=True)
class ChurnRow:
    """One endpoint's run. `cpu_us` is CPU time per answered connection, of all its processes and of each by role.

    before, after: role -> what its process had; a role that ended or appeared is only in one of them. rate: answered
    connections per second, at most wanted_rate. other_cores: what processes outside the measurement used meanwhile.
    """

    endpoint: str
    workers: str
    wanted_rate: float
    rate: float
    answered: int
    failures: dict[str, int]
    p50_ms: float
    p99_ms: float
    max_ms: float
    cpu_us: float
    cpu_us_by_role: dict[str, float]
    client_cores: float
    other_cores: float
    peak_descriptors: int
    before: dict[str, ProcessFigures] = field(default_factory=dict)
    after: dict[str, ProcessFigures] = field(default_factory=dict)


def trials(contestants: Sequence[Contestant], rate: float = RATE, seconds: float = SECONDS) -> list[ChurnRow]:
    """One run for each contestant, one after the other."""
    rows = []
    for contestant in contestants:
        _run(contestant, rate, seconds * FIRST_BURST)
        row = trial(contestant, rate, seconds)
        rows.append(row)
        failed = f", failed: {row.failures}" if row.failures else ""
        cost = f"{row.cpu_us:.1f} us each, p99 {row.p99_ms:.2f} ms"
        print(f"{row.endpoint}: {row.rate:,.0f} connections/s, {cost}{failed}", file=sys.stderr, flush=True)
    return rows


def trial(contestant: Contestant, rate: float, seconds: float) -> ChurnRow:
    """Looks at the processes, runs the load, waits until its descriptors are closed (at most SETTLE_S), looks again."""
    _settle(contestant, None)
    before, roles = figures(contestant), dict(contestant.roles())
    each = {role: procfs.cpu_time([pid]) for role, pid in roles.items()}
    cpu, busy, started = procfs.cpu_time(contestant.family()), procfs.machine_busy_ns(), time.monotonic()
    told, peak = _run(contestant, rate, seconds)
    busy, elapsed_s = procfs.machine_busy_ns() - busy, time.monotonic() - started
    during = procfs.cpu_time(contestant.family()).since(cpu)
    _settle(contestant, sum(one.descriptors for one in before.values()))
    cpu = procfs.cpu_time(contestant.family()).since(cpu)  # the cost of closing is included
    now = dict(contestant.roles())
    answered, client_s = int(told["answered"]), float(told["cpu_s"])
    if not answered:
        raise BenchError(f"{contestant.name} answered no connection: {told['failures']} {contestant.log_tail()}")
    same = [role for role, pid in roles.items() if now.get(role) == pid]
    return ChurnRow(
        endpoint=contestant.name,
        workers=contestant.workers,
        wanted_rate=rate,
        rate=float(told["rate"]),
        answered=answered,
        failures=told["failures"],
        p50_ms=float(told["p50_ms"]),
        p99_ms=float(told["p99_ms"]),
        max_ms=float(told["max_ms"]),
        cpu_us=cpu.total_ns / 1e3 / answered,
        cpu_us_by_role={
            role: procfs.cpu_time([roles[role]]).since(each[role]).total_ns / 1e3 / answered for role in same
        },
        client_cores=client_s / elapsed_s,
        other_cores=max(0.0, ((busy - during.total_ns) / 1e9 - client_s) / elapsed_s),
        peak_descriptors=peak,
        before=before,
        after=figures(contestant),
    )


def figures(contestant: Contestant) -> dict[str, ProcessFigures]:
    """role -> what every process of the contestant has, now."""
    return {
        role: ProcessFigures(procfs.descriptors(pid), procfs.threads(pid), procfs.rss_bytes([pid]))
        for role, pid in contestant.roles()
    }


def _descriptors(contestant: Contestant) -> int:
    total = 0
    for pid in contestant.family():
        with contextlib.suppress(OSError):  # ended since, perhaps replaced: the look afterwards shows it
            total += procfs.descriptors(pid)
    return total


def _settle(contestant: Contestant, wanted: int | None) -> None:
    """Until it has at most so many descriptors, or (None) their number does not change, or SETTLE_S are over."""
    deadline, last = time.monotonic() + SETTLE_S, -1
    while time.monotonic() < deadline:
        now = _descriptors(contestant)
        if now == last if wanted is None else now <= wanted:
            return
        last = now
        time.sleep(EVERY_S)


def _run(contestant: Contestant, rate: float, seconds: float) -> tuple[dict[str, Any], int]:
    """Runs the client to its end: what it told, and the most descriptors the endpoint was seen with meanwhile."""
    command = [sys.executable, "-m", "bench.churn_client", str(contestant.port), str(rate), str(seconds)]
    client = subprocess.Popen(
        command, stdout=subprocess.PIPE, cwd=ROOT, text=True, preexec_fn=die_with_parent(), stdin=subprocess.DEVNULL
    )
    deadline, peak = time.monotonic() + seconds + ANSWER_S + START_S, 0
    with client:
        try:
            while client.poll() is None and time.monotonic() < deadline:
                peak = max(peak, _descriptors(contestant))
                time.sleep(EVERY_S)
            output, _ = client.communicate(timeout=1.0)
        except (OSError, subprocess.TimeoutExpired) as reason:
            raise BenchError(f"the churn against {contestant.name} broke off: {reason}") from None
        finally:
            client.kill()
    if client.returncode != 0:
        raise BenchError(f"the churn client failed on {contestant.name} (status {client.returncode})")
    told: dict[str, Any] = json.loads(output)
    return told, peak
