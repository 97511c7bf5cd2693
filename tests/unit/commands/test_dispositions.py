"""What becomes of each command: the decisions by name, and the safe side for commands nobody decided on."""

from __future__ import annotations

import pytest

from proxy.commands.dispositions import (
    DISPOSITIONS,
    OWN_ROWS,
    CommandClass,
    CommandFlag,
    classify,
    command_flags,
    full_names,
    unknown_names,
)
from proxy.commands.rows import Row, index_range, row
from proxy.commands.table import ROWS

ALL = {r.name: r for top in ROWS for r in (top, *top.subcommands)}
# Named for servers newer than those the built-in table was made from.
NEWER = {"cluster|migration", "sflush", *(r.name for r in OWN_ROWS)}
PASSED_ON = {
    CommandClass.FORWARD,
    CommandClass.ANY,
    CommandClass.PUBLISH,
    CommandClass.SCRIPT,
    CommandClass.SPLIT_MGET,
    CommandClass.SPLIT_MSET,
    CommandClass.SPLIT_SUM,
}
KEY = (index_range(1, 0, 1, 0, "RW"),)


def test_every_name_decided_on_exists() -> None:
    assert set(DISPOSITIONS) - set(ALL) == NEWER


EXPECTED = {
    "FORWARD": "get set getex getdel sort sort_ro georadius xread xreadgroup spublish "
    "object|encoding memory|usage xgroup|create dump restore msetnx msetex copy rename zunionstore lmpop",
    "PUBLISH": "publish",
    "ANY": "lolwut module|list acl|cat config|help script|help "
    "object|help xgroup|help latency|help pubsub|help config script slowlog latency pubsub function object memory acl",
    "PING": "ping",
    "SCRIPT": "eval evalsha eval_ro evalsha_ro fcall fcall_ro",
    "LOCAL": "role lastsave command command|docs command|getkeys acl|whoami "
    "subscribe psubscribe ssubscribe unsubscribe punsubscribe sunsubscribe "
    "echo quit reset hello auth select readonly readwrite info time asking client client|id client|reply "
    "client|tracking client|kill client|help config|get scan cluster cluster|info cluster|slots cluster|shards "
    "cluster|nodes cluster|myid cluster|keyslot cluster|links cluster|help cluster|replicas "
    "keys dbsize flushall flushdb randomkey script|load script|flush script|exists script|debug function|load "
    "function|list "
    "pubsub|channels pubsub|numpat config|set config|resetstat config|rewrite slowlog|get commandlog|len "
    "latency|latest memory|doctor memory|purge memory|stats memory|malloc-stats cluster|countkeysinslot "
    "cluster|getkeysinslot monitor",
    "SPLIT_MGET": "mget",
    "SPLIT_MSET": "mset",
    "SPLIT_SUM": "del unlink exists touch",
    "REFUSED": "shutdown debug replicaof slaveof sync psync replconf failover migrate module|load module|loadex "
    "module|unload save bgsave bgrewriteaof swapdb move acl|setuser acl|deluser acl|load acl|save pfselftest "
    "restore-asking cluster|setslot cluster|failover cluster|meet cluster|reset cluster|addslots cluster|forget",
    "TRANSACTION": "multi exec discard watch unwatch",
    "UNSERVED": "clusterscan",
    "BLOCKING": "wait waitaof blpop brpop brpoplpush blmove blmpop bzpopmin bzpopmax bzmpop",
}


@pytest.mark.parametrize(
    ("name", "klass"), [(name, klass) for klass, names in EXPECTED.items() for name in names.split()]
)
def test_class(name: str, klass: str) -> None:
    assert classify(ALL[name]).name == klass


def test_nothing_that_holds_or_changes_a_connection_is_passed_on() -> None:
    passed = {name: set(r.flags) for name, r in ALL.items() if classify(r) in PASSED_ON}
    assert {name for name, flags in passed.items() if "blocking" in flags} == {"xread", "xreadgroup"}
    assert {name for name, flags in passed.items() if {"noscript", "no_multi"} <= flags} == set()
    assert {name for name, flags in passed.items() if "pubsub" in flags} == {"publish", "spublish"}


def test_not_even_when_everything_is_allowed() -> None:
    passed = {n for n, r in ALL.items() if classify(r, frozenset(ALL)) in PASSED_ON}
    assert not passed & {"sync", "psync", "replconf", "cluster|syncslots", "multi", "watch", "monitor", "subscribe"}
    assert {"debug", "shutdown", "migrate", "cluster|failover"} <= passed
    assert not passed & {"save", "bgsave", "acl|setuser"}  # asked of several: serve.all_shards


def test_a_whole_answer_is_never_one_shards() -> None:
    fanned = {n for n, r in ALL.items() if r.request_policy in ("all_shards", "all_nodes", "special") and not r.keyed}
    assert {n for n in fanned if classify(ALL[n]) in PASSED_ON} == set()


@pytest.mark.parametrize(
    ("made", "klass"),
    [
        (row("m.get", 2, "readonly", (1, 1, 1), specs=KEY), "FORWARD"),
        (row("m.block", 2, "write blocking", (1, 1, 1), specs=KEY), "BLOCKING"),
        (row("m.block", 1, "write blocking"), "UNSERVED"),
        (row("m.state", 1, "noscript no_multi"), "UNSERVED"),
        (row("m.state", 2, "noscript no_multi", (1, 1, 1), specs=KEY), "UNSERVED"),
        (row("m.sub", 2, "pubsub"), "UNSERVED"),
        (row("m.admin", 1, "admin"), "REFUSED"),
        (row("m.admin", 2, "admin write", (1, 1, 1), specs=KEY), "FORWARD"),
        (row("m.all", 1, "readonly", tips="request_policy:all_shards response_policy:agg_sum"), "LOCAL"),
        (row("m.all", 1, "write", tips="request_policy:all_nodes"), "LOCAL"),
        (row("m.all", 1, "", tips="request_policy:special"), "LOCAL"),
        (row("m.all", 1, "", tips="request_policy:multi_shard"), "LOCAL"),
        (row("m.all", 1, "admin", tips="request_policy:all_nodes"), "REFUSED"),
        (row("m.all", 1, "noscript no_multi", tips="request_policy:all_nodes"), "UNSERVED"),
        (row("m.all", 2, "", (1, 1, 1), specs=KEY, tips="request_policy:multi_shard"), "FORWARD"),
        (row("m.search", -2, "readonly"), "ANY"),
        (row("m.moving", -2, "write movablekeys"), "FORWARD"),
        (row("m", -2, "", subcommands=(row("m|x", 2, ""),)), "ANY"),
        (row("cluster|newread", 2, "stale"), "LOCAL"),
        (row("cluster|newchange", 2, "admin stale"), "REFUSED"),
        (row("client|new", 2, ""), "LOCAL"),
        (row("acl|new", 2, "admin"), "REFUSED"),
        # Redis 6 lists containers without their subcommands.
        (Row("config", -2, ("admin", "noscript"), 0, 0, 0), "LOCAL"),
        (Row("script", -2, ("noscript",), 0, 0, 0), "LOCAL"),
        (Row("acl", -2, ("admin", "noscript"), 0, 0, 0), "REFUSED"),
        (Row("module", -2, ("admin", "noscript"), 0, 0, 0), "REFUSED"),
        (Row("cluster", -2, ("admin",), 0, 0, 0), "LOCAL"),
    ],
)
def test_commands_nobody_decided_on(made: Row, klass: str) -> None:
    assert classify(made).name == klass


@pytest.mark.parametrize(
    ("allow", "name", "klass"),
    [
        ("migrate", "migrate", "FORWARD"),
        ("MOVE", "move", "FORWARD"),
        ("restore-asking", "restore-asking", "FORWARD"),
        ("swapdb", "swapdb", "LOCAL"),
        ("save", "save", "LOCAL"),
        ("acl load", "acl|load", "LOCAL"),
        ("shutdown", "shutdown", "ANY"),
        ("CLUSTER FAILOVER", "cluster|failover", "ANY"),
        ("cluster|failover", "cluster|failover", "ANY"),
        ("cluster|failover", "cluster|setslot", "REFUSED"),
        ("cluster", "cluster|setslot", "ANY"),
        ("cluster", "cluster|info", "LOCAL"),
        ("acl", "acl|setuser", "LOCAL"),
        ("sync", "sync", "UNSERVED"),
        ("blpop", "blpop", "BLOCKING"),
        ("multi", "multi", "TRANSACTION"),
        ("get", "get", "FORWARD"),
    ],
)
def test_allowing(allow: str, name: str, klass: str) -> None:
    assert classify(ALL[name], full_names([allow])).name == klass


@pytest.mark.parametrize(
    ("deny", "refused", "served"),
    [
        ("get", "get", "getex"),
        ("CONFIG GET", "config|get", "config|set"),
        ("client", "client|list", "ping"),
        ("@keyspace", "del", "get"),
        ("@Scripting", "eval", "get"),
        ("@dangerous", "client|list", "client|id"),  # a subcommand's categories are its own
        ("@all", "ping", ""),
        ("sync", "sync", "get"),
    ],
)
def test_denying(deny: str, refused: str, served: str) -> None:
    denied = full_names([deny])
    assert classify(ALL[refused], full_names([refused, deny]), denied) is CommandClass.REFUSED
    if served:
        assert classify(ALL[served], (), denied) is classify(ALL[served]) is not CommandClass.REFUSED


def test_allowing_a_category() -> None:
    assert classify(ALL["shutdown"], full_names(["@dangerous"])).name == "ANY"
    assert classify(ALL["pfselftest"], full_names(["@dangerous"])).name == "ANY"
    assert classify(ALL["debug"], full_names(["@keyspace"])).name == "REFUSED"


def test_names_that_mean_nothing() -> None:
    names = ["get", "@admin", "@all", "config|get", "CLUSTER INFO", "nosuch", "config|nosuch", "@nosuch", "get|x"]
    assert unknown_names(names, ROWS) == ["nosuch", "config|nosuch", "@nosuch", "get|x"]


def test_an_allowed_module_command_loses_only_its_refusal() -> None:
    assert classify(row("m.admin", 1, "admin"), full_names(["M.ADMIN"])) is CommandClass.ANY
    everywhere = row("m.admin", 1, "admin", tips="request_policy:all_nodes")
    assert classify(everywhere, full_names(["M.ADMIN"])) is CommandClass.LOCAL


WRITES = "getex getdel getset sort georadius georadiusbymember lpop eval evalsha fcall xreadgroup spop"
READS = "get mget sort_ro georadius_ro georadiusbymember_ro eval_ro evalsha_ro fcall_ro xread object|encoding"


@pytest.mark.parametrize("name", WRITES.split())
def test_writes_that_look_like_reads(name: str) -> None:
    assert CommandFlag.WRITE in command_flags(ALL[name])
    assert CommandFlag.READONLY not in command_flags(ALL[name])


@pytest.mark.parametrize("name", READS.split())
def test_reads(name: str) -> None:
    assert CommandFlag.READONLY in command_flags(ALL[name])
    assert CommandFlag.WRITE not in command_flags(ALL[name])


def test_flags() -> None:
    no_auth = {name for name, r in ALL.items() if CommandFlag.NO_AUTH in command_flags(r)}
    assert no_auth == {"hello", "auth", "quit", "reset"}
    replicated = CommandFlag.KNOWN | CommandFlag.MAY_REPLICATE
    assert command_flags(ALL["publish"]) == replicated | CommandFlag.KEYLESS
    assert command_flags(ALL["flushall"]) == replicated | CommandFlag.KEYLESS | CommandFlag.WRITE
    may_replicate = {name for name, r in ALL.items() if CommandFlag.MAY_REPLICATE in command_flags(r)}
    by_name = {"eval", "evalsha", "fcall", "pfcount", "publish", "spublish"}
    assert may_replicate == {name for name, r in ALL.items() if "write" in r.flags} | by_name
    assert command_flags(Row("xread", -4, ("readonly", "movablekeys"), 1, 1, 1)) & CommandFlag.BLOCKING
