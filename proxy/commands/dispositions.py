"""What the proxy does with each command: its class, and why.

A server's COMMAND says what a command is (`rows`). What the proxy does with it is decided here: by name where the name
needs a decision of its own, otherwise by what the server says of it. Called by `lookup.CommandTable`, once for each
row. Invariant: no command that changes the state of a connection, or that blocks it, is ever classed as forwarded,
whether it is named here or not. The exceptions are XREAD and XREADGROUP: the data path looks for their BLOCK argument.

Names are lower case, a subcommand's is the full one (`config|get`). A container that is named here means all its
subcommands that are not named themselves. Source of the decisions: the product's COMMANDS document, and what is
served so far.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from enum import IntEnum, IntFlag
from typing import Final

from proxy.commands.rows import Row


class CommandClass(IntEnum):
    """What the data path does with a command; the numbers are those of `CommandClass` in lookup.pxd."""

    FORWARD = 0  # by the slot of its keys; without keys in this call: any primary
    ANY = 1  # keyless, any primary answers for all
    PING = 2  # answered in the data path
    LOCAL = 3  # answered by proxy.serve
    SPLIT_MGET = 4
    SPLIT_MSET = 5
    SPLIT_SUM = 6
    REFUSED = 7  # -ERR command 'x' is not allowed through this proxy: by its nature, or as configured
    UNSERVED = 8  # not served yet: a clear error
    TRANSACTION = 9  # MULTI, EXEC, DISCARD, WATCH, UNWATCH
    BLOCKING = 10  # on a leased connection, which it blocks; keyless: WAIT, WAITAOF
    PUBLISH = 11  # as ANY, to the node that subscribers hear from
    SCRIPT = 12  # as FORWARD; without keys in this call, where its script's slot is


class CommandFlag(IntFlag):
    """Facts about a command; the numbers are those of the CMD_ flags in lookup.pxd."""

    WRITE = 1
    READONLY = 2
    BLOCKING = 4
    NO_AUTH = 8
    KNOWN = 16
    KEYLESS = 32
    SCRIPT = 64
    NO_MULTI = 128
    MAY_REPLICATE = 256
    NO_MONITOR = 512
    SUBSCRIBED = 1024


_ANY, _FORWARD, _LOCAL = CommandClass.ANY, CommandClass.FORWARD, CommandClass.LOCAL
_REFUSED, _UNSERVED = CommandClass.REFUSED, CommandClass.UNSERVED
_TRANSACTION, _BLOCKING = CommandClass.TRANSACTION, CommandClass.BLOCKING

# fmt: off
DISPOSITIONS: Final[dict[str, CommandClass]] = {
    "ping": CommandClass.PING,              # needs nothing but the client's own state

    # Split by slot, one part for each; one answer can be made of the parts' answers without loss.
    "mget": CommandClass.SPLIT_MGET,
    "mset": CommandClass.SPLIT_MSET,
    "del": CommandClass.SPLIT_SUM,
    "unlink": CommandClass.SPLIT_SUM,
    "exists": CommandClass.SPLIT_SUM,
    "touch": CommandClass.SPLIT_SUM,

    # About this proxy's own client or its one virtual node: a server would answer for the shared connection.
    "echo": _LOCAL,
    "quit": _LOCAL,
    "reset": _LOCAL,
    "hello": _LOCAL,
    "auth": _LOCAL,
    "select": _LOCAL,
    "readonly": _LOCAL,
    "readwrite": _LOCAL,
    "asking": _LOCAL,                       # alone it would apply to the next command of another client
    "client": _LOCAL,
    "monitor": _LOCAL,                      # admin by flag; what passes through the proxy
    "info": _LOCAL,
    "role": _LOCAL,
    "lastsave": _LOCAL,
    "command": _LOCAL,                      # a server's answers, without what is refused here
    "acl|whoami": _LOCAL,                   # the users are the proxy's: it has one, `default`
    "acl|dryrun": _LOCAL,
    "acl|getuser": _LOCAL,
    "acl|list": _LOCAL,
    "acl|log": _LOCAL,
    "acl|users": _LOCAL,
    "time": _LOCAL,
    "cluster": _LOCAL,
    "scan": _LOCAL,                         # over all primaries behind one cursor

    # CLUSTER: what changes the servers' cluster is not for clients ...
    "cluster|addslots": _REFUSED,
    "cluster|addslotsrange": _REFUSED,
    "cluster|bumpepoch": _REFUSED,
    "cluster|cancelslotmigrations": _REFUSED,
    "cluster|delslots": _REFUSED,
    "cluster|delslotsrange": _REFUSED,
    "cluster|failover": _REFUSED,
    "cluster|flushslot": _REFUSED,
    "cluster|flushslots": _REFUSED,
    "cluster|forget": _REFUSED,
    "cluster|meet": _REFUSED,
    "cluster|migrateslots": _REFUSED,
    "cluster|migration": _REFUSED,          # Redis 8.4
    "cluster|replicate": _REFUSED,
    "cluster|reset": _REFUSED,
    "cluster|saveconfig": _REFUSED,
    "cluster|set-config-epoch": _REFUSED,
    "cluster|setslot": _REFUSED,
    "cluster|syncslots": _REFUSED,          # would turn the connection into a replication link
    # ... what only reads is answered for the virtual node, possibly with an error ...
    "cluster|count-failure-reports": _LOCAL,
    "cluster|getslotmigrations": _LOCAL,
    "cluster|replicas": _LOCAL,
    "cluster|slaves": _LOCAL,
    "cluster|slot-stats": _LOCAL,
    # ... and these are asked of the slot's owner.
    "cluster|countkeysinslot": _LOCAL,
    "cluster|getkeysinslot": _LOCAL,

    # The proxy's own: see OWN_ROWS.
    "proxy": _LOCAL,

    # The same on every server.
    "lolwut": _ANY,
    "module|list": _ANY,                    # admin by flag; RedisInsight sends it
    "acl|cat": _ANY,
    "acl|genpass": _ANY,
    "publish": CommandClass.PUBLISH,        # the cluster's bus spreads it
    "spublish": _FORWARD,                   # by the channel's slot; pubsub by flag, but changes no state

    # Keys are declared; without any they run anywhere (noscript by flag).
    "eval": CommandClass.SCRIPT,
    "evalsha": CommandClass.SCRIPT,
    "eval_ro": CommandClass.SCRIPT,
    "evalsha_ro": CommandClass.SCRIPT,
    "fcall": CommandClass.SCRIPT,
    "fcall_ro": CommandClass.SCRIPT,

    # Blocking by flag; they wait only with BLOCK, which each call is checked for.
    "xread": _FORWARD,
    "xreadgroup": _FORWARD,

    # Transactions: state of a connection.
    "multi": _TRANSACTION,
    "exec": _TRANSACTION,
    "discard": _TRANSACTION,
    "watch": _TRANSACTION,
    "unwatch": _TRANSACTION,

    # Subscriptions: state of a connection, the client's own.
    "subscribe": _LOCAL,
    "psubscribe": _LOCAL,
    "ssubscribe": _LOCAL,
    "unsubscribe": _LOCAL,
    "punsubscribe": _LOCAL,
    "sunsubscribe": _LOCAL,

    # Blocking; named because servers before 7 do not flag it.
    "blpop": _BLOCKING,
    "brpop": _BLOCKING,
    "brpoplpush": _BLOCKING,
    "blmove": _BLOCKING,
    "blmpop": _BLOCKING,
    "bzpopmin": _BLOCKING,
    "bzpopmax": _BLOCKING,
    "bzmpop": _BLOCKING,
    "wait": _BLOCKING,
    "waitaof": _BLOCKING,

    # One server's answer would be only a part of the answer ...
    "clusterscan": _UNSERVED,               # Valkey 9.1; its cursor names slots of the real cluster
    # ... so several are asked (serve.all_shards). Some are admin by flag, but tools begin with them.
    "keys": _LOCAL,
    "dbsize": _LOCAL,
    "flushall": _LOCAL,
    "flushdb": _LOCAL,
    "sflush": _LOCAL,                       # Redis 8
    "randomkey": _LOCAL,
    "script": _LOCAL,
    "function": _LOCAL,
    "config": _LOCAL,                       # GET: a server's answer without its passwords
    "slowlog": _LOCAL,
    "commandlog": _LOCAL,                   # Valkey 8.1, SLOWLOG's successor
    "latency": _LOCAL,
    "memory|doctor": _LOCAL,
    "memory|malloc-stats": _LOCAL,
    "memory|purge": _LOCAL,
    "memory|stats": _LOCAL,
    "pubsub": _LOCAL,

    # These concern one server only.

    # Not for clients unless the configuration allows it.
    "shutdown": _REFUSED,
    "debug": _REFUSED,                      # DEBUG SLEEP alone would stop everybody
    "replicaof": _REFUSED,
    "slaveof": _REFUSED,
    "sync": _REFUSED,
    "psync": _REFUSED,
    "replconf": _REFUSED,
    "failover": _REFUSED,
    "migrate": _REFUSED,
    "module|load": _REFUSED,
    "module|loadex": _REFUSED,
    "module|unload": _REFUSED,
    "save": _REFUSED,
    "bgsave": _REFUSED,
    "bgrewriteaof": _REFUSED,
    "swapdb": _REFUSED,
    "move": _REFUSED,
    "acl|setuser": _REFUSED,
    "acl|deluser": _REFUSED,
    "acl|load": _REFUSED,
    "acl|save": _REFUSED,
    "pfselftest": _REFUSED,
    "restore-asking": _REFUSED,
}
# fmt: on

# Commands that no server has: beside theirs in the table of the data path, and nowhere else.
OWN_ROWS: Final = (Row("proxy", -2, ("admin", "noscript", "loading", "stale", "no_multi"), 0, 0, 0, specs=()),)

# They run code that a client wrote, and their reply is what that code returns, error lines included.
_SCRIPTS: Final = frozenset({"eval", "evalsha", "eval_ro", "evalsha_ro", "fcall", "fcall_ro"})
# No writes by flag, but replicated, or able to write: Redis's CMD_MAY_REPLICATE, which COMMAND does not show.
_MAY_REPLICATE: Final = frozenset({"eval", "evalsha", "fcall", "pfcount", "publish", "spublish"})
# What a RESP2 client may say while it has subscriptions (server.c, processCommand).
_SUBSCRIBED: Final = frozenset(
    {
        "ping",
        "subscribe",
        "psubscribe",
        "ssubscribe",
        "unsubscribe",
        "punsubscribe",
        "sunsubscribe",
        "quit",
        "reset",
    }
)
# Containers with refused subcommands that old servers list without their subcommands: unless the subcommands are known
# one by one (the built-in table has them), the whole container is refused.
_REFUSED_UNDIVIDED: Final = frozenset({"acl", "module"})
# They turn a connection into a replication link: allowed or not, never on a shared connection.
_REPLICATION_LINK: Final = frozenset({"sync", "psync", "replconf", "cluster|syncslots"})
# With these policies, one server's answer is not the whole answer.
_FANNED_OUT: Final = frozenset({"all_shards", "all_nodes", "multi_shard", "special"})
# Without such a tip, but one Redis would do it to all of its data or users.
_FANNED_OUT_IF_ALLOWED: Final = frozenset({"save", "bgsave", "bgrewriteaof", "swapdb", "acl|load"})
# Several nodes are asked by their subcommands, but nothing is decided here of one that is not known.
_FANNED_OUT_CONTAINERS: Final = frozenset(
    {"commandlog", "config", "function", "latency", "pubsub", "script", "slowlog"}
)


def full_names(names: Collection[str]) -> frozenset[str]:
    """The configured names ("debug", "CLUSTER FAILOVER", "acl|setuser", "@Admin") as rows have them, "@admin" so."""
    return frozenset("|".join(name.lower().replace("|", " ").split()) for name in names)


def is_listed(row: Row, names: Collection[str]) -> bool:
    """Whether a row is among the full names: by its own, its container's or that of a category (`@admin`, `@all`).

    A subcommand is in the categories that the servers give it, not in its container's.
    """
    if not names:
        return False
    if row.name in names or row.name.partition("|")[0] in names or "@all" in names:
        return True
    return any("@" + category in names for category in row.categories)


def unknown_names(names: Collection[str], rows: Iterable[Row]) -> list[str]:
    """Those configured names that mean none of the rows, as they were written."""
    known = {"@all"}
    for row in rows:
        for one in (row, *row.subcommands):
            known.add(one.name)
            known.update("@" + category for category in one.categories)
    return [name for name in names if not full_names([name]) <= known]


def classify(row: Row, allowed: Collection[str] = (), denied: Collection[str] = ()) -> CommandClass:
    """The class of a command or subcommand; allowed, denied: full names, see is_listed. Who is both is denied."""
    if is_listed(row, denied):
        return _REFUSED
    container, divided, sub = row.name.partition("|")
    lifted = is_listed(row, allowed)
    named = DISPOSITIONS.get(row.name)
    if named is None and divided:
        named = _by_container(row, container, sub)
    elif row.subcommands:
        # The container's own row is used for a subcommand that no server knows: the server words the error best.
        named = named if named in (_LOCAL, _REFUSED) and row.name not in _FANNED_OUT_CONTAINERS else _ANY
    elif row.name in _REFUSED_UNDIVIDED:
        named = _REFUSED
    if named is None:
        named = _by_facts(row)
    if named is _REFUSED and lifted:
        if row.name in _REPLICATION_LINK:
            return _UNSERVED
        return _FORWARD if row.keyed else _LOCAL if _fanned_out(row) else _ANY
    return named


def _fanned_out(row: Row) -> bool:
    """Whether serve.all_shards asks several nodes; row: keyless."""
    return row.request_policy in _FANNED_OUT or row.name in _FANNED_OUT_IF_ALLOWED


def _by_container(row: Row, container: str, sub: str) -> CommandClass | None:
    of_container = DISPOSITIONS.get(container)
    if container == "cluster":
        # A subcommand newer than the list above: the servers say whether it changes something.
        return _REFUSED if {"admin", "write"} & set(row.flags) else _LOCAL
    if sub == "help" and (of_container is _UNSERVED or container in _FANNED_OUT_CONTAINERS):
        return _ANY
    return of_container


def _by_facts(row: Row) -> CommandClass:
    """The class of a command that is not listed here (a module's, or one newer than the list): the safest that fits."""
    flags = set(row.flags)
    if "blocking" in flags and "pubsub" not in flags and row.keyed:
        return _BLOCKING
    if "blocking" in flags or "pubsub" in flags or {"noscript", "no_multi"} <= flags:
        return _UNSERVED
    if row.keyed:
        return _FORWARD
    if "admin" in flags:
        return _REFUSED
    return _LOCAL if _fanned_out(row) else _ANY


def command_flags(row: Row) -> CommandFlag:
    """The CMD_ flags of a command or subcommand the server knows.

    Only the server's own `readonly` makes a read: GETEX, SORT or GEORADIUS look like reads and are not.
    """
    flags = CommandFlag.KNOWN
    if "readonly" in row.flags:
        flags |= CommandFlag.READONLY
    elif row.keyed or "write" in row.flags:
        flags |= CommandFlag.WRITE
    if "blocking" in row.flags or row.name in ("xread", "xreadgroup"):
        flags |= CommandFlag.BLOCKING
    if "no_auth" in row.flags:
        flags |= CommandFlag.NO_AUTH
    if not row.keyed:
        flags |= CommandFlag.KEYLESS
    if "no_multi" in row.flags:
        flags |= CommandFlag.NO_MULTI
    if row.name in _SCRIPTS:
        flags |= CommandFlag.SCRIPT
    if "write" in row.flags or row.name in _MAY_REPLICATE:
        flags |= CommandFlag.MAY_REPLICATE
    if "admin" in row.flags:
        flags |= CommandFlag.NO_MONITOR
    if row.name in _SUBSCRIBED:
        flags |= CommandFlag.SUBSCRIBED
    return flags
