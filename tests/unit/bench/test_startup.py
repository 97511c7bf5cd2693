from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import pytest

from bench import startup
from bench.contestants import BenchError, Contestant, launch
from proxy.embedded import free_port
from tests.unit.bench.servers import accepts, launch_http

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


def test_the_time_ends_with_the_first_200(tmp_path: Path) -> None:
    started: list[Contestant] = []

    def remembered() -> tuple[Contestant, int]:
        pair = launch_http(tmp_path)
        started.append(pair[0])
        return pair

    (row,) = startup.trials({"http": remembered}, runs=2)
    assert [row.endpoint, row.workers, len(row.starts)] == ["http", "1", 2]
    for one in row.starts:
        assert 2 * startup.POLL_S < one.ready_s < startup.READY_S
        assert 0 < one.cpu_s < 2 * one.ready_s + 0.1
    rss, pss = row.memory["process"]
    assert 1 << 20 < pss <= rss
    assert len(started) == 2
    for contestant in started:
        assert contestant.process is not None
        assert contestant.process.poll() is not None
        assert not accepts(contestant.admin_port)


def test_the_order_rotates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    startup.trials({"a": partial(launch_http, tmp_path), "b": partial(launch_http, tmp_path)}, runs=2)
    assert [line.split()[0] for line in capsys.readouterr().err.splitlines()] == ["a", "b", "b", "a"]


def test_one_that_ends_is_said(tmp_path: Path) -> None:
    def ends() -> tuple[Contestant, int]:
        contestant = Contestant("brief", 0, admin_port=free_port(), ready="/ready")
        return launch(contestant, [sys.executable, "-c", "raise SystemExit('no such thing')"], tmp_path, {}), 1

    with pytest.raises(BenchError, match="brief is not ready: no such thing"):
        startup.trials({"brief": ends}, runs=1)


def test_memory_is_the_median_of_the_starts() -> None:
    starts = [
        startup.Start(1.0, 1.0, {"supervisor": (n, n - 1), **extra})
        for n, extra in ((9, {}), (1, {"x": (1, 1)}), (5, {}))
    ]
    assert startup.StartupRow("proxy", "1", starts).memory == {"supervisor": (5, 4)}
    assert startup.StartupRow("proxy", "1", starts[1:2]).memory == {"supervisor": (1, 0), "x": (1, 1)}
