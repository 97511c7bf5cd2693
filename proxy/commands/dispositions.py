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

from collections.abc import Collection
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
    REFUSED = 7  # -ERR command 'x' is not allowed through this proxy
    UNSERVED = 8  # not served yet: a clear error
    TRANSACTION = 9  # MULTI, EXEC, DISCARD, WATCH, UNWATCH


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


_ANY, _FORWARD, _LOCAL = CommandClass.ANY, CommandClass.FORWARD, CommandClass.LOCAL
_REFUSED, _UNSERVED = CommandClass.REFUSED, CommandClass.UNSERVED
_TRANSACTION = CommandClass.TRANSACTION

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
    "info": _LOCAL,
    "time": _LOCAL,
    "cluster": _LOCAL,
    # Admin by flag, but redis-benchmark and frameworks begin with it. A server's answer without its passwords.
    "config|get": _LOCAL,

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
    "cluster|countkeysinslot": _UNSERVED,
    "cluster|getkeysinslot": _UNSERVED,

    # The same on every server.
    "command": _ANY,
    "lolwut": _ANY,
    "module|list": _ANY,                    # admin by flag; RedisInsight sends it
    "acl|cat": _ANY,
    "acl|genpass": _ANY,
    "publish": _ANY,                        # the cluster's bus spreads it
    "spublish": _FORWARD,                   # by the channel's slot; pubsub by flag, but changes no state

    # Keys are declared; without any they run anywhere (noscript by flag).
    "eval": _FORWARD,
    "evalsha": _FORWARD,
    "eval_ro": _FORWARD,
    "evalsha_ro": _FORWARD,
    "fcall": _FORWARD,
    "fcall_ro": _FORWARD,

    # Blocking by flag; they wait only with BLOCK, which each call is checked for.
    "xread": _FORWARD,
    "xreadgroup": _FORWARD,

    # Transactions: state of a connection.
    "multi": _TRANSACTION,
    "exec": _TRANSACTION,
    "discard": _TRANSACTION,
    "watch": _TRANSACTION,
    "unwatch": _TRANSACTION,

    # Subscriptions: state of a connection; PUBSUB would tell of one server's subscribers only.
    "subscribe": _UNSERVED,
    "psubscribe": _UNSERVED,
    "ssubscribe": _UNSERVED,
    "unsubscribe": _UNSERVED,
    "punsubscribe": _UNSERVED,
    "sunsubscribe": _UNSERVED,
    "pubsub": _UNSERVED,
    "monitor": _UNSERVED,

    # Blocking; named because servers before 7 do not flag it.
    "blpop": _UNSERVED,
    "brpop": _UNSERVED,
    "brpoplpush": _UNSERVED,
    "blmove": _UNSERVED,
    "blmpop": _UNSERVED,
    "bzpopmin": _UNSERVED,
    "bzpopmax": _UNSERVED,
    "bzmpop": _UNSERVED,
    "wait": _UNSERVED,
    "waitaof": _UNSERVED,

    # One server's answer would be only a part of the answer.
    "scan": _UNSERVED,
    "clusterscan": _UNSERVED,               # Valkey 9.1; its cursor names slots of the real cluster
    "keys": _UNSERVED,
    "dbsize": _UNSERVED,
    "flushall": _UNSERVED,
    "flushdb": _UNSERVED,
    "sflush": _UNSERVED,                    # Redis 8
    "randomkey": _UNSERVED,
    "script": _UNSERVED,
    "function": _UNSERVED,
    "config": _UNSERVED,
    "slowlog": _UNSERVED,
    "commandlog": _UNSERVED,                # Valkey 8.1, SLOWLOG's successor
    "latency": _UNSERVED,
    "memory|doctor": _UNSERVED,
    "memory|malloc-stats": _UNSERVED,
    "memory|purge": _UNSERVED,
    "memory|stats": _UNSERVED,

    # These concern one server only.
    "lastsave": _UNSERVED,
    "role": _UNSERVED,
    "acl|whoami": _UNSERVED,                # would name the proxy's user
    "acl|dryrun": _UNSERVED,
    "acl|getuser": _UNSERVED,
    "acl|list": _UNSERVED,
    "acl|log": _UNSERVED,
    "acl|users": _UNSERVED,

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

# They run code that a client wrote, and their reply is what that code returns, error lines included.
_SCRIPTS: Final = frozenset({"eval", "evalsha", "eval_ro", "evalsha_ro", "fcall", "fcall_ro"})
# Containers with refused subcommands that old servers list without their subcommands: unless the subcommands are known
# one by one (the built-in table has them), the whole container is refused.
_REFUSED_UNDIVIDED: Final = frozenset({"acl", "module"})
# They turn a connection into a replication link: allowed or not, never on a shared connection.
_REPLICATION_LINK: Final = frozenset({"sync", "psync", "replconf", "cluster|syncslots"})
# With these policies, one server's answer is not the whole answer.
_FANNED_OUT: Final = frozenset({"all_shards", "all_nodes", "special"})


def allowed_names(allow: Collection[str]) -> frozenset[str]:
    """The configured names ("debug", "CLUSTER FAILOVER", "acl|setuser") as the full names of rows."""
    return frozenset("|".join(name.lower().replace("|", " ").split()) for name in allow)


def classify(row: Row, allowed: Collection[str] = ()) -> CommandClass:
    """The class of a command or subcommand; `allowed`: full names; a container's allows all its subcommands."""
    container, divided, sub = row.name.partition("|")
    lifted = row.name in allowed or container in allowed
    named = DISPOSITIONS.get(row.name)
    if named is None and divided:
        named = _by_container(row, container, sub)
    elif row.subcommands:
        # The container's own row is used for a subcommand that no server knows: the server words the error best.
        named = named if named in (_LOCAL, _REFUSED) else _ANY
    elif row.name in _REFUSED_UNDIVIDED:
        named = _REFUSED
    if named is None:
        named = _by_facts(row)
    if named is _REFUSED and lifted:
        if row.name in _REPLICATION_LINK:
            return _UNSERVED
        return _FORWARD if row.keyed else _ANY
    return named


def _by_container(row: Row, container: str, sub: str) -> CommandClass | None:
    of_container = DISPOSITIONS.get(container)
    if container == "cluster":
        # A subcommand newer than the list above: the servers say whether it changes something.
        return _REFUSED if {"admin", "write"} & set(row.flags) else _LOCAL
    if of_container is _UNSERVED and sub == "help":
        return _ANY
    return of_container


def _by_facts(row: Row) -> CommandClass:
    """The class of a command that is not listed here (a module's, or one newer than the list): the safest that fits."""
    flags = set(row.flags)
    if "blocking" in flags or "pubsub" in flags or {"noscript", "no_multi"} <= flags:
        return _UNSERVED
    if row.keyed:
        return _FORWARD
    if "admin" in flags:
        return _REFUSED
    return _UNSERVED if row.request_policy in _FANNED_OUT else _ANY


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
    return flags
