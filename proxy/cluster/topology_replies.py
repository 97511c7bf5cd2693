"""What nodes answer to CLUSTER SHARDS, SLOTS, NODES and INFO, read into a Topology.

Why: SHARDS (Redis 7, Valkey) and SLOTS (older) say which node holds which slots, and its address; only NODES has
config epochs and which nodes were voted failed; only INFO has the current epoch. build() puts them together. Called by
`control.topology_refresh` with decoded RESP2 replies: lists, ints, bytes (str is taken too), None, and exception
values where the server answered with an error.

Invariants: whatever comes in, the result is a Topology that keeps its own invariants, or one TopologyError. Unknown
fields and metadata are ignored, as the documentation of the commands asks.

Formats: https://valkey.io/commands/cluster-shards/, cluster-slots/, cluster-nodes/, cluster-info/.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Literal

from proxy.cluster.topology import (
    SLOTS,
    UNKNOWN_EPOCH,
    Address,
    Health,
    Node,
    Role,
    Shard,
    SlotRange,
    Topology,
    TopologyError,
    joined_ranges,
    map_address,
)

EndpointChoice = Literal["announced", "ip", "hostname"]


@dataclass(frozen=True)
class AddressRules:
    """Which of a node's announced names to connect to, and which address to use instead of it."""

    endpoint: EndpointChoice = "announced"
    address_map: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class NodeEntry:
    """A node of SHARDS or SLOTS as sent. endpoint None: NULL; "" and "?" are kept as they came."""

    id: str
    endpoint: str | None
    port: int
    ip: str = ""
    hostname: str = ""
    zone: str = ""
    role: Role = "primary"
    health: Health = "online"


@dataclass(frozen=True, slots=True)
class ShardEntry:
    """A shard of SHARDS, or the rows of SLOTS that have one primary. id "" = not told."""

    id: str
    slots: tuple[SlotRange, ...]
    nodes: tuple[NodeEntry, ...]


@dataclass(frozen=True, slots=True)
class NodeLine:
    """A line of NODES. ip "" = unknown, port 0 = no address, primary_id "" = is no replica."""

    id: str
    ip: str
    port: int
    hostname: str
    flags: frozenset[str]
    primary_id: str
    epoch: int
    link_up: bool
    slots: tuple[SlotRange, ...]

    @property
    def role(self) -> Role:
        return "replica" if "slave" in self.flags or "replica" in self.flags else "primary"

    @property
    def failed(self) -> bool:
        """Voted failed, or without an address. `fail?` is one node's suspicion only and does not count."""
        return "fail" in self.flags or "noaddr" in self.flags


@dataclass(frozen=True, slots=True)
class ClusterInfo:
    """CLUSTER INFO. current_epoch UNKNOWN_EPOCH, counts 0 and state "" when not told."""

    state: str
    current_epoch: int
    slots_assigned: int
    known_nodes: int


# --- one reply each


def parse_shards(reply: object) -> list[ShardEntry]:
    """CLUSTER SHARDS. `tls-port` is used only where there is no plain port."""
    shards = []
    for item in _items(reply, "CLUSTER SHARDS"):
        fields = _pairs(item, "CLUSTER SHARDS")
        edges = [_slot(edge) for edge in _items(fields.get("slots"), "CLUSTER SHARDS")]
        if len(edges) % 2:
            raise TopologyError("CLUSTER SHARDS gives a slot range without an end")
        nodes = []
        for node in _items(fields.get("nodes"), "CLUSTER SHARDS"):
            told = _pairs(node, "CLUSTER SHARDS")
            if "id" not in told:
                raise TopologyError("CLUSTER SHARDS gives a node without an id")
            endpoint = _text(told.get("endpoint"))
            ip, hostname = _names(endpoint, told)
            nodes.append(
                NodeEntry(
                    id=_text(told["id"]) or "",
                    endpoint=endpoint,
                    port=_port(told.get("port")) or _port(told.get("tls-port")),
                    ip=ip,
                    hostname=hostname,
                    zone=_text(told.get("availability-zone")) or "",
                    role="primary" if _text(told.get("role")) in ("master", "primary") else "replica",
                    health=_health(_text(told.get("health"))),
                )
            )
        slots = tuple(_range(first, last) for first, last in zip(edges[::2], edges[1::2], strict=True))
        shards.append(ShardEntry(_text(fields.get("id")) or "", slots, tuple(nodes)))
    return shards


def parse_slots(reply: object) -> list[ShardEntry]:
    """CLUSTER SLOTS, rows of one primary joined. Redis 3 sends no node ids: they are "" then."""
    rows: dict[tuple[str, str | None, int], tuple[list[SlotRange], tuple[NodeEntry, ...]]] = {}
    for item in _items(reply, "CLUSTER SLOTS"):
        row = _items(item, "CLUSTER SLOTS")
        if len(row) < 2:
            raise TopologyError("CLUSTER SLOTS gives a row without a slot range")
        nodes = tuple(_slots_node(node, "replica" if place else "primary") for place, node in enumerate(row[2:]))
        owner = (nodes[0].id, nodes[0].endpoint, nodes[0].port) if nodes else ("", None, 0)
        rows.setdefault(owner, ([], nodes))[0].append(_range(_slot(row[0]), _slot(row[1])))
    return [ShardEntry("", tuple(slots), nodes) for slots, nodes in rows.values()]


def _slots_node(value: object, role: Role) -> NodeEntry:
    words = _items(value, "CLUSTER SLOTS")
    if len(words) < 2:
        raise TopologyError("CLUSTER SLOTS gives a node without an address")
    metadata = _pairs(words[3], "CLUSTER SLOTS") if len(words) > 3 else {}
    endpoint = _text(words[0])
    ip, hostname = _names(endpoint, metadata)
    zone = _text(metadata.get("availability-zone")) or ""
    node_id = _text(words[2]) or "" if len(words) > 2 else ""
    return NodeEntry(node_id, endpoint, _port(words[1]), ip, hostname, zone, role)


def _names(endpoint: str | None, told: Mapping[str, Any]) -> tuple[str, str]:
    """(ip, hostname), "" = not told. The metadata of SLOTS leaves out whichever of the two the endpoint is."""
    ip, hostname = _text(told.get("ip")) or "", _text(told.get("hostname")) or ""
    if endpoint and endpoint != "?":
        if _is_ip(endpoint):
            ip = ip or endpoint
        else:
            hostname = hostname or endpoint
    return ip, hostname


def parse_nodes(reply: object) -> dict[str, NodeLine]:
    """CLUSTER NODES by node id, in the order sent; slots that are being moved (`[93-<-id]`) are ignored."""
    lines: dict[str, NodeLine] = {}
    for text in _body(reply, "CLUSTER NODES").splitlines():
        words = text.split(" ")
        if not text.strip():
            continue
        if len(words) < 8:
            raise TopologyError(f"CLUSTER NODES gives a line of {len(words)} fields")
        # ip:port@cport[,hostname[,name=value...]]; before Redis 4 without @cport. The ip may be empty or a bare IPv6.
        address, *more = words[1].split(",")
        ip, _, port = address.partition("@")[0].rpartition(":")
        slots = tuple(_word_range(word) for word in words[8:] if word and not word.startswith("["))
        lines[words[0]] = NodeLine(
            id=words[0],
            ip=ip,
            port=_number(port, "CLUSTER NODES"),
            hostname=more[0] if more and "=" not in more[0] else "",
            flags=frozenset(words[2].split(",")),
            primary_id="" if words[3] == "-" else words[3],
            epoch=_number(words[6], "CLUSTER NODES"),
            link_up=words[7] == "connected",
            slots=slots,
        )
    return lines


def parse_info(reply: object) -> ClusterInfo:
    """CLUSTER INFO; fields that are missing are "not told"."""
    told = dict(line.split(":", 1) for line in _body(reply, "CLUSTER INFO").splitlines() if ":" in line)

    def number(name: str, default: int) -> int:
        return _number(told[name], "CLUSTER INFO") if name in told else default

    return ClusterInfo(
        state=told.get("cluster_state", ""),
        current_epoch=number("cluster_current_epoch", UNKNOWN_EPOCH),
        slots_assigned=number("cluster_slots_assigned", 0),
        known_nodes=number("cluster_known_nodes", 0),
    )


# --- all of them together


def build(
    asked: Address,
    rules: AddressRules,
    *,
    shards: object = None,
    slots: object = None,
    nodes: object = None,
    info: object = None,
) -> Topology:
    """One node's answers as a Topology. `shards` or `slots` must be given (`slots` wins), the others may be missing.

    An exception value or None in the place of `nodes` or `info` (an ACL may forbid them) only means that
    what they would have said is missing; in the place of shards or slots, and for anything malformed: TopologyError.
    """
    lines = parse_nodes(nodes) if _usable(nodes) else {}
    told = parse_info(info) if _usable(info) else None
    entries = _complete(parse_slots(slots), lines) if slots is not None else parse_shards(shards)
    found: list[Shard] = []
    for entry in entries:
        found += _shards(entry, lines, asked, rules)
    found = _without_doubles(found)
    if told is not None and told.current_epoch != UNKNOWN_EPOCH:
        epoch = told.current_epoch
    else:
        epoch = max((line.epoch for line in lines.values()), default=UNKNOWN_EPOCH)
    # Nodes list the same cluster in different orders; here the order is always the same.
    ordered = sorted(_without_overlap(found), key=lambda shard: (shard.slots[:1] or ((SLOTS, SLOTS),), shard.id))
    return Topology(tuple(ordered), epoch, asked, told is not None and told.state == "fail")


def _shards(entry: ShardEntry, lines: Mapping[str, NodeLine], asked: Address, rules: AddressRules) -> list[Shard]:
    """The entry's shard, then one for each further primary in it.

    Since shard ids exist (Redis 7.2, Valkey) a failed primary stays in the shard beside the one that took over, both
    called master.
    """
    known = [_node(node, lines, asked, rules) for node in entry.nodes if _reachable(node, lines)]
    owning = {id for id, line in lines.items() if line.slots}
    primaries = sorted(
        (node for node in known if node.role == "primary"),
        key=lambda node: (node.id not in owning, node.health == "fail", -node.epoch),
    )
    primary = primaries[0] if primaries else None
    # Redis 7.2 before 7.2.6 shows a shard without its slots when a failed primary is its first node (redis/redis#13414)
    slots = entry.slots
    if not slots and primary is not None and primary.id in owning:
        slots = lines[primary.id].slots
    replicas = tuple(sorted((node for node in known if node.role == "replica"), key=lambda node: node.id))
    shard_id = entry.id or (primary.id if primary else replicas[0].id if replicas else "")
    shards = [Shard(shard_id, primary, replicas, slots)] if known or slots else []
    return shards + [Shard(node.id, node) for node in primaries[1:]]


def _reachable(node: NodeEntry, lines: Mapping[str, NodeLine]) -> bool:
    """False for a node without an address, and for one in handshake: its id is a temporary one."""
    return node.port > 0 and (node.id not in lines or "handshake" not in lines[node.id].flags)


def _node(node: NodeEntry, lines: Mapping[str, NodeLine], asked: Address, rules: AddressRules) -> Node:
    line = lines.get(node.id)
    address = _address(node, asked, rules)
    return Node(
        id=node.id or str(address),
        address=address,
        role=node.role,
        health="fail" if line is not None and line.failed else node.health,
        epoch=line.epoch if line is not None else 0,
        ip=node.ip if node.ip != "?" else "",
        hostname=node.hostname if node.hostname != "?" else "",
        zone=node.zone,
        endpoint=_told(node.endpoint),
        port=node.port,
        doubted=line is not None and "fail?" in line.flags,
    )


def _address(node: NodeEntry, asked: Address, rules: AddressRules) -> Address:
    """NULL and "" mean the host that was asked. "?" means that a host name is preferred but not set. It may be
    another node than the one asked, so its ip is better where there is one
    (https://valkey.io/commands/cluster-slots/)."""
    ip = _told(node.ip)
    hostname = _told(node.hostname)
    announced = node.endpoint if node.endpoint != "?" else ip
    match rules.endpoint:
        case "ip":
            host = ip
        case "hostname":
            host = hostname or ip
        case _:
            host = announced or ""
    if not host:
        # That host was reached as it is, so only an entry of the map for exactly this host:port means this node.
        address = Address(asked.host, node.port)
        target = rules.address_map.get(str(address))
        return Address.parse(target) if target else address
    return map_address(Address(host, node.port), rules.address_map)


def _complete(entries: list[ShardEntry], lines: Mapping[str, NodeLine]) -> list[ShardEntry]:
    """SLOTS leaves out nodes without slots and replicas that failed or have no data yet; NODES has them."""
    told = [node for entry in entries for node in entry.nodes]
    by_place = {(line.ip, line.port): line.id for line in lines.values()}
    entries = [
        replace(entry, nodes=tuple(node if node.id else _identified(node, by_place) for node in entry.nodes))
        for entry in entries
    ]
    seen = {node.id for entry in entries for node in entry.nodes}
    hidden = any(not node.endpoint for node in told)
    named = any(node.endpoint and not _is_ip(node.endpoint) for node in told)
    missing = [line for line in lines.values() if line.id not in seen]
    extra: dict[str, list[NodeEntry]] = {}
    for line in missing:
        # SHARDS would have said what the endpoint is; here the endpoints of the other nodes show it.
        endpoint = None if hidden else (line.hostname or "?") if named else line.ip
        node = NodeEntry(line.id, endpoint, line.port, line.ip, line.hostname, "", line.role)
        extra.setdefault(line.primary_id or line.id, []).append(node)
    completed = []
    for entry in entries:
        more = extra.pop(entry.nodes[0].id, []) if entry.nodes else []
        completed.append(replace(entry, nodes=(*entry.nodes, *more)))
    return completed + [ShardEntry("", (), tuple(nodes)) for nodes in extra.values()]


def _identified(node: NodeEntry, by_place: Mapping[tuple[str, int], str]) -> NodeEntry:
    return replace(node, id=by_place.get((node.ip, node.port), ""))


def _without_doubles(shards: list[Shard]) -> list[Shard]:
    """One node per address: when a node came back under a new id, its old entry is dropped."""
    best: dict[Address, tuple[bool, bool, int]] = {}
    rank = {}
    for shard in shards:
        for node in shard.nodes():
            owner = bool(shard.slots) and node is shard.primary
            rank[node.id] = (owner, node.health != "fail", node.epoch)
            best[node.address] = max(rank[node.id], best.get(node.address, (False, False, -1)))

    kept: set[str] = set()
    taken: set[Address] = set()

    def keep(node: Node) -> bool:
        # A node that owns slots stays, even if another one has its address: without it the slots would have no owner.
        owner = rank[node.id][0]
        if node.id in kept or (not owner and (rank[node.id] != best[node.address] or node.address in taken)):
            return False
        kept.add(node.id)
        taken.add(node.address)
        return True

    clean = []
    for shard in sorted(shards, key=lambda shard: not shard.slots):
        primary = shard.primary if shard.primary is not None and keep(shard.primary) else None
        replicas = tuple(node for node in shard.replicas if keep(node))
        if primary is not None or replicas or shard.slots:
            clean.append(replace(shard, primary=primary, replicas=replicas))
    return clean


def _without_overlap(shards: list[Shard]) -> list[Shard]:
    """Slots ascending and owned once: the higher config epoch wins, at equal epochs the smaller node id, which is the
    one that would bump its epoch (cluster specification, "Hash slots configuration propagation")."""
    shards = [replace(shard, slots=joined_ranges(shard.slots)) for shard in shards]
    claims = sorted((first, last) for shard in shards for first, last in shard.slots)
    if all(first > before[1] for before, (first, _) in pairwise(claims)):
        return shards
    owners: list[int] = [-1] * SLOTS
    weakest_first = sorted(range(len(shards)), key=lambda n: _claim(shards[n]), reverse=True)
    for n in weakest_first:
        for first, last in shards[n].slots:
            owners[first : last + 1] = [n] * (last - first + 1)
    left: list[list[SlotRange]] = [[] for _ in shards]
    start = 0
    for slot in range(1, SLOTS + 1):
        if slot == SLOTS or owners[slot] != owners[start]:
            if owners[start] >= 0:
                left[owners[start]].append((start, slot - 1))
            start = slot
    return [replace(shard, slots=tuple(slots)) for shard, slots in zip(shards, left, strict=True)]


def _claim(shard: Shard) -> tuple[int, str]:
    """Strongest first when sorted."""
    return (-shard.primary.epoch, shard.primary.id) if shard.primary is not None else (1, shard.id)


# --- decoded values


def _usable(reply: object) -> bool:
    return reply is not None and not isinstance(reply, Exception)


def _malformed(reply: object, command: str, wanted: str) -> TopologyError:
    if isinstance(reply, Exception):
        text = str(reply)
        if "cluster support disabled" in text.lower() or "cluster is disabled" in text.lower():
            return TopologyError(f"not a cluster node ({text})", not_a_cluster=True)
        return TopologyError(f"{command} failed: {text}")
    return TopologyError(f"{command} gives {type(reply).__name__} for {wanted}")


def _items(reply: object, command: str) -> list[Any]:
    if not isinstance(reply, list | tuple):
        raise _malformed(reply, command, "a list")
    return list(reply)


def _pairs(reply: object, command: str) -> dict[str, Any]:
    if isinstance(reply, Mapping):
        return {_text(name) or "": value for name, value in reply.items()}
    words = _items(reply, command)
    if len(words) % 2:
        raise TopologyError(f"{command} gives a map with a name but no value")
    return {_text(name) or "": value for name, value in zip(words[::2], words[1::2], strict=True)}


def _body(reply: object, command: str) -> str:
    if not isinstance(reply, bytes | str):
        raise _malformed(reply, command, "a text")
    return _text(reply) or ""


def _text(value: object) -> str | None:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value if isinstance(value, str) or value is None else str(value)


def _told(text: str | None) -> str:
    return text if text and text != "?" else ""


def _health(text: str | None) -> Health:
    if text == "fail" or text == "failed":
        return "fail"
    return "loading" if text == "loading" else "online"


def _digits(text: str) -> int | None:
    # Bounded: int() of thousands of digits raises, and no number here is longer than a 64-bit one.
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 20 else None


def _port(value: object) -> int:
    number = _digits(_text(value) or "0") or 0
    return number if number < 65536 else 0


def _number(text: str, command: str) -> int:
    number = _digits(text)
    if number is None:
        raise TopologyError(f"{command} gives {text[:40]!r} for a number")
    return number


def _slot(value: object) -> int:
    text = _text(value) or ""
    number = _digits(text)
    if number is None or number >= SLOTS:
        raise TopologyError(f"{text[:40]!r} is not a slot")
    return number


def _range(first: int, last: int) -> SlotRange:
    if first > last:
        raise TopologyError(f"slots {first}-{last} end before they begin")
    return first, last


def _word_range(word: str) -> SlotRange:
    first, _, last = word.partition("-")
    return _range(_slot(first), _slot(last or first))


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
