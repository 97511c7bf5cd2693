"""Error texts are Redis's own, letter for letter: every case is sent to one standalone server and to the proxy."""

from __future__ import annotations

import pytest

from tests.support.cluster import Standalone
from tests.support.proxyd import ProxyDaemon
from tests.support.raw import RawClient, encode

NOT_OURS = b"through this proxy"  # refused or not served yet: our own words, no server's

CASES = [
    ["FOO"],
    ["foo", "a", "b"],
    ["Foo", "it's", 'quo"ted', "new\nline", "tab\tzero\0"],
    ["FOO", *(str(n) * 20 for n in range(12))],  # the server shows the first 128 bytes or so
    ["F" * 200, "a"],
    ["FOO", "x" * 500],
    ["FOO", ""],
    ["", "a"],
    ["GET"],
    ["GET", "a", "b"],
    ["gEt"],
    ["SET", "a"],
    ["SET", "k", "v", "EX"],
    ["SET", "k", "v", "EX", "0"],
    ["SET", "k", "v", "EX", "x"],
    ["SET", "k", "v", "NX", "XX"],
    ["SETEX", "k", "-1", "v"],
    ["INCR", "a", "b"],
    ["INCRBY", "k", "1.5"],
    ["PING", "a", "b"],
    ["ECHO"],
    ["ECHO", "a", "b"],
    ["TIME", "x"],
    ["QUIT", "now", "please"],
    ["SELECT"],
    ["SELECT", "x"],
    ["SELECT", "0", "0"],
    ["SELECT", "-1"],
    ["SELECT", "99999999999999999999"],
    ["AUTH"],
    ["AUTH", "a", "b", "c"],
    ["AUTH", "password"],
    ["AUTH", "nobody", "password"],
    ["HELLO", "1"],
    ["HELLO", "4"],
    ["HELLO", "x"],
    ["HELLO", "-3"],
    ["HELLO", "3", "AUTH", "default"],
    ["HELLO", "3", "AUTH", "nobody", "wrong"],
    ["HELLO", "3", "SETNAME"],
    ["HELLO", "3", "SETNAME", "two words"],
    ["HELLO", "3", "NOSUCH"],
    ["HELLO", "2", "NOSUCH", "x"],
    ["CLIENT"],
    ["CLIENT", "NOSUCH"],
    ["client", "NoSuch", "a"],
    ["CLIENT", "SETNAME"],
    ["CLIENT", "SETNAME", "two words"],
    ["CLIENT", "SETNAME", "new\nline"],
    ["CLIENT", "GETNAME", "x"],
    ["CLIENT", "ID", "x"],
    ["CLIENT", "SETINFO"],
    ["CLIENT", "SETINFO", "LIB-NAME"],
    ["CLIENT", "SETINFO", "NOSUCH", "x"],
    ["CLIENT", "SETINFO", "lib-name", "two words"],
    ["COMMAND", "NOSUCH"],
    ["COMMAND", "COUNT", "x"],
    ["COMMAND", "GETKEYS"],
    ["COMMAND", "GETKEYS", "GET"],
    ["COMMAND", "GETKEYS", "NOSUCH", "k"],
    ["COMMAND", "GETKEYS", "PING"],
    ["OBJECT"],
    ["OBJECT", "NOSUCH", "k"],
    ["OBJECT", "ENCODING"],
    ["XGROUP", "NOSUCH", "k"],
    ["XGROUP"],
    ["XINFO", "NOSUCH", "k"],
    ["CONFIG", "NOSUCH"],
    ["CONFIG", "GET"],
    ["EVAL"],
    ["EVAL", "return 1"],
    ["EVAL", "return 1", "x"],
    ["EVAL", "return 1", "-1"],
    ["EVAL", "return 1", "2", "a"],
    ["ZUNION", "0", "a"],
    ["ZUNION", "x", "a"],
    ["ZUNION", "5", "a"],
    ["ZUNIONSTORE", "d", "3", "d"],
    ["LMPOP", "0", "a", "LEFT"],
    ["LMPOP", "2", "{LEFT}", "LEFT"],
    ["XREAD", "STREAMS", "a", "b", "0"],
    ["XREAD", "COUNT", "1"],
    ["XREAD", "STREAMS", "a"],
    ["XREADGROUP", "GROUP", "g", "c", "STREAMS", "a"],
    ["SORT", "k", "BY"],
    ["SORT", "k", "STORE"],
    ["GEORADIUS", "k", "1", "1", "1", "km", "STORE"],
    ["MIGRATE"],
    ["MSETNX", "a"],
    ["MSETNX", "{a}1", "b", "{a}2"],
    ["READONLY", "x"],
    ["READWRITE", "x"],
    ["RESET", "x"],
]


@pytest.mark.parametrize("words", CASES, ids=lambda words: " ".join(words)[:40].encode("unicode_escape").decode())
def test_error_case(words: list[str], proxy: ProxyDaemon, standalone: Standalone) -> None:
    with proxy.raw() as through, standalone.raw() as direct:
        direct.command("FLUSHALL")
        expected = direct.command(*words)
        if words[:2] == ["CLIENT", "SETINFO"] and expected.startswith(b"-ERR unknown subcommand"):
            pytest.skip("this server is older than CLIENT SETINFO, which the proxy always has")
        assert through.command(*words) == expected
        if words[0] != "QUIT":
            assert through.command("PING") == b"+PONG\r\n"  # never a closed connection


def test_every_command_of_the_server_checks_its_arity(proxy: ProxyDaemon, standalone: Standalone) -> None:
    """For each command: alone, with one argument too few and, where there is a most, with one too many."""
    with standalone.raw() as direct, proxy.raw() as through:
        differing = []
        compared = 0
        for name, arity in command_arities(direct):
            lengths = {1, abs(arity) - 1} | ({arity + 1} if arity > 0 else set())
            for length in sorted(lengths - {0, abs(arity)} if arity > 0 else lengths - {0}):
                words = [name] + [b"x"] * (length - 1)
                if name in (b"quit", b"monitor", b"sync", b"psync", b"shutdown", b"subscribe", b"reset", b"debug"):
                    continue
                expected = direct.command(*words)
                if not expected.startswith(b"-ERR wrong number of arguments"):
                    continue
                answer = through.command(*words)
                compared += 1
                if answer != expected and NOT_OURS not in answer:
                    differing.append((words, answer, expected))
    assert differing == []
    assert compared > 150


def command_arities(direct: RawClient) -> list[tuple[bytes, int]]:
    """Name and arity of every command the server lists."""
    lines = direct.command("COMMAND").split(b"\r\n")
    # *10 $n name :arity: top-level rows only, subcommands are named `container|sub`.
    return [
        (lines[n + 2], int(lines[n + 3][1:]))
        for n in range(len(lines) - 3)
        if lines[n] in (b"*10", b"*7") and lines[n + 1].startswith(b"$") and b"|" not in lines[n + 2]
    ]


REFUSED = [
    ["SHUTDOWN", "NOSAVE"],
    ["DEBUG", "SLEEP", "0"],
    ["REPLICAOF", "NO", "ONE"],
    ["SLAVEOF", "NO", "ONE"],
    ["SYNC"],
    ["PSYNC", "?", "-1"],
    ["REPLCONF", "ACK", "1"],
    ["FAILOVER"],
    ["MIGRATE", "127.0.0.1", "1", "k", "0", "1"],
    ["MODULE", "LOAD", "/x"],
    ["SAVE"],
    ["BGSAVE"],
    ["BGREWRITEAOF"],
    ["SWAPDB", "0", "1"],
    ["MOVE", "k", "1"],
    ["ACL", "SETUSER", "x"],
    ["PFSELFTEST"],
    ["RESTORE-ASKING", "k", "0", "x"],
    ["CLUSTER", "RESET"],
    ["CLUSTER", "FAILOVER"],
    ["CLUSTER", "SETSLOT", "1", "STABLE"],
    ["CLUSTER", "ADDSLOTS", "1"],
    ["CLUSTER", "FORGET", "f" * 40],
]


@pytest.mark.parametrize("words", REFUSED, ids=" ".join)
@pytest.mark.parametrize("case", [str.upper, str.lower])
def test_refused_commands_keep_the_connection(words: list[str], case: object, raw: RawClient) -> None:
    name = case(words[0])  # type: ignore[operator]
    answer = raw.command(name, *words[1:])
    assert answer.startswith(b"-ERR command '" + words[0].lower().encode())
    assert answer.endswith(b"' is not allowed through this proxy\r\n")
    assert raw.command("PING") == b"+PONG\r\n"


STATEFUL = [["CLUSTERSCAN", "0"]]  # Valkey 9.1; Redis has no such command


@pytest.mark.parametrize("words", STATEFUL, ids=" ".join)
def test_what_is_not_served_yet_is_an_error_and_disturbs_nobody(words: list[str], proxy: ProxyDaemon) -> None:
    with proxy.raw() as client, proxy.raw(timeout_s=3) as other:
        assert client.command(*words).startswith(b"-")
        assert client.command("PING") == b"+PONG\r\n"
        client.send(b"".join(encode("SET", key, "v") for key in "abcd"))
        assert client.frames(4) == [b"+OK\r\n"] * 4
        for key in "abcd":
            assert other.command("GET", key) == b"$1\r\nv\r\n"
