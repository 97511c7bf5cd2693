"""Workers that come and go, as what the proxy counts: sums, gauges of the living, and counters that never go down."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest

from proxy.admin.merge import (
    Past,
    dropped_lines,
    merge,
    merge_counters,
    merge_nodes,
    missed_primaries,
    owners_down,
    reaches_none,
)
from proxy.admin.snapshot import CounterValues, Snapshot
from proxy.ipc.messages import NodeStatus, Status
from tests.unit.admin.snapshots import command, counters, node, own, snapshot, status, topology

# ---- counters


def test_counters_are_summed() -> None:
    assert merge_counters([counters(2), counters(3), counters(0)]) == counters(5)


def test_commands_are_summed_by_name() -> None:
    one, two = counters(), counters()
    one["commands"] = {"get": command([1, 0, 0, 0], 0.5, {"ERR": 1, "OOM": 2}), "json.get": command([0, 1, 0, 0], 2.0)}
    two["commands"] = {"mget": command([0, 0, 2, 0], split=2), "get": command([0, 0, 0, 3], 0.25, {"ERR": 4})}
    assert merge_counters([one, two])["commands"] == {
        "get": command([1, 0, 0, 3], 0.75, {"ERR": 5, "OOM": 2}),
        "json.get": command([0, 1, 0, 0], 2.0),
        "mget": command([0, 0, 2, 0], split=2),
    }


def test_a_call_that_was_split_and_is_not_answered_yet_counts_as_split() -> None:
    one, two = counters(0), counters(0)
    one["commands"] = {"del": command([0, 0, 0, 0], split=1), "get": command([0, 0, 0, 0])}
    two["commands"] = {"del": command([2, 0, 0, 0], 0.5, split=2), "get": command([0, 0, 0, 0])}
    merged = merge_counters([one, two, one])["commands"]
    assert merged == {"del": command([2, 0, 0, 0], 0.5, split=4), "get": command([0, 0, 0, 0])}


def test_a_node_is_down_when_no_worker_reaches_it() -> None:
    one = {"a:1": node(up=0, down_s=3.0, held=2), "b:1": node(up=0, down_s=3.0), "c:1": node("replica", down_s=9.0)}
    two = {"a:1": node(up=0, down_s=2.0, held=3), "b:1": node(up=1), "d:1": node(up=0)}
    assert owners_down([one, two]) == {"a:1": 2.0, "b:1": 0.0, "d:1": 0.0}  # d: it is being connected to
    assert owners_down([]) == {}
    assert not reaches_none(one | two)
    assert not reaches_none({})  # it knows no topology yet
    assert reaches_none({"a:1": node(up=0, down_s=3.0), "c:1": node("replica", up=1)})
    assert not reaches_none({"a:1": node(up=0, down_s=3.0), "d:1": node(up=0)})
    merged = merge_nodes([one, two])
    assert (merged["a:1"].breakers, merged["a:1"].held, merged["a:1"].held_bytes) == (2, 5, 500)
    assert (merged["b:1"].breakers, merged["b:1"].down_s) == (1, 0.0)


def test_a_primary_is_missed_by_those_that_do_not_reach_it_while_another_one_does() -> None:
    well = {"a:1": node(), "b:1": node(), "r:1": node("replica")}
    half = {"b:1": node(up=0, down_s=3.0), "a:1": node(up=0, down_s=9.0), "r:1": node("replica", up=0, down_s=9.0)}
    assert missed_primaries([(50.0, well), (50.5, half)]) == [[], ["a:1", "b:1"]]
    assert missed_primaries([(50.5, half), (47.6, well)]) == [["a:1", "b:1"], []]
    assert missed_primaries([(50.5, half), (47.4, well)]) == [["a:1"], []]  # b: before it was lost
    assert missed_primaries([(50.5, half), (47.4, well), (50.0, {"b:1": node()})]) == [["a:1", "b:1"], [], []]
    assert missed_primaries([(50.5, half), (50.0, half)]) == [[], []]  # nobody does
    assert missed_primaries([(50.5, half), (50.0, {"a:1": node("replica")})]) == [[], []]  # it has been replaced
    assert missed_primaries([]) == []


def test_no_worker_counts_nothing() -> None:
    assert merge_counters([])["accepted"] == 0
    assert merge_counters([])["commands"] == {}


def test_what_is_merged_is_not_touched() -> None:
    given = [(counters(), busy_status()), (counters(2), busy_status())]
    before = copy.deepcopy(given)
    past = Past(counters(0))
    past.ended(*given[0])
    merged = merge(own(), given, past, 6)
    for one in merged["nodes"].values():
        one.buckets[0] = 999
        one.connections.clear()
    merged["counters"]["commands"]["get"]["buckets"][0] = 999
    merged["counters"]["closed"].clear()
    assert given == before
    assert merge(own(), given, past, 6)["counters"] == {**counters(4), "inflight": 3 * 7, "blocked": 3 * 5}


def busy_status() -> Status:
    return status(snapshot()["nodes"])


# ---- nodes


def test_nodes_are_summed_by_name() -> None:
    one = {"a:1": node(up=2, failures=1, pending=3, buckets=(1, 0, 0, 0), sum_s=0.5), "b:1": node("replica", up=1)}
    two = {"a:1": node(up=1, failures=4, pending=1, buckets=(1, 0, 2, 0), sum_s=1.0), "c:1": node(up=0)}
    assert merge_nodes([one, two]) == {
        "a:1": node(up=3, failures=5, pending=4, buckets=(2, 0, 2, 0), sum_s=1.5),
        "b:1": node("replica", up=1),
        "c:1": node(up=0),
    }


@pytest.mark.parametrize(
    ("ups", "merged"), [((0, 1), True), ((1, 0), True), ((0, 0), False)], ids=["last", "first", "none"]
)
def test_a_node_is_up_when_any_worker_reaches_it(ups: tuple[int, ...], merged: bool) -> None:
    assert merge_nodes([{"a:1": node(up=up)} for up in ups])["a:1"].up is merged


@pytest.mark.parametrize(
    ("roles", "merged"),
    [
        (("primary", "replica", "replica"), "replica"),
        (("replica", "replica", "primary"), "replica"),
        (("primary", "replica"), "replica"),
        (("replica", "primary"), "primary"),
    ],
)
def test_the_role_is_what_most_say_or_else_the_last(roles: tuple[str, ...], merged: str) -> None:
    assert merge_nodes([{"a:1": node(role)} for role in roles])["a:1"].role == merged


# ---- the whole


def test_the_whole_proxy() -> None:
    workers: list[tuple[CounterValues, Status | None]] = [
        (counters(1), status({"a:1": node(pending=1)})),
        (counters(2), status({"a:1": node(pending=2)}, lag_s=0.5)),
        (counters(4), None),  # has only just started
    ]
    values = own(3, topology(epoch=13))
    merged = merge(values, workers, Past(counters(0)), 60)
    assert merged["own"] is values
    assert merged["counters"] == counters(7)
    assert (merged["clients"], merged["waiting"], merged["output_bytes"], merged["client_memory"]) == (
        60,
        2,
        8192,
        20000,
    )
    assert merged["event_loop_lag_s"] == 0.5
    assert merged["nodes"] == {"a:1": node(up=4, pending=3)}


def test_before_there_is_a_worker_label_values_are_there_at_0() -> None:
    merged = merge(own(0), [], Past(counters(0)), 0)
    assert merged["counters"] == counters(0)
    assert (merged["event_loop_lag_s"], merged["client_memory"], merged["nodes"]) == (0.0, 0, {})


def test_counters_of_ended_workers_stay_and_their_gauges_do_not() -> None:
    past = Past(counters(0))
    living = (counters(1), status({"a:1": node(up=1, pending=4, failures=1, buckets=(1, 0, 0, 0), sum_s=0.5)}))
    ending = (counters(2), status({"a:1": node(up=2, pending=9, failures=2, buckets=(0, 3, 0, 0), sum_s=1.0)}))
    before = merge(own(), [living, ending], past, 6)
    past.ended(*ending)
    after = merge(own(1), [living], past, 3)
    assert counts(after) == pytest.approx(counts(before), rel=1e-15)
    assert (after["counters"]["inflight"], after["counters"]["blocked"]) == (7, 5)
    assert (after["waiting"], after["output_bytes"], after["client_memory"]) == (1, 4096, 10000)
    (left,) = after["nodes"].values()
    assert (left.up, left.pending, left.connections) == (True, 4, {("shared", "up"): 1, ("shared", "connecting"): 0})


def test_a_worker_that_told_nothing_leaves_its_counters() -> None:
    past = Past(counters(0))
    past.ended(counters(3), None)
    living = merge(own(), [(counters(3), None)], Past(counters(0)), 0)
    assert counts(merge(own(), [], past, 0)) == pytest.approx(counts(living), rel=1e-15)


def test_the_only_workers_node_counts_survive_its_replacement() -> None:
    past = Past(counters(0))
    past.ended(counters(), status({"a:1": node(failures=7)}))
    assert merge(own(0), [], past, 0)["nodes"] == {}  # although the topology is known
    assert merge(own(1), [(counters(0), None)], past, 0)["nodes"] == {}
    assert merge(own(1), [(counters(0), status())], past, 0)["nodes"] == {}
    merged = merge(own(1), [(counters(0), status({"a:1": node(failures=1)}))], past, 0)
    assert merged["nodes"]["a:1"].connect_failures == 8


def test_nodes_nobody_knows_any_more_are_dropped_and_forgotten() -> None:
    past = Past(counters(0))
    past.ended(counters(), status({"a:1": node(failures=7), "b:1": node(failures=8)}))
    merged = merge(own(1), [(counters(0), status({"a:1": node()}))], past, 0)
    assert list(merged["nodes"]) == list(past.nodes) == ["a:1"]


def test_one_worker_drops_a_node_before_the_other_does() -> None:
    past = Past(counters(0))
    stays = status({"a:1": node(failures=1), "b:1": node(failures=2)})
    old, new = status({"a:1": node(failures=3), "b:1": node(failures=4)}), status({"a:1": node(failures=3)})
    past.changed(old, new)
    merged = merge(own(), [(counters(), stays), (counters(), new)], past, 0)
    assert {name: one.connect_failures for name, one in merged["nodes"].items()} == {"a:1": 4, "b:1": 6}


@pytest.mark.parametrize(
    ("old", "new", "kept"),
    [
        (node(failures=3), node(failures=0), True),
        (node(buckets=(0, 5, 0, 0)), node(buckets=(9, 4, 0, 0)), True),
        (node(failures=3, buckets=(0, 5, 0, 0)), node(failures=3, buckets=(0, 5, 0, 0)), False),
        (node(failures=3, pending=9), node(failures=4, up=0), False),
    ],
)
def test_a_node_that_came_back_counts_from_0(old: NodeStatus, new: NodeStatus, kept: bool) -> None:
    past = Past(counters(0))
    past.changed(status({"a:1": old}), status({"a:1": new}))
    assert bool(past.nodes) is kept


def test_dropped_lines_of_all_processes_there_ever_were() -> None:
    past = Past(counters(0))
    assert dropped_lines(1, [], past) == 1
    assert dropped_lines(1, [status(dropped=10), status(dropped=20)], past) == 31
    past.ended(counters(), status(dropped=20))
    assert dropped_lines(1, [status(dropped=10), status()], past) == 31


# ---- whatever happens


def counts(values: Snapshot) -> dict[Any, float]:
    """Every value that must not go down, by a name for it."""
    found: dict[Any, float] = {}
    merged = values["counters"]
    for key, value in merged.items():
        if isinstance(value, int) and key not in ("inflight", "blocked"):
            found[key] = value
        elif key in ("closed", "redirections", "retries"):
            assert isinstance(value, dict)
            found |= {(key, label): count for label, count in value.items()}
    for name, one in merged["commands"].items():
        found |= {("bucket", name, n): count for n, count in enumerate(one["buckets"])}
        found |= {("error", name, kind): count for kind, count in one["errors"].items()}
        found |= {("calls", name): one["calls"], ("sum", name): one["sum_s"], ("split", name): one["split"]}
    for address, server in values["nodes"].items():
        found |= {("node bucket", address, n): count for n, count in enumerate(server.buckets)}
        found |= {("failures", address): server.connect_failures, ("node sum", address): server.sum_s}
    return found


class Fleet:
    """Workers that count, end, lose and find nodes at random, with a supervisor that tells Past all it should."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.past = Past(counters(0))
        self.workers = {number: self.new_worker() for number in range(3)}

    def new_worker(self) -> tuple[CounterValues, Status | None]:
        return counters(0), None

    def step(self, cluster: set[str]) -> None:
        number = self.chance.randrange(3)
        values, old = self.workers[number]
        match self.chance.randrange(8):
            case 0:
                self.past.ended(values, old)
                self.workers[number] = self.new_worker()
                return
            case 1 | 2:
                values = merge_counters([values, counters(self.chance.randrange(3))])
                values["commands"]["get"]["sum_s"] += self.chance.random() / 3
        new = copy.deepcopy(old) if old is not None else status()
        new.log_dropped += self.chance.randrange(2)
        new.nodes = {name: new.nodes.get(name, node()) for name in cluster if self.chance.random() < 0.9}
        for one in new.nodes.values():
            one.connect_failures += self.chance.randrange(2)
            one.buckets[self.chance.randrange(4)] += self.chance.randrange(3)
            one.sum_s += self.chance.random() / 3
        if old is not None:
            self.past.changed(old, new)
        self.workers[number] = values, new

    def shown(self) -> dict[Any, float]:
        workers = list(self.workers.values())
        dropped = dropped_lines(0, [one for _, one in workers if one is not None], self.past)
        return {"log_dropped": dropped, **counts(merge(own(), workers, self.past, 0))}


@pytest.mark.parametrize("seed", range(20))
def test_counters_never_go_down(seed: int) -> None:
    chance = random.Random(seed)
    fleet = Fleet(chance)
    cluster = {"a:1", "b:1", "c:1"}
    seen: dict[Any, float] = {}
    for _ in range(300):
        fleet.step(cluster)
        if chance.random() < 0.02:
            cluster ^= {"c:1"}
        now = fleet.shown()
        fallen = {key: (seen[key], now[key]) for key in seen.keys() & now.keys() if now[key] < seen[key]}
        assert fallen == {}
        # A node that was not shown may begin again; nothing else may vanish.
        assert {
            key for key in seen.keys() - now.keys() if key[0] not in ("node bucket", "failures", "node sum")
        } == set()
        seen = now
    assert seen["accepted"] > 0
    assert seen["log_dropped"] > 0
