"""Redis Cluster as data: nodes, shards, who owns which slot, and what changed between two views of it.

Why: control learns the topology from any node that answers, the data path needs only the outcome; between the two are
plain values that can be compared. Called by `topology_replies` (which builds them), `control.topology_refresh` (which
decides with accept() and reports with diff()), and `control.publish`, which turns it into what the workers are given.

Invariants of a Topology: every value is immutable; no slot has two owners; a node id appears once; a shard's slots are
ascending, disjoint and inclusive at both ends. A shard may lack a primary (then nobody covers its slots), and
primaries without slots are shards with empty slots. Coverage may be partial.
"""

from __future__ import annotations

import enum
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Final, Literal, NamedTuple

SLOTS: Final = 16384
UNKNOWN_EPOCH: Final = -1
# So many changes of each kind are named in a description; the rest are only counted.
_NAMED: Final = 4

Role = Literal["primary", "replica"]
Health = Literal["online", "loading", "fail"]
SlotRange = tuple[int, int]


class TopologyError(Exception):
    """A node's answers do not describe a cluster; the text is one sentence for the log."""

    def __init__(self, text: str, *, not_a_cluster: bool = False) -> None:
        super().__init__(text)
        self.not_a_cluster = not_a_cluster


class Address(NamedTuple):
    """Where a node listens. The host is a name, an IPv4 or a bare IPv6 address.

    A tuple, for it is made and looked up by the hundred when a topology changes.
    """

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @classmethod
    def parse(cls, text: str) -> Address:
        """`host:port` or `[v6]:port`; also a bare IPv6 address and port as CLUSTER NODES writes it (`::1:7000`).

        ValueError for anything else.
        """
        host, colon, port = text.strip().rpartition(":")
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        if not colon or not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
            raise ValueError(f"{text!r} is not host:port")
        return cls(host, int(port))


def map_address(address: Address, address_map: Mapping[str, str]) -> Address:
    """The address to dial for an announced one (Docker, NAT): `host:port` -> `host:port`, else `host` -> `host`."""
    if not address_map:
        return address
    if target := address_map.get(str(address)):
        return Address.parse(target)
    if target := address_map.get(address.host):
        return Address(target, address.port)
    return address


@dataclass(frozen=True, slots=True)
class Node:
    """One node as another one described it. `epoch` is its config epoch, 0 when not told; "" = not announced.

    `endpoint` and `port` are what it is announced with, before any address_map; port 0 = that of the address.
    """

    id: str
    address: Address
    role: Role
    health: Health = "online"
    epoch: int = 0
    ip: str = ""
    hostname: str = ""
    zone: str = ""
    endpoint: str = ""
    port: int = 0
    doubted: bool = False  # the node that was asked has lost touch with it (`fail?`): one node's suspicion only

    @property
    def announced_port(self) -> int:
        """The port other nodes name it by."""
        return self.port or self.address.port

    @property
    def announced_hosts(self) -> tuple[str, ...]:
        """Every host other nodes may name it by: which one is up to their cluster-preferred-endpoint-type."""
        return tuple(host for host in (self.endpoint, self.ip, self.hostname) if host)


@dataclass(frozen=True, slots=True)
class Shard:
    """Nodes that hold the same slots. `id` is the server's shard id where it tells one, else the primary's id."""

    id: str
    primary: Node | None
    replicas: tuple[Node, ...] = ()
    slots: tuple[SlotRange, ...] = ()

    def nodes(self) -> Iterator[Node]:
        """Primary first."""
        if self.primary is not None:
            yield self.primary
        yield from self.replicas


@dataclass(frozen=True)
class Topology:
    """The cluster as one node sees it. `epoch` is its cluster_current_epoch, UNKNOWN_EPOCH when it would not say.

    `down`: it says cluster_state:fail, and refuses commands for every slot.
    """

    shards: tuple[Shard, ...]
    epoch: int
    asked: Address
    down: bool = False

    @cached_property
    def by_id(self) -> Mapping[str, Node]:
        """Every known node, those without slots and the failed ones too."""
        return {node.id: node for shard in self.shards for node in shard.nodes()}

    def nodes(self) -> tuple[Node, ...]:
        """Every known node, shard by shard, primaries first."""
        return tuple(self.by_id.values())

    @cached_property
    def ranges(self) -> tuple[tuple[int, int, Shard], ...]:
        """(first, last, shard), ascending."""
        claims = [(first, last, shard) for shard in self.shards for first, last in shard.slots]
        return tuple(sorted(claims, key=lambda claim: claim[0]))

    @cached_property
    def covered(self) -> int:
        """Number of slots that have a primary."""
        return sum(last - first + 1 for first, last, shard in self.ranges if shard.primary is not None)

    def owner(self, slot: int) -> Shard | None:
        """The shard that holds the slot, None when there is none."""
        found = bisect_right(self.ranges, slot, key=lambda claim: claim[0]) - 1
        if found < 0 or slot > self.ranges[found][1]:
            return None
        return self.ranges[found][2]

    @cached_property
    def settled(self) -> bool:
        """Every slot has a primary that no node calls failed, so no change is expected."""
        owners = [shard.primary for shard in self.shards if shard.slots]
        return self.covered == SLOTS and all(owner is not None and owner.health != "fail" for owner in owners)

    @cached_property
    def expected(self) -> frozenset[str]:
        """Ids of nodes that may be of use soon: those voted failed may be back, primaries without slots be replicas."""
        return frozenset(
            node.id
            for shard in self.shards
            for node in shard.nodes()
            if node.health == "fail" or (node.role == "primary" and not shard.slots)
        )


def joined_ranges(slots: tuple[SlotRange, ...]) -> tuple[SlotRange, ...]:
    """Ascending, and each slot once: a broken node may say one range a hundred thousand times."""
    joined: list[SlotRange] = []
    for first, last in sorted(slots):
        if joined and first <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(last, joined[-1][1]))
        else:
            joined.append((first, last))
    return tuple(joined)


# --- which answers to believe


class Verdict(enum.Enum):
    """What accept() makes of an answer; all but ACCEPTED are refusals."""

    ACCEPTED = "accepted"
    STALE = "stale"
    OTHER_CLUSTER = "other_cluster"
    EMPTY = "empty"


def accept(current: Topology | None, new: Topology, *, current_gone: bool = False) -> Verdict:
    """Whether `new` may replace `current`.

    OTHER_CLUSTER: no node in common, so the address asked was recycled (lettuce#1946). STALE: the node asked is behind
    (a partition, a restart); the cluster's current epoch only grows, see "Configuration epoch" in
    https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/. EMPTY: a node that was reset out of
    the cluster keeps its id and its epoch but knows no slots. With current_gone the caller has found that no node
    answers with the current topology any more, and any other is better.
    """
    if current is None or current_gone:
        return Verdict.ACCEPTED
    if not current.by_id.keys() & new.by_id.keys():
        return Verdict.OTHER_CLUSTER
    if UNKNOWN_EPOCH < new.epoch < current.epoch:
        return Verdict.STALE
    if current.covered and not new.covered:
        return Verdict.EMPTY
    return Verdict.ACCEPTED


# --- what changed


@dataclass(frozen=True, slots=True)
class SlotMove:
    """Slots first..last went from one primary to another; None = from or to nobody."""

    first: int
    last: int
    source: Node | None
    target: Node | None

    def __str__(self) -> str:
        slots = f"slot {self.first}" if self.first == self.last else f"slots {self.first}-{self.last}"
        source = self.source.address if self.source else "nobody"
        target = self.target.address if self.target else "nobody"
        return f"{slots} from {source} to {target}"


@dataclass(frozen=True, slots=True)
class TopologyDiff:
    """Pairs are (before, after). False when nothing changed; an epoch alone is no change."""

    added: tuple[Node, ...] = ()
    removed: tuple[Node, ...] = ()
    moved: tuple[SlotMove, ...] = ()
    role_changes: tuple[tuple[Node, Node], ...] = ()
    readdressed: tuple[tuple[Node, Node], ...] = ()
    health_changes: tuple[tuple[Node, Node], ...] = ()

    def __bool__(self) -> bool:
        return any((self.added, self.removed, self.moved, self.role_changes, self.readdressed, self.health_changes))

    @property
    def moved_slots(self) -> int:
        """Number of slots whose primary is another one."""
        return sum(move.last - move.first + 1 for move in self.moved)

    def __str__(self) -> str:
        """One line for the log, of limited length however much changed."""
        parts = [
            *_some([f"{node.role} {node.address}" for node in self.added], "added "),
            *_some([str(node.address) for node in self.removed], "gone "),
            *_some([f"{new.address} is now {new.role}" for _, new in self.role_changes]),
            *_some([f"{old.address} is now at {new.address}" for old, new in self.readdressed]),
            *_some([f"{new.address} is now {new.health}" for _, new in self.health_changes]),
        ]
        if self.moved:
            parts += [f"{self.moved_slots} slots moved", *_some([str(move) for move in self.moved])]
        return "; ".join(parts) or "nothing"


def _some(words: list[str], prefix: str = "") -> Iterator[str]:
    if words:
        more = f" and {len(words) - _NAMED} more" if len(words) > _NAMED else ""
        yield prefix + ", ".join(words[:_NAMED]) + more


def diff(old: Topology | None, new: Topology) -> TopologyDiff:
    """What changed from old (None: from nothing) to new. O(nodes + ranges)."""
    before: Mapping[str, Node] = {} if old is None else old.by_id
    both = [(before[id], node) for id, node in new.by_id.items() if id in before]
    return TopologyDiff(
        added=tuple(node for id, node in new.by_id.items() if id not in before),
        removed=tuple(node for id, node in before.items() if id not in new.by_id),
        moved=tuple(_moves(old, new)),
        role_changes=tuple((was, node) for was, node in both if was.role != node.role),
        readdressed=tuple((was, node) for was, node in both if was.address != node.address),
        health_changes=tuple((was, node) for was, node in both if was.health != node.health),
    )


def _moves(old: Topology | None, new: Topology) -> Iterator[SlotMove]:
    views = [view for view in (old, new) if view is not None]
    edges = {0, SLOTS}
    for view in views:
        for first, last, _ in view.ranges:
            edges |= {first, last + 1}
    ordered = sorted(edges)
    pending: SlotMove | None = None
    for first, end in pairwise(ordered):
        source = _primary(old, first)
        target = _primary(new, first)
        if (source and source.id) == (target and target.id):
            move = None
        elif pending and pending.source == source and pending.target == target:
            pending = SlotMove(pending.first, end - 1, source, target)
            continue
        else:
            move = SlotMove(first, end - 1, source, target)
        if pending:
            yield pending
        pending = move
    if pending:
        yield pending


def _primary(view: Topology | None, slot: int) -> Node | None:
    shard = view.owner(slot) if view is not None else None
    return shard.primary if shard is not None else None
