"""What is not compared, and what may differ between one server and the proxy, each with its reason.

Called by: sequences (EXCLUDED) and play (verdict). Everything that is not named here is equal byte for byte.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from enum import Enum
from fnmatch import fnmatchcase

from tests.differential.frames import Value, parse

# Commands that are not generated. A container's name means all its subcommands.
EXCLUDED: dict[str, str] = {
    **dict.fromkeys(
        [
            "wait",
            "waitaof",
            "client|unblock",
        ],
        "counts replicas, or names a client",
    ),
    **dict.fromkeys(
        [
            "subscribe",
            "psubscribe",
            "ssubscribe",
            "unsubscribe",
            "punsubscribe",
            "sunsubscribe",
            "publish",
            "spublish",
            "pubsub",
            "monitor",
        ],
        "pushes: compared by tests of the hub",
    ),
    **dict.fromkeys(
        ["client|tracking", "client|caching", "client|trackinginfo", "client|getredir"],
        "tracking: has tests of its own",
    ),
    **dict.fromkeys(
        [
            "shutdown",
            "debug",
            "replicaof",
            "slaveof",
            "sync",
            "psync",
            "replconf",
            "failover",
            "migrate",
            "module|load",
            "module|loadex",
            "module|unload",
            "save",
            "bgsave",
            "bgrewriteaof",
            "swapdb",
            "move",
            "acl|setuser",
            "acl|deluser",
            "acl|load",
            "acl|save",
            "pfselftest",
            "restore-asking",
            "pfdebug",
        ],
        "refused by default",
    ),
    "cluster": "one server without cluster mode has no such view",
    "clusterscan": "one server without cluster mode has none",
    "readonly": "a server without cluster mode refuses it",
    "readwrite": "a server without cluster mode refuses it",
    "asking": "a server without cluster mode refuses it",
    "role": "the cluster's nodes have replicas",
    "info": "the document of a cluster; has tests of its own",
    "spop": "random, and what follows depends on it",
    "client|pause": "stops other connections of this test",
    "client|kill": "closes connections of this test's own; has tests of its own",
    "client|list": "shows the connections of everybody; has tests of its own",
    "client|no-evict": "admin by default only",
    "client|import-source": "for whom replicates",
    "client|capa": "changes what redirections look like",
    "config|set": "changes the server for all that follows",
    "config|rewrite": "there is no file",
    "config|get": "shows settings that differ in cluster mode; has tests of its own",
    "slowlog": "depends on time",
    "commandlog": "depends on time",
    "latency": "depends on time",
    "memory|stats": "depends on the process",
    "memory|doctor": "depends on the process",
    "memory|malloc-stats": "depends on the process",
    "memory|purge": "depends on the process",
    "acl|log": "shows the connections of everybody",
    "acl|genpass": "random",
    "lastsave": "the time of the start",
    "script|debug": "changes the connection into a debugger's",
    "script|kill": "kills what others run",
    "function|kill": "kills what others run",
    "function|dump": "a payload in an order of its own",
    "function|restore": "as function|dump; has tests of its own",
    "hotkeys": "depends on time",
}

Same = Callable[[Value, Value, list[bytes]], bool]  # the server's reply, the proxy's, and the command


def kinds(one: Value, other: Value, words: Sequence[bytes] = ()) -> bool:
    """Replies of the same type, errors apart."""
    return one.kind == other.kind != "-" and (one.body is None) == (other.body is None)


def lengths(one: Value, other: Value, words: Sequence[bytes] = ()) -> bool:
    """Of the same type, and with as many items."""
    return kinds(one, other) and len(one.items) == len(other.items)


def multisets(one: Value, other: Value, words: Sequence[bytes] = ()) -> bool:
    """The same items in any order, at any depth."""
    return kinds(one, other) and _sorted(one) == _sorted(other)


def subset(one: Value, other: Value, words: Sequence[bytes] = ()) -> bool:
    """The same texts in any order, or some of them: counted, not where they stand."""
    return kinds(one, other) and _leaves(other) <= _leaves(one)


def pairs(one: Value, other: Value, words: Sequence[bytes] = ()) -> bool:
    """The same keys with the same values in any order: of a map, or of a flat array."""
    if not lengths(one, other) or len(one.items) % 2:
        return False
    return _pairs(one) == _pairs(other)


def truths(one: Value, other: Value, words: Sequence[bytes] = ()) -> bool:
    """As many of 0 and 1, and 1 only where the server says so, too."""
    if not lengths(one, other):
        return False
    return all(theirs.text == b"0" or theirs == mine for mine, theirs in zip(one.items, other.items, strict=True))


def cursors(one: Value, other: Value, words: list[bytes]) -> bool:
    """A page of an iteration: the same one when it is all, else any."""
    if words[2:3] != [b"0"]:
        return kinds(one, other)
    if not (kinds(one, other) and len(one.items) == len(other.items) == 2):
        return False
    if one.items[0].text == other.items[0].text == b"0":
        return multisets(one.items[1], other.items[1], words)
    return one.items[0].kind == other.items[0].kind and one.items[1].kind == other.items[1].kind


def times(one: Value, other: Value, words: Sequence[bytes] = ()) -> bool:
    """Equal but for integers (also those in a bulk's text) up to 20,000 apart: milliseconds, or fewer seconds."""
    if one.kind != other.kind or one.kind == "-":
        return False
    if isinstance(one.body, tuple) and isinstance(other.body, tuple):
        return len(one.body) == len(other.body) and all(map(times, one.body, other.body))
    if one.kind == ":":
        return abs(int(one.text) - int(other.text)) <= 20_000 and (int(one.text) < 0) == (int(other.text) < 0)
    return one.body == other.body


def hello(one: Value, other: Value, words: Sequence[bytes] = ()) -> bool:
    """The same fields with the same values, but for the connection's number and what the proxy says it is.

    With AUTH another error: Redis 7.0 logs in before it reads the next option, Valkey and the proxy read them all.
    """
    if one.kind == other.kind == "-":
        return b"AUTH" in words
    if not lengths(one, other):
        return False
    mine, theirs = _as_map(one), _as_map(other)
    free = {b"id", b"server", b"version", b"modules"}
    return list(mine) == list(theirs) and all(mine[key] == theirs[key] for key in mine.keys() - free)


def fields_of_client(one: Value, other: Value, words: Sequence[bytes] = ()) -> bool:
    """CLIENT INFO: about the same fields in the same order, with values of this connection."""

    def names(value: Value) -> list[bytes]:
        return [field.split(b"=")[0] for field in value.text.split()]

    mine, theirs = names(one), names(other)
    common = [name for name in mine if name in theirs]
    return kinds(one, other) and len(common) > 24 and common == [name for name in theirs if name in mine]


def of_strings(one: Value, other: Value, words: Sequence[bytes] = ()) -> bool:
    """Encodings of a string: INCRBYFLOAT comes to a replica as SET."""
    strings = (b"int", b"embstr", b"raw")
    return kinds(one, other) and one.text in strings and other.text in strings


def until_nul(one: Value, other: Value, words: Sequence[bytes] = ()) -> bool:
    """A word with a NUL, which ends what the server looks at."""
    return any(b"\0" in word for word in words)


# Which commands, how their replies are compared when they are not equal byte for byte, and why.
ALLOWED: list[tuple[str, Same, str]] = [
    ("hello", hello, "the connection's id; the proxy is a Redis of the servers' redis_version"),
    ("client|id", kinds, "the connection's id"),
    ("client|help", kinds, "names what the proxy serves"),
    ("client|setinfo", until_nul, "the proxy checks all of a name"),
    ("client|info", fields_of_client, "the connection's addresses, ages and buffers"),
    ("time", kinds, "the time"),
    *(
        (name, times, "time passes between the two runs")
        for name in [
            "ttl",
            "pttl",
            "expiretime",
            "pexpiretime",
            "httl",
            "hpttl",
            "hexpiretime",
            "hpexpiretime",
            "object|idletime",
        ]
    ),
    ("xinfo|*", times, "idle and seen times"),
    ("xpending", times, "idle times"),
    *(
        (name, multisets, "a set has no order")
        for name in ["smembers", "sunion", "sinter", "sdiff", "hkeys", "hvals", "keys"]
    ),
    ("hgetall", pairs, "a hash has no order"),
    *((name, cursors, "an iteration's order and cursor are the server's own") for name in ["sscan", "hscan", "zscan"]),
    *((name, lengths, "random") for name in ["srandmember", "hrandfield", "zrandmember"]),
    ("randomkey", kinds, "random"),
    ("lolwut", kinds, "art"),
    ("object|encoding", of_strings, "a replica's own choice"),
    ("dump", kinds, "the order of sets and hashes, and times in streams"),
    ("memory|usage", kinds, "a key of a cluster takes some bytes more"),
    ("script|exists", truths, "by tip: whether all primaries have it; EVAL gives it to one (and NOSCRIPT is repaired)"),
    ("command", subset, "the order of a table, and what the proxy refuses"),
    ("command|count", kinds, "what the proxy refuses"),
    ("command|list", subset, "the order of a table, and what the proxy refuses"),
    ("command|docs", subset, "the order of a table, and what the proxy refuses"),
    ("command|info", subset, "the order of a table, and what the proxy refuses"),
    ("function|stats", kinds, "the interpreters' memory"),
    ("function|list", multisets, "the order of a table"),
    ("acl|cat", multisets, "the order of a table"),
    ("sort", multisets, "without an order (BY nosort) of a set"),
    ("sort_ro", multisets, "without an order (BY nosort) of a set"),
]
# What only a cluster says. After it the two sides' keys may differ: the sequence ends there.
OF_CLUSTERS: list[tuple[str, re.Pattern[bytes], str]] = [
    ("sort*", re.compile(rb"(?i)-ERR (BY|GET) option of SORT denied in cluster mode"), "keys of other nodes"),
    ("scan", re.compile(rb"-ERR invalid cursor"), "a cursor is the proxy's own"),
    ("*_ro", re.compile(rb"-ERR (Script a|A)ttempted to access a non local key"), "a replica refuses a script's write"),
    ("eval*", re.compile(rb"-ERR SELECT is not allowed in cluster mode"), "Redis Cluster has one database"),
    ("select", re.compile(rb"-ERR SELECT is not allowed in cluster mode"), "Redis Cluster has one database"),
    *(
        (name, re.compile(rb"-ERR command '.*' is not possible inside a transaction here"), "it is for several nodes")
        for name in ["script|*", "function|*"]
    ),
    ("select", re.compile(rb"-ERR SELECT of another database is not possible inside"), "all of it is for one database"),
    ("hello", re.compile(rb"-ERR HELLO with another protocol is not possible inside"), "its replies are one request's"),
    ("copy", re.compile(rb"-ERR (Copying to another database is not allowed|DB index)"), "one database"),
]
# What the proxy does not serve yet, beside CLIENT TRACKING ON. A name leaves this list when it is
# served (test_every_command_is_served).
NOT_YET: dict[str, str] = {
    "cluster|slot-stats": "of the slots of the real cluster",
    "clusterscan": "Valkey 9.1; its cursor names slots of the real cluster",
}
CROSSSLOT = b"-CROSSSLOT Keys in request don't hash to the same slot\r\n"


class Verdict(Enum):
    """equal: or allowed to differ; over: allowed, and nothing behind it can be compared."""

    EQUAL = 1
    OVER = 2
    DIFFERENT = 3


def name_of(words: list[bytes], containers: set[str]) -> str:
    """The name in the tables above."""
    name = words[0].decode("latin-1").lower() if words else ""
    return f"{name}|{words[1].decode('latin-1').lower()}" if name in containers and len(words) > 1 else name


def excluded(name: str) -> bool:
    return name in EXCLUDED or name.partition("|")[0] in EXCLUDED


def verdict(
    words: list[bytes],
    containers: set[str],
    one: bytes,
    other: bytes,
    crosses: Callable[[], bool],
    queued: list[list[bytes]],
) -> Verdict:
    """Of the server's reply to a command and the proxy's.

    containers: commands with subcommands; crosses: whether the command's keys are in several slots; queued: a
    transaction's commands, of EXEC.
    """
    if one == other:
        return Verdict.EQUAL
    name = name_of(words, containers)
    if other == CROSSSLOT and crosses():
        return Verdict.OVER
    if _of_clusters(name, other):
        return Verdict.OVER
    if not one.endswith(b"\r\n") or not other.endswith(b"\r\n"):
        return Verdict.DIFFERENT
    mine, theirs = parse(one), parse(other)
    if name == "exec" and len(mine.items) == len(theirs.items) == len(queued):
        over = False
        for command, a, b in zip(queued, mine.items, theirs.items, strict=True):
            inner = name_of(command, containers)
            if b.kind == "-" and a != b and _of_clusters(inner, b"-" + b.text):
                over = True
            elif not _alike(inner, command, a, b):
                return Verdict.DIFFERENT
        return Verdict.OVER if over else Verdict.EQUAL
    return Verdict.EQUAL if _alike(name, words, mine, theirs) else Verdict.DIFFERENT


def _of_clusters(name: str, line: bytes) -> bool:
    return any(fnmatchcase(name, pattern) and text.match(line) for pattern, text, _ in OF_CLUSTERS)


def _alike(name: str, words: list[bytes], one: Value, other: Value) -> bool:
    return one == other or any(fnmatchcase(name, pattern) and same(one, other, words) for pattern, same, _ in ALLOWED)


def _sorted(value: Value) -> str:
    if isinstance(value.body, tuple):
        return f"{value.kind}{sorted(map(_sorted, value.body))}"
    return repr(value)


def _leaves(value: Value) -> Counter[bytes]:
    if value.body is None:
        return Counter()
    return sum(map(_leaves, value.items), Counter()) if value.items else Counter([value.text])


def _pairs(value: Value) -> list[tuple[str, str]]:
    flat = [repr(item) for item in value.items]
    return sorted(zip(flat[::2], flat[1::2], strict=True))


def _as_map(value: Value) -> dict[bytes, Value]:
    return {key.text: item for key, item in zip(value.items[::2], value.items[1::2], strict=True)}
