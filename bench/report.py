"""A run as markdown for people and JSON for programs.

Called by bench.run. Prints only what was measured: a contestant, case or ratio that is missing is left out.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from bench.goals import Results, Spread, judge, ratio, spread
from bench.load import SATURATED_CORES, Measurement
from bench.memory import MemoryRow

MEASURED = (
    *("case", "endpoint", "commands/s", "p50 ms", "p99 ms"),
    *("proxy CPU us", "user + system", "servers CPU us", "load", "others"),
)
# Above this much CPU taken by unrelated processes, throughput says more about them.
NOISY_CORES = 0.25
# The pairs whose ratios are shown, in this order.
PAIRS = (("proxy", "envoy"), ("proxy", "direct"), ("proxy", "baseline"), ("envoy", "direct"))


@dataclass
class Run:
    """Everything a report says. `settings` are the options that shape the figures, in words."""

    date: str
    machine: Mapping[str, str]
    versions: Mapping[str, str]
    settings: Mapping[str, str]
    results: Results = field(default_factory=dict)
    memory: Sequence[MemoryRow] = ()


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
        "cases": cases,
        "targets": targets,
        "memory": [dataclasses.asdict(row) for row in run.memory],
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
            measured_table(run.results),
            "## Ratios",
            ratio_table(run.results),
        ]
        parts += ["## Targets", targets_table(run.results)] if judge(run.results) else []
    if run.memory:
        parts += ["## Memory", memory_table(run.memory)]
    return "\n\n".join(part for part in parts if part) + "\n"


METHOD = """\
Paired in one run: each round measures every contestant once per case, in rotating order; a cell is the median of the
rounds, in parentheses their lowest and highest; a ratio is taken within each round first. CPU per command is what the
kernel charged to the proxy's processes (user + system), and to the three servers together, divided by the number of
commands (an MGET of ten keys is one command). Load, proxy and servers share the machine's cores. `load` is the CPU that
redis-benchmark used, in cores: one thread for a proxy, so near 1.0 (marked *) the generator may be the limit; three
threads for `direct`. `others` is what unrelated processes took meanwhile."""


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


def measured_table(results: Results) -> str:
    """One row per case and contestant."""
    rows = []
    for case, sides in results.items():
        for name, rounds in sides.items():
            if rounds:
                rows.append((case, name, *_cells(name, rounds)))
    return _table(MEASURED, rows)


def _cells(name: str, rounds: Sequence[Measurement]) -> tuple[str, ...]:
    load, others = spread(rounds, "load_cores"), spread(rounds, "other_cores")
    saturated = "\\*" if load.median >= SATURATED_CORES and name != "direct" else ""
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
    """The promises and whether this run keeps them."""
    rows = [
        (goal.case, goal.promise, _times(measured), "pass" if kept else "**FAIL**")
        for goal, measured, kept in judge(results)
    ]
    return _table(("case", "target", "measured", ""), rows)


def memory_table(rows: Sequence[MemoryRow]) -> str:
    """What bench.memory saw."""
    return _table(("endpoint", "trial", "measured"), [(row.endpoint, row.trial, row.text) for row in rows])


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
