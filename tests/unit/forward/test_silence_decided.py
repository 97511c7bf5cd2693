"""Nodes voted failed, or whose role another one has: what is under way there is decided at once."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.forward.backend import Backend
from proxy.resp import errors
from proxy.resp.encode import bulk, encode_command
from tests.support.datapath import KEY_A, KEY_C, TEXTS, THIRDS, A, B, C, Play
from tests.support.dialogue import GET_A, GET_C, SET_A, SET_B, SET_C, moved
from tests.unit.forward.test_silence import OK, PAIR, SILENT_S, silent, sweeps

LOST = TEXTS["lost"]
TURNED: list[Any] = [(B, [], [(0, 10922)]), (C, [], [(10923, 16383)]), (A, [], [])]  # A has lost its slots to B
AS_REPLICA: list[Any] = [(B, [A], [(0, 10922)]), (C, [], [(10923, 16383)])]


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
    stage = play(PAIR, silent_s=2000.0, stall_s=5000.0, timeout_s=5000.0)
    client = stage.client()
    client.send(SET_A)
    stage.turn()
    stage.publish(PAIR, frozenset({A}))
    stage.pass_time(450.0, sweep=True)
    assert client.get() == b""
    stage.pass_time(100.0, sweep=True)
    assert client.get() == LOST


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
