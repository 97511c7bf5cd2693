"""Blocking commands of a client that tracks: on its own connections, so that what they read is tracked."""

from __future__ import annotations

import pytest

from proxy.forward.backend import Backend, BackendState
from proxy.resp import errors
from proxy.resp.encode import array, bulk, encode_command
from tests.support.datapath import KEY_A, A, B, Play, Stage
from tests.support.dialogue import GET_A, moved
from tests.unit.forward.test_tracking import FLUSH, YES, invalid, tracking

READ = encode_command("XREAD", "BLOCK", "0", "STREAMS", KEY_A, "0")
POP = encode_command("BLPOP", KEY_A, "0")
READ_FROM = array([array([bulk(KEY_A), array([])])])
UNBLOCK = encode_command("CLIENT", "UNBLOCK", "77", "ERROR")


def own_of(stage: Stage) -> Backend:
    (own,) = [b for b in stage.router.nodes[A].backends() if b.purpose == "tracking" and b.state == BackendState.UP]
    return own


@pytest.mark.parametrize("frame", [READ, POP])
def test_what_blocks_goes_over_its_own_connection(play: Play, frame: bytes) -> None:
    """And it stays that afterwards: so what was read there is told, and nothing else has been forgotten."""
    stage = play(stall_s=0.0)
    client = tracking(stage)
    client.send(GET_A + frame + GET_A)
    stage.turn()
    node = stage.node(A)
    assert node.get() == GET_A
    node.send(bulk("1"))
    stage.turn()
    assert node.get() == frame
    assert len(stage.nodes[A]) == 1
    for _ in range(3):
        stage.router.sweep()
        stage.turn()
    node.send(READ_FROM + invalid(KEY_A))
    stage.turn()
    assert client.get() == bulk("1") + READ_FROM + invalid(KEY_A)
    assert node.get() == GET_A
    node.send(bulk("2"))
    stage.turn()
    assert client.get() == bulk("2")


def test_what_blocks_is_announced(play: Play) -> None:
    stage = play()
    client = tracking(stage, optin=True)
    stage.accepted.cached = True
    client.send(READ)
    stage.turn()
    assert stage.node(A).get() == YES + READ
    stage.node(A).send(b"+OK\r\n" + READ_FROM)
    stage.turn()
    assert client.get() == READ_FROM


def test_what_blocks_and_is_redirected_goes_over_the_other_one(play: Play) -> None:
    stage = play()
    client = tracking(stage)
    client.send(READ)
    stage.turn()
    stage.node(A).send(moved(B))
    stage.turn()
    assert stage.node(B).get() == READ
    assert [b.purpose for b in stage.router.nodes[B].backends()] == ["tracking"]
    assert FLUSH in stage.hear(client)


def test_what_blocks_waits_for_a_node_that_is_down(play: Play) -> None:
    stage = play()
    stage.unreachable.add(A)
    client = tracking(stage)
    client.send(READ)
    stage.turn(5)
    assert stage.accepted.blocked
    stage.unreachable.clear()
    stage.until(lambda: A in stage.nodes)
    stage.turn()
    assert stage.node(A).get() == READ


@pytest.mark.parametrize("reply", [errors.UNBLOCKED, READ_FROM])
def test_unblocked_on_its_own_connection(play: Play, reply: bytes) -> None:
    """Whose number is told by its handshake. One that a CLIENT UNBLOCK may yet come to is not used any more."""
    stage = play()
    client = tracking(stage)
    client.send(READ)
    stage.turn()
    own_of(stage).client_id = 77
    node = stage.node(A)
    node.get()
    told: list[bool] = []
    stage.accepted.unblock(True, told.append)
    stage.turn()
    common = stage.node(A)
    assert common.get() == UNBLOCK
    node.send(reply)
    stage.turn()
    assert client.get() == reply + (FLUSH if reply == READ_FROM else b"")
    assert node.closed == (reply == READ_FROM)
    common.send(b":%d\r\n" % (reply != READ_FROM))
    stage.turn()
    assert told == [reply != READ_FROM]


def test_killed_while_it_is_blocked_on_its_own_connection(play: Play) -> None:
    stage = play()
    client = tracking(stage)
    client.send(POP)
    stage.turn()
    own_of(stage).client_id = 77
    node = stage.node(A)
    stage.accepted.kill()
    stage.turn()
    assert stage.node(A).get() == UNBLOCK
    assert node.get() == POP
    node.send(array([bulk(KEY_A), bulk("v")]))
    stage.turn()
    assert client.get().startswith(array([bulk(KEY_A), bulk("v")]))
    assert client.closed
    stage.turn()
    assert node.closed


def test_it_is_not_evicted_for_a_connection_that_would_be_made_again(play: Play) -> None:
    stage = play()
    client = tracking(stage)
    client.send(POP)
    stage.turn()
    assert not stage.accepted.evict()
    client.close()
    stage.turn()
    assert stage.count("blocked") == 0
