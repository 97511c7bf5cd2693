"""Error lines against the servers that coined them."""

from __future__ import annotations

import pytest

from proxy.embedded import wait_for
from proxy.resp import errors
from proxy.resp.errors import ProtocolFault
from tests.support.cluster import Standalone
from tests.support.raw import encode
from tests.support.resp import ServerWith

LONG = b"a" * 200


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([b"FOO"], errors.unknown_command(b"FOO")),
        ([b"FOO", b"a", b"b"], errors.unknown_command(b"FOO", [b"a", b"b"])),
        ([LONG, b"x"], errors.unknown_command(LONG, [b"x"])),
        ([b"FOO", LONG, b"b"], errors.unknown_command(b"FOO", [LONG, b"b"])),
        ([b"FOO", LONG[:100], LONG, b"c"], errors.unknown_command(b"FOO", [LONG[:100], LONG, b"c"])),
        ([b"FOO", LONG[:124], b"b", b"c"], errors.unknown_command(b"FOO", [LONG[:124], b"b", b"c"])),
        ([b"FOO", LONG[:125], b"b"], errors.unknown_command(b"FOO", [LONG[:125], b"b"])),
        ([b"FOO", *[b""] * 60], errors.unknown_command(b"FOO", [b""] * 60)),
        ([b"F\0O", b"a\0b", b"c"], errors.unknown_command(b"F\0O", [b"a\0b", b"c"])),
        ([b"F\nO", b"a\r\nb"], errors.unknown_command(b"F\nO", [b"a\r\nb"])),
        ([b"\xff", b"\xfe"], errors.unknown_command(b"\xff", [b"\xfe"])),
        ([b"client", b"foo"], errors.unknown_subcommand(b"client", b"foo")),
        ([b"Client", LONG], errors.unknown_subcommand(b"Client", LONG)),
        ([b"GET"], errors.wrong_arity(b"GET")),
        ([b"CLIENT", b"SETNAME"], errors.wrong_arity("client|setname")),
        ([b"HELLO", b"3", b"FO\nO"], errors.hello_option(b"FO\nO")),
        ([b"HELLO", b"4"], errors.NOPROTO),
        ([b"HELLO", b"x"], errors.PROTO_NOT_AN_INTEGER),
        ([b"CLIENT", b"SETNAME", b"a b"], errors.CLIENT_NAME),
        ([b"SELECT", b"x"], errors.NOT_AN_INTEGER),
        ([b"SELECT", b"99"], errors.DB_INDEX),
        ([b"AUTH", b"a", b"b"], errors.WRONGPASS),
        ([b"AUTH", b"a"], errors.AUTH_NO_PASSWORD),
        ([b"AUTH", b"a", b"b", b"c"], errors.SYNTAX),
        ([b"SCAN", b"x"], errors.INVALID_CURSOR),
        ([b"EVAL", b"x", b"-1"], errors.NUMKEYS_NEGATIVE),
        ([b"EVAL", b"x", b"2", b"a"], errors.NUMKEYS_TOO_MANY),
        ([b"EXEC"], errors.EXEC_WITHOUT_MULTI),
        ([b"DISCARD"], errors.DISCARD_WITHOUT_MULTI),
    ],
    ids=lambda value: b" ".join(value)[:30].decode("latin-1") if isinstance(value, list) else "",
)
def test_lines_are_the_servers(standalone: Standalone, words: list[bytes], line: bytes) -> None:
    with standalone.raw() as client:
        assert client.command(*words) == line


def test_subscribed_mode(standalone: Standalone) -> None:
    with standalone.raw() as client:
        client.command("SUBSCRIBE", "c")
        assert client.command("GET", "a") == errors.not_in_subscribed_mode(b"GET")


def test_transactions(standalone: Standalone) -> None:
    with standalone.raw() as client:
        client.command("MULTI")
        assert client.command("MULTI") in (errors.MULTI_NESTED, errors.not_in_transaction("multi"))
        assert client.command("WATCH", "a") in (errors.WATCH_IN_MULTI, errors.not_in_transaction("watch"))
        client.command("FOO")
        assert client.command("EXEC") == errors.EXECABORT


def test_client_setinfo(standalone: Standalone) -> None:
    with standalone.raw() as client:
        if b"unknown subcommand" in client.command("CLIENT", "SETINFO", "foo", "bar"):
            pytest.skip("CLIENT SETINFO came with Redis 7.2")
        assert client.command("CLIENT", "SETINFO", "foo", "bar") == errors.unrecognized_option(b"foo")
        assert client.command("CLIENT", "SETINFO", "lib-ver", "a b") == errors.invalid_attribute(b"lib-ver")


def test_without_authentication(server: str) -> None:
    with Standalone(server) as standalone, standalone.raw() as client:
        client.command("CONFIG", "SET", "requirepass", "secret")
        with standalone.raw() as stranger:
            assert stranger.command("PING") == errors.NOAUTH
            told = stranger.command("HELLO", 3)
            assert told.replace(b"HELLO AUTH", b"HELLO <proto> AUTH") == errors.NOAUTH_HELLO
            assert stranger.command("AUTH", "x") == errors.WRONGPASS
            stranger.send(encode("QUIT"))


def test_max_clients(server: str) -> None:
    with Standalone(server) as standalone, standalone.raw() as client:
        client.command("CONFIG", "SET", "maxclients", 1)
        with standalone.raw() as stranger:
            assert stranger.rest() == errors.MAX_CLIENTS


def test_cluster_mode(server: str) -> None:
    with ServerWith(server, "--cluster-enabled", "yes") as node, node.raw() as client:
        assert client.command("GET", "a") == errors.CLUSTERDOWN_UNSERVED
        client.command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        wait_for(lambda: b"cluster_state:ok" in client.command("CLUSTER", "INFO"), 30, "cluster state ok")
        assert client.command("MGET", "a", "b") == errors.CROSSSLOT
        assert client.command("CLUSTER", "COUNTKEYSINSLOT", 16384) in (errors.INVALID_SLOT, b"-ERR Invalid slot\r\n")
        assert client.command("SELECT", 1) in (errors.SELECT_IN_CLUSTER, errors.DB_INDEX)


def test_every_constant_is_one_line() -> None:
    lines = {name: value for name, value in vars(errors).items() if isinstance(value, bytes) and name.isupper()}
    lines.pop("_LINE_BREAKS")
    assert len(lines) > 30
    for name, value in lines.items():
        assert value.startswith(b"-"), name
        assert value.endswith(b"\r\n"), name
        assert value.count(b"\r") == value.count(b"\n") == 1, name
        assert value[1:].split(b" ")[0].isupper(), name


def test_our_own_lines() -> None:
    assert errors.not_allowed(b"SHUTDOWN") == b"-ERR command 'shutdown' is not allowed through this proxy\r\n"
    assert errors.not_served("multi") == b"-ERR command 'multi' is not served by this proxy yet\r\n"
    assert b"may have been executed" in errors.MAYBE_EXECUTED


def test_a_fault_carries_its_line() -> None:
    fault = ProtocolFault(b"-ERR Protocol error: expected '$', got '\xff'\r\n")
    assert fault.line == b"-ERR Protocol error: expected '$', got '\xff'\r\n"
    assert str(fault) == "ERR Protocol error: expected '$', got 'ÿ'"
