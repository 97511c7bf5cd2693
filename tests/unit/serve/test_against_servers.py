"""What the proxy says itself, compared letter by letter with real servers in the same situation.

Each case is one connection's dialogue, of which the last answer counts. Where the proxy must differ, the case says why.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from proxy.embedded import wait_for
from proxy.serve import table
from tests.support.cluster import servers
from tests.support.raw import RawClient
from tests.support.resp import ServerWith
from tests.unit.serve.fakes import FakeClient, alone, context, topology

PASSWORD = "s3cret"
Words = tuple[str | bytes, ...]


@dataclass(frozen=True)
class Case:
    """words after the dialogue before; locked: with a password set; differs: server kind -> why it is not compared."""

    words: Words
    before: tuple[Words, ...] = ()
    locked: bool = False
    differs: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        name = " / ".join(" ".join(str(word) for word in words) for words in (*self.before, self.words))
        return (f"{name} locked" if self.locked else name)[:80].encode("unicode_escape").decode()


OLD_SETINFO = {"redis": "Redis 7.0 has no CLIENT SETINFO; clients send it everywhere, and here it works"}

CASES = [
    *(Case(("HELLO", *rest)) for rest in ((), ("2",), ("3",), ("02",), ("",), ("4",), ("1",), ("-3",), ("abc",))),
    Case(("HELLO", "99999999999999999999")),
    Case(("HELLO", "9223372036854775808")),
    Case(("HELLO", "AUTH", "default", "x")),
    Case(("HELLO", "3", "FOO")),
    Case(("HELLO", "3", "F\r\nO")),
    Case(("HELLO", "3", b"a\0b")),
    Case(("HELLO", "3", "x" * 300)),
    Case(("HELLO", "3", "auth")),
    Case(("HELLO", "3", "AUTH", "default")),
    Case(("HELLO", "3", "AUTH", "default", "x")),
    Case(("HELLO", "3", "AUTH", "nobody", "x")),
    Case(("HELLO", "3", "SETNAME")),
    Case(("HELLO", "3", "SETNAME", "a b")),
    Case(("HELLO", "3", "SETNAME", "x", "AUTH")),
    Case(("CLIENT", "GETNAME"), (("HELLO", "3", "SETNAME", "abc"),)),
    Case(("CLIENT", "GETNAME"), (("HELLO", "3", "SETNAME", "abc"), ("HELLO", "2", "SETNAME", ""))),
    Case(("CLIENT", "GETNAME"), (("HELLO", "3"),)),
    Case(("HELLO",), (("HELLO", "3"),)),
    Case(("HELLO", "2"), (("HELLO", "3"),)),
    Case(("HELLO",), (("HELLO", "3"), ("RESET",))),
    Case(("HELLO",), locked=True),
    Case(("HELLO", "3"), locked=True),
    Case(("HELLO", "3", "SETNAME", "x"), locked=True),
    Case(("HELLO", "4"), locked=True),
    Case(("HELLO", "abc"), locked=True),
    Case(("HELLO", "3", "FOO"), locked=True),
    Case(("HELLO", "3", "AUTH", "default", "wrong"), locked=True),
    Case(("HELLO", "3", "AUTH", "default", PASSWORD), locked=True),
    Case(
        ("HELLO", "3", "AUTH", "default", "wrong", "SETNAME", "a b"),
        locked=True,
        differs={"redis": "Redis 7.0 carries options out while reading them; Valkey and the proxy read them all first"},
    ),
    Case(
        ("CLIENT", "GETNAME"),
        (("AUTH", PASSWORD), ("HELLO", "3", "SETNAME", "x", "FOO")),
        locked=True,
        differs={"redis": "Redis 7.0 keeps the name of a HELLO that failed"},
    ),
    Case(("AUTH", "x")),
    Case(("AUTH", "default", "x")),
    Case(("AUTH", "bob", "x")),
    Case(("AUTH", "a", "b", "c")),
    Case(("AUTH",)),
    Case(("AUTH", "x"), locked=True),
    Case(("AUTH", PASSWORD), locked=True),
    Case(("AUTH", "default", PASSWORD), locked=True),
    Case(("AUTH", "DEFAULT", PASSWORD), locked=True),
    Case(("AUTH", "a", "b", "c"), locked=True),
    Case(("HELLO",), (("AUTH", PASSWORD), ("AUTH", "wrong")), locked=True),
    Case(("HELLO",), (("AUTH", PASSWORD), ("RESET",)), locked=True),
    *(Case(("SELECT", db)) for db in ("0", "abc", "", "01", "+1", " 1", "-0", "-1", "1.0")),
    Case(("SELECT", "2147483648")),
    Case(("SELECT", "-2147483649")),
    Case(("SELECT", "9223372036854775807")),
    Case(("SELECT", "-9223372036854775808")),
    Case(("SELECT", "9223372036854775808")),
    Case(("SELECT", "-9223372036854775809")),
    Case(("CLIENT", "SETNAME", "a b")),
    Case(("CLIENT", "SETNAME", "a\nb")),
    Case(("CLIENT", "SETNAME", b"a\x7fb")),
    Case(("CLIENT", "SETNAME", b"a\x80b")),
    Case(("CLIENT", "SETNAME", b"a\0b"), differs={"valkey": "Valkey takes the name and shows it up to the NUL"}),
    Case(("CLIENT", "SETNAME", "!~")),
    Case(("CLIENT", "GETNAME")),
    Case(("CLIENT", "GETNAME"), (("CLIENT", "SETNAME", "x"),)),
    Case(("CLIENT", "GETNAME"), (("CLIENT", "SETNAME", "x"), ("CLIENT", "SETNAME", "a b"))),
    Case(("CLIENT", "GETNAME"), (("CLIENT", "SETNAME", "x"), ("CLIENT", "SETNAME", ""))),
    Case(("CLIENT", "GETNAME"), (("CLIENT", "SETNAME", "x"), ("RESET",))),
    Case(("CLIENT", "SETINFO", "lib-name", "redis-py"), differs=OLD_SETINFO),
    Case(("CLIENT", "SETINFO", "lib-name", ""), differs=OLD_SETINFO),
    Case(("CLIENT", "SETINFO", "LIB-Name", "a b"), differs=OLD_SETINFO),
    Case(("CLIENT", "SETINFO", "lib-ver", "a\nb"), differs=OLD_SETINFO),
    Case(("CLIENT", "SETINFO", "fo o\r\n", "x"), differs=OLD_SETINFO),
    Case(("CLIENT", "SETINFO", "lib-ver"), differs=OLD_SETINFO),
    Case(("CLIENT", "FOO")),
    Case(("client", "foo", "bar")),
    Case(("CLIENT", "F\r\nO")),
    Case(("CLIENT", b"a\0b")),
    Case(("CLIENT", "x" * 200)),
    Case(("CLIENT", "ID", "x")),
    Case(("CLIENT",)),
    Case(("CLIENT", "NO-EVICT", "on")),
    Case(("CLIENT", "NO-EVICT", "OFF")),
    Case(("CLIENT", "NO-EVICT", "x")),
    Case(("CLUSTER", "FOO")),
    Case(("CLUSTER", "KEYSLOT")),
    Case(("CLUSTER", "MYID", "x")),
    Case(("ECHO", "abc")),
    Case(("ECHO", "")),
    Case(("ECHO", b"\0\r\n\xff")),
    Case(("TIME", "x")),
    Case(("READONLY", "x")),
    Case(("READWRITE", "x")),
    Case(("ASKING", "x")),
    Case(("RESET",)),
    Case(("RESET", "x")),
    Case(("QUIT",)),
    Case(("QUIT", "x", "y")),
    Case(("INFO", "nosuch")),
    Case(("INFO", "")),
    Case(("INFO", "nosuch"), (("HELLO", "3"),)),
    Case(("INFO", "keyspace", "nosuch", "CLUSTER", "cluster")),
    Case(("INFO", "keyspace", "cluster"), (("HELLO", "3"),)),
]


NEWER = {"redis": "Redis 7.0 lacks it, and here it works with any servers"}
IDS = {"redis": "Redis 7.0 words it otherwise; the proxy speaks as Valkey 9"}
WORDS = {"redis": "Redis 7.0 wants no further words"}

# Those that are answered alike whoever is connected: of nobody, or in error.
FILTERS = [
    *(
        Case(("CLIENT", "LIST", *words), differs=differs)
        for words, differs in (
            (("TYPE",), {}),
            (("TYPE", "x"), {}),
            (("TYPE", "master"), {}),
            (("TYPE", "replica"), {}),
            (("TYPE", "slave"), {}),
            (("TYPE", "pubsub"), {}),
            (("TYPE", "primary"), NEWER),
            (("foo",), {}),
            (("foo", "bar"), {}),
            (("ID",), {}),
            (("ID", "9999999"), {}),
            (("ID", "9999999", "9999998"), {}),
            (("ID", "x"), IDS),
            (("ID", "0"), IDS),
            (("ID", "-1"), IDS),
            (("ID", "9999999", "x"), IDS),
            (("ID", "9999999", "TYPE", "normal"), IDS),
            (("USER", "nobody"), NEWER),
            (("NOT-USER", "nobody"), NEWER),
            (("NOT-USER", "default"), NEWER),
            (("NOT-TYPE", "normal"), NEWER),
            (("NOT-FLAGS", "N"), NEWER),
            (("NOT-DB", "0"), NEWER),
            (("NOT-MAXAGE", "1"), NEWER),
            (("NOT-SKIPME", "yes"), NEWER),
            (("NOT-IDLE", "1"), NEWER),
            (("SKIPME", "x"), NEWER),
            (("NAME", ""), NEWER),
            (("NAME", "a b"), NEWER),
            (("LIB-NAME", ""), NEWER),
            (("LIB-VER", "x"), NEWER),
            (("FLAGS", "NZ"), NEWER),
            (("FLAGS", "b"), NEWER),
            (("CAPA", "z"), NEWER),
            (("CAPA", "r"), NEWER),
            (("DB", "x"), NEWER),
            (("IDLE", "0"), NEWER),
            (("IDLE", "x"), NEWER),
            (("IDLE", "1000000000000"), NEWER),
            (("MAXAGE", "0"), NEWER),
            (("MAXAGE", "-1"), NEWER),
            (("MAXAGE", "x"), NEWER),
            (("MAXAGE", "1000000000000"), NEWER),
            (("LADDR", "x"), NEWER),
            (("IP", "9.9.9.9"), NEWER),
        )
    ),
    *(
        Case(("CLIENT", "KILL", *words), differs=differs)
        for words, differs in (
            ((), {}),
            (("1.1.1.1:1",), {}),
            (("ID",), {}),
            (("ID", "9999999"), {}),
            (("id", "9999999", "user", "default"), {}),
            (("ID", "0"), {}),
            (("ID", "-1"), {}),
            (("ID", "x"), IDS),
            (("ID", "9999999", "9999998"), NEWER),
            (("TYPE", "x"), {}),
            (("TYPE", "replica"), {}),
            (("TYPE", "master"), {}),
            (("TYPE", "normal", "SKIPME", "yes", "ID", "9999999"), {}),
            (("SKIPME", "foo"), {}),
            (("USER", "nobody"), {}),
            (("ADDR", "x"), {}),
            (("LADDR", "x"), {}),
            (("ADDR", "x", "LADDR"), {}),
            (("FOO", "bar"), {}),
            (("MAXAGE", "x"), NEWER),
            (("MAXAGE", "1000000000000"), NEWER),
            (("NAME", "x"), NEWER),
            (("NOT-ID", "1", "NAME", "x"), NEWER),
        )
    ),
    Case(("CLIENT", "NO-TOUCH", "on"), differs=NEWER),
    Case(("CLIENT", "NO-TOUCH", "x"), differs=NEWER),
    Case(("CLIENT", "NO-TOUCH"), differs=NEWER),
    Case(("CLIENT", "TRACKINGINFO")),
    Case(("CLIENT", "TRACKINGINFO"), (("HELLO", "3"),)),
    Case(("CLIENT", "TRACKINGINFO", "x")),
    Case(("CLIENT", "GETREDIR")),
    *(Case(("CLIENT", "CACHING", word)) for word in ("yes", "no", "x")),
    *(Case(("CLIENT", "UNBLOCK", *words)) for words in (("5",), ("x",), ("5", "ERROR"), ("5", "timeout"), ("5", "x"))),
    Case(("CLIENT", "UNBLOCK", "-5")),
    Case(("CLIENT", "UNBLOCK")),
    Case(("CLIENT", "UNBLOCK", "5", "error", "x"), differs=WORDS),
    *(Case(("CLIENT", "TRACKING", *words)) for words in (("off",), ("x",), (), ("off", "bcast"), ("off", "x"))),
    Case(("CLIENT", "TRACKING", "on", "redirect", "x")),
    Case(("CLIENT", "TRACKING", "on", "redirect")),
    Case(("CLIENT", "CAPA", "redirect"), differs=NEWER),
    Case(("CLIENT", "CAPA", "x"), differs=NEWER),
    Case(("CLIENT", "CAPA"), differs=NEWER),
    *(Case(("CLIENT", "IMPORT-SOURCE", word), differs=NEWER) for word in ("on", "off", "x")),
    *(
        Case(("CLIENT", "PAUSE", *words))
        for words in (
            (),
            ("x",),
            ("-1",),
            ("1.5",),
            ("",),
            (" 5",),
            ("+5",),
            ("05",),
            ("0",),
            ("0", "x"),
            ("0", "write"),
        )
    ),
    Case(("CLIENT", "PAUSE", "9223372036854775808")),
    Case(("CLIENT", "PAUSE", "9223372036854775807"), differs={"redis": "Redis 7.0 lets the sum overflow"}),
    Case(("CLIENT", "PAUSE", "0", "ALL", "x"), differs=WORDS),
    Case(("CLIENT", "UNPAUSE")),
    Case(("CLIENT", "UNPAUSE", "x")),
    Case(("CLIENT", "REPLY")),
    Case(("CLIENT", "REPLY", "x")),
    Case(("CLIENT", "REPLY", "on")),
    Case(("CLIENT", "REPLY", "on", "x")),
]
CASES += FILTERS


@dataclass
class Server:
    """The two real servers of one kind, open and locked, and what their versions are."""

    kind: str
    open: ServerWith
    locked: ServerWith
    version: str


@pytest.fixture(scope="module")
def real(server: str) -> Iterator[Server]:
    kind = next(kind for kind, path in servers().items() if path == server)
    # The proxy speaks as a Redis, as Valkey does when it is told to.
    options = ["--extended-redis-compatibility", "yes"] if kind == "valkey" else []
    with ServerWith(server, *options) as unlocked, contextlib.ExitStack() as stack:
        with unlocked.raw() as client:
            found = re.search(rb"redis_version:([\d.]+)", client.command("INFO", "server"))
            assert found is not None
        # Asked before the password is set, which the readiness check does not know.
        locked = stack.enter_context(ServerWith(server, *options))
        with locked.raw() as client:
            assert client.command("CONFIG", "SET", "requirepass", PASSWORD) == b"+OK\r\n"
        yield Server(kind, unlocked, locked, found[1].decode())


def normal(frame: bytes) -> bytes:
    """Without what is the server's own: its connection ids, and the modules it has built in (Valkey 9.1: lua)."""
    frame = re.sub(rb"(\$2\r\nid\r\n):\d+", rb"\1:0", frame)
    return re.sub(rb"(\$7\r\nmodules\r\n).*", rb"\1*0\r\n", frame, flags=re.DOTALL)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_case(case: Case, real: Server) -> None:
    if why := case.differs.get(real.kind):
        pytest.skip(why)
    client = FakeClient(authenticated=not case.locked)
    ctx = alone(context(client_password=PASSWORD if case.locked else None, server_version=real.version), [client])
    with (real.locked if case.locked else real.open).raw() as direct:
        for words in case.before:
            direct.command(*words)
            table.answer(ctx, client, in_bytes(words))
        expected = normal(direct.command(*case.words))
        assert normal(table.answer(ctx, client, in_bytes(case.words))) == expected
        if client.closing:
            assert direct.rest() == b""


def in_bytes(words: Words) -> list[bytes]:
    return [word.encode() if isinstance(word, str) else word for word in words]


def test_client_info_has_the_fields_of_redis_7_2(real: Server) -> None:
    def fields(frame: bytes) -> list[bytes]:
        return [pair.partition(b"=")[0] for pair in frame.split(b"\r\n")[1].strip().split(b" ")]

    ours = fields(table.answer(context(), FakeClient(), [b"CLIENT", b"INFO"]))
    with real.open.raw() as direct:
        theirs = fields(direct.command("CLIENT", "INFO"))
    newer = {b"capa", b"watch", b"tot-net-in", b"tot-net-out", b"tot-cmds"}
    if real.kind == "redis":
        newer |= {b"lib-name", b"lib-ver"}  # 7.2 appended them
    assert [name for name in ours if name not in newer] == [name for name in theirs if name not in newer]
    assert ours[-2:] == [b"lib-name", b"lib-ver"]


@pytest.fixture(scope="module")
def node(server: str) -> Iterator[RawClient]:
    """A whole cluster of one node, which the virtual node must look like."""
    options = ["--cluster-enabled", "yes", "--cluster-announce-ip", "127.0.0.1"]
    with ServerWith(server, *options) as started, started.raw() as client:
        assert client.command("CLUSTER", "ADDSLOTSRANGE", 0, 16383) == b"+OK\r\n"
        wait_for(lambda: b"cluster_state:ok" in client.command("CLUSTER", "INFO"), 10, "a cluster of one node")
        yield client


VIEW = [
    ("SLOTS",),
    ("SHARDS",),
    ("NODES",),
    ("MYID",),
    ("KEYSLOT", ""),
    ("KEYSLOT", "foo"),
    ("KEYSLOT", "{a}b"),
    ("KEYSLOT", "{}b"),
    ("KEYSLOT", "a{b"),
    ("KEYSLOT", "a{{b}}c"),
    ("INFO",),
]


@pytest.mark.parametrize("proto", [2, 3])
@pytest.mark.parametrize("words", VIEW, ids=" ".join)
def test_cluster_view(words: tuple[str, ...], proto: int, node: RawClient) -> None:
    node.command("HELLO", proto)
    theirs = node.command("CLUSTER", *words)
    host, port = node.sock.getpeername()
    client = FakeClient(proto=proto, local_address=f"{host}:{port}")
    ctx = context(**topology((0, 16383), epoch=0))
    ours = table.answer(ctx, client, [b"CLUSTER", *(word.encode() for word in words)])
    if words == ("INFO",):
        # Fields only Valkey has are left out, the others are in the same order with the same values.
        kept = ours.split(b"\r\n")[1:]
        assert [line for line in theirs.split(b"\r\n")[1:] if line in kept] == kept
        return
    assert without_ids(ours) == without_ids(theirs)


def without_ids(frame: bytes) -> bytes:
    """Node ids alike, no bus port (the proxy has no bus), no shard id (Valkey's own addition to CLUSTER SHARDS)."""
    frame = re.sub(rb"\$2\r\nid\r\n\$40\r\n[0-9a-f]{40}\r\n$", b"", frame)
    if b"replication-offset" in frame:
        frame = re.sub(rb"^\*1\r\n([*%])\d", rb"*1\r\n\1", frame)
    frame = re.sub(rb"^[$=]\d+", b"", frame)
    frame = re.sub(rb"@\d+ ", b"@0 ", frame)
    return re.sub(rb"[0-9a-f]{40}", b"ID", frame)
