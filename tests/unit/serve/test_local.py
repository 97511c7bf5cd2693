"""The connection family, alone: replies as bytes, and what they change in the client."""

from __future__ import annotations

import copy
import re

import pytest

from proxy.resp import errors
from proxy.serve import client as client_answers
from proxy.serve import table
from proxy.serve.context import ServeContext
from tests.unit.serve.fakes import FakeClient, context

WRONGPASS = b"-WRONGPASS invalid username-password pair or user is disabled.\r\n"
PASSWORD = "s3cret"


def ask(client: FakeClient, *words: bytes | str, ctx: ServeContext | None = None) -> bytes:
    args = [word.encode() if isinstance(word, str) else word for word in words]
    return table.answer(ctx or context(), client, args)


def test_hello_answers_in_the_protocol_it_sets() -> None:
    client = FakeClient(id=9)
    two = ask(client, "HELLO", "2")
    assert two == (
        b"*14\r\n$6\r\nserver\r\n$5\r\nredis\r\n$7\r\nversion\r\n$5\r\n7.2.4\r\n$5\r\nproto\r\n:2\r\n$2\r\nid\r\n:9\r\n"
        b"$4\r\nmode\r\n$10\r\nstandalone\r\n$4\r\nrole\r\n$6\r\nmaster\r\n$7\r\nmodules\r\n*0\r\n"
    )
    assert ask(client, "hello", "3") == two.replace(b"*14", b"%7").replace(b":2", b":3")
    assert client.proto == 3
    assert ask(client, "HELLO").startswith(b"%7\r\n")
    assert ask(client, "HELLO", "2") == two
    assert client.proto == 2


@pytest.mark.parametrize(
    "words",
    [
        ("4",),
        ("1",),
        ("x",),
        ("3", "NOSUCH"),
        ("3", "AUTH", "default"),
        ("3", "SETNAME"),
        ("3", "SETNAME", "new", "SETNAME"),
        ("3", "SETNAME", "new", "AUTH", "default", "wrong"),
        ("3", "SETNAME", "new", "AUTH", "nobody", PASSWORD),
        ("3", "AUTH", "default", PASSWORD, "SETNAME", "two words"),
        ("3", "AUTH", "default", PASSWORD, "SETNAME", "new", "NOSUCH"),
        ("3", "SETNAME", "new"),
    ],
    ids=" ".join,
)
def test_a_failed_hello_changes_nothing(words: tuple[str, ...]) -> None:
    client = FakeClient(authenticated=False, name=b"old")
    before = copy.copy(client)
    assert ask(client, "HELLO", *words, ctx=context(client_password=PASSWORD)).startswith(b"-")
    assert client == before


def test_hello_with_all_options() -> None:
    client = FakeClient(authenticated=False)
    ctx = context(client_password=PASSWORD)
    assert ask(client, "HELLO", "3", "setname", "me", "auth", "default", PASSWORD, ctx=ctx).startswith(b"%7\r\n")
    assert (client.proto, client.authenticated, client.name, client.user) == (3, True, b"me", "default")
    assert ask(client, "HELLO", "3", "SETNAME", "", ctx=ctx).startswith(b"%7\r\n")
    assert client.name == b""


@pytest.mark.parametrize("version", ["7.0.15", "6.2.14", "7.2.0", "8.4.0", "10.0.1", "unknown"])
def test_hello_before_auth_speaks_as_the_servers_do(version: str) -> None:
    client = FakeClient(authenticated=False)
    answer = ask(client, "HELLO", "3", ctx=context(client_password=PASSWORD, server_version=version))
    old = version in ("7.0.15", "6.2.14")
    assert answer == errors.NOAUTH_HELLO.replace(b"<proto> ", b"" if old else b"<proto> ")


def test_auth() -> None:
    client = FakeClient(authenticated=False)
    ctx = context(client_password=PASSWORD)
    for words in (["wrong"], ["default", "wrong"], ["nobody", PASSWORD], ["Default", PASSWORD], [""], [PASSWORD + "x"]):
        assert ask(client, "AUTH", *words, ctx=ctx) == WRONGPASS
        assert not client.authenticated
    assert ask(client, "AUTH", PASSWORD, ctx=ctx) == b"+OK\r\n"
    assert client.authenticated
    assert ask(client, "AUTH", "wrong", ctx=ctx) == WRONGPASS
    assert client.authenticated
    assert ask(client, "AUTH", b"\xff\xfe", ctx=ctx) == WRONGPASS


def test_auth_with_a_password_beyond_ascii() -> None:
    client = FakeClient(authenticated=False)
    assert ask(client, "AUTH", "pässwörd", ctx=context(client_password="pässwörd")) == b"+OK\r\n"


def test_reset_forgets_all_but_the_library() -> None:
    client = FakeClient(proto=3, db=3, name=b"me", reads="any", lib_name=b"lib", lib_ver=b"1")
    assert ask(client, "RESET") == b"+RESET\r\n"
    assert (client.proto, client.db, client.name, client.reads) == (2, 0, b"", "primary")
    assert (client.lib_name, client.lib_ver) == (b"lib", b"1")
    assert client.authenticated
    assert client.resets == 1


def test_reset_logs_out_where_there_is_a_password() -> None:
    client = FakeClient(reads="primary", listener_reads="any")
    ask(client, "RESET", ctx=context(client_password=PASSWORD))
    assert not client.authenticated
    assert client.reads == "any"


def test_quit_closes_after_its_answer() -> None:
    client = FakeClient()
    assert ask(client, "QUIT", "whatever") == b"+OK\r\n"
    assert client.closing


@pytest.mark.parametrize(
    ("listener", "after"),
    [
        ("primary", "prefer_replica"),
        ("prefer_primary", "prefer_primary"),
        ("replica", "replica"),
        ("prefer_replica", "prefer_replica"),
        ("any", "any"),
    ],
)
def test_readonly_and_readwrite(listener: str, after: str) -> None:
    client = FakeClient(reads=listener, listener_reads=listener)
    assert ask(client, "READONLY") == b"+OK\r\n"
    assert client.reads == after
    assert ask(client, "READWRITE") == b"+OK\r\n"
    assert client.reads == "primary"
    assert ask(client, "READONLY") == b"+OK\r\n"
    assert client.reads == after


@pytest.mark.parametrize(
    ("databases", "db", "expected"),
    [
        (1, "0", b"+OK\r\n"),
        (1, "1", b"-ERR SELECT is not allowed in cluster mode\r\n"),
        (1, "-1", b"-ERR DB index is out of range\r\n"),
        (4, "3", b"+OK\r\n"),
        (4, "4", b"-ERR DB index is out of range\r\n"),
        (4, "-1", b"-ERR DB index is out of range\r\n"),
    ],
)
def test_select(databases: int, db: str, expected: bytes) -> None:
    client = FakeClient()
    assert ask(client, "SELECT", db, ctx=context(databases=databases)) == expected
    assert client.db == (int(db) if expected == b"+OK\r\n" else 0)


@pytest.mark.parametrize(
    ("version", "numbered"), [("9.1.2", True), ("8.1.0", False), ("unstable", False), ("²", False)]
)
def test_select_where_valkey_could_have_databases(version: str, numbered: bool) -> None:
    """Valkey 9 says so even when it has one."""
    told = ask(FakeClient(), "SELECT", "1", ctx=context(valkey_version=version))
    assert told == (
        b"-ERR DB index is out of range\r\n" if numbered else b"-ERR SELECT is not allowed in cluster mode\r\n"
    )


def test_time_is_now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.serve.local.time.time_ns", lambda: 1700000000_000012_999)
    assert ask(FakeClient(), "TIME") == b"*2\r\n$10\r\n1700000000\r\n$2\r\n12\r\n"


def test_setinfo_keeps_what_it_was_told() -> None:
    client = FakeClient()
    assert ask(client, "CLIENT", "SETINFO", "lib-name", "redis-py(x_v1)") == b"+OK\r\n"
    assert ask(client, "CLIENT", "SETINFO", "LIB-VER", "8.1") == b"+OK\r\n"
    assert (client.lib_name, client.lib_ver) == (b"redis-py(x_v1)", b"8.1")
    assert ask(client, "CLIENT", "SETINFO", "lib-ver", "8 1").startswith(b"-ERR lib-ver cannot contain spaces")
    assert client.lib_ver == b"8.1"
    assert ask(client, "CLIENT", "SETINFO", "lib-ver", "") == b"+OK\r\n"
    assert client.lib_ver == b""


def test_client_info_line() -> None:
    client = FakeClient(
        id=3, name=b"me", lib_name=b"lib", lib_ver=b"2", query_bytes=5, output_bytes=70, last_active_s=1007.0
    )
    assert client_answers.client_line(client, 1010.9, "client|info") == (
        b"id=3 addr=127.0.0.1:40001 laddr=127.0.0.1:7617 fd=12 name=me age=10 idle=3 flags=N db=0 sub=0 psub=0 ssub=0 "
        b"multi=-1 qbuf=5 qbuf-free=0 argv-mem=0 multi-mem=0 rbs=0 rbp=0 obl=0 oll=1 omem=70 tot-mem=75 events=rw "
        b"cmd=client|info user=default redir=-1 resp=2 lib-name=lib lib-ver=2"
    )


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, b"addr=127.0.0.1:40001 laddr=127.0.0.1:7617"),
        ({"address": "[::1]:5", "local_address": "[::1]:6"}, b"addr=[::1]:5 laddr=[::1]:6"),
        ({"address": "unix:/run/p.sock", "local_address": "unix:/run/p.sock"}, b"laddr=/run/p.sock:0 fd=12"),
        ({"address": "unix:/run/p.sock"}, b"flags=U db"),
        ({"reads": "prefer_replica"}, b"flags=r db"),
        ({"reads": "any", "listener_reads": "any"}, b"flags=N db"),
        ({"reads": "primary", "listener_reads": "any"}, b"flags=N db"),
        ({"age_s": 3.99, "last_active_s": 4e12}, b"age=3 idle=0"),
    ],
)
def test_client_info_spells_addresses_and_flags_as_redis(changes: dict[str, object], expected: bytes) -> None:
    client = FakeClient(**changes)  # type: ignore[arg-type]
    answer = ask(client, "CLIENT", "INFO")
    assert expected in answer
    assert answer.endswith(b"\n\r\n")
    client.proto = 3
    assert re.fullmatch(rb"=\d+\r\ntxt:id=7 .*\n\r\n", ask(client, "CLIENT", "INFO"), re.DOTALL)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["CLIENT", "NoSuch"], b"-ERR unknown subcommand 'NoSuch'. Try CLIENT HELP.\r\n"),
        (["CLUSTER", "SETSLOT", "1", "STABLE"], errors.not_allowed(b"cluster|setslot")),
        (["CLUSTER", "SLOT-STATS"], errors.not_served(b"cluster|slot-stats")),
        (["cluster", "NoSuch"], b"-ERR unknown subcommand 'NoSuch'. Try CLUSTER HELP.\r\n"),
        (["CLIENT", "SETINFO", "LIB-NAME"], b"-ERR wrong number of arguments for 'client|setinfo' command\r\n"),
        (["CLIENT"], b"-ERR wrong number of arguments for 'client' command\r\n"),
        (["ECHO"], b"-ERR wrong number of arguments for 'echo' command\r\n"),
        (["LOLWUT"], errors.not_served(b"lolwut")),
    ],
    ids=str,
)
def test_what_is_not_served_says_so(words: list[str], expected: bytes) -> None:
    client = FakeClient()
    before = copy.copy(client)
    assert ask(client, *words) == expected
    assert client == before


def test_help_lists_exactly_what_is_served() -> None:
    for container in (b"client", b"cluster"):
        lines = ask(FakeClient(), container, "HELP").split(b"\r\n")[2:-1]
        listed = {line[1:].split()[0].lower() for line in lines if not line.startswith(b"+ ")}
        served = {name.partition(b"|")[2] for name in table.COMMANDS if name.startswith(container + b"|")}
        assert listed == served


@pytest.mark.parametrize("name", sorted(table.COMMANDS))
@pytest.mark.parametrize("filler", [b"", b"\0", b"\r\n", b"\xff" * 9, b"1" * 70000, b"-", b"AUTH", b"SETNAME", b"%n"])
def test_no_input_raises(name: bytes, filler: bytes) -> None:
    for count in range(6):
        for proto in (2, 3):
            client = FakeClient(proto=proto)
            words = [*name.split(b"|"), *[filler] * count]
            answer = table.answer(context(client_password="x"), client, words)
            if not isinstance(answer, bytes):
                continue
            assert answer[:1] in (b"+-:$*" if client.proto == 2 else b"+-:$*%=_")
            assert answer.endswith(b"\r\n")
            if answer[:1] in (b"-", b"+"):
                assert answer.count(b"\n") == 1


@pytest.mark.parametrize("byte", range(256))
def test_which_bytes_a_name_may_have(byte: int) -> None:
    expected = b"+OK\r\n" if 0x21 <= byte <= 0x7E else errors.CLIENT_NAME
    assert ask(FakeClient(), "CLIENT", "SETNAME", b"a" + bytes([byte]) + b"b") == expected


def test_a_context_shows_no_password() -> None:
    assert "s3cret" not in repr(context(client_password="s3cret"))


@pytest.mark.parametrize(
    "words", [("CLIENT", "SETNAME"), ("CLIENT", "SETINFO", "LIB-NAME"), ("CLIENT", "SETINFO", "LIB-VER")]
)
def test_what_a_client_says_of_itself_is_bounded(words: tuple[str, ...]) -> None:
    """CLIENT LIST repeats all of it, for every client."""
    client = FakeClient()
    before = copy.copy(client)
    assert ask(client, *words, "n" * 4097) == errors.TEXT_TOO_LONG
    assert client == before
    assert ask(client, *words, "n" * 4096) == b"+OK\r\n"
    assert ask(FakeClient(), "HELLO", "3", "SETNAME", "n" * 4097) == errors.TEXT_TOO_LONG


def test_a_pattern_of_scan_is_bounded() -> None:
    """Each page would compile it anew, and it goes to every node."""
    assert ask(FakeClient(), "SCAN", "0", "MATCH", b"a" * 65_537) == errors.PATTERN_TOO_LONG
