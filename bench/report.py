"""A run as markdown for people and JSON for programs.

Called by bench.run. Prints only what was measured: a contestant, case or ratio that is missing is left out.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from bench.churn import ChurnRow
from bench.goals import Results, Spread, judge, ratio, spread
from bench.load import SATURATED_CORES, Measurement
from bench.memory import MB, MemoryRow
from bench.startup import StartupRow

MEASURED = (
    *("case", "endpoint", "workers", "commands/s", "p50 ms", "p99 ms"),
    *("proxy CPU us", "user + system", "servers CPU us", "load", "others"),
)
# Above this much CPU taken by unrelated processes, throughput says more about them.
NOISY_CORES = 0.25
# The pairs whose ratios are shown, in this order.
PAIRS = (("proxy", "envoy"), ("proxy", "direct"), ("proxy", "baseline"), ("envoy", "direct"))


@dataclass
class Run:
    """Everything a report says.

    settings: the options that influence the results, in words; workers: endpoint -> what forwards in it; load_threads:
    of the load generator against a proxy.
    """

    date: str
    machine: Mapping[str, str]
    versions: Mapping[str, str]
    settings: Mapping[str, str]
    results: Results = field(default_factory=dict)
    memory: Sequence[MemoryRow] = ()
    churn: Sequence[ChurnRow] = ()
    startup: Sequence[StartupRow] = ()
    workers: Mapping[str, str] = field(default_factory=dict)
    load_threads: int = 1


def as_json(run: Run) -> str:
    """The whole run with every round, stable in order."""
    cases = {
        case: {name: [_row(one) for one in rounds] for name, rounds in sides.items()}
        for case, sides in run.results.items()
    }
    targets = [
        {"case": goal.case, "promise": goal.promise, **dataclasses.asdict(measured), "kept": kept}
        for goal, measured, kept in judge(run.results)
    ]
    document = {
        "date": run.date,
        "machine": dict(run.machine),
        "versions": dict(run.versions),
        "settings": dict(run.settings),
        "workers": dict(run.workers),
        "cases": cases,
        "targets": targets,
        "memory": [dataclasses.asdict(row) for row in run.memory],
        "churn": [dataclasses.asdict(row) for row in run.churn],
        "startup": [dataclasses.asdict(row) for row in run.startup],
    }
    return json.dumps(document, indent=1) + "\n"


def _row(one: Measurement) -> dict[str, float]:
    return dataclasses.asdict(one) | {"cpu_us": one.cpu_us}


def as_markdown(run: Run) -> str:
    """The run as tables; the method is in bench/README.md and named in one paragraph here."""
    parts = [f"# Benchmark of {run.date}", _facts(run)]
    if run.results:
        parts += [
            METHOD,
            noise(run.results),
            "## Measured",
            measured_table(run),
            "## Ratios",
            ratio_table(run.results),
        ]
        parts += ["## Targets", targets_table(run.results)] if judge(run.results) else []
    if run.memory:
        parts += ["## Memory", memory_table(run.memory, run.workers)]
    if run.churn:
        parts += ["## Clients that come and go", CHURN, churn_table(run.churn), processes_table(run.churn)]
    if run.startup:
        parts += ["## Start", STARTUP, startup_table(run.startup), base_table(run.startup)]
    return "\n\n".join(part for part in parts if part) + "\n"


METHOD = """\
Paired in one run: each round measures every contestant once per case, in rotating order; a cell is the median of the
rounds, in parentheses their lowest and highest; a ratio is taken within each round first. CPU per command is what the
kernel charged to the proxy's processes (user + system), and to the three servers together, divided by the number of
commands (an MGET of ten keys is one command). Load, proxy and servers share the machine's cores. `load` is the CPU that
redis-benchmark used, in cores: one thread for a proxy unless said otherwise above, so near 1.0 per thread (marked *)
the generator may be the limit; three threads for `direct`. `others` is what unrelated processes took meanwhile.
`workers` is what forwards: processes of this proxy, threads of Envoy; what else they have is counted with them."""

CHURN = """\
Each connection is made, says PING, waits for the answer and ends, every second one with a reset. CPU is that of all
processes of the endpoint per answered connection, user + system. Descriptors and memory are those before and after,
with nobody connected."""

STARTUP = """\
From exec to the first 200 of `/readyz` (Envoy: of its `/ready`), the cluster being there; CPU of all processes until
then. Memory with nobody connected, medians of the starts; PSS counts a page that n processes share as 1/n for each."""


def _facts(run: Run) -> str:
    rows = [(name, value) for facts in (run.machine, run.versions, run.settings) for name, value in facts.items()]
    return _table(("", ""), rows)


def noise(results: Results) -> str:
    """A warning when unrelated processes took a good part of the machine; empty when it was quiet."""
    medians = [
        spread(rounds, "other_cores").median for sides in results.values() for rounds in sides.values() if rounds
    ]
    if not medians or max(medians) < NOISY_CORES:
        return ""
    words = f"unrelated processes took up to {max(medians):.2f} cores, and throughput is understated"
    return f"**The machine was not idle**: {words}."


def measured_table(run: Run) -> str:
    """One row per case and contestant."""
    rows = []
    for case, sides in run.results.items():
        for name, rounds in sides.items():
            if rounds:
                rows.append((case, name, run.workers.get(name, "-"), *_cells(name, rounds, run.load_threads)))
    return _table(MEASURED, rows)


def _cells(name: str, rounds: Sequence[Measurement], load_threads: int) -> tuple[str, ...]:
    load, others = spread(rounds, "load_cores"), spread(rounds, "other_cores")
    saturated = "\\*" if load.median >= SATURATED_CORES * load_threads and name != "direct" else ""
    own = ("-", "-")
    if name != "direct":
        user, system = spread(rounds, "user_us").median, spread(rounds, "system_us").median
        own = (_range(spread(rounds, "cpu_us"), _fine), f"{_fine(user)} + {_fine(system)}")
    return (
        _range(spread(rounds, "rate"), lambda value: f"{value:,.0f}"),
        _range(spread(rounds, "p50_ms"), _fine),
        _range(spread(rounds, "p99_ms"), _fine),
        *own,
        _range(spread(rounds, "servers_us"), _fine),
        f"{load.median:.2f}{saturated}",
        f"{others.median:.2f}",
    )


def ratio_table(results: Results) -> str:
    """Throughput, CPU and servers' CPU of the pairs that were measured together."""
    rows = []
    for case in results:
        for over, under in PAIRS:
            rate = ratio(results, case, over, under, "rate")
            if rate is None:
                continue
            own = ratio(results, case, over, under, "cpu_us")
            servers = ratio(results, case, over, under, "servers_us")
            rows.append((case, f"{over} / {under}", _times(rate), _times(own), _times(servers)))
    head = ("case", "pair", "throughput", "proxy CPU per command", "servers' CPU per command")
    return _table(head, rows) if rows else "No pair was measured."


def targets_table(results: Results) -> str:
    """The promises, and whether this run kept them."""
    rows = [
        (goal.case, goal.promise, _times(measured), "pass" if kept else "**FAIL**")
        for goal, measured, kept in judge(results)
    ]
    return _table(("case", "target", "measured", ""), rows)


def memory_table(rows: Sequence[MemoryRow], workers: Mapping[str, str]) -> str:
    """What bench.memory saw."""
    head = ("endpoint", "workers", "trial", "measured")
    return _table(head, [(row.endpoint, workers.get(row.endpoint, "-"), row.trial, row.text) for row in rows])


def churn_table(rows: Sequence[ChurnRow]) -> str:
    """What bench.churn saw of the connections."""
    head = (
        *("endpoint", "workers", "answered", "failed", "connections/s", "p50 ms", "p99 ms", "max ms"),
        *("CPU us each", "of that", "descriptors at most"),
    )
    cells = []
    for row in rows:
        reached = f"{row.rate:,.0f} of {row.wanted_rate:,.0f}"
        failed = ", ".join(f"{count:,} {reason}" for reason, count in row.failures.items()) or "0"
        latency = (_fine(row.p50_ms), _fine(row.p99_ms), _fine(row.max_ms))
        parts = ", ".join(f"{role} {_fine(cpu_us)}" for role, cpu_us in row.cpu_us_by_role.items())
        cost = (_fine(row.cpu_us), parts, str(row.peak_descriptors))
        cells.append((row.endpoint, row.workers, f"{row.answered:,}", failed, reached, *latency, *cost))
    others = max(row.other_cores for row in rows)
    client = max(row.client_cores for row in rows)
    used = (
        f"The client used up to {client:.2f} cores; unrelated processes, and the kernel for nobody, up to {others:.2f}."
    )
    return f"{_table(head, cells)}\n\n{used}"


def processes_table(rows: Sequence[ChurnRow]) -> str:
    """What bench.churn saw of the processes, before -> after."""
    cells = []
    for row in rows:
        for role in dict.fromkeys([*row.before, *row.after]):
            both = [side.get(role) for side in (row.before, row.after)]
            cells.append(
                (
                    row.endpoint,
                    role,
                    _change(None if one is None else str(one.descriptors) for one in both),
                    _change(None if one is None else f"{one.rss_bytes / MB:.1f}" for one in both),
                    _change(None if one is None else str(one.threads) for one in both),
                )
            )
    return _table(("endpoint", "process", "descriptors", "RSS MB", "threads"), cells)


def _change(both: Iterable[str | None]) -> str:
    return " -> ".join("-" if one is None else one for one in both)


def startup_table(rows: Sequence[StartupRow]) -> str:
    """What bench.startup saw of the time."""
    cells = []
    for row in rows:
        ready = Spread.of([one.ready_s for one in row.starts])
        cpu = Spread.of([one.cpu_s for one in row.starts])
        times = (f"{ready.median:.3f}", f"{ready.lowest:.3f}", f"{ready.highest:.3f}", f"{cpu.median:.3f}")
        cells.append((row.endpoint, row.workers, str(len(row.starts)), *times))
    return _table(("endpoint", "workers", "starts", "ready after s (median)", "min", "max", "CPU s until then"), cells)


def base_table(rows: Sequence[StartupRow]) -> str:
    """What bench.startup saw of the memory."""
    cells = []
    for row in rows:
        memory = row.memory
        cells += [(row.endpoint, role, f"{rss / MB:.1f}", f"{pss / MB:.1f}") for role, (rss, pss) in memory.items()]
        if len(memory) > 1:
            cells.append((row.endpoint, "all", "-", f"{sum(pss for _, pss in memory.values()) / MB:.1f}"))
    return _table(("endpoint", "process", "RSS MB", "PSS MB"), cells)


def _times(measured: Spread | None) -> str:
    return "-" if measured is None else _range(measured, lambda value: f"{value:.2f}") + "x"


def _range(measured: Spread, text: Callable[[float], str]) -> str:
    if measured.lowest == measured.highest:
        return text(measured.median)
    return f"{text(measured.median)} ({text(measured.lowest)}-{text(measured.highest)})"


def _fine(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows])
