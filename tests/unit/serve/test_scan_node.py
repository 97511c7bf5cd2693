"""What SCAN reads out of nodes' answers, and what it makes of malformed ones."""

from __future__ import annotations

import random

import pytest

from proxy.cluster.slot import slot_of
from proxy.resp.encode import array, bulk
from proxy.serve import scan_node
from proxy.serve.scan_node import Server, Size

ONE = b"07c37df 127.0.0.1:30004@31004,host slave e7d1 0 1426238317239 4 connected\n"
MYSELF = (
    b"e7d1eec 127.0.0.1:30001@31001 myself,master - 0 0 12 connected 0-99 200 300-301 [99->-292f8b] [700-<-292f8b]\n"
)


def test_every_slot_has_a_tag() -> None:
    assert all(slot_of(b"{%b}x" % scan_node.tag(slot)) == slot for slot in range(16384))
    assert scan_node.probe(5).startswith(b"*2\r\n$6\r\nEXISTS\r\n")


def test_view() -> None:
    view = scan_node.view(ONE + MYSELF)
    assert view is not None
    assert (view.id, view.epoch) == (b"e7d1eec", 12)
    assert [slot for slot in range(16384) if view.owned[slot]] == [*range(100), 200, 300, 301]
    assert view.owned[99] == 2
    assert view.migrating == {99: b"292f8b"}


def test_a_replica_owns_nothing() -> None:
    view = scan_node.view(MYSELF.replace(b"myself,master", b"myself,slave"))
    assert view is not None
    assert not any(view.owned)


@pytest.mark.parametrize(
    "text",
    [None, 5, b"", ONE, b"myself", MYSELF.replace(b"12 connected", b"x connected"), MYSELF.replace(b"0-99", b"0-99999"),
     MYSELF.replace(b"0-99", b"9-2"), MYSELF.replace(b"200", b"two"), MYSELF.replace(b"[99", b"[x")],
)  # fmt: skip
def test_no_view(text: object) -> None:
    assert scan_node.view(text) is None


def test_views_of_garbage_do_not_raise() -> None:
    rng = random.Random(3)
    for _ in range(3000):
        text = bytearray(ONE + MYSELF)
        for _ in range(rng.randrange(1, 6)):
            text[rng.randrange(len(text))] = rng.choice(b" ,-[]<>0159x\n\xff")
        scan_node.view(bytes(text))


def test_size() -> None:
    text = b"# Keyspace\r\ndb0:keys=5,expires=2,avg_ttl=0\r\ndb1:keys=7,expires=0,avg_ttl=0,subexpiry=0\r\n"
    assert scan_node.size(text, 0) == Size(5, 2)
    assert scan_node.size(text, 1) == Size(7, 0)
    assert scan_node.size(text, 2) == Size(0, 0)
    for bad in (None, b"", b"# Keyspace\r\ndb0:keys=x,expires=1", b"# Keyspace\r\ndb0:", b"# Keyspace\r\ndb0:keys=1"):
        assert scan_node.size(bad, 0) is None


@pytest.mark.parametrize(
    ("redis", "valkey", "by_slot"),
    [("7.0.15", "", False), ("7.2.4", "7.2.5", False), ("7.2.4", "8.0.0", True), ("7.2.4", "9.1.2", True),
     ("7.4.0", "", True), ("8.0.0", "", True), ("255.255.255", "", True), ("", "", False), ("x.y", "", False)],
)  # fmt: skip
def test_server(redis: str, valkey: str, by_slot: bool) -> None:
    lines = [b"# Server", b"redis_version:" + redis.encode(), b"run_id:abc"]
    if valkey:
        lines.append(b"valkey_version:" + valkey.encode())
    assert scan_node.server(b"\r\n".join(lines)) == Server(b"abc", by_slot)
    assert scan_node.server(b"\r\n".join(lines[:2])) is None


@pytest.mark.parametrize(
    "bad", [b"*1\r\n", b"+OK\r\n", b"*-1\r\n", b"_\r\n", array([bulk("a")]), b":1\r\n", b"$5\r\nab"]
)
def test_what_is_no_exec_reply(bad: bytes) -> None:
    assert scan_node.executed(bad, 2) == scan_node.MALFORMED


def test_exec_replies() -> None:
    assert scan_node.executed(array([bulk("a"), b"*0\r\n"]), 2) == [b"a", []]
    assert scan_node.executed(b"-EXECABORT x\r\n", 2) == b"-EXECABORT x\r\n"
    denied = b"NOPERM User u has no permissions to run the 'info' command\r\n"
    assert scan_node.executed(b"-EXECABORT Transaction discarded because of: " + denied, 2) == b"-" + denied
    assert scan_node.executed(array([bulk("a"), b"-ERR no\r\n"]), 2) == b"-ERR no\r\n"


def test_scanned() -> None:
    assert scan_node.scanned([b"5", [b"a"]]) == (5, [b"a"])
    for bad in (None, [], [b"x", []], [b"-1", []], [b"1" * 30, []], [b"1", b"a"], [b"1", [1]], [1, []]):
        assert scan_node.scanned(bad) is None
