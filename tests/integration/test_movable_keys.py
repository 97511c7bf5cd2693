"""Keys that are not at a fixed place: found, routed, and refused with CROSSSLOT when they are of several slots."""

from __future__ import annotations

import pytest

from proxy.embedded import EmbeddedCluster
from tests.support.cluster import Standalone
from tests.support.proxyd import ProxyDaemon
from tests.support.raw import RawClient, encode

CROSSSLOT = b"-CROSSSLOT Keys in request don't hash to the same slot\r\n"

# {} becomes the key's number: same slot for one test, different slots for the other.
COMMANDS = {
    "EVAL": ["EVAL", "return {KEYS[1], KEYS[2]}", "2", "{}1", "{}2", "{x}not-a-key"],
    "EVAL_RO": ["EVAL_RO", "return #KEYS", "2", "{}1", "{}2"],
    "EVALSHA": ["EVALSHA", "e0e1f9fabfc9d4800c877a703b823ac0578ff8db", "2", "{}1", "{}2"],
    "XREAD": ["XREAD", "COUNT", "2", "STREAMS", "{}1", "{}2", "0", "0"],
    "XREAD, a stream called STREAMS": ["XREAD", "STREAMS", "{}STREAMS", "{}2", "0", "0"],
    "XREADGROUP": ["XREADGROUP", "GROUP", "g", "c", "STREAMS", "{}1", "{}2", ">", ">"],
    "SORT STORE": ["SORT", "{}1", "ALPHA", "STORE", "{}2"],
    "SORT STORE after LIMIT": ["SORT", "{}1", "LIMIT", "0", "5", "DESC", "STORE", "{}2"],
    "GEORADIUS STORE": ["GEORADIUS", "{}1", "15", "37", "200", "km", "STORE", "{}2"],
    "GEORADIUSBYMEMBER STOREDIST": ["GEORADIUSBYMEMBER", "{}1", "m", "200", "km", "STOREDIST", "{}2"],
    "GEOSEARCHSTORE": ["GEOSEARCHSTORE", "{}1", "{}2", "FROMLONLAT", "1", "1", "BYRADIUS", "1", "km"],
    "ZUNION": ["ZUNION", "2", "{}1", "{}2", "WEIGHTS", "1", "2"],
    "ZINTER": ["ZINTER", "2", "{}1", "{}2"],
    "ZDIFF": ["ZDIFF", "2", "{}1", "{}2"],
    "ZINTERCARD": ["ZINTERCARD", "2", "{}1", "{}2", "LIMIT", "1"],
    "ZUNIONSTORE, destination": ["ZUNIONSTORE", "{}1", "1", "{}2"],
    "ZUNIONSTORE, sources": ["ZUNIONSTORE", "{}1", "2", "{}1", "{}2"],
    "ZRANGESTORE": ["ZRANGESTORE", "{}1", "{}2", "0", "-1"],
    "ZMPOP": ["ZMPOP", "2", "{}1", "{}2", "MIN"],
    "LMPOP": ["LMPOP", "2", "{}1", "{}2", "LEFT"],
    "LMOVE": ["LMOVE", "{}1", "{}2", "LEFT", "LEFT"],
    "RPOPLPUSH": ["RPOPLPUSH", "{}1", "{}2"],
    "SINTERCARD": ["SINTERCARD", "2", "{}1", "{}2"],
    "SINTER": ["SINTER", "{}1", "{}2"],
    "SUNIONSTORE": ["SUNIONSTORE", "{}1", "{}2"],
    "SMOVE": ["SMOVE", "{}1", "{}2", "m"],
    "BITOP": ["BITOP", "AND", "{}1", "{}2", "{}3"],
    "PFCOUNT": ["PFCOUNT", "{}1", "{}2"],
    "PFMERGE": ["PFMERGE", "{}1", "{}2"],
    "LCS": ["LCS", "{}1", "{}2"],
    "COPY": ["COPY", "{}1", "{}2"],
    "RENAME": ["RENAME", "{}1", "{}2"],
    "MSETNX": ["MSETNX", "{}1", "v", "{}2", "v"],
}


def spread(words: list[str], tag: str) -> list[str]:
    """The words with {} replaced by the tag, or by one tag per key when it is empty."""
    return [word.replace("{}", tag or f"{{{n}}}") if word.startswith("{}") else word for n, word in enumerate(words)]


@pytest.mark.parametrize("name", COMMANDS)
def test_keys_in_different_slots_are_refused_and_nothing_is_sent(
    name: str, raw: RawClient, proxy: ProxyDaemon, cluster: EmbeddedCluster
) -> None:
    assert raw.command(*spread(COMMANDS[name], "")) == CROSSSLOT
    assert raw.command("PING") == b"+PONG\r\n"
    assert all(node.command("DBSIZE") == 0 for node in cluster.primaries())


@pytest.mark.parametrize("tag", ["{a}", "{b}", "{c}"])  # a slot of each primary
@pytest.mark.parametrize("name", COMMANDS)
def test_keys_in_one_slot_reach_their_node(name: str, tag: str, raw: RawClient, cluster: EmbeddedCluster) -> None:
    words = spread(COMMANDS[name], tag)
    through = raw.command(*words)
    node = next(node for node in cluster.primaries() if keyslot(cluster, tag) in cluster.slots_of(node))
    node.command("FLUSHALL")
    with RawClient(("127.0.0.1", node.port)) as direct:
        assert through == direct.command(*words)
    assert not through.startswith((b"-MOVED", b"-CROSSSLOT", b"-ERR syntax"))


@pytest.mark.parametrize(
    "count", ["+1", "01", " 1", "\t1", "1x", "1.5", "4294967297", "18446744073709551617", "-0", "x"]
)
@pytest.mark.parametrize("tag", ["{a}", "{b}", "{c}"])
def test_an_odd_count_of_keys_is_the_servers_error_and_no_redirection(
    count: str, tag: str, raw: RawClient, standalone: Standalone
) -> None:
    # Nodes find the slot with atoi and refuse what string2ll does not take: to another node it would be MOVED.
    with standalone.raw() as direct:
        for words in (["EVAL", "return 1", count, tag], ["ZUNION", count, tag], ["LMPOP", count, tag, "LEFT"]):
            assert raw.command(*words) == direct.command(*words), words


@pytest.mark.parametrize("tag", ["{a}", "{b}", "{c}"])
def test_a_merge_of_nothing_keeps_its_order(tag: str, raw: RawClient, cluster: EmbeddedCluster) -> None:
    # PFMERGE's second key spec does not fit: sent to any node it would come back and be overtaken.
    raw.send((encode("PFMERGE", tag) + encode("PFADD", tag) + encode("DEL", tag)) * 50)
    assert raw.frames(150) == [b"+OK\r\n", b":0\r\n", b":1\r\n"] * 50


def keyslot(cluster: EmbeddedCluster, key: str) -> int:
    return int(cluster.nodes[0].command("CLUSTER", "KEYSLOT", key))


@pytest.mark.parametrize("words", [["EVAL", "return 'no keys'", "0"], ["EVAL", "return ARGV[1]", "0", "no keys"]])
def test_scripts_without_keys_run_somewhere(words: list[str], raw: RawClient) -> None:
    assert raw.command(*words) == b"$7\r\nno keys\r\n"


def test_arguments_that_look_like_keys_do_not_route(raw: RawClient) -> None:
    # RedisLabs/redis-cluster-proxy#85: ARGV taken for keys.
    assert raw.command("EVAL", "return ARGV", 1, "{a}k", "{b}1", "{c}2") == b"*2\r\n$4\r\n{b}1\r\n$4\r\n{c}2\r\n"


def test_hash_tags_decide_the_slot(raw: RawClient) -> None:
    assert raw.command("MSETNX", "{user}:1", "a", "x{user}y", "b", "user", "c") == b":1\r\n"
    assert raw.command("MSETNX", "{}a", "1", "{}b", "2") == CROSSSLOT  # an empty tag is none
    assert raw.command("MSETNX", "{{t}}a", "1", "{{t}}b", "2") == b":1\r\n"  # the tag is "{t"
    assert raw.command("MSETNX", "a{t", "1", "b{t", "2") == CROSSSLOT  # never closed


def test_stream_reads_through_groups(raw: RawClient) -> None:
    # envoyproxy/envoy#32928
    assert raw.command("XGROUP", "CREATE", "{s}1", "g", "$", "MKSTREAM") == b"+OK\r\n"
    assert raw.command("XGROUP", "CREATE", "{s}2", "g", "$", "MKSTREAM") == b"+OK\r\n"
    assert raw.command("XADD", "{s}2", "1-1", "f", "v") == b"$3\r\n1-1\r\n"
    assert raw.command("XREADGROUP", "GROUP", "g", "c", "STREAMS", "{s}1", "{s}2", ">", ">") == (
        b"*1\r\n*2\r\n$4\r\n{s}2\r\n*1\r\n*2\r\n$3\r\n1-1\r\n*2\r\n$1\r\nf\r\n$1\r\nv\r\n"
    )
    assert raw.command("XINFO", "STREAM", "{s}2").startswith(b"*")
