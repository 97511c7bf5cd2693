"""What a node replies to single commands, and what clients then get: one scripted node and one daemon for all of it.

tests/integration/test_nodes.py has what needs a daemon with other settings, or more than one node.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from proxy.resp import errors
from tests.conftest import failed
from tests.support.cluster import slot_of
from tests.support.fake_node import SILENCE, Cut, FakeNode, Reply, Session, in_turn
from tests.support.proxyd import ProxyDaemon
from tests.support.raw import array, bulk, encode

StartProxy = Callable[..., ProxyDaemon]
A_SLOT = slot_of("a")
UNCERTAIN = b"executed"  # what the error of a lost write says: it may have been


@pytest.fixture(scope="module")
def lasting() -> Iterator[tuple[FakeNode, ProxyDaemon]]:
    """A node and a daemon with default settings, for tests that script commands of clients and nothing else."""
    with FakeNode("1" * 40) as listening, ProxyDaemon([listening.address]) as daemon:
        yield listening, daemon


@pytest.fixture
def plain(lasting: tuple[FakeNode, ProxyDaemon], request: pytest.FixtureRequest) -> Iterator[ProxyDaemon]:
    """The daemon of `lasting`, whose node knows nothing of earlier tests."""
    lasting[0].forget()
    start = len(lasting[1].log)
    yield lasting[1]
    if failed(request):
        print(f"--- proxy log of this test ---\n{lasting[1].log[start:][-6000:]}")
    assert lasting[1].alive, "the proxy died"


@pytest.fixture
def scripted(lasting: tuple[FakeNode, ProxyDaemon], plain: ProxyDaemon) -> FakeNode:
    """The node of `plain`."""
    return lasting[0]


def test_moved_to_the_address_asked(scripted: FakeNode, plain: ProxyDaemon) -> None:
    """An empty host in MOVED is the host the command was sent to (Redis 7)."""
    scripted.on("GET", in_turn(b"-MOVED %d :%d\r\n" % (A_SLOT, scripted.port), bulk(b"here")))
    with plain.raw() as raw:
        assert raw.command("GET", "a") == bulk(b"here")


def test_a_failed_part_fails_the_whole(scripted: FakeNode, plain: ProxyDaemon) -> None:
    """Never a silent nil or 0 (predixy)."""
    wrong = b"-MISCONF cannot write\r\n"

    def unless_b(well: bytes) -> Callable[[Session, list[bytes]], Reply]:
        return lambda _, words: wrong if words[1] == b"b" else well

    scripted.on("MGET", unless_b(array(bulk(b"v")))).on("MSET", unless_b(b"+OK\r\n")).on("DEL", unless_b(b":1\r\n"))
    with plain.raw() as raw:
        for name in ("MGET", "DEL"):
            assert raw.command(name, "a", "b", "c") == wrong
            assert raw.command(name, "a", "b") == wrong
        assert raw.command("MSET", "a", 1, "b", 2, "c", 3) == wrong
        assert raw.command("MGET", "a", "c") == array(bulk(b"v"), bulk(b"v"))


def test_other_errors_pass_untouched(scripted: FakeNode, plain: ProxyDaemon) -> None:
    texts = [
        b"-ERR x\r\n",
        b"-\r\n",
        b"-MOVED\r\n",
        b"-MOVED x y\r\n",
        b"-MOVED 99999 127.0.0.1:1\r\n",
        b"-ASK 1\r\n",
        b"-MOVEDX 1 127.0.0.1:1\r\n",
        b"-WRONGTYPE text with \xff bytes\r\n",
    ]
    scripted.on("GET", lambda _, words: texts[int(words[1])])
    with plain.raw() as raw:
        for n, text in enumerate(texts):
            assert raw.command("GET", n) == text


# Refused for the moment

MOMENTARY = [
    b"-TRYAGAIN Multiple keys request during rehashing of slot\r\n",
    b"-CLUSTERDOWN The cluster is down\r\n",
    b"-LOADING Redis is loading the dataset in memory\r\n",
    b"-MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.\r\n",
    b"-READONLY You can't write against a read only replica.\r\n",
]


def test_what_passes_is_waited_for(scripted: FakeNode, plain: ProxyDaemon) -> None:
    with plain.raw() as raw:
        for number, error in enumerate(MOMENTARY, 1):
            scripted.on("SET", in_turn(error, error, b"+OK\r\n"))
            assert raw.command("SET", "a", "v") == b"+OK\r\n", error
            assert len(scripted.seen("SET")) == 3 * number, error


def test_what_does_not_pass_is_told_at_the_deadline(
    lasting: tuple[FakeNode, ProxyDaemon], start_proxy: StartProxy
) -> None:
    """Another daemon in front of the same node."""
    node, _ = lasting
    node.forget()
    daemon = start_proxy([node.address], {"requests": {"timeout": "400ms", "failover_timeout": "300ms"}})
    for error in MOMENTARY:
        node.on("SET", error)
        with daemon.raw() as raw:
            for _ in range(5):
                before, started = len(node.seen("SET")), time.monotonic()
                answer = raw.command("SET", "a", "v")
                assert time.monotonic() - started < 4, error
                tries = len(node.seen("SET")) - before
                # Time may be over while the node is being asked once more; a process that stood still asked less often.
                if answer != errors.TIMED_OUT and tries > 2:
                    break
            assert answer == error
            assert 2 < tries < 100, error  # tried again, with pauses
            assert raw.command("PING") == b"+PONG\r\n"


# Lost


def test_a_read_whose_connection_breaks_is_repeated(scripted: FakeNode, plain: ProxyDaemon) -> None:
    """On two further connections: what the node closes three of is what it cannot bear (forward.pipeline)."""
    scripted.on("GET", in_turn(Cut(), Cut(b"$5\r\nhe"), bulk(b"hello"), Cut(), Cut(), Cut(b"$"), bulk(b"again")))
    with plain.raw() as raw:
        assert raw.command("GET", "a") == bulk(b"hello")
        assert b"the node closes the connection instead of answering" in raw.command("GET", "a")
        assert raw.command("GET", "a") == bulk(b"again")
    assert len(scripted.seen("GET")) == 7


def test_a_write_whose_connection_breaks_is_not(scripted: FakeNode, plain: ProxyDaemon) -> None:
    scripted.on("INCR", in_turn(Cut(), b":2\r\n"))
    with plain.raw() as raw:
        answer = raw.command("INCR", "a")
        assert answer.startswith(b"-")
        assert UNCERTAIN in answer
        assert len(scripted.seen("INCR")) == 1
        assert raw.command("INCR", "a") == b":2\r\n"


def test_half_a_large_reply_is_never_completed_with_something_else(scripted: FakeNode, plain: ProxyDaemon) -> None:
    whole = bulk(b"x" * 3_000_000)
    scripted.on("GET", in_turn(Cut(whole[:1_000_000]), bulk(b"something else")))
    with plain.raw() as raw:
        raw.send(encode("GET", "a") + encode("PING"))
        received = raw.rest_or_frame()
        # Repeated from the start, or the end of the connection.
        assert received == bulk(b"something else") or whole.startswith(received)


# What nobody asked for


def test_unasked_replies_harm_nobody(scripted: FakeNode, plain: ProxyDaemon) -> None:
    scripted.on("GET", in_turn(bulk(b"v") + b"+OK\r\n:7\r\n", bulk(b"v")))
    with plain.raw() as raw:
        assert raw.command("GET", "a") == bulk(b"v")
        for _ in range(5):
            assert raw.command("GET", "a") == bulk(b"v")


def test_pushes_are_not_replies(scripted: FakeNode, plain: ProxyDaemon) -> None:
    push = b">2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\na\r\n"
    scripted.on("GET", push + bulk(b"v") + push)
    with plain.raw() as raw:
        raw.command("HELLO", 3)
        for _ in range(5):
            assert raw.command("GET", "a") == bulk(b"v")


# Replies of every type and in every part


RESP3 = [
    b"#t\r\n",
    b",3.14\r\n",
    b"(12345678901234567890\r\n",
    b"=7\r\ntxt:abc\r\n",
    b"!5\r\nERR x\r\n",
    b"_\r\n",
    b"~1\r\n:1\r\n",
    b"%1\r\n+a\r\n*2\r\n_\r\n%0\r\n",
    b"|1\r\n+ttl\r\n:3600\r\n$1\r\nv\r\n",
    b"*2\r\n|1\r\n+k\r\n+v\r\n:1\r\n:2\r\n",
]


def test_every_resp3_type_passes_untouched(scripted: FakeNode, plain: ProxyDaemon) -> None:
    scripted.on("GET", lambda _, words: RESP3[int(words[1])])
    with plain.raw() as raw:
        raw.command("HELLO", 3)
        for number, reply in enumerate(RESP3):
            raw.send((encode("GET", number) + encode("PING")) * 3)
            assert raw.frames(6) == [reply, b"+PONG\r\n"] * 3


def test_replies_in_pieces(scripted: FakeNode, plain: ProxyDaemon) -> None:
    reply = b"*3\r\n$4\r\n\r\n\r\n\r\n*2\r\n:1\r\n$-1\r\n+OK\r\n"

    def dribble(session: Session, words: list[bytes]) -> Reply:
        size = int(words[1])
        for at in range(0, len(reply), size):
            session.sock.sendall(reply[at : at + size])
            time.sleep(0.001)
        return SILENCE

    scripted.on("GET", dribble)
    with plain.raw() as raw:
        for size in (1, 2, 3, 5, 8, 1000):
            raw.send(encode("GET", size) * 3)
            assert raw.frames(3) == [reply] * 3, size
