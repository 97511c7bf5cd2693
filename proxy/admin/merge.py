"""Many workers as one: what each of them counts becomes what the proxy counts.

Why: one scrape shows one proxy, and a worker that ended, or a node that one of them forgot, must not make a counter go
down, which Prometheus would take for a restart. Called by proxy.supervisor, which keeps one `Past`.

Invariants:
- Nothing given is changed, except by the methods of Past, and what is returned shares no container with it but `own`.
- A counter never goes down, those of a node as long as some running worker tells of the node, provided Past hears of
  every worker that ended (`ended`) and of every status that took another's place (`changed`).
- Gauges are those of the running workers alone.
- Sums of seconds are rounded once, and up where they are kept: otherwise the order of the additions, which changes when
  a worker ends, could make one smaller by its last bit, and Prometheus would add the whole of it again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from math import fsum, inf, nextafter
from typing import TypeVar

from proxy.admin.snapshot import CommandValues, CounterValues, OwnValues, Snapshot
from proxy.ipc.messages import NodeStatus, Status

_Key = TypeVar("_Key", bound=Hashable)


def merge(own: OwnValues, workers: Sequence[tuple[CounterValues, Status | None]], past: Past, clients: int) -> Snapshot:
    """The whole proxy.

    workers: of each running one its counters now and its newest status, None when it has told none. clients: open
    connections now, all workers together. Also lets past forget the nodes that no worker tells of any more.
    """
    told = [status for _, status in workers if status is not None]
    nodes = merge_nodes([status.nodes for status in told], past.nodes)
    if nodes:  # else no worker knows the topology at this moment, and the nodes will be back
        past.prune(nodes)
    return {
        "own": own,
        "counters": merge_counters([past.counters, *(counters for counters, _ in workers)]),
        "clients": clients,
        "tracking_clients": sum(status.tracking_clients for status in told),
        "monitors": sum(status.monitors for status in told),
        "waiting": sum(status.waiting for status in told),
        "output_bytes": sum(status.output_bytes for status in told),
        "client_memory": sum(status.client_memory for status in told),
        "event_loop_lag_s": max((status.event_loop_lag_s for status in told), default=0.0),
        "nodes": nodes,
        "subscriptions": {
            kind: sum(status.subscriptions[n] for status in told)
            for n, kind in enumerate(("channel", "pattern", "shard"))
        },
        "messages_waiting": sum(status.messages_waiting for status in told),
        "interrupted": sum(status.interrupted for status in told),
        "held": sum(status.held for status in told),
    }


def dropped_lines(own: int, statuses: Iterable[Status], past: Past) -> int:
    """Log lines that were dropped since the start. own: of the main process; statuses: the running workers' newest."""
    return own + past.log_dropped + sum(status.log_dropped for status in statuses)


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
        "holds": _sum([part["holds"] for part in parts]),
        "refusals": _sum([part["refusals"] for part in parts]),
        "timeouts": sum(part["timeouts"] for part in parts),
        "leases_refused": sum(part["leases_refused"] for part in parts),
        "monitor_dropped": sum(part["monitor_dropped"] for part in parts),
        "internal_errors": sum(part["internal_errors"] for part in parts),
        "inflight": sum(part["inflight"] for part in parts),
        "blocked": sum(part["blocked"] for part in parts),
        "messages": sum(part["messages"] for part in parts),
        "deliveries": sum(part["deliveries"] for part in parts),
        "fan_out_pauses": sum(part["fan_out_pauses"] for part in parts),
        "interruptions": sum(part["interruptions"] for part in parts),
        "interrupted_ms": sum(part["interrupted_ms"] for part in parts),
    }


def merge_nodes(
    parts: Sequence[Mapping[str, NodeStatus]], past: Mapping[str, NodeStatus] | None = None
) -> dict[str, NodeStatus]:
    """ "host:port" -> the sums over the workers that know the node; up when any of them has it up.

    past: counts to add for the nodes that any of them knows. While a failover becomes known the workers differ: the
    role is what most of them say, or else the last of them.
    """
    known: dict[str, list[NodeStatus]] = {}
    for part in parts:
        for name, status in part.items():
            known.setdefault(name, []).append(status)
    merged: dict[str, NodeStatus] = {}
    for name, several in known.items():
        roles = Counter(reversed([status.role for status in several]))  # equal counts: in the order first met
        counted = [*several, past[name]] if past is not None and name in past else several
        merged[name] = NodeStatus(
            role=roles.most_common(1)[0][0],
            up=any(status.up for status in several),
            connections=_sum([status.connections for status in several]),
            connect_failures=sum(status.connect_failures for status in counted),
            pending=sum(status.pending for status in several),
            buckets=_sum_buckets([status.buckets for status in counted]),
            sum_s=fsum(status.sum_s for status in counted),
            owner=any(status.owner for status in several),
            down_s=min(status.down_s for status in several),
            breakers=sum(status.breakers for status in several),
            held=sum(status.held for status in several),
            held_bytes=sum(status.held_bytes for status in several),
            paused=any(status.paused for status in several),
            outdated=any(status.outdated for status in several),
        )
    return merged


def owners_down(parts: Sequence[Mapping[str, NodeStatus]]) -> dict[str, float]:
    """The nodes that own slots -> for how many seconds no worker has reached them, 0 = some worker does.

    A worker that is still connecting for the first time has not found that it cannot.
    """
    down: dict[str, float] = {}
    for part in parts:
        for name, node in part.items():
            if node.owner:
                down[name] = min(down.get(name, inf), node.down_s)
    return down


def reaches_none(nodes: Mapping[str, NodeStatus]) -> bool:
    """Whether a worker that tells this of the nodes has found that it reaches none of those that own slots."""
    owners = [node for node in nodes.values() if node.owner]
    return bool(owners) and all(node.down_s for node in owners)


def missed_primaries(told: Sequence[tuple[float, Mapping[str, NodeStatus]]]) -> list[list[str]]:
    """For each worker the nodes that own slots and that it does not reach although another one does, in order.

    told: of each worker when it told (seconds, by one clock), and what of the nodes. They tell at different moments:
    that one reached a node before another one lost it says nothing.
    """
    reached: dict[str, float] = {}  # when that was told last
    for at_s, nodes in told:
        for name, node in nodes.items():
            if node.owner and not node.down_s:
                reached[name] = max(reached.get(name, -inf), at_s)
    return [
        sorted(
            name
            for name, node in nodes.items()
            if node.owner and node.down_s and reached.get(name, -inf) > at_s - node.down_s
        )
        for at_s, nodes in told
    ]


def paused_nodes(parts: Sequence[Mapping[str, NodeStatus]]) -> list[str]:
    """The nodes that are paused in any worker."""
    return sorted({name for part in parts for name, node in part.items() if node.paused})


class Past:
    """What workers that have ended had counted, and running ones of nodes that they have forgotten.

    nothing: the counters of a worker that has done nothing yet. They name the label values that are shown at 0 before
    there is any worker.
    """

    def __init__(self, nothing: CounterValues) -> None:
        self.counters = merge_counters([nothing])
        self.log_dropped = 0
        self.nodes: dict[str, NodeStatus] = {}  # only counters are other than 0

    def ended(self, counters: CounterValues, status: Status | None) -> None:
        """A worker has ended. counters: its last, read after its end; status: its newest, None when it told none."""
        self.counters = merge_counters([self.counters, counters])
        self.counters["inflight"] = self.counters["blocked"] = 0
        for command in self.counters["commands"].values():
            command["sum_s"] = _up(command["sum_s"])
        if status is not None:
            self.log_dropped += status.log_dropped
            for name, node in status.nodes.items():
                self._keep_node(name, node)

    def changed(self, old: Status, new: Status) -> None:
        """A running worker has told a new status. Keeps what its old one counted and the new one has begun anew.

        A worker forgets a node's counts with the node, sooner or later than the others do, and counts from 0 when it
        comes back.
        """
        for name, node in old.nodes.items():
            now = new.nodes.get(name)
            if now is None or _began_anew(node, now):
                self._keep_node(name, node)

    def prune(self, nodes: Collection[str]) -> None:
        """Forgets every node but these."""
        for name in [name for name in self.nodes if name not in nodes]:
            del self.nodes[name]

    def _keep_node(self, name: str, node: NodeStatus) -> None:
        kept = merge_nodes([{name: node}], self.nodes)[name]
        kept.up, kept.connections, kept.pending, kept.paused = False, {}, 0, False
        kept.outdated = False
        kept.owner, kept.down_s, kept.breakers, kept.held, kept.held_bytes = False, 0.0, 0, 0, 0
        kept.sum_s = _up(kept.sum_s)
        self.nodes[name] = kept


def _up(total_s: float) -> float:
    """Not less than the sum that fsum has rounded to this."""
    return nextafter(total_s, inf) if total_s else total_s


def _began_anew(old: NodeStatus, new: NodeStatus) -> bool:
    return new.connect_failures < old.connect_failures or any(
        now < before for before, now in zip(old.buckets, new.buckets, strict=True)
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
