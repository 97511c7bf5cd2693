from __future__ import annotations

import pytest

from bench.goals import GOAL_CASES, GOALS, Goal, Spread, judge, ratio
from bench.load import CASES
from tests.unit.bench.measurements import measurement


def rounds(metric: str, *values: float) -> list[object]:
    return [measurement(**{metric: value}) for value in values]


def test_a_ratio_is_taken_within_each_round_before_the_median():
    # The machine was twice as fast in the second round: medians first would give 300 / 200.
    results = {"get-p1": {"proxy": rounds("rate", 100, 300, 500), "envoy": rounds("rate", 100, 200, 1000)}}
    assert ratio(results, "get-p1", "proxy", "envoy", "rate") == Spread(1.0, 0.5, 1.5)


@pytest.mark.parametrize(
    "results", [{}, {"get-p1": {"proxy": [measurement()]}}, {"get-p1": {"proxy": [], "envoy": []}}]
)
def test_no_ratio_without_both_sides(results):
    assert ratio(results, "get-p1", "proxy", "envoy", "rate") is None


def test_no_ratio_over_a_side_that_has_no_such_cost():
    results = {"get-p1": {"proxy": [measurement()], "direct": [measurement(user_us=0, system_us=0)]}}
    assert ratio(results, "get-p1", "proxy", "direct", "cpu_us") is None


@pytest.mark.parametrize(
    ("metric", "limit", "median", "kept"),
    [("rate", 2.0, 2.0, True), ("rate", 2.0, 1.99, False), ("cpu_us", 0.5, 0.5, True), ("cpu_us", 0.5, 0.51, False)],
)
def test_throughput_is_to_be_high_and_cpu_low(metric, limit, median, kept):
    assert Goal("get-p1", metric, "envoy", limit).kept(Spread(median, 0, 9)) is kept


def test_only_goals_with_both_sides_are_judged():
    results = {"get-p16": {"proxy": rounds("rate", 220), "envoy": rounds("rate", 100)}}
    verdicts = [(goal.metric, goal.under, measured.median, kept) for goal, measured, kept in judge(results)]
    assert verdicts == [("rate", "envoy", 2.2, True), ("cpu_us", "envoy", 1.0, False)]


def test_every_goal_has_a_case_that_exists():
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names)
    assert set(GOAL_CASES) == {goal.case for goal in GOALS} <= set(names)
    assert all(goal.promise for goal in GOALS)
