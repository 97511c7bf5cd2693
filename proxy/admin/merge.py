"""Many workers as one: what each of them counts becomes what the proxy counts.

Why: one scrape shows one proxy, and a worker that died, or a node that one of them forgot, must not make a counter go
down, which Prometheus would take for a restart. Called by proxy.supervisor, which keeps one `Dead`.

Invariants:
- Nothing given is changed, except by the methods of Dead, and what is returned shares no container with it.
- A counter never goes down, those of a node as long as the node stays in some running worker's topology, provided
  Dead hears of every worker that ended (`add`) and of every state that took another's place (`changed`).
- Gauges are those of the running workers alone.
- Sums of seconds are rounded once, and up where they are kept: otherwise the order of the additions, which changes when
  a worker ends, could make one smaller by its last bit, and Prometheus would add the whole of it again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from math import fsum, inf, nextafter
from typing import TypeVar

from proxy.admin.snapshot import (
    CommandValues,
    CounterValues,
    NodeValues,
    OwnValues,
    Snapshot,
    TopologyValues,
    WorkerState,
)

_Key = TypeVar("_Key", bound=Hashable)


def merge(own: OwnValues, workers: Sequence[tuple[CounterValues, WorkerState | None]], dead: Dead) -> Snapshot:
    """The whole proxy. workers: of each running one its counters now and its newest state, None when it has told none.

    Also lets dead forget the nodes that no worker knows any more.
    """
    states = [state for _, state in workers if state is not None]
    nodes = merge_nodes([state["nodes"] for state in states], dead.nodes)
    topology = merge_topologies([state["topology"] for state in states])
    if any(state["topology"]["known"] for state in states):  # else they may come back, and so may their counters
        dead.prune(nodes)
    counters = merge_counters([dead.counters, *(counters for counters, _ in workers)])
    counters["rejected"] += own["rejected"]
    return {
        "own": own,
        "counters": counters,
        "clients": sum(state["clients"] for state in states),
        "waiting": sum(state["waiting"] for state in states),
        "output_bytes": sum(state["output_bytes"] for state in states),
        "event_loop_lag_s": max((state["event_loop_lag_s"] for state in states), default=0.0),
        "nodes": nodes,
        "topology": {**topology, "refreshes": _sum([dead.refreshes, topology["refreshes"]])},
    }


def merge_counters(parts: Sequence[CounterValues]) -> CounterValues:
    """The sum of each, commands by name."""
    commands: dict[str, list[CommandValues]] = {}
    for part in parts:
        for name, values in part["commands"].items():
            commands.setdefault(name, []).append(values)
    return {
        "commands": {name: _merge_command(values) for name, values in commands.items()},
        "closed": _sum([part["closed"] for part in parts]),
        "redirections": _sum([part["redirections"] for part in parts]),
        "retries": _sum([part["retries"] for part in parts]),
        "accepted": sum(part["accepted"] for part in parts),
        "rejected": sum(part["rejected"] for part in parts),
        "client_in": sum(part["client_in"] for part in parts),
        "client_out": sum(part["client_out"] for part in parts),
        "backend_in": sum(part["backend_in"] for part in parts),
        "backend_out": sum(part["backend_out"] for part in parts),
        "timeouts": sum(part["timeouts"] for part in parts),
        "internal_errors": sum(part["internal_errors"] for part in parts),
        "inflight": sum(part["inflight"] for part in parts),
    }


def merge_nodes(
    parts: Sequence[Mapping[str, NodeValues]], past: Mapping[str, NodeValues] | None = None
) -> dict[str, NodeValues]:
    """ "host:port" -> the sums over the workers that know the node; up when any of them has it up.

    past: counts to add for the nodes that any of them knows. While a failover becomes known the workers differ: the
    role is what most of them say, or else the last of them.
    """
    known: dict[str, list[NodeValues]] = {}
    for part in parts:
        for name, values in part.items():
            known.setdefault(name, []).append(values)
    merged: dict[str, NodeValues] = {}
    for name, several in known.items():
        roles = Counter(reversed([values["role"] for values in several]))  # equal counts: in the order first met
        counted = [*several, past[name]] if past is not None and name in past else several
        merged[name] = {
            "role": roles.most_common(1)[0][0],
            "up": any(values["up"] for values in several),
            "connections": _sum([values["connections"] for values in several]),
            "connect_failures": sum(values["connect_failures"] for values in counted),
            "pending": sum(values["pending"] for values in several),
            "buckets": _sum_buckets([values["buckets"] for values in counted]),
            "sum_s": fsum(values["sum_s"] for values in counted),
        }
    return merged


def merge_topologies(parts: Sequence[TopologyValues]) -> TopologyValues:
    """What all of them know: the fewest slots, the oldest success (None when one has had none), the first error."""
    succeeded = [part["last_success_s"] for part in parts]
    known = [when for when in succeeded if when is not None]
    return {
        "known": bool(parts) and all(part["known"] for part in parts),
        "fresh": bool(parts) and all(part["fresh"] for part in parts),
        "slots_covered": min((part["slots_covered"] for part in parts), default=0),
        "epoch": max((part["epoch"] for part in parts), default=0),
        "last_success_s": min(known) if known and len(known) == len(succeeded) else None,
        "refreshes": _sum([part["refreshes"] for part in parts]),
        "error": next((part["error"] for part in parts if part["error"]), ""),
    }


class Dead:
    """What is left of the workers that ended, and of nodes that single workers have lost sight of.

    nothing: the counters of a worker that has done nothing yet. They name the label values that are shown at 0 before
    there is any worker.
    """

    def __init__(self, nothing: CounterValues) -> None:
        self.counters = merge_counters([nothing])
        self.refreshes: dict[tuple[str, str], int] = {}
        self.nodes: dict[str, NodeValues] = {}  # only counters are other than 0

    def add(self, counters: CounterValues, state: WorkerState | None) -> None:
        """A worker has ended. counters: its last, read after its end; state: its newest, None when it told none."""
        self.counters = merge_counters([self.counters, counters])
        self.counters["inflight"] = 0
        for command in self.counters["commands"].values():
            command["sum_s"] = _up(command["sum_s"])
        if state is not None:
            self._keep_refreshes(state["topology"])
            for name, values in state["nodes"].items():
                self._keep_node(name, values)

    def changed(self, old: WorkerState, new: WorkerState) -> None:
        """A running worker has told a new state. Keeps what its old one counted and the new one has begun anew.

        A worker drops a node's counts with the node, sooner or later than the others do, and counts from 0 when it
        comes back; those of the refreshes begin anew when the seeds are changed.
        """
        for name, values in old["nodes"].items():
            now = new["nodes"].get(name)
            if now is None or _began_anew(values, now):
                self._keep_node(name, values)
        before, after = old["topology"]["refreshes"], new["topology"]["refreshes"]
        if any(after.get(labels, 0) < count for labels, count in before.items()):
            self._keep_refreshes(old["topology"])

    def prune(self, nodes: Collection[str]) -> None:
        """Forgets every node but these."""
        for name in [name for name in self.nodes if name not in nodes]:
            del self.nodes[name]

    def _keep_refreshes(self, topology: TopologyValues) -> None:
        self.refreshes = _sum([self.refreshes, topology["refreshes"]])

    def _keep_node(self, name: str, values: NodeValues) -> None:
        kept = merge_nodes([{name: values}], self.nodes)[name]
        self.nodes[name] = {**kept, "up": False, "connections": {}, "pending": 0, "sum_s": _up(kept["sum_s"])}


def _up(total_s: float) -> float:
    """Not less than the sum that fsum has rounded to this."""
    return nextafter(total_s, inf) if total_s else total_s


def _began_anew(old: NodeValues, new: NodeValues) -> bool:
    return new["connect_failures"] < old["connect_failures"] or any(
        now < before for before, now in zip(old["buckets"], new["buckets"], strict=True)
    )


def _merge_command(parts: Sequence[CommandValues]) -> CommandValues:
    called = [part for part in parts if part["calls"]]
    split = sum([part["split"] for part in parts])  # counted before the call, which counts when it is answered
    if len(called) < 2:  # most commands of the table are never called, and this is half the work of a scrape
        one = called[0] if called else parts[0]
        return {**one, "errors": {**one["errors"]}, "buckets": [*one["buckets"]], "split": split}
    return {
        "calls": sum([part["calls"] for part in called]),
        "errors": _sum([part["errors"] for part in called]),
        "buckets": _sum_buckets([part["buckets"] for part in called]),
        "sum_s": fsum([part["sum_s"] for part in called]),
        "split": split,
    }


def _sum(parts: Iterable[Mapping[_Key, int]]) -> dict[_Key, int]:
    total: dict[_Key, int] = {}
    for part in parts:
        for key, value in part.items():
            total[key] = total.get(key, 0) + value
    return total


def _sum_buckets(parts: Sequence[Sequence[int]]) -> list[int]:
    """Bucket by bucket; ValueError when they have different bounds."""
    return [sum(column) for column in zip(*parts, strict=True)]
