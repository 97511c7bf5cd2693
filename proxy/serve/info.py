"""INFO, as the document of one plain server that the cluster and the proxy are together.

Why: clients start by reading it. Spring's health check wants redis_version, ioredis waits for a server that is not
loading (redis/ioredis#780), cluster-aware libraries look at cluster_enabled, monitoring reads all of it.
Called through serve.table.

| section | whose figures |
|---|---|
| Server | the proxy's; redis_version, server_name, valkey_version: the servers'. Asks nobody |
| Clients | the proxy's. Asks nobody |
| Memory, Persistence, CPU | the primaries', merged (serve.info_merge); proxy_*: the proxy's own |
| Stats | the primaries', merged, but for total_connections_received and rejected_connections: the proxy's |
| Replication | a standalone primary's, the primaries' offsets and backlogs added up; the id is the proxy's run_id |
| Modules, Errorstats, Keyspace, Commandstats, Latencystats | the primaries', merged |
| Cluster | cluster_enabled:0. Asks nobody |
| Proxy | the proxy's; proxy_nodes_missing: nodes that did not answer, when they were asked for another section |
| Nodes | a line for each: its place and this worker's connections; used_memory, keys and ops_per_sec as it tells them |

The proxy's own commands, bytes and CPU time, which Redis's names now have for the primaries, are in Proxy and CPU under
names that begin with `proxy_`.

Invariants: a figure nobody knows is left out, never made up, and totals that lack a primary say so
(proxy_primaries_missing in Memory, Stats and Proxy); resident memory, CPU and connections of the proxy are those of the
worker that answers; sections come in one fixed order whatever order they were asked in, each at most once (Redis's
genRedisInfoString); an unknown section is no error; a client that repeats INFO, and has sent nothing else, within
FRESH_S may get the same document again; the answer comes within some two seconds, whatever the nodes do
(serve.node_infos).
"""

from __future__ import annotations

import os
import resource
import struct
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Final, NamedTuple

from proxy.forward.ask import Later
from proxy.resp import encode, errors
from proxy.serve import info_merge
from proxy.serve.cluster_view import endpoint_of
from proxy.serve.context import Answer, ClientLike, Commands, ServeContext
from proxy.serve.info_merge import Document, Fields, human
from proxy.serve.node_infos import Infos

Lines = Iterable[str]
# infos: what the nodes told; without any where nobody was asked
Section = Callable[[ServeContext, ClientLike, Infos], Lines]


class _Kind(NamedTuple):
    lines: Section
    asks: bool = False  # for what the nodes tell
    extra: bool = False  # not in plain INFO, and not in what the nodes tell for it


_DEFAULT: Final = b"default"
_ALL: Final = frozenset({b"all", b"everything"})
_NOBODY: Final = Infos([], True, 0.0)
# Worked out once. (platform.architecture() would start a program, each time.)
_UNAME = os.uname()
_OS = f"{_UNAME.sysname} {_UNAME.release} {_UNAME.machine}"
_ARCH_BITS = struct.calcsize("P") * 8
_PAGE_SIZE = os.sysconf("SC_PAGE_SIZE")
_SYSTEM_MEMORY = _PAGE_SIZE * os.sysconf("SC_PHYS_PAGES")
# Linux gives kilobytes, macOS bytes (getrusage(2)).
_MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024
# The proxy's own under Redis's names ...
_OWN_STATS = (
    "total_connections_received",
    "rejected_connections",
    "pubsub_channels",
    "pubsub_patterns",
    "pubsubshard_channels",
)
# ... and those for which Redis's names are the primaries'.
_OWN = {
    "total_commands_processed": "proxy_commands_processed",
    "instantaneous_ops_per_sec": "proxy_ops_per_sec",
    "total_net_input_bytes": "proxy_net_input_bytes",
    "total_net_output_bytes": "proxy_net_output_bytes",
}
# Of all clients together, which Redis has no name for: how much is held for them, and how much may be (0 = no limit).
_CLIENT_MEMORY = ("proxy_client_memory", "proxy_client_memory_max")


def info(ctx: ServeContext, client: ClientLike, args: list[bytes]) -> Answer:
    """INFO [section ...]: a bulk string, in RESP3 a verbatim one.

    None (not now) while the client has something under way that the figures are to tell of.
    """
    wanted = _wanted(args[1:])
    infos = ctx.infos
    if infos is None or not any(_SECTIONS[name].asks for name in wanted):
        return _reply(ctx, client, wanted, _NOBODY)
    if client.pending:
        return None
    whole = any(_SECTIONS[name].extra for name in wanted)
    known = infos.fresh(whole)
    if known is not None and known.served.get(client.id) == client.total_commands - 1:
        # It asks again and has sent nothing else meanwhile: it cannot tell whether anything has changed.
        known.served[client.id] = client.total_commands
        return _reply(ctx, client, wanted, known)
    later = Later()
    infos.wait(whole, client.proto, partial(_answer, ctx, client, wanted, client.total_commands, later))
    return later


def _answer(
    ctx: ServeContext, client: ClientLike, wanted: tuple[str, ...], sent: int, later: Later, infos: Infos
) -> None:
    """What the nodes tell is known."""
    infos.served[client.id] = sent
    reply = errors.INTERNAL
    try:
        reply = _reply(ctx, client, wanted, infos)
    finally:
        later.answer(reply)


def _reply(ctx: ServeContext, client: ClientLike, wanted: tuple[str, ...], infos: Infos) -> bytes:
    """Made once for all who ask for the same in one round, the proxy's own figures included."""
    key = (wanted, client.proto, client.reads, client.local_address)
    reply: bytes | None = infos.kept.get(key)
    if reply is None:
        reply = encode.verbatim(document(ctx, client, wanted, infos).encode(), "txt", client.proto)
        if infos is not _NOBODY:
            infos.kept[key] = reply
    return reply


def _wanted(words: Iterable[bytes]) -> tuple[str, ...]:
    """The names of the sections asked for (any case; no words = default), in their order."""
    asked = {word.lower() for word in words} or {_DEFAULT}
    everything, default = not asked.isdisjoint(_ALL), _DEFAULT in asked
    return tuple(
        name
        for name, kind in _SECTIONS.items()
        if everything or (default and not kind.extra) or name.lower().encode() in asked
    )


def document(ctx: ServeContext, client: ClientLike, wanted: Iterable[str], infos: Infos = _NOBODY) -> str:
    """The text of those sections; "" without any."""
    return "\r\n".join(
        "".join(f"{line}\r\n" for line in (f"# {name}", *_SECTIONS[name].lines(ctx, client, infos))) for name in wanted
    )


def _server(ctx: ServeContext, client: ClientLike, infos: Infos) -> Lines:
    now_s = time.time()
    uptime_s = max(0, int(now_s - ctx.started_s))
    yield f"redis_version:{ctx.server_version}"
    if ctx.valkey_version:
        yield f"server_name:{ctx.server_name}"
        yield f"valkey_version:{ctx.valkey_version}"
        # Valkey calls redis_mode so unless it is told to be compatible; here both names are given.
        yield "server_mode:standalone"
    yield "redis_mode:standalone"
    yield f"os:{_OS}"
    yield f"arch_bits:{_ARCH_BITS}"
    yield f"process_id:{ctx.process_id or os.getpid()}"
    yield f"run_id:{ctx.run_id}"
    yield f"tcp_port:{endpoint_of(client.local_address, None)[1]}"
    yield f"server_time_usec:{int(now_s * 1_000_000)}"
    yield f"uptime_in_seconds:{uptime_s}"
    yield f"uptime_in_days:{uptime_s // 86400}"


def _clients(ctx: ServeContext, client: ClientLike, infos: Infos) -> Lines:
    stats = ctx.stats()
    for name in ("connected_clients", "maxclients", "blocked_clients", "tracking_clients"):
        if name in stats:
            yield f"{name}:{stats[name]}"
    level, until_ns = ctx.paused()
    yield f"paused_reason:{'client_pause' if level else 'none'}"
    yield f"paused_actions:{('none', 'write', 'all')[level]}"
    left_ms = max(0, until_ns - time.monotonic_ns()) // 1_000_000 if level else 0
    yield f"paused_timeout_milliseconds:{left_ms}"


def _memory(ctx: ServeContext, client: ClientLike, infos: Infos) -> Lines:
    """Then this worker's resident memory, and what is held for the clients of the whole proxy."""
    yield from _lines(_of_primaries(infos, "memory"))
    figures = {}
    if (rss := _resident()) is not None:
        figures["proxy_used_memory_rss"] = rss
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _MAXRSS_UNIT
    figures["proxy_used_memory_rss_peak"] = max(peak, rss or 0)
    figures["proxy_total_system_memory"] = _SYSTEM_MEMORY
    stats = ctx.stats()
    figures |= {name: int(stats[name]) for name in _CLIENT_MEMORY if name in stats}
    for name, size in figures.items():
        yield f"{name}:{size}"
        yield f"{name}_human:{human(size)}"
    yield from _lacking(infos)


def _of_primaries(infos: Infos, section: str) -> Mapping[str, str]:
    """The merged fields of a section; made once for all who ask."""
    found: Fields | None = infos.kept.get(section)
    if found is None:
        make = _MERGED.get(section)
        found = make(infos.primaries) if make else info_merge.merged(infos.primaries, section)
        infos.kept[section] = found
    return found


def _lines(fields: Mapping[str, str]) -> Lines:
    return (f"{name}:{value}" for name, value in fields.items())


def _lacking(infos: Infos) -> Lines:
    """Totals that are not all say so."""
    return (f"proxy_primaries_missing:{infos.primaries_missing}",) if infos.primaries_missing else ()


def _resident() -> int | None:
    """Bytes of resident memory; None where there is no /proc."""
    try:
        with open("/proc/self/statm", encoding="ascii") as statm:
            return int(statm.read().split()[1]) * _PAGE_SIZE
    except OSError:
        return None


def _persistence(ctx: ServeContext, client: ClientLike, infos: Infos) -> Lines:
    return _lines(_of_primaries(infos, "persistence"))


def _stats(ctx: ServeContext, client: ClientLike, infos: Infos) -> Lines:
    stats = ctx.stats()
    own = {name: str(stats[name]) for name in _OWN_STATS if name in stats}
    theirs = {name: value for name, value in _of_primaries(infos, "stats").items() if name not in _OWN_STATS}
    yield from _lines(own | theirs)
    yield from _lacking(infos)


def _replication(ctx: ServeContext, client: ClientLike, infos: Infos) -> Lines:
    theirs = _of_primaries(infos, "replication")
    yield "role:master"
    yield "connected_slaves:0"
    yield "master_failover_state:no-failover"
    yield f"master_replid:{ctx.run_id}"
    yield f"master_replid2:{'0' * 40}"
    for name in ("master_repl_offset", "second_repl_offset", "repl_backlog_active", "repl_backlog_size"):
        if name in theirs:
            yield f"{name}:{theirs[name]}"
    if "repl_backlog_histlen" in theirs:
        yield "repl_backlog_first_byte_offset:0"
        yield f"repl_backlog_histlen:{theirs['repl_backlog_histlen']}"


def _cpu(ctx: ServeContext, client: ClientLike, infos: Infos) -> Lines:
    yield from _lines(_of_primaries(infos, "cpu"))
    usage = resource.getrusage(resource.RUSAGE_SELF)
    yield f"proxy_used_cpu_sys:{usage.ru_stime:.6f}"
    yield f"proxy_used_cpu_user:{usage.ru_utime:.6f}"


def _modules(ctx: ServeContext, client: ClientLike, infos: Infos) -> Lines:
    return info_merge.modules(infos.primaries)


def _commandstats(ctx: ServeContext, client: ClientLike, infos: Infos) -> Lines:
    return _lines(_of_primaries(infos, "commandstats"))


def _errorstats(ctx: ServeContext, client: ClientLike, infos: Infos) -> Lines:
    return _lines(_of_primaries(infos, "errorstats"))


def _latencystats(ctx: ServeContext, client: ClientLike, infos: Infos) -> Lines:
    return _lines(_of_primaries(infos, "latencystats"))


def _cluster(ctx: ServeContext, client: ClientLike, infos: Infos) -> Lines:
    return ("cluster_enabled:0",)


def _keyspace(ctx: ServeContext, client: ClientLike, infos: Infos) -> Lines:
    return _lines(_of_primaries(infos, "keyspace"))


def _proxy(ctx: ServeContext, client: ClientLike, infos: Infos) -> Lines:
    yield "proxy_name:redis-proxy"
    yield f"proxy_version:{ctx.proxy_version}"
    yield f"proxy_reads:{client.reads}"
    if ctx.shards is not None:
        if ctx.epoch >= 0:
            yield f"proxy_topology_epoch:{ctx.epoch}"
        yield f"proxy_shards:{ctx.shards}"
        yield f"proxy_slots_covered:{ctx.slots_covered}"
    if infos is not _NOBODY:
        yield f"proxy_nodes_missing:{infos.missing}"
        yield from _lacking(infos)
    stats = ctx.stats()
    for name, own in _OWN.items():
        if name in stats:
            yield f"{own}:{stats[name]}"
    for name, value in stats.items():
        if name.startswith("proxy_") and name not in _CLIENT_MEMORY:
            yield f"{name}:{value}"


def _nodes(ctx: ServeContext, client: ClientLike, infos: Infos) -> Lines:
    told = {node.label: node.document for node in infos.nodes}
    for n, node in enumerate(ctx.nodes()):
        state = "up" if node.up else "down"
        line = (
            f"node{n}:addr={node.address},role={node.role},state={state},"
            f"connections={node.connections},pending={node.pending}"
        )
        if node.address in told:
            line += _told(told[node.address])
        yield line


def _told(document: Document | None) -> str:
    """The essentials of what a node tells."""
    if document is None:
        return ",missing=1"
    figures = {
        "used_memory": info_merge.fields(document, "memory").get("used_memory"),
        "keys": info_merge.keys_of(document),
        "ops_per_sec": info_merge.fields(document, "stats").get("instantaneous_ops_per_sec"),
    }
    return "".join(f",{name}={value}" for name, value in figures.items() if value is not None)


_MERGED: Final[dict[str, Callable[[list[Document]], Fields]]] = {
    "keyspace": info_merge.keyspace,
    "commandstats": info_merge.commandstats,
    "errorstats": info_merge.errorstats,
    "latencystats": info_merge.latencystats,
}

# In Redis's order (server.c, genRedisInfoString).
_SECTIONS: Final[dict[str, _Kind]] = {
    "Server": _Kind(_server),
    "Clients": _Kind(_clients),
    "Memory": _Kind(_memory, asks=True),
    "Persistence": _Kind(_persistence, asks=True),
    "Stats": _Kind(_stats, asks=True),
    "Replication": _Kind(_replication, asks=True),
    "CPU": _Kind(_cpu, asks=True),
    "Modules": _Kind(_modules, asks=True),
    "Commandstats": _Kind(_commandstats, asks=True, extra=True),
    "Errorstats": _Kind(_errorstats, asks=True),
    "Latencystats": _Kind(_latencystats, asks=True, extra=True),
    "Cluster": _Kind(_cluster),
    "Keyspace": _Kind(_keyspace, asks=True),
    "Proxy": _Kind(_proxy),
    "Nodes": _Kind(_nodes, asks=True),
}

COMMANDS: Commands = {b"info": (-1, info)}
