"""CLUSTER for cluster-aware clients: one virtual node, the proxy, which owns every slot.

Why: a library configured for a cluster (redis-py RedisCluster, Lettuce, ioredis, redis-cli -c) then works through the
proxy as it is, sending everything to the one node it is shown and never meeting a redirection.
Called through serve.table.

Invariants:
- The virtual node is at the address the client connected to: only that one is known to be reachable by this client.
- Its id depends on the proxy's run id alone: the same on every connection and in every worker.
- Formats are those of Redis 7 (src/cluster_legacy.c: clusterGenNodesDescription, clusterCommandShards ...).
"""

from __future__ import annotations

import ipaddress

from proxy.cluster.slot import slot_of
from proxy.cluster.topology import SLOTS
from proxy.resp import encode, errors
from proxy.serve.context import ClientLike, Commands, ServeContext

HELP = (
    "CLUSTER <subcommand> [<arg> [value] [opt] ...]. Subcommands are:",
    "COUNT-FAILURE-REPORTS <node-id>",
    "    Return number of failure reports for <node-id>: none.",
    "COUNTKEYSINSLOT <slot>",
    "    Return the number of keys in <slot>.",
    "GETKEYSINSLOT <slot> <count>",
    "    Return key names stored by the cluster in a slot.",
    "GETSLOTMIGRATIONS",
    "    Return slot migrations: none. (Of servers that have it.)",
    "INFO",
    "    Return information about the cluster.",
    "KEYSLOT <key>",
    "    Return the hash slot for <key>.",
    "LINKS",
    "    Return information about all network links between this node and its peers: it has none.",
    "MYID",
    "    Return the node id.",
    "MYSHARDID",
    "    Return the node's shard id. (Of servers that have it.)",
    "NODES",
    "    Return cluster configuration seen by node. Output format:",
    "    <id> <ip:port@bus-port[,hostname]> <flags> <primary> <pings> <pongs> <epoch> <link> <slot> ...",
    "REPLICAS <node-id>",
    "    Return <node-id> replicas: there are none.",
    "SLAVES <node-id>",
    "    As REPLICAS.",
    "SLOTS",
    "    Return information about slots range mappings. Each range is made of:",
    "    start, end, primary and replicas IP addresses, ports and ids",
    "SHARDS",
    "    Return information about slot range mappings and the nodes associated with them.",
    "HELP",
    "    Print this help.",
)

# Redis's and Valkey's other subcommands, by what they would do to the cluster.
CHANGING = (
    b"addslots",
    b"addslotsrange",
    b"bumpepoch",
    b"cancelslotmigrations",
    b"delslots",
    b"delslotsrange",
    b"failover",
    b"flushslots",
    b"forget",
    b"meet",
    b"migrateslots",
    b"migration",
    b"replicate",
    b"reset",
    b"saveconfig",
    b"set-config-epoch",
    b"setslot",
    b"syncslots",
)
UNSERVED = (b"slot-stats",)


def endpoint_of(local_address: str, unix_endpoint: tuple[str, int] | None) -> tuple[str, int]:
    """(ip, port) of the listener's side of a connection.

    An IPv6 address comes without brackets, an IPv4 one that was mapped into IPv6 comes as IPv4: clients connect to it
    as it stands. A Unix socket has no address a cluster-aware client could connect to: unix_endpoint takes its place;
    without one ("", 0), which is how Redis spells an address it does not know.
    """
    if local_address.startswith("unix:"):
        return unix_endpoint or ("", 0)
    host, _, port = local_address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if host.lower().startswith("::ffff:"):
        mapped = ipaddress.IPv6Address(host).ipv4_mapped
        host = str(mapped) if mapped is not None else host
    return host, int(port)


def node_id(ctx: ServeContext) -> str:
    """The virtual node's id: 40 hex digits, others than the run id's."""
    return ctx.run_id[::-1]


def _epoch(ctx: ServeContext) -> int:
    """The cluster's configuration epoch; 0 before it is known, or when no node would say."""
    return max(0, ctx.epoch)


def info(ctx: ServeContext, client: ClientLike, args: list[bytes]) -> bytes:
    """CLUSTER INFO: `ok` when every slot has an owner behind the proxy."""
    covered = ctx.slots_covered
    epoch = _epoch(ctx)
    fields = {
        "cluster_state": "ok" if covered == SLOTS else "fail",
        "cluster_slots_assigned": SLOTS,
        "cluster_slots_ok": covered,
        "cluster_slots_pfail": 0,
        "cluster_slots_fail": SLOTS - covered,
        "cluster_known_nodes": 1,
        "cluster_size": 1,
        "cluster_current_epoch": epoch,
        "cluster_my_epoch": epoch,
        "cluster_stats_messages_sent": 0,
        "cluster_stats_messages_received": 0,
        "total_cluster_links_buffer_limit_exceeded": 0,
    }
    text = "".join(f"{name}:{value}\r\n" for name, value in fields.items())
    return encode.verbatim(text.encode(), "txt", client.proto)


def slots(ctx: ServeContext, client: ClientLike, args: list[bytes]) -> bytes:
    """CLUSTER SLOTS: one range, one node (host, port, id, no metadata)."""
    host, port = endpoint_of(client.local_address, ctx.unix_endpoint)
    node = encode.array(
        [
            encode.bulk(host.encode()),
            encode.integer(port),
            encode.bulk(node_id(ctx).encode()),
            encode.map_([], client.proto),
        ]
    )
    return encode.array([encode.array([encode.integer(0), encode.integer(SLOTS - 1), node])])


def shards(ctx: ServeContext, client: ClientLike, args: list[bytes]) -> bytes:
    """CLUSTER SHARDS: one shard of one primary."""
    host, port = endpoint_of(client.local_address, ctx.unix_endpoint)
    node = encode.map_(
        [
            (encode.bulk(b"id"), encode.bulk(node_id(ctx).encode())),
            (encode.bulk(b"port"), encode.integer(port)),
            (encode.bulk(b"ip"), encode.bulk(host.encode())),
            (encode.bulk(b"endpoint"), encode.bulk(host.encode())),
            (encode.bulk(b"role"), encode.bulk(b"master")),
            (encode.bulk(b"replication-offset"), encode.integer(0)),
            (encode.bulk(b"health"), encode.bulk(b"online")),
        ],
        client.proto,
    )
    shard = encode.map_(
        [
            (encode.bulk(b"slots"), encode.array([encode.integer(0), encode.integer(SLOTS - 1)])),
            (encode.bulk(b"nodes"), encode.array([node])),
        ],
        client.proto,
    )
    return encode.array([shard])


def nodes(ctx: ServeContext, client: ClientLike, args: list[bytes]) -> bytes:
    """CLUSTER NODES: one line. The bus port is 0: there is no bus to speak to."""
    host, port = endpoint_of(client.local_address, ctx.unix_endpoint)
    line = f"{node_id(ctx)} {host}:{port}@0 myself,master - 0 0 {_epoch(ctx)} connected 0-{SLOTS - 1}\n"
    return encode.verbatim(line.encode(), "txt", client.proto)


def myid(ctx: ServeContext, client: ClientLike, args: list[bytes]) -> bytes:
    """CLUSTER MYID."""
    return encode.bulk(node_id(ctx).encode())


def myshardid(ctx: ServeContext, client: ClientLike, args: list[bytes]) -> bytes:
    """CLUSTER MYSHARDID, of servers that have it."""
    if b"cluster|myshardid" not in ctx.rows:
        return errors.unknown_subcommand(args[0], args[1])
    shard = node_id(ctx)
    return encode.bulk((shard[20:] + shard[:20]).encode())


def links(ctx: ServeContext, client: ClientLike, args: list[bytes]) -> bytes:
    """CLUSTER LINKS: there is nobody to be linked to."""
    return encode.array([])


def getslotmigrations(ctx: ServeContext, client: ClientLike, args: list[bytes]) -> bytes:
    """CLUSTER GETSLOTMIGRATIONS, of servers that have it: the one node keeps its slots."""
    if b"cluster|getslotmigrations" not in ctx.rows:
        return errors.unknown_subcommand(args[0], args[1])
    return encode.array([])


def replicas(ctx: ServeContext, client: ClientLike, args: list[bytes]) -> bytes:
    """CLUSTER REPLICAS and SLAVES node-id: the one node has none."""
    return encode.array([]) if args[2] == node_id(ctx).encode() else errors.unknown_node(args[2])


def count_failure_reports(ctx: ServeContext, client: ClientLike, args: list[bytes]) -> bytes:
    """CLUSTER COUNT-FAILURE-REPORTS node-id: nobody reports the one node."""
    return encode.integer(0) if args[2] == node_id(ctx).encode() else errors.unknown_node(args[2])


def keyslot(ctx: ServeContext, client: ClientLike, args: list[bytes]) -> bytes:
    """CLUSTER KEYSLOT key."""
    return encode.integer(slot_of(args[2]))


def help_(ctx: ServeContext, client: ClientLike, args: list[bytes]) -> bytes:
    """CLUSTER HELP: what is served here."""
    return encode.array([encode.simple(line) for line in HELP])


COMMANDS: Commands = {
    b"cluster|count-failure-reports": (3, count_failure_reports),
    b"cluster|getslotmigrations": (2, getslotmigrations),
    b"cluster|help": (2, help_),
    b"cluster|info": (2, info),
    b"cluster|keyslot": (3, keyslot),
    b"cluster|links": (2, links),
    b"cluster|myid": (2, myid),
    b"cluster|myshardid": (2, myshardid),
    b"cluster|nodes": (2, nodes),
    b"cluster|replicas": (3, replicas),
    b"cluster|shards": (2, shards),
    b"cluster|slaves": (3, replicas),
    b"cluster|slots": (2, slots),
}
