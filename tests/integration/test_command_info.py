"""COMMAND, the ACL subcommands that read, and errors about unknown commands, against a plain server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from proxy.resp.decode import ReplyError, decode
from tests.support.cluster import Standalone
from tests.support.proxyd import ProxyDaemon
from tests.support.raw import RawClient

Both = tuple[RawClient, RawClient]
DENY = ["config|get", "@scripting", "GETDEL"]


@pytest.fixture(scope="module")
def strict(cluster: Any) -> Iterator[ProxyDaemon]:
    with ProxyDaemon(cluster.seeds[:1], {"commands": {"deny": DENY}}) as daemon:
        yield daemon


@pytest.fixture(params=[2, 3], ids=["resp2", "resp3"])
def both(request: pytest.FixtureRequest, strict: ProxyDaemon, standalone: Standalone) -> Iterator[Both]:
    """Connections through the proxy and to a plain server."""
    with ExitStack() as stack:
        clients = stack.enter_context(strict.raw()), stack.enter_context(standalone.raw())
        clients[1].command("ACL", "LOG", "RESET")  # other tests give that server wrong passwords
        for client in clients:
            client.command("HELLO", request.param)
        yield clients


@pytest.mark.parametrize(
    "words",
    [
        "COMMAND GETKEYS set a b",
        "COMMAND GETKEYS nosuch a",
        "COMMAND GETKEYS get",
        "COMMAND GETKEYS",
        "COMMAND GETKEYSANDFLAGS set a b",
        "COMMAND HELP",
        "COMMAND nosuch",
        "command NoSuch x",
        "COMMAND COUNT x",
        "COMMAND INFO nosuch",
        "COMMAND INFO get nosuch SET",
        "COMMAND INFO object|encoding nosuch|x object|nosuch",
        "COMMAND DOCS get nosuch SET get",
        "COMMAND DOCS nosuch",
        "COMMAND DOCS object|encoding",
        "COMMAND LIST FILTERBY PATTERN get",
        "COMMAND LIST FILTERBY ACLCAT nosuch",
        "COMMAND LIST FILTERBY nosuch x",
        "COMMAND LIST x",
        "ACL WHOAMI",
        "ACL LIST",
        "ACL USERS",
        "ACL USERS x",
        "ACL GETUSER default",
        "ACL GETUSER nobody",
        "ACL GETUSER",
        "ACL LOG",
        "ACL LOG 10",
        "ACL LOG RESET",
        "ACL LOG x",
        "ACL LOG 1 2",
        "ACL DRYRUN default get a",
        "ACL DRYRUN default GET",
        "ACL DRYRUN default client info",
        "ACL DRYRUN default config nosuch",
        "ACL DRYRUN default nosuch a",
        "ACL DRYRUN nobody get a",
        "ACL DRYRUN default",
        "ACL CAT",
        "ACL CAT nosuch",
        "ACL HELP",
        "ACL nosuch",
        "ACL",
        "ROLE x",
        "LASTSAVE x",
        "MODULE LIST",
        "FT._LIST",
        "SENTINEL masters",
        "SENTINEL",
        "FOO",
        "FOO a b",
        "foo " + "x" * 200 + " y",
        "foo " + " ".join(["abcdefgh"] * 30),
        "x" * 300,
        "object nosuch",
        "object",
        "OBJECT HELP",
        "config nosuch",
        "memory nosuch a",
        "MEMORY HELP",
        "MEMORY USAGE nosuch",
        "OBJECT FREQ nosuch",
        "client nosuch",
        "script nosuch",
        "xgroup nosuch",
        "latency nosuch",
        "debug",
        "module nosuch",
    ],
)
def test_as_a_plain_server(both: Both, words: str) -> None:
    through, direct = (client.command(*words.split()) for client in both)
    assert through == direct


@pytest.mark.parametrize(
    "name", [b"a\0b", b"a\r\nb", "é".encode(), b"''", b"object|encoding", b"client|id", b"\xff\xfe"]
)
def test_unknown_names_of_any_bytes(both: Both, name: bytes) -> None:
    through, direct = (client.command(name, b"x\0y", name) for client in both)
    assert through == direct


def names_in(client: RawClient, *words: str) -> set[str]:
    return {name.decode() for name in decode(client.command(*words))}


def test_without_what_is_refused(both: Both) -> None:
    """COMMAND, COUNT, LIST, INFO and DOCS say the same."""
    ours, theirs = (names_in(client, "COMMAND", "LIST") for client in both)
    assert ours < theirs
    gone = theirs - ours
    assert {"debug", "shutdown", "getdel", "config|get", "eval", "fcall", "script|load", "acl|setuser"} <= gone
    assert not {"get", "config", "config|set", "acl", "acl|list", "cluster|slots"} & gone

    client = both[0]
    top = {name for name in ours if "|" not in name}
    entries = decode(client.command("COMMAND"))
    assert {entry[0].decode() for entry in entries} == top
    assert decode(client.command("COMMAND", "COUNT")) == len(top)
    subs = {sub[0].decode() for entry in entries for sub in entry[9]}
    assert subs == {name for name in ours if "|" in name}

    docs = decode(client.command("COMMAND", "DOCS"))
    told = docs if isinstance(docs, dict) else dict(zip(docs[::2], docs[1::2], strict=True))
    assert {name.decode() for name in told} == top
    config = told[b"config"]
    config = config if isinstance(config, dict) else dict(zip(config[::2], config[1::2], strict=True))
    its = config[b"subcommands"]
    assert b"config|set" in its
    assert b"config|get" not in its

    info = decode(client.command("COMMAND", "INFO", "get", "GETDEL", "debug", "config|get", "CONFIG|SET", "config"))
    assert [entry and entry[0] for entry in info] == [b"get", None, None, None, b"config|set", b"config"]
    assert b"config|get" not in {sub[0] for sub in info[5][9]}
    assert decode(client.command("COMMAND", "DOCS", "getdel", "config|get", "debug")) in ({}, [])
    assert decode(client.command("COMMAND", "LIST", "FILTERBY", "ACLCAT", "scripting")) == []
    assert client.command("COMMAND", "GETKEYS", "GETDEL", "a") == b"-ERR Invalid command specified\r\n"
    assert b"no permissions" in client.command("ACL", "DRYRUN", "default", "getdel", "a")


def test_an_entry_is_as_the_server_sent_it(both: Both) -> None:
    for name in ("get", "xread", "georadius", "object", "sort"):
        one, two = (decode(client.command("COMMAND", "INFO", name))[0] for client in both)
        for entry in (one, two):
            entry[9].sort(key=lambda sub: sub[0])  # in the order of each server's hash table
        assert one == two


@pytest.mark.parametrize(
    "command", ["getdel k", "GETDEL", "config get x", "EVAL x 0", "script load x", "function list"]
)
def test_denied(both: Both, command: str) -> None:
    words = command.split()
    name = words[0].lower() if words[0].lower() in ("getdel", "eval") else "|".join(words[:2])
    answer = both[0].command(*words)
    if len(words) > 1:
        assert answer == b"-ERR command '%b' is not allowed through this proxy\r\n" % name.encode()
    else:
        assert answer == b"-ERR wrong number of arguments for 'getdel' command\r\n"


def test_deny_is_applied_by_a_reload(cluster: Any, start_proxy: Callable[..., ProxyDaemon]) -> None:
    daemon = start_proxy(cluster.seeds[:1], {"commands": {"allow": ["debug"]}})
    with daemon.raw() as client:
        count = decode(client.command("COMMAND", "COUNT"))
        assert client.command("GET", "k") == b"$-1\r\n"
        assert b"through this proxy" not in client.command("DEBUG", "nosuch")
        daemon.reload({"commands": {"allow": ["debug"], "deny": ["get", "@dangerous", "m.new", "nosuch|x"]}})
        assert client.command("GET", "k") == b"-ERR command 'get' is not allowed through this proxy\r\n"
        assert client.command("M.NEW", "k") == b"-ERR command 'm.new' is not allowed through this proxy\r\n"
        for words in ("DEBUG x", "INFO", "KEYS *", "CLIENT LIST", "SORT k", "ROLE"):
            assert b"not allowed through this proxy" in client.command(*words.split()), words
        assert client.command("CLIENT", "ID").startswith(b":")
        assert client.command("SET", "k", "v") == b"+OK\r\n"
        fewer = decode(client.command("COMMAND", "COUNT"))
        assert fewer < count - 10
        daemon.reload({"commands": {"allow": [], "deny": []}})
        assert client.command("GET", "k") == b"$1\r\nv\r\n"
        assert b"through this proxy" in client.command("DEBUG", "x")
        assert decode(client.command("COMMAND", "COUNT")) == count - 1


def test_unknown_names_in_deny_are_logged(cluster: Any, start_proxy: Callable[..., ProxyDaemon]) -> None:
    daemon = start_proxy(cluster.seeds[:1], {"commands": {"deny": ["nosuch"]}})
    assert daemon.log_contains("no command or category known here is called nosuch")


def test_no_hash_of_a_password(cluster: Any, start_proxy: Callable[..., ProxyDaemon]) -> None:
    daemon = start_proxy(cluster.seeds[:1], {"clients": {"password": "secret"}})
    with daemon.raw() as client:
        assert client.command("ACL", "WHOAMI") == b"-NOAUTH Authentication required.\r\n"
        assert client.command("AUTH", "secret") == b"+OK\r\n"
        assert client.command("ACL", "LIST") == b"*1\r\n$27\r\nuser default on ~* &* +@all\r\n"
        user = decode(client.command("ACL", "GETUSER", "default"))
        assert user[:4] == [b"flags", [b"on"], b"passwords", []]


def test_many_who_ask_at_once(proxy: ProxyDaemon) -> None:
    clients = [proxy.raw(timeout_s=30) for _ in range(60)]
    try:
        for client in clients:
            client.send(b"COMMAND COUNT\r\nCOMMAND\r\nCOMMAND DOCS\r\nPING\r\n")
        answers = [client.frames(4) for client in clients]
    finally:
        for client in clients:
            client.close()
    assert len({(count, len(command), len(docs), pong) for count, command, docs, pong in answers}) == 1
    assert not any(isinstance(decode(frame), ReplyError) for frame in answers[0])


def test_a_million_names_are_bounded(raw: RawClient) -> None:
    assert raw.command("COMMAND", "INFO", *["get"] * 200_000).startswith(b"-ERR too many arguments")
    assert raw.command("COMMAND", "INFO", *["get"] * 5000).startswith(b"*5000\r\n")
    assert raw.command("PING") == b"+PONG\r\n"
