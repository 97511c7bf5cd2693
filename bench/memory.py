"""An endpoint's memory under three loads that break proxies: idle clients, huge values, a slow reader.

Called by bench.run (--memory). Resident memory comes from /proc, peaks from VmHWM, which is reset before each trial, so
no peak is missed between two looks. `base` is always what the process used just before the trial.
"""

from __future__ import annotations

import contextlib
import resource
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import hiredis

from bench import procfs
from bench.contestants import BenchError, Connection, Contestant, packed
from bench.load import CASES, Case, Dataset, run_generator
from proxy.embedded import EmbeddedCluster

MB = 1 << 20
IDLE_CLIENTS = 10_000
SPARE_FILES = 200
HUGE_BYTES = 100 * MB
LARGE_BYTES = MB
LARGE_READS = 500
SETTLE_S = 10.0
DRAIN_S = 10.0
LOAD_S = 2.0
VALUE_KEY, LARGE_KEY = "bench:huge", "bench:large"
LOAD_CLIENTS = 20


@dataclass(frozen=True)
class MemoryRow:
    """One trial of one endpoint: a sentence and the numbers in it (bytes unless the name says otherwise)."""

    endpoint: str
    trial: str
    text: str
    values: dict[str, float] = field(default_factory=dict)


def raise_file_limit() -> None:
    """As many descriptors as the kernel allows this process, and so whatever it starts."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def trials(contestants: Sequence[Contestant], cluster: EmbeddedCluster, generator: str) -> list[MemoryRow]:
    """Every trial on every contestant. Trials that only one endpoint fails are reported as such, not raised."""
    dataset = Dataset(cluster, generator)
    case = next(one for one in CASES if one.name == "get-p1")
    dataset.load(case)
    rows = []
    for contestant in contestants:
        # Twice: a process stays larger after the first use of anything, and that is no part of what a trial costs.
        run_generator(generator, contestant, case, 20_000, LOAD_CLIENTS)
        plan: list[tuple[str, Callable[[], MemoryRow]]] = [
            (f"{IDLE_CLIENTS:,} idle clients", lambda one=contestant: idle_clients(one)),  # type: ignore[misc]
            ("slow reader", lambda one=contestant: slow_reader(one, case, generator)),  # type: ignore[misc]
            (f"{HUGE_BYTES // MB} MB value", lambda one=contestant: huge_value(one)),  # type: ignore[misc]
        ]
        for trial, attempt in plan:
            try:
                row = attempt()
            except (OSError, BenchError, hiredis.HiredisError) as reason:
                row = MemoryRow(contestant.name, trial, f"failed: {reason}")
            print(f"{row.endpoint} {row.trial}: {row.text}", file=sys.stderr, flush=True)
            rows.append(row)
    with contextlib.suppress(OSError), Connection(contestants[0].port) as connection:
        connection.ask("DEL", VALUE_KEY)
        connection.ask("DEL", LARGE_KEY)
    return rows


def idle_clients(contestant: Contestant) -> MemoryRow:
    """Clients that have each read one key and then say nothing: resident memory above base."""
    room = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - SPARE_FILES
    base, pids = procfs.rss_bytes(contestant.family()), contestant.family()
    with contextlib.ExitStack() as stack:
        opened = 0
        for _ in range(min(IDLE_CLIENTS, room)):
            connection = stack.enter_context(Connection(contestant.port))
            answer = connection.ask("GET", f"key:{opened:012d}")
            if not isinstance(answer, bytes):
                raise BenchError(f"client {opened + 1} was answered {answer!r}")
            opened += 1
        time.sleep(1)
        held = procfs.rss_bytes(pids) - base
    left = _settle(pids, base, 2 * MB) - base
    text = (
        f"{held / MB:+.1f} MB ({held / opened / 1024:.1f} KB each) over a base of {base / MB:.0f} MB; "
        f"{left / MB:+.1f} MB after they left"
    )
    limit = "" if opened == IDLE_CLIENTS else f" (open-file limit: only {opened:,} clients)"
    return MemoryRow(
        contestant.name,
        f"{opened:,} idle clients",
        text + limit,
        {"base": base, "above_base": held, "after": left, "clients_count": opened},
    )


def huge_value(contestant: Contestant) -> MemoryRow:
    """One value of HUGE_BYTES set and read back: peaks of both, and what is left afterwards."""
    pids = contestant.family()
    base = procfs.rss_bytes(pids)
    value = b"v" * HUGE_BYTES
    peaks = []
    with Connection(contestant.port) as connection:
        for words, right in ((("SET", VALUE_KEY, value), b"OK"), (("GET", VALUE_KEY), value)):
            procfs.reset_peak(pids)
            answer = connection.ask(*words)
            if answer != right:
                raise BenchError(f"{words[0]} of {HUGE_BYTES // MB} MB was answered {answer!r:.100}")
            peaks.append(procfs.peak_rss_bytes(pids) - base)
            _settle(pids, base, 2 * MB, 2.0)
        connection.ask("DEL", VALUE_KEY)
    left = _settle(pids, base, 2 * MB) - base
    text = (
        f"peak above base {peaks[0] / HUGE_BYTES:.2f}x the value for SET, {peaks[1] / HUGE_BYTES:.2f}x for GET; "
        f"{left / MB:+.1f} MB afterwards over a base of {base / MB:.0f} MB"
    )
    numbers: dict[str, float] = {"base": base, "set_peak": peaks[0], "get_peak": peaks[1], "after": left}
    return MemoryRow(contestant.name, f"{HUGE_BYTES // MB} MB value", text, numbers)


def slow_reader(contestant: Contestant, case: Case, generator: str) -> MemoryRow:
    """A client asks for LARGE_READS values and reads nothing while others work: peak memory, their rate, its end."""
    pids = contestant.family()
    base = procfs.rss_bytes(pids)

    def pace() -> dict[str, float]:
        requests = max(1_000, round(quick["rps"] * LOAD_S))
        return run_generator(generator, contestant, case, requests, LOAD_CLIENTS)

    quick = run_generator(generator, contestant, case, 5_000, LOAD_CLIENTS)
    with Connection(contestant.port) as helper:
        if helper.ask("SET", LARGE_KEY, b"v" * LARGE_BYTES) != b"OK":
            raise BenchError("the large value could not be stored")
    before = pace()
    procfs.reset_peak(pids)
    with Connection(contestant.port, receive_buffer_bytes=4096) as slow:
        slow.socket.sendall(packed("GET", LARGE_KEY) * LARGE_READS)
        during = pace()
        peak = procfs.peak_rss_bytes(pids) - base
        got, ending = _drain(slow)
    after = pace()
    left = _settle(pids, base, 2 * MB) - base
    share = during["rps"] / ((before["rps"] + after["rps"]) / 2)
    text = (
        f"{LARGE_READS} x {LARGE_BYTES // MB} MB asked for, none read: peak {peak / MB:+.1f} MB; "
        f"others at {share:.2f}x their pace, p99 {before['p99_latency_ms']:.2f} -> {during['p99_latency_ms']:.2f} ms; "
        f"then {got} replies were read, {ending}; {left / MB:+.1f} MB afterwards"
    )
    numbers = {"base": base, "peak": peak, "after": left, "others_pace_ratio": share, "replies_count": got}
    return MemoryRow(contestant.name, "slow reader", text, numbers)


def _drain(slow: Connection) -> tuple[int, str]:
    """Reads what the slow reader was sent after all, for at most DRAIN_S: replies, and how it ended."""
    slow.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, MB)
    deadline, got = time.monotonic() + DRAIN_S, 0
    try:
        while got < LARGE_READS and time.monotonic() < deadline:
            answer = slow.read()
            if not isinstance(answer, bytes) or len(answer) != LARGE_BYTES:
                return got, f"then {answer!r:.80}"
            got += 1
    except OSError:
        return got, "then it was closed"
    return got, "all of them" if got == LARGE_READS else f"and the rest not within {DRAIN_S:g} s"


def _settle(pids: Sequence[int], base: int, margin: int, limit_s: float = SETTLE_S) -> int:
    """Resident bytes once they are within `margin` of base, or after limit_s."""
    deadline = time.monotonic() + limit_s
    while (now := procfs.rss_bytes(pids)) > base + margin and time.monotonic() < deadline:
        time.sleep(0.1)
    return now
