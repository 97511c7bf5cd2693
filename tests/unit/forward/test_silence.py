"""Nodes that say nothing: what is held back, read elsewhere, told; and what is decided when the cluster has decided."""

from __future__ import annotations

import time
from typing import Any

import pytest

from proxy.forward.backend import Backend
from proxy.resp import errors
from proxy.resp.encode import bulk, encode_command
from tests.support.datapath import KEY_A, KEY_C, TEXTS, THIRDS, A, B, C, End, Play, Stage
from tests.support.dialogue import GET_A, GET_C, SET_A, SET_B, SET_C, moved

OK = b"+OK\r\n"
LOST = TEXTS["lost"]
PAIR: list[Any] = [(A, [B], [(0, 10922)]), (C, [], [(10923, 16383)])]
TURNED: list[Any] = [(B, [], [(0, 10922)]), (C, [], [(10923, 16383)]), (A, [], [])]  # A has lost its slots to B
AS_REPLICA: list[Any] = [(B, [A], [(0, 10922)]), (C, [], [(10923, 16383)])]
SILENT_S = 0.03


def silent(stage: Stage, frame: bytes = SET_A, **settings: Any) -> tuple[End, End]:
    """A client that has sent something to A, which says nothing and is suspected; and A's end."""
    client = stage.client(**settings)
    client.send(frame)
    stage.turn()
    node = stage.node(A)
    assert node.get() == frame
    stage.until(lambda: A in stage.suspects, sweep=True)
    assert stage.router.nodes[A].silent
    return client, node


def sweeps(stage: Stage, seconds: float = 3 * SILENT_S) -> None:
    give_up = time.monotonic() + seconds
    while time.monotonic() < give_up:
        stage.router.sweep()
        stage.turn(1)


def test_nothing_more_is_sent_until_it_is_heard(play: Play) -> None:
    stage = play(PAIR, silent_s=SILENT_S)
    one, node = silent(stage)
    other = stage.client()
    other.send(GET_A + SET_A)
    sweeps(stage)
    assert node.get() == b""
    node.send(OK)
    stage.turn()
    assert one.get() == OK
    assert node.get() == GET_A + SET_A
    assert not stage.router.nodes[A].silent
    node.send(bulk("1") + OK)
    stage.turn()
    assert other.get() == bulk("1") + OK
    assert stage.lost_for == []


def test_control_is_told_now_and_then(play: Play) -> None:
    stage = play(PAIR, silent_s=SILENT_S)
    _, node = silent(stage)
    sweeps(stage, 0.1)
    assert stage.suspects == [A]
    sweeps(stage, 0.3)
    assert stage.suspects == [A, A]
    node.send(OK)
    stage.turn()
    sweeps(stage, 0.3)
    assert stage.suspects == [A, A]


def test_a_primary_that_cannot_be_reached_is_told_too(play: Play) -> None:
    stage = play(PAIR)
    stage.unreachable.add(A)
    stage.client().send(SET_A)
    stage.until(lambda: stage.suspects == [A], sweep=True)


@pytest.mark.parametrize("frame", [encode_command("BLPOP", KEY_A, 0), b""])
def test_who_owes_nothing_is_not_silent(play: Play, frame: bytes) -> None:
    """What blocks may take its time."""
    stage = play(PAIR, silent_s=SILENT_S)
    stage.client().send(SET_A)
    stage.turn()
    stage.node(A).send(OK)
    stage.turn()
    client = stage.client()
    client.send(frame)
    stage.turn()
    sweeps(stage)
    assert stage.suspects == []


def test_what_comes_on_another_connection_counts(play: Play) -> None:
    """One connection may be held up, by CLIENT PAUSE for example; its node is alive."""
    stage = play(PAIR, silent_s=SILENT_S)
    stage.client().send(SET_A)
    stage.turn()
    other = stage.client()
    stage.accepted.set_proto(3)
    other.send(GET_A)
    stage.turn()
    give_up = time.monotonic() + 3 * SILENT_S
    while time.monotonic() < give_up:
        stage.node(A).send(bulk("1"))
        other.send(GET_A)
        stage.turn(2)
        stage.router.sweep()
    assert stage.suspects == []


def test_a_process_that_stood_still_itself_suspects_nobody(play: Play) -> None:
    stage = play(PAIR, silent_s=SILENT_S)
    client = stage.client()
    client.send(SET_A)
    stage.turn()
    stage.node(A).send(OK)
    time.sleep(2 * SILENT_S)
    stage.router.sweep()
    stage.turn()
    assert stage.suspects == []
    assert client.get() == OK


# -- reads ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reads", ["prefer_primary", "any"])
def test_reads_go_elsewhere_and_late_replies_nowhere(play: Play, reads: str) -> None:
    stage = play(PAIR, silent_s=SILENT_S)
    if reads == "any":
        stage.router.nodes[B].usable = False  # so that the first comes to A
    client = stage.client(reads=reads)
    client.send(SET_A + GET_A)
    stage.turn()
    node = stage.node(A)
    assert node.get() == SET_A + GET_A
    stage.router.nodes[B].usable = True
    stage.until(lambda: B in stage.nodes, sweep=True)
    stage.turn()
    assert stage.node(B).get() == GET_A
    other = stage.client(reads=reads)
    other.send(GET_A)
    stage.turn()
    assert stage.node(B).get() == GET_A
    stage.node(B).send(bulk("b") * 2)
    stage.turn()
    assert other.get() == bulk("b")
    assert client.get() == b""  # its SET comes first
    node.send(OK + bulk("late"))
    stage.turn()
    assert client.get() == OK + bulk("b")
    client.send(GET_A)
    stage.turn()
    assert not stage.router.nodes[A].silent


def test_a_silent_replica_is_not_read_from(play: Play) -> None:
    stage = play([(B, [A], [(0, 10922)]), (C, [], [(10923, 16383)])], silent_s=SILENT_S)
    client = stage.client(reads="prefer_replica")
    client.send(GET_A)
    stage.turn()
    assert stage.node(A).get() == GET_A
    stage.until(lambda: B in stage.nodes, sweep=True)
    stage.turn()
    stage.node(B).send(bulk("1"))
    stage.turn()
    assert client.get() == bulk("1")
    client.send(GET_A)
    stage.turn()
    assert stage.node(B).get() == GET_A * 2
    stage.node(B).send(bulk("1"))
    stage.node(A).send(bulk("late"))
    stage.turn()
    assert client.get() == bulk("1")
    client.send(GET_A)
    stage.turn()
    assert stage.node(A).get() == GET_A  # it is back


def test_reads_of_primaries_wait(play: Play) -> None:
    stage = play(PAIR, silent_s=SILENT_S)
    client, node = silent(stage, GET_A)
    sweeps(stage)
    assert B not in stage.nodes
    node.send(bulk("1"))
    stage.turn()
    assert client.get() == bulk("1")


def test_a_reply_that_has_begun_to_reach_the_client_is_not_asked_for_elsewhere(play: Play) -> None:
    stage = play(PAIR, silent_s=SILENT_S)
    client = stage.client(reads="prefer_primary")
    client.send(GET_A)
    stage.turn()
    stage.node(A).send(b"$20000\r\n" + b"x" * 10000)
    stage.turn()
    stage.until(lambda: A in stage.suspects, sweep=True)
    sweeps(stage)
    assert B not in stage.nodes
    stage.node(A).send(b"x" * 10000 + b"\r\n")
    stage.turn()
    assert client.get() == bulk("x" * 20000)


def test_a_read_that_was_not_sent_goes_elsewhere_and_is_never_sent(play: Play) -> None:
    """It was held back, and then a replica became fit."""
    stage = play(PAIR, silent_s=SILENT_S)
    stage.router.nodes[B].usable = False
    one, node = silent(stage)
    other = stage.client(reads="prefer_primary")
    other.send(GET_A)
    sweeps(stage)
    assert (node.get(), B in stage.nodes) == (b"", False)
    stage.router.nodes[B].usable = True
    stage.until(lambda: B in stage.nodes, sweep=True)
    stage.turn()
    stage.node(B).send(bulk("1"))
    node.send(OK)
    stage.turn()
    assert (one.get(), other.get(), node.get()) == (OK, bulk("1"), b"")


@pytest.mark.parametrize("reads", ["prefer_replica", "replica", "prefer_primary", "any"])
def test_a_replica_that_lost_its_primary_is_better_than_nobody(play: Play, reads: str) -> None:
    stage = play(PAIR, silent_s=SILENT_S)
    node = stage.router.nodes[B]
    node.usable, node.stale = False, True
    stage.unreachable.add(A)
    stage.client().send(GET_A)
    stage.turn()
    client = stage.client(reads=reads)
    client.send(GET_A)
    stage.turn()
    stage.node(B).send(bulk("old"))
    stage.turn()
    assert client.get() == bulk("old")


@pytest.mark.parametrize("reads", ["prefer_replica", "prefer_primary", "any"])
def test_but_worse_than_the_primary(play: Play, reads: str) -> None:
    stage = play(PAIR)
    node = stage.router.nodes[B]
    node.usable, node.stale = False, True
    stage.client(reads=reads).send(GET_A)
    stage.turn()
    assert stage.node(A).get() == GET_A
    assert B not in stage.nodes


# -- decided ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", ["slots", "role", "gone"])
def test_failed_and_replaced(play: Play, after: str) -> None:
    stage = play(PAIR, silent_s=SILENT_S)
    shards = {"slots": TURNED, "role": AS_REPLICA, "gone": TURNED[:2]}[after]
    writer, node = silent(stage)
    reader, late = stage.client(), stage.client()
    reader.send(GET_A)  # was held back
    late.send(SET_A)
    stage.turn()
    stage.publish(shards, frozenset({A}))
    stage.turn()
    assert writer.get() == LOST
    assert node.closed
    assert stage.node(B).get() == GET_A + SET_A
    node.send(OK * 3)
    stage.node(B).send(bulk("1") + OK)
    stage.turn()
    assert (writer.get(), reader.get(), late.get()) == (b"", bulk("1"), OK)
    writer.send(SET_A)
    stage.turn()
    assert stage.node(B).get() == SET_A
    assert len(stage.nodes[A]) == 1  # nobody dials it


def test_failed_and_replaced_decides_about_one_that_speaks_too(play: Play) -> None:
    """It may be one that has just come back, and does not know."""
    stage = play(PAIR)
    writer, reader = stage.client(), stage.client()
    writer.send(SET_A)
    reader.send(GET_A)
    stage.turn()
    node = stage.node(A)
    node.send(OK + bulk("stale"))
    stage.publish(TURNED, frozenset({A}))
    stage.turn()
    assert writer.get() == LOST
    assert stage.node(B).get() == GET_A
    stage.node(B).send(bulk("new"))
    stage.turn()
    assert reader.get() == bulk("new")


def test_replaced_in_order(play: Play) -> None:
    """It is alive: what it has got, it answers."""
    stage = play(PAIR)
    one, other = stage.client(), stage.client()
    one.send(SET_A)
    other.send(SET_A)
    stage.turn()
    stage.publish(AS_REPLICA)
    stage.turn()
    stage.nodes[A][0].send(OK + moved(B))
    stage.turn()
    assert one.get() == OK
    assert stage.node(B).get() == SET_A
    stage.node(B).send(OK)
    stage.turn()
    assert other.get() == OK
    stage.nodes[A][0].get()
    assert stage.nodes[A][0].closed


@pytest.mark.parametrize("shards", [TURNED, AS_REPLICA, TURNED[:2]], ids=["slots", "role", "gone"])
def test_replaced_without_a_word(play: Play, shards: list[Any]) -> None:
    """A node that may not tell who failed; or it hangs only now."""
    stage = play(PAIR, silent_s=SILENT_S)
    client = stage.client()
    client.send(SET_A)
    stage.turn()
    stage.publish(shards)
    stage.turn()
    assert client.get() == b""
    stage.nodes[A][0].get()
    stage.until(lambda: stage.nodes[A][0].closed, sweep=True)
    stage.turn()
    assert client.get() == LOST


def test_failed_and_not_replaced_yet(play: Play) -> None:
    stage = play(PAIR, silent_s=SILENT_S)
    writer, node = silent(stage)
    late = stage.client()
    late.send(SET_A)
    stage.publish(PAIR, frozenset({A}))
    stage.unreachable.add(A)  # what hangs takes no handshake
    stage.turn()
    assert writer.get() == LOST
    assert node.closed
    sweeps(stage)
    assert late.get() == b""
    stage.publish(TURNED, frozenset({A}))
    stage.parking.wake_all()
    stage.turn()
    assert stage.node(B).get() == SET_A
    stage.node(B).send(OK)
    stage.turn()
    assert late.get() == OK


def test_failed_but_it_answers(play: Play) -> None:
    """The other nodes do not reach it, this one does: it goes on, by new connections where it was idle."""
    stage = play(PAIR, silent_s=4 * SILENT_S)
    client = stage.client()
    client.send(SET_A)
    stage.turn()
    stage.publish(PAIR, frozenset({A}))
    stage.node(A).send(OK)
    stage.turn()
    sweeps(stage)
    assert client.get() == OK
    assert len(stage.nodes[A]) == 1
    stage.publish(PAIR)
    stage.publish(PAIR, frozenset({A}))  # idle now
    stage.turn()
    assert len(stage.nodes[A]) == 2
    for _ in range(2):
        client.send(SET_A)
        stage.turn()
        stage.node(A).send(OK)
        stage.publish(PAIR, frozenset({A}))
        stage.turn()
        assert client.get() == OK
    assert len(stage.nodes[A]) == 2


def test_a_failed_node_need_not_be_silent_for_so_long(play: Play) -> None:
    stage = play(PAIR, silent_s=0.4)
    client = stage.client()
    client.send(SET_A)
    stage.turn()
    started = time.monotonic()
    stage.publish(PAIR, frozenset({A}))
    stage.until(lambda: client.get() == LOST, sweep=True)
    assert 0.09 < time.monotonic() - started < 0.39


def test_the_order_of_a_client_is_kept(play: Play) -> None:
    """What was sent fails, what was not follows in its order, and nothing of the client overtakes."""
    stage = play(PAIR, silent_s=SILENT_S)
    first, *pushes = [encode_command("RPUSH", KEY_A, n) for n in range(4)]
    client, _ = silent(stage, first)
    client.send(b"".join(pushes[:2]))
    stage.turn()
    stage.publish(TURNED, frozenset({A}))
    client.send(pushes[2])
    stage.turn()
    assert stage.node(B).get() == b"".join(pushes[:2])
    stage.node(B).send(b":1\r\n:2\r\n")
    stage.turn()
    assert stage.node(B).get() == pushes[2]
    stage.node(B).send(b":3\r\n")
    stage.turn()
    assert client.get() == LOST + b":1\r\n:2\r\n:3\r\n"


def test_what_blocks_is_told(play: Play) -> None:
    stage = play(PAIR)
    client = stage.client()
    client.send(encode_command("BLPOP", KEY_A, 0))
    stage.turn()
    stage.publish(TURNED, frozenset({A}))
    stage.turn()
    assert client.get() == errors.UNBLOCKED_CHANGED
    assert stage.node(A).closed or stage.node(A).get()


@pytest.mark.parametrize("sent", [True, False])
def test_a_transaction(play: Play, sent: bool) -> None:
    stage = play(PAIR, silent_s=SILENT_S)
    whole = encode_command("MULTI") + SET_A + encode_command("EXEC")
    if sent:
        client, node = silent(stage, whole)
        assert client.get() == OK + b"+QUEUED\r\n"
    else:
        _, node = silent(stage)
        client = stage.client()
        client.send(whole)
        stage.turn()
        assert client.get() == OK + b"+QUEUED\r\n"
        assert node.get() == b""
    stage.publish(TURNED, frozenset({A}))
    stage.turn()
    if sent:
        assert client.get() == LOST
        return
    assert stage.node(B).get() == whole
    stage.node(B).send(OK + b"+QUEUED\r\n" + b"*1\r\n+OK\r\n")
    stage.turn()
    assert client.get() == b"*1\r\n+OK\r\n"


def test_parts_of_a_command(play: Play) -> None:
    stage = play(PAIR, silent_s=SILENT_S)
    reader, writer = stage.client(), stage.client()
    reader.send(encode_command("MGET", KEY_A, KEY_C))
    writer.send(encode_command("MSET", KEY_A, "1", KEY_C, "1"))
    stage.turn()
    stage.node(C).send(b"*1\r\n$1\r\nc\r\n" + OK)
    stage.until(lambda: A in stage.suspects, sweep=True)
    stage.publish(TURNED, frozenset({A}))
    stage.turn()
    assert stage.node(B).get() == encode_command("MGET", KEY_A)
    stage.node(B).send(b"*1\r\n$1\r\nb\r\n")
    stage.turn()
    assert reader.get() == b"*2\r\n$1\r\nb\r\n$1\r\nc\r\n"
    assert writer.get() == LOST


def test_what_is_asked_of_all_nodes(play: Play) -> None:
    stage = play(PAIR, silent_s=SILENT_S)
    client = stage.client()
    client.send(encode_command("DBSIZE"))
    stage.turn()
    stage.node(C).send(b":1\r\n")
    stage.until(lambda: A in stage.suspects, sweep=True)
    stage.publish(TURNED, frozenset({A}))
    stage.turn()
    assert stage.node(B).get() == encode_command("DBSIZE")
    stage.node(B).send(b":2\r\n")
    stage.turn()
    assert client.get() == b":3\r\n"


def test_nobody_is_led_to_one_that_failed_and_lost_its_role(play: Play) -> None:
    """A node that is behind names it."""
    stage = play(TURNED)
    stage.publish(TURNED, frozenset({A}))
    client = stage.client()
    client.send(SET_C)
    stage.turn()
    stage.node(C).send(b"-MOVED 15495 10.0.0.1:7001\r\n")
    stage.turn()
    assert A not in stage.nodes
    assert stage.stale_for == ["moved"]
    assert stage.node(C).get().startswith(SET_C)
    stage.node(C).send(OK)
    stage.turn()
    assert client.get() == OK


def test_the_others_notice_nothing(play: Play) -> None:
    stage = play(THIRDS, silent_s=SILENT_S)
    other = stage.client()
    silent(stage)
    stage.publish([(None, [], [(0, 5460)]), *THIRDS[1:]], frozenset({A}))
    other.send(SET_B + GET_C)
    stage.turn()
    stage.node(B).send(OK)
    stage.node(C).send(bulk("1"))
    stage.turn()
    assert other.get() == OK + bulk("1")


def test_a_blocking_command_whose_connection_is_closed_at_once_is_tried_again(play: Play) -> None:
    """It was told that the proxy is out of memory."""
    stage = play(PAIR)
    connect, refused = stage.connect, []

    def refuse(backend: Backend) -> None:
        if backend.leased and len(refused) < 3:
            refused.append(backend)
            backend.connect_failed()
        else:
            connect(backend)

    stage.connect = refuse  # type: ignore[method-assign]
    client = stage.client()
    client.send(encode_command("BLPOP", KEY_A, 0))
    stage.turn(10)
    assert len(refused) == 3
    assert client.get() == b""
    stage.node(A).send(b"*2\r\n$1\r\nb\r\n$1\r\nv\r\n")
    stage.turn()
    assert client.get() == b"*2\r\n$1\r\nb\r\n$1\r\nv\r\n"
