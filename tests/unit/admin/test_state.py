"""proxy.admin.state: what an operator asks for, as it is counted."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

from proxy.admin.state import state
from tests.unit.admin.snapshots import node, snapshot


def shown(**own: object) -> dict[str, Any]:
    values = snapshot()
    values["own"] |= own  # type: ignore[typeddict-item]
    values["nodes"] = {"10.0.0.1:1": node(down_s=2.3456, held=7), "10.0.0.2:1": node("replica", outdated=True)}
    found: dict[str, Any] = json.loads(json.dumps(state(values, [], proxy={"pid": 5}, reload={}, upgrade={})))
    return found


def test_what_is_wrong_with_nodes() -> None:
    down, well = shown(suspected={"10.0.0.1:1": 1.23456})["nodes"]
    assert (down["down_s"], down["suspected_s"], down["held"], down["held_bytes"]) == (2.346, 1.235, 7, 700)
    assert (down["outdated"], well["outdated"]) == (False, True)
    assert (well["down_s"], well["suspected_s"], well["held"], well["paused"]) == (0, 0, 0, False)


def test_which_workers_reach_no_primary() -> None:
    workers = [SimpleNamespace(number=n, pid=7, clients=0, status=None, leaving=False, silent_s=float) for n in (0, 1)]
    told = state(snapshot(), workers, proxy={}, reload={}, upgrade={})  # 1 is one: see there
    assert [one["reaches_primary"] for one in told["workers"]["each"]] == [True, False]
    assert [one["missed"] for one in told["workers"]["each"]] == [["10.0.0.1:7000", "10.0.0.3:7000"], []]


def test_what_is_held_and_refused() -> None:
    commands = shown()["commands"]
    assert commands["holds"] == {"node_down": 3, "loading": 0}
    assert commands["refusals"] == {"node_down": 2, "too_many_held": 0}
    assert (commands["held"], commands["clients_paused"]) == (1, 25)


def test_what_the_nodes_say_of_the_cluster() -> None:
    topology = shown()["topology"]
    assert topology["down_s"] == 0.0
    assert "refreshes" not in topology
