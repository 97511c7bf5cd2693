"""MGET, MSET, DEL, UNLINK, EXISTS, TOUCH over all slots are one command each; everything else is not split."""

from __future__ import annotations

import random

import pytest
import redis

from proxy.embedded import EmbeddedCluster
from tests.support.cluster import slot_of, spread_keys
from tests.support.proxyd import ProxyDaemon
from tests.support.raw import RawClient, array, bulk, encode

KEYS = spread_keys(3)


def test_mget_keeps_the_order(raw: RawClient) -> None:
    names = [f"key:{n}" for n in range(100)]
    assert raw.command("MSET", *(word for name in names for word in (name, f"value of {name}"))) == b"+OK\r\n"
    random.Random(5).shuffle(names)
    assert raw.command("MGET", *names) == array(*(bulk(f"value of {name}".encode()) for name in names))


def test_a_thousand_keys(client: redis.Redis) -> None:
    pairs = {f"k{n}": str(n) for n in range(1000)}
    assert client.mset(pairs) is True
    assert client.mget(list(pairs)) == list(pairs.values())
    assert client.exists(*pairs) == 1000
    assert client.touch(*pairs) == 1000
    assert client.unlink(*list(pairs)[:500]) == 500
    assert client.delete(*pairs) == 500
    assert client.exists(*pairs) == 0


def test_one_sub_command_per_slot(raw: RawClient, cluster: EmbeddedCluster) -> None:
    names = [f"{{{tag}}}{n}" for n in range(30) for tag in ("a", "b", "c", "d")]
    for node in cluster.primaries():
        node.command("CONFIG", "RESETSTAT")
    assert raw.command("MGET", *names) == array(*[b"$-1\r\n"] * len(names))
    calls = [node.info("commandstats").get("cmdstat_mget", {}).get("calls", 0) for node in cluster.primaries()]
    assert sum(calls) == len({slot_of(tag) for tag in "abcd"})


def test_duplicate_keys(raw: RawClient) -> None:
    a, b, _ = KEYS
    assert raw.command("MSET", a, 1, b, 2, a, 3) == b"+OK\r\n"  # the last one wins
    assert raw.command("MGET", a, b, a, a) == array(b"$1\r\n3\r\n", b"$1\r\n2\r\n", b"$1\r\n3\r\n", b"$1\r\n3\r\n")
    assert raw.command("EXISTS", a, b, a) == b":3\r\n"
    assert raw.command("TOUCH", a, b, a) == b":3\r\n"
    assert raw.command("DEL", a, b, a) == b":2\r\n"


def test_empty_values_and_missing_ones_differ(raw: RawClient) -> None:
    a, b, c = KEYS
    assert raw.command("MSET", a, "", b, "x") == b"+OK\r\n"
    assert raw.command("MGET", c, a, b) == b"*3\r\n$-1\r\n$0\r\n\r\n$1\r\nx\r\n"


def test_missing_values_are_resp3_nulls(raw: RawClient) -> None:
    a, b, c = KEYS
    raw.command("HELLO", 3)
    raw.command("SET", a, "v")
    assert raw.command("MGET", c, a, b) == b"*3\r\n_\r\n$1\r\nv\r\n_\r\n"


def test_an_empty_key_is_a_key(raw: RawClient) -> None:
    assert raw.command("MSET", "", "empty", KEYS[0], "v") == b"+OK\r\n"
    assert raw.command("MGET", KEYS[0], "") == b"*2\r\n$1\r\nv\r\n$5\r\nempty\r\n"
    assert raw.command("DEL", "", KEYS[0]) == b":2\r\n"


def test_mget_of_a_wrong_type_is_nil(raw: RawClient) -> None:
    a, b, c = KEYS
    raw.command("SADD", a, "member")
    raw.command("MSET", b, 1, c, 2)
    assert raw.command("MGET", a, b, c) == b"*3\r\n$-1\r\n$1\r\n1\r\n$1\r\n2\r\n"


def test_mset_replaces_any_type(raw: RawClient) -> None:
    raw.command("SADD", KEYS[0], "member")
    assert raw.command("MSET", KEYS[0], "v", KEYS[1], "w") == b"+OK\r\n"
    assert raw.command("GET", KEYS[0]) == b"$1\r\nv\r\n"


@pytest.mark.parametrize("name", ["MGET", "MSET", "DEL", "UNLINK", "EXISTS", "TOUCH"])
def test_no_arguments(name: str, raw: RawClient) -> None:
    expected = b"-ERR wrong number of arguments for '%s' command\r\n" % name.lower().encode()
    assert raw.command(name) == expected
    assert raw.command(name.lower()) == expected


@pytest.mark.parametrize("count", [1, 3, 5, 7])
def test_mset_with_a_key_without_value(count: int, raw: RawClient) -> None:
    words = [f"w{n}" for n in range(count)]
    assert raw.command("MSET", *words) == b"-ERR wrong number of arguments for 'mset' command\r\n"
    assert raw.command("EXISTS", *words) == b":0\r\n"


def test_binary_keys_and_large_values(raw: RawClient) -> None:
    names = [bytes([n, 0, 13, 10, 255 - n]) for n in range(64)]
    values = [random.Random(n).randbytes(n * 1000) for n in range(64)]
    assert raw.command("MSET", *(word for pair in zip(names, values, strict=True) for word in pair)) == b"+OK\r\n"
    assert raw.command("MGET", *names) == array(*map(bulk, values))
    assert raw.command("EXISTS", *names) == b":64\r\n"


def test_other_multi_key_commands_are_not_split(raw: RawClient) -> None:
    a, b, _ = KEYS
    expected = b"-CROSSSLOT Keys in request don't hash to the same slot\r\n"
    assert raw.command("MSETNX", a, 1, b, 2) == expected
    assert raw.command("SUNION", a, b) == expected
    assert raw.command("EXISTS", a, b) == b":0\r\n"


def test_mget_over_resp3_and_resp2_at_once(proxy: ProxyDaemon) -> None:
    with proxy.raw() as two, proxy.raw() as three:
        three.command("HELLO", 3)
        for _ in range(20):
            assert two.command("MGET", *KEYS) == b"*3\r\n$-1\r\n$-1\r\n$-1\r\n"
            assert three.command("MGET", *KEYS) == b"*3\r\n_\r\n_\r\n_\r\n"


def test_split_commands_in_a_pipeline_keep_order(raw: RawClient) -> None:
    a, b, c = KEYS
    dialogue: list[tuple[tuple[str | int, ...], bytes]] = [
        (("MSET", a, 1, b, 2, c, 3), b"+OK\r\n"),
        (("GET", b), b"$1\r\n2\r\n"),
        (("MGET", c, b, a), b"*3\r\n$1\r\n3\r\n$1\r\n2\r\n$1\r\n1\r\n"),
        (("MGET",), b"-ERR wrong number of arguments for 'mget' command\r\n"),
        (("DEL", a, c), b":2\r\n"),
        (("PING",), b"+PONG\r\n"),
        (("EXISTS", a, b, c), b":1\r\n"),
        (("INCR", b), b":3\r\n"),
        (("MGET", a, b), b"*2\r\n$-1\r\n$1\r\n3\r\n"),
    ] * 20
    for words, _ in dialogue:
        raw.send(encode(*words))
    for n, (words, expected) in enumerate(dialogue):
        assert (n, words, raw.frame()) == (n, words, expected)
