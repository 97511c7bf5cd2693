"""What a broken node does must not reach clients or other nodes: scripted nodes, one real daemon each.

Why: a reply to what was not wholly sent made 0.1.0 send the memory behind its window to the node; answers lying in the
socket were thrown away when a send failed; a node that does not read made the worker grow without a bound (issue 7).
"""

from __future__ import annotations

import contextlib
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from proxy.embedded import EmbeddedError, wait_for, wait_or_none
from proxy.resp import errors
from tests.support.cluster import key_in, slot_of
from tests.support.fake_node import SILENCE, FakeNode, Reply, Session, Shard, shards_reply
from tests.support.processes import memory
from tests.support.proxyd import ProxyDaemon
from tests.support.raw import RawClient, array, bulk, encode

StartProxy = Callable[..., ProxyDaemon]
MB = 1 << 20
A_SLOT = slot_of("a")
PATIENT = {"requests": {"timeout": "30s"}, "backends": {"stall_timeout": "60s"}}
TOO_LONG = b"-ERR Protocol error: invalid bulk length\r\n"
HEADER = re.compile(rb"\*(\d+)\r\n")
LENGTH = re.compile(rb"\$(\d+)\r\n")
HANDSHAKE = {b"HELLO", b"AUTH", b"CLIENT", b"READONLY", b"PING", b"INFO", b"CLUSTER", b"COMMAND", b"CONFIG", b"EXISTS"}


class StrictNode(FakeNode):
    """A node that keeps all it is sent, byte by byte, and objects to a bulk above `limit` as soon as it is announced.

    objection: what it then says. closes: whether it closes at once, as servers do; else it only reads from then on.
    """

    def __init__(self, limit: int, objection: bytes, closes: bool) -> None:
        self.limit = limit
        self.objection = objection
        self.closes = closes
        self.announced = threading.Event()
        self.may_object = threading.Event()
        self.raw: list[bytearray] = []  # by connection
        super().__init__("1" * 40)
        # Connections inherit it: little fits into the socket while the node does not read.
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)

    def _serve(self, session: Session) -> None:
        raw, at, deaf = bytearray(), 0, False
        self.raw.append(raw)
        with session.sock as sock, contextlib.suppress(OSError):
            while data := sock.recv(1 << 16):
                raw += data
                while not deaf and (found := frame(raw, at)) is not None:
                    words, at = found
                    self.received.append(words)
                    reply = self._reply(session, words)
                    assert isinstance(reply, bytes)
                    sock.sendall(reply)
                sizes = [int(size) for size in LENGTH.findall(raw, at, at + 100)]
                if not deaf and any(size > self.limit for size in sizes):
                    self.announced.set()
                    self.may_object.wait(10)
                    sock.sendall(self.objection)
                    deaf = True
                    if self.closes:
                        return


def frame(raw: bytes | bytearray, at: int) -> tuple[list[bytes], int] | None:
    """The command that starts there and where it ends; None when it is not whole, or no command."""
    words = []
    head = HEADER.match(raw, at)
    if head is None:
        return None
    at = head.end()
    for _ in range(int(head[1])):
        length = LENGTH.match(raw, at)
        if length is None or len(raw) < (end := length.end() + int(length[1])) + 2 or raw[end : end + 2] != b"\r\n":
            return None
        words.append(bytes(raw[length.end() : end]))
        at = end + 2
    return words, at


def foreign(raw: bytes, sent: list[bytes]) -> bytes:
    """What the node received from the first byte on that belongs to no command of the proxy or of `sent`."""
    at = 0
    while (found := frame(raw, at)) is not None and (found[0][0] in HANDSHAKE or encode(*found[0]) in sent):
        at = found[1]
    rest = raw[at:]
    return rest[max(common(rest, one) for one in sent) :]


def common(one: bytes, two: bytes) -> int:
    """How many bytes the two start with in common."""
    low, high = 0, min(len(one), len(two))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == two[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


@pytest.fixture
def node() -> Iterator[FakeNode]:
    with FakeNode("1" * 40) as listening:
        yield listening


@pytest.fixture
def other() -> Iterator[FakeNode]:
    with FakeNode("2" * 40) as listening:
        yield listening


class Reading:
    """A client in a thread that asks GET over and over, and notes every reply that is not the right one."""

    def __init__(self, daemon: ProxyDaemon, key: str, value: bytes) -> None:
        self.done = 0
        self.wrong: list[bytes] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._read, args=(daemon, key, bulk(value)), daemon=True)

    def __enter__(self) -> Reading:
        self._thread.start()
        self.advance()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()

    def advance(self, count: int = 50) -> None:
        goal = self.done + count
        wait_for(lambda: self.done >= goal or self.wrong, 10, "reads are answered")

    def _read(self, daemon: ProxyDaemon, key: str, expected: bytes) -> None:
        with daemon.raw() as raw:
            while not self._stop.is_set():
                try:
                    if (reply := raw.command("GET", key)) != expected:
                        self.wrong.append(reply)
                except (AssertionError, ConnectionError, TimeoutError, EOFError) as error:
                    self.wrong.append(repr(error).encode())
                    return
                self.done += 1


# Replies to what was not sent


# A node that reads on could be sent what is not its own; one that closes cannot, so that the usual run tries it once.
OBJECTIONS = [TOO_LONG, TOO_LONG * 3, b"+OK\r\n", b"$900000\r\nhalf a rep"]


@pytest.mark.parametrize(
    ("objection", "closes"),
    [pytest.param(objection, False, id=f"{objection!r}-reads on") for objection in OBJECTIONS]
    + [
        pytest.param(
            objection, True, id=f"{objection!r}-closes", marks=[] if objection == TOO_LONG else pytest.mark.long
        )
        for objection in OBJECTIONS
    ],
)
def test_a_reply_to_half_a_command(objection: bytes, closes: bool, start_proxy: StartProxy) -> None:
    """The node gets no byte but commands of clients; the client loses that one command, the others nothing."""
    large = encode("SET", "a", b"x" * (16 * MB))
    small = [encode("GET", "k"), encode("SET", "k", "v"), encode("GET", "a2")]
    answers, behind = [], []
    with StrictNode(4 * MB, objection, closes) as node, contextlib.ExitStack() as stack:
        daemon = start_proxy([node.address], workers=1)
        waiting = [stack.enter_context(daemon.raw(timeout_s=20)) for _ in range(4)]
        assert waiting[0].command("SET", "k", "v") == b"+OK\r\n"
        with Reading(daemon, "k", b"v") as one, Reading(daemon, "k", b"v") as two:
            for _ in range(2):
                node.announced.clear()
                node.may_object.clear()
                with daemon.raw(timeout_s=20) as raw, daemon.raw() as probe:
                    raw.send(large)
                    node.announced.wait(5)
                    for client in waiting:  # behind the large command, on the same connection
                        client.send(encode("GET", "a2"))
                    for _ in range(3):  # meanwhile the worker has seen them
                        assert probe.command("PING") == b"+PONG\r\n"
                    node.may_object.set()
                    answers.append(raw.rest_or_frame())
                    behind += [client.frame() for client in waiting]
                with contextlib.suppress(EmbeddedError):  # looked at below
                    one.advance()
                    two.advance()
        received = [bytes(raw) for raw in node.raw]
    strange = [found for raw in received if (found := foreign(raw, [large, *small]))]
    assert [(len(found), found[:60]) for found in strange] == []
    assert one.wrong + two.wrong == []
    assert behind == [b"$-1\r\n"] * 8
    for answer in answers:
        assert objection.startswith(answer) or answer.startswith(b"-ERR")


@pytest.mark.parametrize("objection", [TOO_LONG, pytest.param(b"+OK\r\n", marks=pytest.mark.long)], ids=repr)
def test_no_foreign_memory_reaches_a_node(objection: bytes, start_proxy: StartProxy) -> None:
    """The window is empty after the early reply, though not all of it was sent: the next command starts a new one."""
    small = [encode("GET", "k"), encode("SET", "k", "v")]
    large = [encode("SET", "a", b"x" * size) for size in (3_800_000, 4_000_000, 4_150_000) * 3]
    with StrictNode(2 * MB, objection, closes=False) as node:
        daemon = start_proxy([node.address], {"requests": {"timeout": "2s"}}, workers=1)
        with daemon.raw(timeout_s=20) as other:
            assert other.command("SET", "k", "v") == b"+OK\r\n"
            # Once large buffers were given back, malloc takes the next ones from the heap, next to everything else.
            assert len(other.command("ECHO", b"y" * (12 * MB))) > 12 * MB
            for one in large:
                node.announced.clear()
                node.may_object.clear()
                with daemon.raw(timeout_s=20) as raw:
                    raw.send(one)
                    assert node.announced.wait(10)
                    assert other.command("PING") == b"+PONG\r\n"
                    node.may_object.set()
                    raw.rest_or_frame()
                    other.command("GET", "k")
                node.drop_connections()
        received = [bytes(raw) for raw in node.raw]
    strange = [found for raw in received if (found := foreign(raw, [*large, *small]))]
    assert [(len(found), found[:60]) for found in strange] == []


def test_an_early_reply_is_nobodys(node: FakeNode, start_proxy: StartProxy) -> None:
    """More replies than were sent for: the next command has not reached the node, so this cannot be its answer."""
    early = threading.Event()

    def stops_reading(session: Session, words: list[bytes]) -> Reply:
        early.wait(20)  # meanwhile the large command fills the socket, and the GET waits behind it
        return b"+OK\r\n+OK\r\n" + bulk(b"stolen") * 3

    node.on("INCR", stops_reading)
    node.on("GET", lambda _, words: bulk(b"value of " + words[1]))
    daemon = start_proxy([node.address], PATIENT, workers=1)
    with daemon.raw(timeout_s=20) as raw, daemon.raw() as probe:
        raw.send(encode("INCR", "a"))
        node.await_seen("INCR")
        raw.send(encode("SET", "a", b"x" * (12 * MB)) + encode("GET", "k"))
        for _ in range(20):  # meanwhile the worker has read all of it
            assert probe.command("PING") == b"+PONG\r\n"
        early.set()
        assert raw.frame() == b"+OK\r\n"
        assert raw.frame()[:1] in b"+-"
        assert raw.frame() == bulk(b"value of k")


def test_a_surplus_reply_ends_the_connection(node: FakeNode, start_proxy: StartProxy) -> None:
    """Also a reply that comes later, to nothing: the next command is sent on a new connection."""
    node.on("GET", lambda _, words: bulk(b"value of " + words[1]))
    with start_proxy([node.address], workers=1).raw() as raw:
        for n in range(10):
            assert raw.command("GET", f"{n}") == bulk(b"value of %d" % n)
            [session] = [one for one in node.sessions if one.commands and one.commands[-1][0] == b"GET"]
            session.sock.sendall(bulk(b"stolen"))
            wait_for(lambda session=session: session.sock.fileno() < 0, 5, "the connection is closed")
            node.sessions.remove(session)


@pytest.mark.parametrize("protocol", [2, 3])
def test_a_push_is_never_a_reply(protocol: int, node: FakeNode, start_proxy: StartProxy) -> None:
    """Before, between and after replies, with commands of others behind."""
    push = b">2\r\n+invalidate\r\n*1\r\n$1\r\na\r\n"
    node.on("GET", lambda _, words: push + bulk(b"value of " + words[1]) + push * 3)
    daemon = start_proxy([node.address], workers=1)
    with daemon.raw() as one, daemon.raw() as two:
        for raw in (one, two):
            raw.command("HELLO", protocol)
        for _ in range(5):
            for name, raw in (("1", one), ("2", two)):
                raw.send(encode("GET", name) * 10)
            for name, raw in (("1", one), ("2", two)):
                for reply in raw.frames(10):
                    assert reply == bulk(b"value of " + name.encode()) or reply.startswith(b"-")
                assert raw.command("PING") == b"+PONG\r\n"


# Answers that were given before the connection broke


@pytest.mark.parametrize("size", [1, 24 * MB], ids=["idle", "in the middle of a large command"])
def test_an_answer_in_the_socket_counts(size: int, node: FakeNode, start_proxy: StartProxy) -> None:
    """The node answers what it got and resets the connection, on which the proxy still has something to send."""
    resets = threading.Event()
    rounds = 4

    def answers_and_resets(session: Session, words: list[bytes]) -> Reply:
        resets.wait(10)
        session.sock.sendall(b"+OK\r\n")
        session.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        raise OSError("closes")

    node.on("INCR", answers_and_resets)
    daemon = start_proxy([node.address], workers=1)
    answers = []
    with daemon.raw() as probe:
        for n in range(rounds):
            resets.clear()
            with daemon.raw() as raw, daemon.raw(timeout_s=20) as behind:
                raw.send(encode("INCR", "a"))
                node.await_seen("INCR", n + 1)
                behind.send(encode("SET", "a", b"x" * size))
                for _ in range(3):  # meanwhile the worker has seen it
                    assert probe.command("PING") == b"+PONG\r\n"
                resets.set()
                answers.append(raw.frame())
                assert behind.frame()[:1] in b"+-"
    assert answers == [b"+OK\r\n"] * rounds


# Redirections


def test_redirected_to_itself_for_ever(node: FakeNode, start_proxy: StartProxy) -> None:
    node.on("GET", b"-MOVED %d %s\r\n" % (A_SLOT, node.address.encode()))
    daemon = start_proxy([node.address], {"requests": {"timeout": "1s"}}, workers=1)
    with daemon.raw() as raw, daemon.raw() as beside:
        for _ in range(2):
            raw.send(encode("GET", "a"))
            for _ in range(20):
                assert beside.command("SET", "k", "v") == b"+OK\r\n"
            assert raw.frame().startswith(b"-")
    assert len(node.seen("GET")) <= 2 * 200  # in rounds of six, ever further apart, until each one's deadline


# The latter when time is over while a node is being asked once more.
CIRCLES = (errors.REDIRECTED_IN_VAIN, errors.TIMED_OUT)


def test_redirected_in_circles(node: FakeNode, other: FakeNode, start_proxy: StartProxy) -> None:
    """Between known nodes: it ends with an error, and the slots of others stay where they were."""
    node.shards = other.shards = shards_reply(
        [Shard([(0, 8191)], [(other, "master")]), Shard([(8192, 16383)], [(node, "master")])]
    )
    for here, there in ((node, other), (other, node)):
        for word in ("GET", "BLPOP"):
            here.on(word, lambda _, words, there=there: b"-MOVED %d %s\r\n" % (A_SLOT, there.address.encode()))
    daemon = start_proxy([node.address], {"requests": {"timeout": "1s"}}, workers=1)
    below, above = key_in(0, 8191), key_in(8192, 16383)
    with daemon.raw() as raw, daemon.raw() as beside:
        for _ in range(2):
            raw.send(encode("GET", "a"))
            for key in (above, below):
                assert beside.command("SET", key, "v") == b"+OK\r\n"
            assert raw.frame() in CIRCLES
        assert raw.command("BLPOP", "a", 0) in CIRCLES
    assert {words[1] for words in node.seen("SET")} == {above.encode()}
    assert {words[1] for words in other.seen("SET")} == {below.encode()}


@pytest.mark.parametrize("kind", ["MOVED", "ASK"])
def test_a_node_that_only_a_redirection_names_is_not_dialled(
    kind: str, node: FakeNode, other: FakeNode, start_proxy: StartProxy
) -> None:
    """An error line can make us ask for a new topology, never give us one."""
    node.on("GET", b"-%s %d %s\r\n" % (kind.encode(), A_SLOT, other.address.encode()))
    daemon = start_proxy([node.address], {"requests": {"timeout": "1s"}, "cluster": {"password": "secret"}}, workers=1)
    with daemon.raw() as raw:
        asked = len(node.seen("CLUSTER"))
        answer = raw.command("GET", "a")
        assert other.sessions == []
        assert other.received == []
        assert answer.startswith(b"-")
        node.await_seen("CLUSTER", asked + 1)
        assert raw.command("SET", "a", "v") == b"+OK\r\n"


@pytest.mark.parametrize("kind", ["MOVED", "ASK"])
def test_a_node_that_the_topology_names_meanwhile_is_followed(
    kind: str, node: FakeNode, other: FakeNode, start_proxy: StartProxy
) -> None:
    """A redirection to a node just added: the topology is asked for at once, and names it."""
    untold: list[int] = []  # connections of the new node, each time the topology did not name it yet
    joined = threading.Event()

    def topology() -> bytes:
        if not joined.is_set():
            untold.append(len(other.sessions))
            return shards_reply([Shard([(0, 16383)], [(node, "master")])])
        untold.append(len(other.sessions))
        owner = other if kind == "MOVED" else node
        shards = [Shard([(0, 16383)], [(owner, "master")])]
        return shards_reply([*shards, Shard([], [(node if kind == "MOVED" else other, "master")])])

    def redirects(session: Session, words: list[bytes]) -> Reply:
        joined.set()
        return b"-%s %d %s\r\n" % (kind.encode(), A_SLOT, other.address.encode())

    node.shards = other.shards = topology
    node.on("GET", redirects)
    other.on("GET", bulk(b"here"))
    daemon = start_proxy([node.address], {"cluster": {"refresh_interval": "60s"}}, workers=1)
    before = len(untold)
    with daemon.raw() as raw:
        started = time.monotonic()
        assert raw.command("GET", "a") == bulk(b"here")
        assert time.monotonic() - started < 4.5  # commands have 5 s
    assert len(untold) > before
    assert set(untold[: before + 1]) == {0}


# Memory


def worker_memory(daemon: ProxyDaemon) -> int:
    return sum(memory(pid) for pid in daemon.worker_pids())


def pushed(raw: RawClient, data: bytes, stall_s: float = 0.5) -> None:
    """Sends as much of it as the other side takes."""
    raw.sock.settimeout(stall_s)
    with contextlib.suppress(TimeoutError, ConnectionError):
        raw.send(data)


def test_a_node_that_never_reads(node: FakeNode, start_proxy: StartProxy) -> None:
    """Clients come, send, and leave: what is kept of theirs for the node has a bound."""
    release = threading.Event()
    node.on("SET", lambda _, words: OSError if release.wait(60) else SILENCE)  # type: ignore[arg-type, return-value]
    daemon = start_proxy([node.address], PATIENT, workers=1)
    try:
        with daemon.raw() as stays:
            stays.send(encode("SET", "a", "v"))
            node.await_seen("SET")
            base = worker_memory(daemon)
            for _ in range(12):
                with daemon.raw() as leaves:
                    pushed(leaves, encode("SET", "a", b"x" * (17 * MB)))
            with daemon.raw() as last:
                assert last.command("PING") == b"+PONG\r\n"
            wait_or_none(lambda: worker_memory(daemon) - base < 100 * MB, 5)
            grown = worker_memory(daemon) - base
            print(f"grown by {grown / MB:.0f} MB")
            assert grown < 100 * MB
    finally:
        release.set()


@pytest.mark.parametrize("leaves", [True, False], ids=["leaves", "is cut"])
def test_parts_for_nobody(leaves: bool, node: FakeNode, other: FakeNode, start_proxy: StartProxy) -> None:
    """One part of each MGET never comes; those that do are not kept for a client that has left or was cut."""
    node.shards = other.shards = shards_reply(
        [Shard([(0, 8191)], [(other, "master")]), Shard([(8192, 16383)], [(node, "master")])]
    )
    value = array(bulk(b"x" * MB))
    node.on("MGET", lambda _, words: value if words[1] == b"a" else array(bulk(b"v")))
    node.on("GET", bulk(b"v"))
    other.on("MGET", lambda _, words: SILENCE if words[1] == b"b" else array(bulk(b"v")))
    small = encode("MGET", key_in(0, 8191), key_in(8192, 16383))
    config = {**PATIENT, "clients": {"output_soft_limit": "1mb", "output_hard_limit": "8mb"}}
    daemon = start_proxy([node.address], config, workers=1)
    with daemon.raw(timeout_s=20) as stays:
        assert stays.command("GET", "a") == bulk(b"v")
        base = worker_memory(daemon)
        with daemon.raw() as asks:
            asks.send(small * 100)  # shows what size its replies have
            assert asks.frames(100) == [array(bulk(b"v"), bulk(b"v"))] * 100
            asks.send(encode("MGET", "a", "b") * 300)
            node.await_seen("MGET", 101)
            if not leaves:
                wait_or_none(lambda: asks.sock.recv(1 << 16) == b"", 5)
        # Behind all the parts, on the same connection.
        assert stays.command("GET", "a") == bulk(b"v")
        grown = worker_memory(daemon) - base
        print(f"grown by {grown / MB:.0f} MB, {len(node.seen('MGET'))} parts")
        assert grown < 64 * MB
