"""SCAN through the proxy beside SCAN of one server with the same keys, on servers of both kinds."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable

import pytest

from proxy.embedded import EmbeddedCluster, wait_for
from proxy.resp.decode import ReplyError, decode
from tests.support.cluster import Standalone, slot_of
from tests.support.proxyd import ProxyDaemon
from tests.support.raw import RawClient, Word

StartProxy = Callable[..., ProxyDaemon]


def scan_all(raws: list[RawClient], *words: Word) -> list[bytes]:
    """A whole scan, each page by another connection; the keys as they came."""
    cursor, found = b"0", list[bytes]()
    for turn in range(20_000):
        reply = decode(raws[turn % len(raws)].command("SCAN", cursor, *words))
        assert isinstance(reply, list), reply
        cursor, keys = reply
        found += keys
        assert int(cursor) < 2**63
        if cursor == b"0":
            return found
    raise AssertionError("no end")


def put(raw: RawClient, names: list[str]) -> set[bytes]:
    for at in range(0, len(names), 1000):
        part = names[at : at + 1000]
        assert raw.command("MSET", *(word for name in part for word in (name, "v"))) == b"+OK\r\n"
    return {name.encode() for name in names}


@pytest.mark.parametrize("count", [1, 10, 1000])
@pytest.mark.parametrize("keys", [0, 5, 300])
def test_a_whole_scan(keys: int, count: int, raw: RawClient) -> None:
    wanted = put(raw, [f"k{n}" for n in range(keys)])
    found = scan_all([raw], "COUNT", count)
    assert sorted(found) == sorted(wanted)


def test_20_000_keys(raw: RawClient) -> None:
    wanted = put(raw, [f"key:{n}" for n in range(20_000)])
    for count in (100, 5000):
        assert sorted(scan_all([raw], "COUNT", count)) == sorted(wanted)


def test_20_000_keys_of_one_tag(raw: RawClient) -> None:
    """More than are listed at once, in one slot."""
    wanted = put(raw, [f"{{tag}}{n}" for n in range(20_000)] + ["other"])
    assert set(scan_all([raw], "COUNT", 500)) == wanted
    assert set(scan_all([raw], "COUNT", 500, "MATCH", "{tag}1*")) == {k for k in wanted if k.startswith(b"{tag}1")}
    assert scan_all([raw], "COUNT", 2000, "TYPE", "list") == []


def test_what_one_server_gives(raw: RawClient, standalone: Standalone) -> None:
    """The same keys on both; as sets, every combination of options gives the same."""
    with standalone.raw() as one:
        one.command("FLUSHALL")
        for target in (raw, one):
            put(target, [f"s:{n}" for n in range(200)] + [f"{{s}}:{n}" for n in range(50)])
            for n in range(50):
                target.command("RPUSH", f"l:{n}", 1)
                target.command("HSET", f"h:{n}", "f", 1)
                target.command("SADD", f"{{s}}:set:{n}", 1)
                target.command("ZADD", f"z:{n}", 1, "m")
                target.command("XADD", f"x:{n}", "*", "f", "v")
                target.command("SET", f"gone:{n}", "v", "PX", 1)
                target.command("SET", f"stays:{n}", "v", "EX", 1000)
            target.command("SET", b"\x00\r\n*\xff", "v")
        wait_for(lambda: raw.command("EXISTS", *(f"gone:{n}" for n in range(50))) == b":0\r\n", 5, "expiry")
        time.sleep(0.01)
        patterns = [
            "*",
            "s:*",
            "?:1*",
            "{s}:*",
            "{s}:set:[0-4]",
            "[^s]:*",
            "s:1",
            "nothing",
            "*\\*\xff",
            "\\*",
            "",
            "**",
        ]
        for pattern in patterns:
            for kind in ("", "string", "LIST", "set", "zset", "hash", "stream"):
                words = ["MATCH", pattern.encode("latin-1"), *(["TYPE", kind] if kind else [])]
                for count in (7, 10_000):
                    wanted = set(scan_all([one], "COUNT", count, *words))
                    assert set(scan_all([raw], "COUNT", count, *words)) == wanted, (words, count)


@pytest.mark.parametrize(
    "words",
    [
        ["x"], ["1x"], ["0", "COUNT", "0"], ["0", "COUNT", "-1"], ["0", "COUNT", "x"], ["0", "COUNT"], ["0", "MATCH"],
        ["0", "COUNT", str(2**63)], ["0", "FOO", "BAR"], ["0", "NOVALUES"], ["0", "TYPE"],
        ["0", "TYPE", "x", "COUNT", "0"],
        ["0", "COUNT", "0", "TYPE", "x"], ["x", "COUNT", "0"], [], ["0", "MATCH", "*", "NOVALUES", "COUNT", "0"],
        [str(2**64)],
    ],
)  # fmt: skip
def test_errors_are_the_servers(words: list[str], raw: RawClient, standalone: Standalone) -> None:
    with standalone.raw() as one:
        wanted = one.command("SCAN", *words)
        assert wanted.startswith(b"-")
        assert raw.command("SCAN", *words) == wanted


def test_a_type_that_nobody_knows(raw: RawClient, standalone: Standalone) -> None:
    """An error on some servers, nothing on others."""
    put(raw, ["a"])
    with standalone.raw() as one:
        wanted = decode(one.command("SCAN", 0, "TYPE", "nosuch"))
        if isinstance(wanted, ReplyError):
            assert str(decode(raw.command("SCAN", 0, "TYPE", "nosuch"))) == str(wanted)
        else:
            assert scan_all([raw], "TYPE", "nosuch") == []


@pytest.mark.parametrize(
    "cursor", ["-1", "12", "14336", str(2**62), str(2**63), str(2**64 - 1), "9" * 40, "", " 0", "+0"]
)
def test_foreign_and_malformed_cursors(cursor: str, raw: RawClient) -> None:
    assert raw.command("SCAN", cursor) == b"-ERR invalid cursor\r\n"


def test_zeros_begin(raw: RawClient) -> None:
    wanted = put(raw, ["a"])
    scan_all([raw])  # it is known now how few there are
    assert set(decode(raw.command("SCAN", "000"))[1]) <= wanted
    assert set(scan_all([raw])) == wanted


def test_any_proxy_goes_on(cluster: EmbeddedCluster, proxy: ProxyDaemon, start_proxy: StartProxy) -> None:
    """Cursors are continued by other workers and by another daemon, in RESP2 and in RESP3."""
    other = start_proxy(cluster.seeds[2:3])
    with proxy.raw() as one, other.raw() as two, proxy.raw() as three, other.raw() as four:
        wanted = put(one, [f"k{n}" for n in range(3000)] + [f"{{tag}}{n}" for n in range(11_000)])
        three.command("HELLO", 3)
        assert set(scan_all([one, two, three, four], "COUNT", 300)) == wanted


def test_replicas_are_not_asked(cluster: EmbeddedCluster, start_proxy: StartProxy) -> None:
    """A replica does not own its slots, and lags behind."""
    daemon = start_proxy(cluster.seeds[:1], {"listeners": [{"reads": "replica"}]})
    with daemon.raw() as raw:
        for node in cluster.primaries():
            node.command("FLUSHALL")
        wanted = put(raw, [f"k{n}" for n in range(500)])
        for count in (10, 10_000):
            assert set(scan_all([raw], "COUNT", count)) == wanted
            assert set(scan_all([raw], "COUNT", count, "TYPE", "string")) == wanted


def test_a_slot_that_is_half_moved(cluster: EmbeddedCluster, raw: RawClient) -> None:
    """Some keys here, some there, for as long as it takes; the slot is moved back afterwards."""
    keys = [f"{{half}}{n}" for n in range(200)]
    wanted = put(raw, keys)
    slot = slot_of("{half}")
    source = cluster.owner_of(slot)
    target = next(node for node in cluster.primaries() if node is not source)
    target.command("CLUSTER", "SETSLOT", slot, "IMPORTING", source.id)
    source.command("CLUSTER", "SETSLOT", slot, "MIGRATING", target.id)
    source.command("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys[:90])
    try:
        for count in (1, 10, 1000):
            assert set(scan_all([raw], "COUNT", count)) == wanted
            assert set(scan_all([raw], "COUNT", count, "MATCH", "{half}*", "TYPE", "string")) == wanted
    finally:
        cluster.move_slots([slot], source, target)
        cluster.move_slots([slot], target, source)


@pytest.mark.parametrize("words", [["--scan"], ["--scan", "--pattern", "k1*"], ["-3", "--scan"]])
def test_redis_cli(words: list[str], proxy: ProxyDaemon, raw: RawClient) -> None:
    cli = shutil.which("redis-cli")
    if cli is None:
        pytest.skip("redis-cli is not on PATH")
    wanted = put(raw, [f"k{n}" for n in range(50)])
    ran = subprocess.run([cli, "-p", str(proxy.port), *words], capture_output=True, text=True, timeout=30)
    assert ran.returncode == 0, ran
    expected = {key.decode() for key in wanted if "k1*" not in words or key.startswith(b"k1")}
    assert set(ran.stdout.split()) == expected
