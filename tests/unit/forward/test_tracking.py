"""Connections of a client that tracks: what goes over them, and where invalidations stand among its replies."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest

from proxy.forward.backend import Backend, BackendState
from proxy.forward.tracking import Tracking
from proxy.resp.encode import array, bulk, encode_command
from tests.support.datapath import KEY_A, KEY_B, THIRDS, A, B, C, End, Play, Stage
from tests.support.dialogue import ASKING, GET_A, GET_B, GET_C, PING, ask, moved

FLUSH = b">2\r\n$10\r\ninvalidate\r\n_\r\n"
YES = encode_command("CLIENT", "CACHING", "YES")
SPREAD = encode_command("MGET", KEY_A, KEY_B)
# B has A's slots, too.
MOVED_AWAY: list[Any] = [(A, [], []), (B, [], [(0, 10922)]), (C, [], [(10923, 16383)])]


def invalid(key: bytes) -> bytes:
    return b">2\r\n$10\r\ninvalidate\r\n" + array([bulk(key)])


def tracking(stage: Stage, **options: Any) -> End:
    """A client that tracks; `stage.accepted` is the data path's side."""
    client = stage.client()
    stage.accepted.set_proto(3)
    assert stage.accepted.track(Tracking(**options))
    return client


def test_its_commands_go_over_connections_of_its_own(play: Play) -> None:
    stage = play()
    other = stage.client()
    other.send(GET_A)
    stage.turn()
    shared = stage.node(A)
    client = tracking(stage)
    client.send(GET_A + GET_B)
    stage.turn()
    assert (shared.get(), stage.node(A).get(), stage.node(B).get()) == (GET_A, GET_A, GET_B)
    assert len(stage.nodes[A]) == 2
    connections = stage.router.nodes[A].figures()["connections"]
    assert (connections["tracking", "up"], connections["shared", "up"]) == (1, 1)
    (own,) = [b for b in stage.router.nodes[A].backends() if b.purpose == "tracking"]
    assert own.greeting == ("CLIENT", "TRACKING", "ON")
    client.close()
    stage.turn()
    assert own.state == BackendState.CLOSED
    assert stage.path.tracking == set()
    assert [b for b in stage.router.nodes[B].backends() if b.purpose == "tracking"] == []


def test_an_invalidation_stands_behind_all_that_its_node_gave(play: Play) -> None:
    """Also behind a reply that waits for another node's, and a part of a split command; not behind what is to come."""
    stage = play()
    client = tracking(stage)
    client.send(GET_C + GET_A + SPREAD + GET_A)
    stage.turn()
    stage.node(A).send(bulk("1") + array([bulk("2")]) + invalid(KEY_A))
    stage.turn()
    assert client.get() == b""
    stage.node(A).send(bulk("3"))
    stage.node(B).send(array([bulk("b")]))
    stage.node(C).send(bulk("c"))
    stage.turn()
    assert client.get() == bulk("c") + bulk("1") + array([bulk("2"), bulk("b")]) + invalid(KEY_A) + bulk("3")


def test_not_behind_a_command_of_which_nothing_is_answered(play: Play) -> None:
    stage = play()
    client = tracking(stage)
    client.send(SPREAD)
    stage.turn()
    stage.node(A).send(invalid(KEY_A))
    stage.turn()
    assert client.get() == invalid(KEY_A)
    stage.node(A).send(array([bulk("1")]))
    stage.turn()
    stage.node(A).send(invalid(KEY_A))
    stage.turn()
    assert client.get() == b""
    stage.node(B).send(array([bulk("b")]) + invalid(KEY_B))
    stage.turn()
    assert stage.drink(client) == array([bulk("1"), bulk("b")]) + invalid(KEY_A) + invalid(KEY_B)


def test_many_that_wait_take_one_place(play: Play) -> None:
    stage = play()
    client = tracking(stage)
    client.send(GET_C + GET_A)
    stage.turn()
    wanted = b"".join(invalid(b"k%d" % n) for n in range(20_000))
    stage.pour(stage.node(A), bulk("1") + wanted)
    assert client.get() == b""
    stage.node(C).send(bulk("c"))
    stage.turn()
    assert stage.drink(client) == bulk("c") + bulk("1") + wanted


def test_a_lost_connection_invalidates_everything_behind_what_it_gave(play: Play) -> None:
    stage = play()
    client = tracking(stage)
    client.send(GET_C + GET_A + GET_A)
    stage.turn()
    stage.node(A).send(bulk("1"))
    stage.turn()
    stage.node(A).close()
    stage.turn()
    assert client.get() == b""
    stage.node(C).send(bulk("c"))
    stage.turn()
    assert client.get() == bulk("c") + bulk("1") + FLUSH
    stage.until(lambda: len(stage.nodes[A]) == 2)  # a short life: the next one is not made at once
    stage.turn()
    assert stage.node(A).get() == GET_A
    stage.node(A).send(bulk("2") + invalid(KEY_A))
    stage.turn()
    assert client.get() == bulk("2") + invalid(KEY_A)


@pytest.mark.parametrize("how", ["moved", "published"])
def test_a_slot_that_moves(play: Play, how: str) -> None:
    """At once, and once more behind what may have been read at the old place."""
    stage = play()
    client = tracking(stage)
    client.send(GET_A)
    stage.turn()
    if how == "moved":
        other = stage.client()
        other.send(GET_A)
        stage.turn()
        stage.nodes[A][-1].send(moved(B))
    else:
        stage.publish(MOVED_AWAY)
    stage.turn()
    assert client.get() == FLUSH
    stage.nodes[A][0].send(b"_\r\n")
    stage.turn()
    assert client.get() == b"_\r\n" + FLUSH
    client.send(GET_A)
    stage.turn()
    assert GET_A in stage.node(B).get()


def test_a_topology_that_moves_nothing(play: Play) -> None:
    stage = play()
    client = tracking(stage)
    client.send(GET_A)
    stage.turn()
    stage.publish(THIRDS)
    stage.node(A).send(bulk("1"))
    stage.turn()
    assert client.get() == bulk("1")


def test_a_node_that_leaves(play: Play) -> None:
    """Its connection drains; what it gives until then is invalidated when it ends."""
    stage = play()
    client = tracking(stage)
    client.send(GET_A)
    stage.turn()
    stage.publish([(B, [], [(0, 10922)]), (C, [], [(10923, 16383)])])
    stage.turn()
    assert client.get() == FLUSH
    stage.node(A).send(bulk("1"))
    stage.turn()
    got = stage.drink(client)
    assert got.startswith(bulk("1") + FLUSH)
    stage.node(A).get()
    assert stage.node(A).closed


def test_ask_is_followed(play: Play) -> None:
    """What was not there may come to be where nobody has read it: all is invalidated, once a second for each slot."""
    stage = play()
    client = tracking(stage)
    for n in range(3):
        client.send(GET_A)
        stage.turn()
        assert stage.node(A).get() == GET_A
        stage.node(A).send(ask(B))
        stage.turn()
        assert stage.node(B).get() == ASKING + GET_A
        stage.node(B).send(b"+OK\r\n" + bulk("1"))
        stage.turn()
        assert client.get() == (FLUSH + bulk("1") + FLUSH if n == 0 else bulk("1"))


def test_caching_goes_right_before_its_command(play: Play) -> None:
    """For each part of it, and again when it is sent again."""
    stage = play()
    client = tracking(stage, optin=True)
    client.send(GET_A + YES + SPREAD + GET_A)
    stage.turn()
    assert (stage.node(A).get(), stage.node(B).get()) == (
        GET_A + YES + encode_command("MGET", KEY_A) + GET_A,
        YES + encode_command("MGET", KEY_B),
    )
    stage.node(A).send(bulk("1") + b"+OK\r\n" + array([bulk("2")]) + bulk("3"))
    stage.node(B).send(b"+OK\r\n" + array([bulk("b")]))
    stage.turn()
    assert client.get() == bulk("1") + b"+OK\r\n" + array([bulk("2"), bulk("b")]) + bulk("3")
    client.send(YES + GET_A)
    stage.turn()
    assert stage.node(A).get() == YES + GET_A
    stage.node(A).send(b"+OK\r\n" + moved(B))
    stage.turn()
    assert stage.node(B).get() == YES + GET_A
    stage.node(B).send(b"+OK\r\n" + bulk("1"))
    stage.turn()
    assert client.get() == b"+OK\r\n" + FLUSH + bulk("1") + FLUSH


def test_caching_and_ask_cannot_both_be_said(play: Play) -> None:
    """So what such a command reads is invalidated, every time."""
    stage = play()
    client = tracking(stage, optin=True)
    for _ in range(2):
        client.send(YES + GET_A)
        stage.turn()
        stage.node(A).send(b"+OK\r\n" + ask(B))
        stage.turn()
        assert stage.node(B).get() == ASKING + GET_A
        stage.node(B).send(b"+OK\r\n" + bulk("1"))
        stage.turn()
        assert client.get().endswith(bulk("1") + FLUSH)
        stage.node(A).get()


def test_broadcast_is_invalidated_when_a_connection_is_back(play: Play) -> None:
    stage = play()
    client = tracking(stage, bcast=True, prefixes=[b"a", b"b"])
    own = stage.accepted.tracking
    assert own is not None
    own.keep_up()
    stage.turn()
    assert [len(stage.nodes[node]) for node in (A, B, C)] == [1, 1, 1]
    own.confirm()
    assert client.get() == b""
    stage.node(A).close()
    stage.turn()
    assert client.get() == FLUSH

    def back() -> bool:
        own.keep_up()
        return len(stage.nodes[A]) == 2

    stage.until(back)
    stage.turn()
    assert client.get() == FLUSH
    assert own.greeting == ("CLIENT", "TRACKING", "ON", "BCAST", "PREFIX", b"a", "PREFIX", b"b")


def test_a_prefix_of_all(play: Play) -> None:
    assert Tracking(bcast=True, prefixes=[b"", b"a"]).greeting == ("CLIENT", "TRACKING", "ON", "BCAST")


def test_a_push_of_another_kind_is_not_passed_on(play: Play) -> None:
    stage = play()
    client = tracking(stage)
    client.send(GET_A)
    stage.turn()
    stage.node(A).send(b">3\r\n+message\r\n+a\r\n+b\r\n" + bulk("1"))
    stage.turn()
    assert client.get() == bulk("1")


def test_a_client_that_does_not_take_its_invalidations(play: Play) -> None:
    """Its output limit holds for them, too; nothing of it is left."""
    stage = play(hard_output=200_000)
    client = tracking(stage)
    client.send(GET_C + GET_A)
    stage.turn()
    with contextlib.suppress(BrokenPipeError):
        stage.pour(stage.node(A), bulk("1") + b"".join(invalid(b"k%d" % n) for n in range(8_000)))
    stage.turn()
    assert client.closed
    assert stage.path.tracking == set()


def test_another_database_or_protocol(play: Play) -> None:
    """Other connections; what was cached is invalidated."""
    stage = play()
    client = tracking(stage)
    client.send(GET_A)
    stage.turn()
    stage.node(A).send(bulk("1"))
    stage.turn()
    client.get()
    stage.accepted.db = 3
    stage.turn()
    assert client.get() == FLUSH
    client.send(GET_A)
    stage.turn()
    (own,) = [b for b in stage.router.nodes[A].backends() if b.purpose == "tracking"]
    assert own.db == 3
    stage.node(A).send(bulk("1"))
    stage.turn()
    stage.accepted.set_proto(2)
    stage.turn()
    assert own.state == BackendState.CLOSED
    assert client.get() == bulk("1")
    client.send(PING)
    stage.turn()
    assert client.get() == b"+PONG\r\n"
    assert stage.accepted.tracking is not None


def test_room(play: Play) -> None:
    stage = play()
    stage.path.leases.all_most = 3
    tracking(stage)
    first = stage.accepted
    stage.client()
    stage.accepted.set_proto(3)
    assert not stage.accepted.track(Tracking())
    assert (stage.accepted.tracking, stage.path.leases.tracking_refused) == (None, 1)
    assert first.track(Tracking(noloop=True))
    first.track(None)
    assert stage.accepted.track(Tracking())


def test_a_connection_that_is_refused(play: Play) -> None:
    """What waits for it is answered with the node's error, in its place; the next command has it tried again."""
    error = b"-NOPERM no\r\n"
    stage = play()
    client = tracking(stage)
    client.send(GET_C)
    stage.turn()
    own = stage.accepted.tracking
    assert own is not None
    (node,) = own.primaries()
    assert node.address == C  # the only one that is there
    connect = stage.connect

    def refusing(backend: Backend) -> None:
        if backend.node.address == A:
            stage.loop.call_soon(lambda: stage.router.refuse(backend, error))
        else:
            connect(backend)

    stage.connect = refusing  # type: ignore[method-assign]
    client.send(GET_A + SPREAD + GET_B)
    stage.turn()
    stage.node(B).send(array([bulk("b")]) + bulk("1"))
    stage.node(C).send(bulk("c"))
    stage.turn()
    assert stage.drink(client) == bulk("c") + error + error + bulk("1")
    assert [b.state for b in stage.router.nodes[A].backends() if b.purpose == "tracking"] == [BackendState.CLOSED]
    stage.connect = connect  # type: ignore[method-assign]
    client.send(GET_A)
    stage.until(lambda: A in stage.nodes)
    stage.turn()
    stage.node(A).send(bulk("2"))
    stage.turn()
    assert client.get() == bulk("2")


@pytest.mark.parametrize(
    ("told", "wrong"),
    [
        (b"_\r\n", False),
        (b"*0\r\n", False),
        (b"*2\r\n$1\r\na\r\n$0\r\n\r\n", False),
        (b"*1\r\n:1\r\n", True),
        (b"*1\r\n$-1\r\n", True),
        (b"*-1\r\n", True),
        (b"*2\r\n$1\r\na\r\n*1\r\n$1\r\nb\r\n", True),
        (b"$1\r\na\r\n", True),
        (b":1\r\n", True),
        (b"#t\r\n", True),
    ],
)
def test_a_malformed_invalidation(play: Play, told: bytes, wrong: bool) -> None:
    """Is not passed on: the connection is lost, so everything is invalidated."""
    stage = play()
    client = tracking(stage)
    client.send(GET_A)
    stage.turn()
    frame = b">2\r\n$10\r\ninvalidate\r\n" + told
    stage.node(A).send(bulk("1") + frame)
    stage.turn()
    assert client.get() == bulk("1") + (FLUSH if wrong else frame)
    stage.node(A).get()
    assert stage.node(A).closed == wrong
