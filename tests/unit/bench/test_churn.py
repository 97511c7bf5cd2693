from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bench import churn
from bench.contestants import BenchError, Contestant
from tests.unit.bench.servers import start_pong

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")

Pong = Callable[..., Contestant]


@pytest.fixture
def pong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pong]:
    monkeypatch.setattr(churn, "SETTLE_S", 0.7)
    started: list[Contestant] = []

    def start(*words: str) -> Contestant:
        started.append(start_pong(tmp_path, *words))
        return started[-1]

    yield start
    for contestant in started:
        contestant.stop()


def test_a_server_that_keeps_nothing(pong: Pong) -> None:
    row = churn.trial(pong(), rate=200.0, seconds=0.5)
    assert row.failures == {}
    assert 10 <= row.answered <= 101
    assert 0 < row.rate <= 210
    assert list(row.before) == list(row.after) == ["process"]
    assert row.before["process"].descriptors == row.after["process"].descriptors <= row.peak_descriptors
    assert row.after["process"].threads == 1
    assert row.after["process"].rss_bytes > 1 << 20
    assert row.cpu_us > 0
    assert row.cpu_us_by_role["process"] == pytest.approx(row.cpu_us, rel=0.3)


def test_a_leak_is_seen(pong: Pong) -> None:
    row = churn.trial(pong("leak"), rate=200.0, seconds=0.3)
    assert row.after["process"].descriptors == row.before["process"].descriptors + row.answered


def test_all_processes_count(pong: Pong) -> None:
    row = churn.trial(pong("fork"), rate=200.0, seconds=0.3)
    assert list(row.before) == ["supervisor", "fork server", "worker 0"]
    assert row.cpu_us_by_role["worker 0"] > 0
    assert sum(row.cpu_us_by_role.values()) == pytest.approx(row.cpu_us, rel=0.3)


def test_the_first_burst_is_not_counted(pong: Pong) -> None:
    (row,) = churn.trials([pong("leak")], rate=200.0, seconds=0.5)
    assert row.answered <= 101
    assert row.before["process"].descriptors >= 10  # left by the burst


def test_nobody_answers(pong: Pong) -> None:
    contestant = pong()
    contestant.port = 1  # nobody listens there
    with pytest.raises(BenchError, match=r"answered no connection.*Connection refused"):
        churn.trial(contestant, rate=100.0, seconds=0.1)
