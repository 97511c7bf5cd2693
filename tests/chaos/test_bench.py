"""The chaos bench itself, short: scenarios in which nothing may be violated."""

from __future__ import annotations

import tempfile
from collections import Counter

import pytest

from tests.chaos.checker import Verdict
from tests.chaos.footprint import Footprint
from tests.chaos.gaps import Service, judge
from tests.chaos.report import document, line
from tests.chaos.scenarios import SCENARIOS
from tests.chaos.soak import compare
from tests.chaos.stage import Result, Stage
from tests.support.proxyd import ROOT

PLAYED = {scenario.name: scenario for scenario in SCENARIOS}


def played_well(name: str) -> Result:
    with Stage(seed=1) as stage:
        PLAYED[name].play(stage)
        result = stage.finish(name)
    print(line(result))
    assert result.verdict.violations == []
    assert result.trouble == []
    return result


@pytest.mark.alone
@pytest.mark.parametrize("name", ["kill-primary"])
def test_nothing_is_violated(name: str) -> None:
    result = played_well(name)
    assert result.operations > 5000
    assert result.verdict.checked["message"] > 100
    # Beside the cluster's own gap, on a machine that may be busy with anything.
    assert result.proxy.gap_s < result.direct.gap_s + 1.5


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(set(PLAYED) - {"kill-primary"}))
def test_nothing_is_violated_at_length(name: str) -> None:
    played_well(name)


@pytest.mark.long
def test_stale_reads_are_found() -> None:
    """Readers of replicas that are behind, judged as if they read from primaries: the bench is not blind."""
    with Stage(seed=1) as stage:
        stage.fault(0, 1, 2)
        for node in stage.cluster.nodes:
            stage.links.set("delay", source=stage.cluster.name(node), channel="client", delay_s=0.2)
        stage.sleep(2.0)
        stage.links.heal()
        for op in stage.workload.history.ops:
            op.replicas = False
        result = stage.finish("stale")
    assert result.verdict.counts()["stale"] > 100


def test_gaps_are_judged_alike() -> None:
    """Samples: (key, began, ended, error)."""
    samples = [(0, at / 50, at / 50 + 0.01, "") for at in range(500) if not 250 <= at < 350]
    samples += [(1, at / 50, at / 50 + (0.5 if at in (260, 261) else 0.01), "") for at in range(500)]
    service = judge(samples, fault_at=5.0, healed_at=7.0, end=10.0, healthy=[1])
    assert service.gap_s == pytest.approx(2.02)
    assert service.back_s == pytest.approx(2.01)
    assert service.p99_before_s == pytest.approx(0.01)
    assert service.p99_during_s == pytest.approx(0.5)
    failed = judge([*samples, (0, 8.0, 8.5, "CLUSTERDOWN")], 5.0, 7.0, 10.0, [1])
    assert failed.back_s == pytest.approx(3.5)
    assert failed.errors == {"CLUSTERDOWN": 1}


def test_the_table_names_no_path_of_this_machine() -> None:
    held = Footprint(3, 100 << 20, 100, 60)
    verdict = Verdict(violations=[("lost", "<a|b>")], by_cluster=Counter(writes=2))
    service = Service(gap_s=1.5, back_s=2.5, p99_during_s=0.01)
    result = Result(
        "failover", verdict, Service(), service, Counter({"CLUSTERDOWN": 3}), Counter(), 7, held, held, "a log"
    )
    text = document([result], {"failover": "about it"}, "valkey", 1, ROOT)
    assert "| failover | 7 | 3 CLUSTERDOWN | 0 | 1.50 s (0.00) | 2.50 s (0.00) |" in text
    assert "| 1 lost | 2 writes | 100 -> 100 MB | 100 -> 100 |" in text
    assert "* failover: lost: <a|b>" in text
    assert "* **failover**: about it" in text
    assert str(ROOT) not in text
    assert tempfile.gettempdir() not in text


def test_a_soak_that_does_not_come_back_is_told() -> None:
    before = Footprint(3, 100 << 20, 100, 60)
    assert compare(before, Footprint(3, 110 << 20, 110, 70)) == []
    found = compare(before, Footprint(3, 200 << 20, 200, 160))
    assert [words.split()[0] for words in found] == ["memory", "descriptors", "sockets"]
