"""Faults of nodes that clients must not notice: scripted nodes, one real daemon each."""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from proxy.embedded import HOST
from proxy.resp import errors
from tests.support.cluster import slot_of
from tests.support.fake_node import SILENCE, Cut, FakeNode, Reply, Session, Shard, in_turn, shards_reply
from tests.support.proxyd import ProxyDaemon
from tests.support.raw import Closed, array, bulk, encode
from tests.support.standstill import Standstill

StartProxy = Callable[..., ProxyDaemon]
A_SLOT = slot_of("a")
UNCERTAIN = b"executed"  # what the error of a lost write says: it may have been


@pytest.fixture
def start_proxy(start_proxy: StartProxy) -> StartProxy:
    """One worker each: what nodes do wrong concerns every worker by itself."""
    return partial(start_proxy, workers=1)


@pytest.fixture
def node() -> Iterator[FakeNode]:
    with FakeNode("1" * 40) as listening:
        yield listening


@pytest.fixture
def other(node: FakeNode) -> Iterator[FakeNode]:
    """A node of the same cluster without slots: redirections are followed to nodes of the topology only."""
    with FakeNode("2" * 40) as listening:
        told = shards_reply([Shard([(0, 16383)], [(node, "master")]), Shard([], [(listening, "master")])])
        node.shards = listening.shards = told
        yield listening


# Redirections


def test_moved_is_followed_and_learnt(node: FakeNode, other: FakeNode, start_proxy: StartProxy) -> None:
    """The next command goes there at once (predixy never learns)."""
    node.on("GET", b"-MOVED %d %s\r\n" % (A_SLOT, other.address.encode()))
    other.on("GET", bulk(b"here"))
    # The topology as told stays old: only the redirection can have taught it, until the next look.
    daemon = start_proxy([node.address], {"cluster": {"refresh_min_gap": "20s", "refresh_interval": "60s"}})
    with daemon.raw() as raw:
        for _ in range(5):
            assert raw.command("GET", "a") == bulk(b"here")
    assert len(node.seen("GET")) == 1
    assert len(other.seen("GET")) == 5
    assert not other.seen("ASKING")


def test_moved_for_ever_ends_with_an_error(node: FakeNode, other: FakeNode, start_proxy: StartProxy) -> None:
    moved = {at: b"-MOVED %d %s\r\n" % (A_SLOT, to.address.encode()) for at, to in ((node, other), (other, node))}
    node.on("GET", moved[node])
    other.on("GET", moved[other])
    with start_proxy([node.address], {"requests": {"timeout": "500ms"}}).raw() as raw:

        def asked() -> int:
            return len(node.seen("GET")) + len(other.seen("GET"))

        for _ in range(5):  # a process that stood still has asked less often
            before, begun_s = asked(), time.monotonic()
            # The latter when time is over while a node is being asked once more.
            assert raw.command("GET", "a") in (errors.REDIRECTED_IN_VAIN, errors.TIMED_OUT)
            assert 0.4 < time.monotonic() - begun_s < 5  # they have until the deadline to agree
            assert asked() - before < 200
            if often := asked() - before > 6:  # with pauses between the rounds
                break
        assert often
        assert raw.command("PING") == b"+PONG\r\n"


def test_ask_is_followed_with_asking_and_not_learnt(node: FakeNode, other: FakeNode, start_proxy: StartProxy) -> None:
    node.on("GET", b"-ASK %d %s\r\n" % (A_SLOT, other.address.encode()))
    other.on("GET", bulk(b"imported"))
    with start_proxy([node.address]).raw() as raw:
        for _ in range(3):
            assert raw.command("GET", "a") == bulk(b"imported")
        raw.send(encode("GET", "a") * 20)
        assert raw.frames(20) == [bulk(b"imported")] * 20
    assert len(node.seen("GET")) == 23
    for session in other.sessions:
        for before, command in zip(session.commands, session.commands[1:], strict=False):
            if command[0] == b"GET":
                assert before == [b"ASKING"]  # adjacent: nothing of another client in between


def test_a_part_of_mget_is_redirected(node: FakeNode, other: FakeNode, start_proxy: StartProxy) -> None:
    node.on(
        "MGET",
        lambda _, words: (
            b"-MOVED %d %s\r\n" % (slot_of(words[1]), other.address.encode())
            if words[1] == b"a"
            else array(*(bulk(word) for word in words[1:]))
        ),
    )
    other.on("MGET", lambda _, words: array(*(bulk(b"other " + word) for word in words[1:])))
    with start_proxy([node.address]).raw() as raw:
        assert raw.command("MGET", "b", "a", "c") == array(bulk(b"b"), bulk(b"other a"), bulk(b"c"))


# Lost and late


def test_unsent_writes_wait_for_the_connection(node: FakeNode, start_proxy: StartProxy) -> None:
    daemon = start_proxy([node.address])
    with daemon.raw() as raw:
        assert raw.command("SET", "a", "1") == b"+OK\r\n"
        late = 0
        for n in range(10):
            node.drop_connections()
            time.sleep(0.05)  # let the proxy see it
            answer = raw.command("SET", "a", n)
            if UNCERTAIN in answer:  # it has not, and what is sent into a closing connection may be lost
                late += 1
            else:
                assert answer == b"+OK\r\n"
        assert late < 10


def test_a_silent_node_times_out_one_request_only(node: FakeNode, other: FakeNode, start_proxy: StartProxy) -> None:
    node.shards = other.shards = shards_reply(
        [Shard([(0, 8191)], [(node, "master")]), Shard([(8192, 16383)], [(other, "master")])]
    )
    assert slot_of("b") < 8192 < A_SLOT
    other.on("GET", SILENCE)
    daemon = start_proxy([node.address], {"requests": {"timeout": "2500ms"}})
    with daemon.raw() as stuck, daemon.raw() as fine:
        started = time.monotonic()
        stuck.send(encode("GET", "a"))
        slowest_s, turns = 0.0, 0
        with Standstill() as still:
            while not select.select([stuck.sock], [], [], 0)[0]:
                asked_s = time.monotonic()
                assert fine.command("SET", "b", "v") == b"+OK\r\n"
                slowest_s, turns = max(slowest_s, time.monotonic() - asked_s), turns + 1
        assert slowest_s < 1.5 + 2 * still.longest_s
        assert turns > 5
        answer = stuck.frame()
        assert answer.startswith(b"-")
        assert 2.4 < time.monotonic() - started < 8
        assert stuck.command("SET", "b", "w") == b"+OK\r\n"


def test_a_late_reply_is_dropped(node: FakeNode, start_proxy: StartProxy) -> None:
    """The timeout abandons its request, not the connection: the next replies find their own requests."""
    release = threading.Event()

    def late(session: Session, words: list[bytes]) -> Reply:
        if words[1] == b"late":
            release.wait(20)
        return bulk(b"value of " + words[1])

    node.on("GET", late)
    daemon = start_proxy([node.address], {"requests": {"timeout": "1s"}})
    with daemon.raw() as raw, daemon.raw() as fresh:
        assert raw.command("GET", "late").startswith(b"-")
        release.set()
        for name in ("x", "y", "z"):
            assert raw.command("GET", name) == bulk(b"value of " + name.encode())
            assert fresh.command("GET", name) == bulk(b"value of " + name.encode())


def test_a_connection_that_makes_no_progress_is_replaced(node: FakeNode, start_proxy: StartProxy) -> None:
    silent: list[Session] = []

    def first_connection_is_silent(session: Session, words: list[bytes]) -> Reply:
        silent.append(session)
        return SILENCE if session is silent[0] else bulk(b"v")

    node.on("GET", first_connection_is_silent)
    config = {"requests": {"timeout": "300ms"}, "backends": {"stall_timeout": "600ms"}}
    with start_proxy([node.address], config).raw() as raw:
        deadline = time.monotonic() + 10  # commands keep coming: being taken is no progress
        while raw.command("GET", "a") != bulk(b"v"):
            assert time.monotonic() < deadline


# Garbage

GARBAGE = [
    b"hello\r\n",
    b"\x00\x01\x02",
    b"$abc\r\n",
    b"*3\r\n$1\r\na\r\n!!\r\n",
    b"$3\r\nabcd\r\n",
    b"HTTP/1.1 400 Bad\r\n\r\n",
    b"*99999999999\r\n",
    b"$-7\r\n",
    b"\r\n",
    b"+" + b"x" * 5000,
]


@pytest.mark.parametrize("protocol", [2, 3])
def test_garbage_is_the_nodes_affair(protocol: int, node: FakeNode, start_proxy: StartProxy) -> None:
    """Disconnected; the request is repeated or fails; nobody gets a byte of it."""
    config = {"requests": {"timeout": "1s"}, "backends": {"stall_timeout": "600ms"}}
    daemon = start_proxy([node.address], config)
    for garbage in GARBAGE:
        node.on("GET", in_turn(garbage, bulk(b"v")))
        with daemon.raw() as raw:
            raw.command("HELLO", protocol)
            answer = raw.command("GET", "a")
            assert answer == bulk(b"v") or answer.startswith(b"-"), garbage[:12]
            assert garbage.strip() not in answer or not garbage.strip()
            assert raw.command("GET", "a") == bulk(b"v"), garbage[:12]


# Topologies


def odd_topologies(node: FakeNode, other: FakeNode) -> dict[str, bytes]:
    whole = [(0, 16383)]
    unknown: Any = ("9" * 40, "", 0)
    return {
        "empty host": shards_reply([Shard(whole, [((node.id, "", node.port), "master")])]),
        "question mark": shards_reply([Shard(whole, [((node.id, "?", node.port), "master")])]),
        "a failed replica": shards_reply([Shard(whole, [(node, "master"), (("3" * 40, HOST, 1), "replica")])]),
        "an unresolvable replica": shards_reply(
            [Shard(whole, [(node, "master"), (("3" * 40, "no.invalid", 1), "replica")])]
        ),
        "a shard without slots": shards_reply([Shard([], [(other, "master")]), Shard(whole, [(node, "master")])]),
        "many ranges": shards_reply(
            [
                Shard([(n, n) for n in range(0, 16384, 2)], [(node, "master")]),
                Shard([(n, n) for n in range(1, 16384, 2)], [(other, "master")]),
            ]
        ),
        "a nameless node without port": shards_reply([Shard(whole, [(node, "master"), (unknown, "replica")])]),
    }


@pytest.mark.parametrize(
    "name",
    [
        "empty host",
        "question mark",
        "a failed replica",
        "an unresolvable replica",
        "a shard without slots",
        "many ranges",
        "a nameless node without port",
    ],
)
def test_odd_topologies_serve(name: str, node: FakeNode, other: FakeNode, start_proxy: StartProxy) -> None:
    node.shards = other.shards = odd_topologies(node, other)[name]
    with start_proxy([node.address]).raw() as raw:
        for key in ("a", "b", "c", "d"):
            assert raw.command("SET", key, "v") == b"+OK\r\n"


def test_uncovered_slots(node: FakeNode, start_proxy: StartProxy) -> None:
    node.shards = shards_reply([Shard([(0, 8191)], [(node, "master")])])
    daemon = start_proxy([node.address], {"requests": {"timeout": "500ms"}}, wait="listening")
    with daemon.raw() as raw:
        node.await_seen("CLUSTER")
        deadline = time.monotonic() + 10
        while raw.command("SET", "b", "v") != b"+OK\r\n":
            assert time.monotonic() < deadline
        assert raw.command("GET", "a") == b"-CLUSTERDOWN Hash slot not served\r\n"
        assert raw.command("MGET", "a", "b") == b"-CLUSTERDOWN Hash slot not served\r\n"
        assert daemon.metric("redis_proxy_slots_covered") == 8192


def test_servers_without_cluster_shards(node: FakeNode, start_proxy: StartProxy) -> None:
    """Before Redis 7 there is only CLUSTER SLOTS."""
    node.shards = b"-ERR Unknown subcommand or wrong number of arguments for 'SHARDS'. Try CLUSTER HELP.\r\n"
    entry = array(bulk(HOST.encode()), b":%d\r\n" % node.port, bulk(node.id.encode()))
    node.on("CLUSTER SLOTS", array(array(b":0\r\n", b":16383\r\n", entry)))
    with start_proxy([node.address]).raw() as raw:
        assert raw.command("SET", "a", "v") == b"+OK\r\n"


@pytest.mark.parametrize(
    "reply",
    # The rest of the kinds is with the unit tests of control.topology_refresh, and here with -m long.
    [b"*1\r\n*0\r\n", b"garbage\r\n", Cut(b"*1\r\n"), SILENCE]
    + [pytest.param(reply, marks=pytest.mark.long) for reply in (b"*0\r\n", b"+OK\r\n", b"$-1\r\n", b"*1\r\n:5\r\n")],
)
def test_nonsense_for_a_topology_is_asked_again(
    reply: Any, node: FakeNode, other: FakeNode, start_proxy: StartProxy
) -> None:
    """The other seed is asked; nothing of the nonsense is taken."""
    node.on("CLUSTER", reply).on("CLUSTER MYID", bulk(node.id.encode()))
    config = {"cluster": {"refresh_timeout": "300ms", "refresh_min_gap": "10ms"}}
    with start_proxy([node.address, other.address], config).raw() as raw:
        assert raw.command("SET", "a", "v") == b"+OK\r\n"
        assert raw.command("GET", "a") == bulk(b"v")


def test_a_topology_is_asked_for_once_however_many_redirections(
    node: FakeNode, other: FakeNode, start_proxy: StartProxy
) -> None:
    """Refresh storms: 60 CLUSTER SLOTS a second (go-redis#1390), 100 % CPU (valkey-go#140)."""
    node.on("GET", lambda _, words: b"-MOVED %d %s\r\n" % (slot_of(words[1]), other.address.encode()))
    other.on("GET", bulk(b"v"))
    daemon = start_proxy([node.address], {"cluster": {"refresh_min_gap": "2s"}})

    def asked() -> int:
        return sum(words[1] != b"MYID" for one in (node, other) for words in one.seen("CLUSTER"))  # (of a handshake)

    before, begun_s = asked(), time.monotonic()
    with daemon.raw() as raw:
        raw.send(b"".join(encode("GET", f"k{n}") for n in range(500)))
        assert raw.frames(500) == [bulk(b"v")] * 500
    rounds = 1 + (time.monotonic() - begun_s) // 2
    assert asked() - before <= 3 * rounds


def test_address_map(node: FakeNode, start_proxy: StartProxy) -> None:
    node.shards = shards_reply([Shard([(0, 16383)], [((node.id, "10.255.0.1", 7000), "master")])])
    node.on("GET", in_turn(b"-MOVED %d 10.255.0.1:7000\r\n" % A_SLOT, bulk(b"v")))
    with start_proxy([node.address], {"cluster": {"address_map": {"10.255.0.1:7000": node.address}}}).raw() as raw:
        assert raw.command("GET", "a") == bulk(b"v")


# The handshake with a node


def test_what_a_node_is_told_first(node: FakeNode, start_proxy: StartProxy) -> None:
    daemon = start_proxy([node.address], {"cluster": {"username": "me", "password": "secret"}})
    with daemon.raw() as raw:
        raw.command("HELLO", 3)
        assert raw.command("SET", "a", "v") == b"+OK\r\n"
    for session in node.sessions:
        if any(words[0] == b"SET" for words in session.commands):
            assert session.protocol == 3
            names = [b" ".join(words[:1]) for words in session.commands]
            first = session.commands[0]
            assert b"secret" in first  # logged in before anything else
            assert b"me" in first
            assert names.index(b"SET") > 0
            break
    else:
        raise Closed("no connection carried the SET")


def test_a_wrong_password_for_the_node_is_said(node: FakeNode, start_proxy: StartProxy) -> None:
    wrong = b"-WRONGPASS invalid username-password pair or user is disabled.\r\n"
    node.on("AUTH", wrong)
    node.on("HELLO", wrong)
    node.on("CLUSTER", b"-NOAUTH Authentication required.\r\n")
    daemon = start_proxy([node.address], {"cluster": {"password": "secret"}}, wait="listening")
    assert daemon.log_contains("WRONGPASS|[Pp]assword")
    assert "secret" not in daemon.log
    with daemon.raw() as raw:
        assert raw.command("GET", "a").startswith(b"-CLUSTERDOWN")
