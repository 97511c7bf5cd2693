"""What the project promises, as ratios within one run, and whether a run kept it.

Called by bench.report and bench.run (--targets). Ratios, because both sides of one are measured within seconds of each
other on the same machine, so that they are meaningful on other machines too.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench.load import Measurement

# case -> contestant -> one measurement per round
Results = Mapping[str, Mapping[str, Sequence[Measurement]]]

# What "clearly below" in the promise about the servers means as a number.
CLEARLY_BELOW = 0.90
METRICS = {"rate": "throughput", "cpu_us": "CPU per command", "servers_us": "servers' CPU per command"}


@dataclass(frozen=True)
class Spread:
    """Median, lowest and highest of the rounds."""

    median: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of at least one value."""
        return cls(statistics.median(values), min(values), max(values))


def spread(rounds: Sequence[Measurement], metric: str) -> Spread:
    """The spread of one column of Measurement."""
    return Spread.of([float(getattr(one, metric)) for one in rounds])


def ratio(results: Results, case: str, over: str, under: str, metric: str) -> Spread | None:
    """Spread of the per-round ratios over/under; None when either side was not measured."""
    rounds = results.get(case, {})
    pairs = list(zip(rounds.get(over, ()), rounds.get(under, ()), strict=False))
    values = [getattr(a, metric) / getattr(b, metric) for a, b in pairs if getattr(b, metric)]
    return Spread.of(values) if values else None


@dataclass(frozen=True)
class Goal:
    """`metric` of the proxy over that of `under` in `case`: at least `limit`, or at most where less is better."""

    case: str
    metric: str
    under: str
    limit: float

    @property
    def at_least(self) -> bool:
        """Throughput is to be high, CPU time low."""
        return self.metric == "rate"

    @property
    def promise(self) -> str:
        """The goal in words."""
        return f"{METRICS[self.metric]} {'at least' if self.at_least else 'at most'} {self.limit:g}x {self.under}"

    def kept(self, measured: Spread) -> bool:
        """Whether the median of the rounds keeps the promise."""
        return measured.median >= self.limit if self.at_least else measured.median <= self.limit


GOALS = (
    *(
        goal
        for case in ("set-p16", "get-p16")
        for goal in (
            Goal(case, "rate", "envoy", 2.2),
            Goal(case, "rate", "direct", 0.55),
            Goal(case, "cpu_us", "envoy", 0.28),
        )
    ),
    *(
        goal
        for case in ("set-p1", "get-p1")
        for goal in (
            Goal(case, "rate", "envoy", 1.1),
            Goal(case, "cpu_us", "envoy", 0.70),
            Goal(case, "servers_us", "direct", CLEARLY_BELOW),
        )
    ),
    Goal("mget10-p1", "rate", "envoy", 1.8),
    Goal("mget10-p1", "cpu_us", "envoy", 0.45),
)
GOAL_CASES = tuple(dict.fromkeys(goal.case for goal in GOALS))


def judge(results: Results) -> list[tuple[Goal, Spread, bool]]:
    """Every goal whose both sides were measured, with what was measured and whether it is kept."""
    return [
        (goal, measured, goal.kept(measured))
        for goal in GOALS
        if (measured := ratio(results, goal.case, "proxy", goal.under, goal.metric)) is not None
    ]
