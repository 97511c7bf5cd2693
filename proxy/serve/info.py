"""INFO, as the document of one plain server: the figures are the proxy's own, the version is the servers'.

Why: clients start by reading it. Spring's health check wants redis_version, ioredis waits for a server that is not
loading (redis/ioredis#780), cluster-aware libraries look at cluster_enabled.
Called through serve.table.

Invariants: the figures are those of the whole proxy, but for resident memory, CPU and the nodes' connections, which are
those of the worker that answers; a figure the proxy does not know is left out, never made up; sections come in one
fixed order whatever order they were asked in, each at most once (Redis's genRedisInfoString); an unknown section is no
error.
"""

from __future__ import annotations

import os
import resource
import struct
import sys
import time
from collections.abc import Callable, Iterable

from proxy.resp import encode
from proxy.serve.cluster_view import endpoint_of
from proxy.serve.context import ClientLike, Commands, ServeContext

Lines = Iterable[str]
Section = Callable[[ServeContext, ClientLike], Lines]

_EVERYTHING = frozenset({b"default", b"all", b"everything"})
# Worked out once. (platform.architecture() would start a program, each time.)
_UNAME = os.uname()
_OS = f"{_UNAME.sysname} {_UNAME.release} {_UNAME.machine}"
_ARCH_BITS = struct.calcsize("P") * 8
_PAGE_SIZE = os.sysconf("SC_PAGE_SIZE")
_SYSTEM_MEMORY = _PAGE_SIZE * os.sysconf("SC_PHYS_PAGES")
# Linux gives kilobytes, macOS bytes (getrusage(2)).
_MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024
_STATS = (
    "total_connections_received",
    "total_commands_processed",
    "instantaneous_ops_per_sec",
    "total_net_input_bytes",
    "total_net_output_bytes",
    "rejected_connections",
)
# Of all clients together, which Redis has no name for: how much is held for them, and how much may be (0 = no limit).
_CLIENT_MEMORY = ("proxy_client_memory", "proxy_client_memory_max")


def info(ctx: ServeContext, client: ClientLike, args: list[bytes]) -> bytes:
    """INFO [section ...]: a bulk string, in RESP3 a verbatim one."""
    return encode.verbatim(document(ctx, client, args[1:]).encode(), "txt", client.proto)


def document(ctx: ServeContext, client: ClientLike, sections: Iterable[bytes]) -> str:
    """The text of the sections asked for (any case; none = default); "" when none of them is known."""
    wanted = {section.lower() for section in sections} or _EVERYTHING
    whole = not wanted.isdisjoint(_EVERYTHING)
    return "\r\n".join(
        "".join(f"{line}\r\n" for line in (f"# {name}", *lines(ctx, client)))
        for name, lines in _SECTIONS.items()
        if whole or name.lower().encode() in wanted
    )


def human(size: int) -> str:
    """A size in bytes the way INFO's *_human fields spell it (Redis's bytesToHuman)."""
    if size < 1024:
        return f"{size}B"
    power = min((size.bit_length() - 1) // 10, 5)
    return f"{size / 1024**power:.2f}{'KMGTP'[power - 1]}"


def _server(ctx: ServeContext, client: ClientLike) -> Lines:
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


def _clients(ctx: ServeContext, client: ClientLike) -> Lines:
    stats = ctx.stats()
    return (f"{name}:{stats[name]}" for name in ("connected_clients", "maxclients", "blocked_clients") if name in stats)


def _memory(ctx: ServeContext, client: ClientLike) -> Lines:
    """This worker's resident memory; used_memory repeats it, for the tools that read nothing else.

    Then what is held for the clients of the whole proxy.
    """
    figures = {}
    if (rss := _resident()) is not None:
        figures["used_memory"] = figures["used_memory_rss"] = rss
    figures["used_memory_peak"] = max(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _MAXRSS_UNIT, rss or 0)
    figures["total_system_memory"] = _SYSTEM_MEMORY
    stats = ctx.stats()
    figures |= {name: int(stats[name]) for name in _CLIENT_MEMORY if name in stats}
    for name, size in figures.items():
        yield f"{name}:{size}"
        yield f"{name}_human:{human(size)}"


def _resident() -> int | None:
    """Bytes of resident memory; None where there is no /proc."""
    try:
        with open("/proc/self/statm", encoding="ascii") as statm:
            return int(statm.read().split()[1]) * _PAGE_SIZE
    except OSError:
        return None


def _stats(ctx: ServeContext, client: ClientLike) -> Lines:
    stats = ctx.stats()
    return (f"{name}:{stats[name]}" for name in _STATS if name in stats)


def _replication(ctx: ServeContext, client: ClientLike) -> Lines:
    return ("role:master", "connected_slaves:0")


def _cpu(ctx: ServeContext, client: ClientLike) -> Lines:
    for suffix, who in (("", resource.RUSAGE_SELF), ("_children", resource.RUSAGE_CHILDREN)):
        usage = resource.getrusage(who)
        yield f"used_cpu_sys{suffix}:{usage.ru_stime:.6f}"
        yield f"used_cpu_user{suffix}:{usage.ru_utime:.6f}"


def _cluster(ctx: ServeContext, client: ClientLike) -> Lines:
    return ("cluster_enabled:0",)


def _keyspace(ctx: ServeContext, client: ClientLike) -> Lines:
    return ()


def _proxy(ctx: ServeContext, client: ClientLike) -> Lines:
    yield "proxy_name:redis-proxy"
    yield f"proxy_version:{ctx.proxy_version}"
    yield f"proxy_reads:{client.reads}"
    if ctx.shards is not None:
        if ctx.epoch >= 0:
            yield f"proxy_topology_epoch:{ctx.epoch}"
        yield f"proxy_shards:{ctx.shards}"
        yield f"proxy_slots_covered:{ctx.slots_covered}"
    for name, value in ctx.stats().items():
        if name.startswith("proxy_") and name not in _CLIENT_MEMORY:
            yield f"{name}:{value}"


def _nodes(ctx: ServeContext, client: ClientLike) -> Lines:
    for n, node in enumerate(ctx.nodes()):
        state = "up" if node.up else "down"
        yield (
            f"node{n}:addr={node.address},role={node.role},state={state},"
            f"connections={node.connections},pending={node.pending}"
        )


_SECTIONS: dict[str, Section] = {
    "Server": _server,
    "Clients": _clients,
    "Memory": _memory,
    "Stats": _stats,
    "Replication": _replication,
    "CPU": _cpu,
    "Cluster": _cluster,
    "Keyspace": _keyspace,
    "Proxy": _proxy,
    "Nodes": _nodes,
}

COMMANDS: Commands = {b"info": (-1, info)}
