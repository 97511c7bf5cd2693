from __future__ import annotations

import pytest

from bench.goals import GOAL_CASES
from bench.load import CASES
from bench.run import FULL, QUICK, Effort, parse


def names(options):
    return [case.name for case in options.chosen]


def test_by_default_everything_is_measured():
    options = parse([])
    assert options.contestants == ["direct", "proxy", "envoy"]
    assert names(options) == [case.name for case in CASES]
    assert options.effort == FULL


def test_cases_are_patterns():
    assert names(parse(["--cases", "set-p1,get-*"])) == ["set-p1", "get-p1", "get-p16", "get-p100", "get-64k"]


def test_targets_need_only_their_cases():
    assert set(names(parse(["--targets"]))) == set(GOAL_CASES)
    assert names(parse(["--targets", "--cases", "set-p1"])) == ["set-p1"]


def test_quick_is_a_default_that_can_be_overridden():
    assert parse(["--quick"]).effort == QUICK
    assert parse(["--quick", "--rounds", "7"]).effort == Effort(7, QUICK.seconds)


def test_a_baseline_is_one_more_contestant(tmp_path):
    (tmp_path / "proxy").mkdir()
    (tmp_path / "proxy" / "cli.py").touch()
    options = parse(["--only", "proxy", "--baseline", str(tmp_path)])
    assert options.contestants == ["proxy", "baseline"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--only", "nginx"], "no such contestant: nginx"),
        (["--cases", "incr"], "nothing matches incr"),
        (["--baseline", "/nowhere"], "is no checkout"),
        (["--clients", "0"], "must be positive"),
        (["--rounds", "-1"], "must be positive"),
    ],
)
def test_wrong_options_are_refused(arguments, reason, capsys):
    with pytest.raises(SystemExit) as ended:
        parse(arguments)
    assert ended.value.code == 2
    assert reason in capsys.readouterr().err
