from __future__ import annotations

import pytest

from bench.contestants import Contestant
from bench.goals import GOAL_CASES
from bench.load import CASES
from bench.run import FULL, QUICK, Effort, parse, threads_for


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


def test_modes_have_their_own_efforts_and_only_proxies():
    assert parse(["--churn"]).effort == Effort(1, 30.0)
    assert parse(["--churn", "--seconds", "2"]).effort == Effort(1, 2.0)
    assert parse(["--startup"]).effort.rounds == 10
    assert parse(["--startup", "--quick"]).effort.rounds == 3
    for mode in ("--churn", "--startup", "--memory"):
        options = parse([mode])
        assert options.contestants == ["proxy", "envoy"]
        assert not options.speed
    assert parse([]).speed


def test_the_load_is_threaded_as_told():
    direct, proxy = Contestant("direct", 1), Contestant("proxy", 1)
    proxy.process = object()  # type: ignore[assignment]  # anything in front of the cluster
    assert [threads_for(one, parse([])) for one in (direct, proxy)] == [None, None]
    options = parse(["--load-threads", "2", "--direct-threads", "3"])
    assert [threads_for(one, options) for one in (direct, proxy)] == [3, 2]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--only", "nginx"], "no such contestant: nginx"),
        (["--cases", "incr"], "nothing matches incr"),
        (["--baseline", "/nowhere"], "is no checkout"),
        (["--clients", "0"], "must be positive"),
        (["--rounds", "-1"], "must be positive"),
        (["--workers", "0"], "must be positive"),
        (["--load-threads", "-1"], "must be positive"),
        (["--churn", "--rate", "0"], "must be positive"),
        (["--churn", "--startup"], "not allowed with"),
        (["--churn", "--targets"], "are about speed"),
        (["--startup", "--only", "direct"], "measured on proxies"),
    ],
)
def test_wrong_options_are_refused(arguments, reason, capsys):
    with pytest.raises(SystemExit) as ended:
        parse(arguments)
    assert ended.value.code == 2
    assert reason in capsys.readouterr().err
