"""Blocking commands that are ended before their time: what was popped by then is still their client's."""

from __future__ import annotations

import time

import pytest

from proxy.forward.backend import BackendState
from proxy.forward.blocking import look
from proxy.forward.clients import drain
from proxy.resp import errors
from proxy.resp.encode import encode_command
from tests.support.blocked import POP, POPPED, blocked, free, leases, shared, unblock
from tests.support.datapath import KEY_A, A, B, Play
from tests.support.dialogue import GET_A, PING, REFUSALS, moved, sent_while_down


def test_killed(play: Play) -> None:
    """Closed without an answer as soon as its node has let it go; nothing of it is carried out any more."""
    stage = play()
    common = shared(stage)
    client, node = blocked(stage)
    stage.accepted.kill()
    client.send(GET_A)
    stage.turn()
    assert common.get() == unblock()
    assert stage.accepted.killed
    assert not client.closed
    node.send(errors.UNBLOCKED)
    common.send(b":1\r\n")
    stage.turn()
    assert (client.get(), client.closed, node.closed, common.get()) == (b"", True, False, b"")
    free(stage)
    assert len(leases(stage)) == 1
    assert stage.count("closed")["killed"] == 1


@pytest.mark.parametrize("behind", [b"", GET_A + POP])
def test_what_was_popped_before_it_was_killed_still_comes(play: Play, behind: bytes) -> None:
    stage = play()
    common = shared(stage)
    client, node = blocked(stage)
    client.send(behind)
    stage.turn()
    stage.accepted.kill()
    node.send(POPPED)
    stage.turn()
    assert (client.get(), client.closed) == (POPPED, True)
    assert stage.count("closed")["killed"] == 1
    assert common.get() == unblock()
    common.send(b":0\r\n")
    stage.turn()
    assert len(leases(stage)) == 1


def test_killed_where_the_node_says_nothing(play: Play) -> None:
    stage = play()
    shared(stage)
    client, node = blocked(stage)
    begun_s = time.monotonic()
    stage.accepted.kill()
    stage.until(lambda: client.get() or client.closed)
    assert 0.8 < time.monotonic() - begun_s < 5
    stage.turn()
    assert node.closed
    free(stage)


def test_killed_where_the_client_does_not_take_it(play: Play) -> None:
    stage = play()
    shared(stage)
    _, node = blocked(stage)
    stage.accepted.kill()
    stage.put_forward(-1000.0)  # it has time for what follows
    stage.pour(node, POPPED[:4] + b"$1\r\nb\r\n$4000000\r\n" + b"v" * 4000000 + b"\r\n")
    free(stage)
    assert stage.accepted in stage.path.clients
    stage.put_forward(1000.0)
    stage.until(lambda: stage.accepted not in stage.path.clients)
    assert stage.count("closed")["killed"] == 1


@pytest.mark.parametrize("line", [moved(B), REFUSALS["tryagain"]])
def test_killed_and_redirected(play: Play, line: bytes) -> None:
    """It is not sent again: it might pop something."""
    stage = play()
    shared(stage)
    client, node = blocked(stage)
    stage.accepted.kill()
    node.send(line)
    stage.turn()
    assert (client.get(), client.closed) == (b"", True)
    assert B not in stage.nodes
    free(stage)


def test_killed_while_it_waits_for_a_node(play: Play) -> None:
    stage = play()
    client = sent_while_down(stage, POP, 2)
    stage.accepted.kill()
    stage.turn()
    free(stage)
    assert client.closed


def test_killed_after_it_has_ended_its_input(play: Play) -> None:
    stage = play()
    common = shared(stage)
    client, node = blocked(stage)
    client.sock.shutdown(1)
    stage.turn()
    stage.accepted.kill()
    stage.turn()
    assert common.get() == unblock()
    node.send(POPPED)
    common.send(b":0\r\n")
    stage.turn()
    assert (client.get(), client.closed) == (POPPED, True)


# -- the end of a drain, and room that is needed


@pytest.mark.parametrize("why", ["evict", "dismiss"])
@pytest.mark.parametrize("popped", [False, True])
def test_as_a_node_that_loses_its_role(play: Play, why: str, popped: bool) -> None:
    """In a drain as a server that shuts down: an error could be one that its application dies of."""
    stage = play()
    common = shared(stage)
    client, node = blocked(stage)
    if why == "dismiss":
        client.send(PING)
        stage.turn()
        drain(stage.accepted)
    getattr(stage.accepted, why)()
    getattr(stage.accepted, why)()
    stage.turn()
    assert common.get() == unblock()
    node.send(POPPED if popped else errors.UNBLOCKED)
    common.send(b":0\r\n" if popped else b":1\r\n")
    stage.turn()
    if popped:
        assert client.get() == POPPED + (b"+PONG\r\n" if why == "dismiss" else b"")
    else:
        assert client.get() == (errors.UNBLOCKED_CHANGED if why == "evict" else b"")
    free(stage)
    assert client.closed == (why == "dismiss")
    assert [lease.state for lease in leases(stage)] == ([] if why == "evict" else [BackendState.UP])
    if why == "evict":
        client.send(PING)
        stage.turn()
        assert client.get() == b"+PONG\r\n"


def test_where_the_node_says_nothing(play: Play) -> None:
    stage = play()
    shared(stage)
    client, node = blocked(stage)
    stage.accepted.evict()
    got: list[bytes] = []
    stage.until(lambda: got.append(client.get()) or any(got))
    stage.turn()
    assert (b"".join(got), node.closed) == (errors.UNBLOCKED_CHANGED, True)
    free(stage)


def test_evicted_while_it_is_being_unblocked(play: Play) -> None:
    stage = play()
    common = shared(stage)
    client, node = blocked(stage)
    told: list[bool] = []
    stage.accepted.unblock(False, told.append)
    assert stage.accepted.evict()
    stage.turn()
    assert common.get() == unblock("TIMEOUT")
    node.send(b"*-1\r\n")
    common.send(b":1\r\n")
    stage.turn()
    assert (client.get(), told, node.closed) == (b"*-1\r\n", [True], True)


def test_nobody_is_blocked(play: Play) -> None:
    stage = play()
    stage.client()
    assert not stage.accepted.evict()
    stage.accepted.dismiss()
    stage.accepted.kill()
    assert stage.accepted not in stage.path.clients


def test_wait_is_ended_as_well(play: Play) -> None:
    stage = play()
    client = stage.client()
    client.send(encode_command("SET", KEY_A, "v"))
    stage.turn()
    common = stage.node(A)
    common.get()
    common.send(b"+OK\r\n")
    stage.turn()
    assert client.get() == b"+OK\r\n"
    client.send(encode_command("WAIT", "1", "0"))
    stage.turn()
    for lease in leases(stage):
        lease.client_id = 77
    stage.accepted.kill()
    stage.turn()
    assert common.get() == unblock()
    stage.until(lambda: client.closed)
    free(stage)


@pytest.mark.parametrize("end", ["unblocked", "evicted", "its node is another one's replica"])
def test_ended_in_the_middle_of_its_reply(play: Play, end: str) -> None:
    """No second answer comes behind the beginning of the first."""
    stage = play()
    common = shared(stage)
    client, node = blocked(stage)
    stage.pour(node, POPPED[:4] + b"$1\r\nb\r\n$200000\r\n" + b"v" * 100000)
    begun = stage.drink(client)
    assert len(begun) > 50000
    if end == "unblocked":
        leases(stage)[0].client_id = 0  # so that it cannot be asked to let it go
        told: list[bool] = []
        stage.accepted.unblock(True, told.append)
        assert told == [False]
        stage.pour(node, b"v" * 100000 + b"\r\n")
        assert (begun + stage.drink(client)).endswith(b"v\r\n")
        assert not client.closed
    else:
        if end == "evicted":
            stage.accepted.evict()
            common.get()
            common.send(b":0\r\n")
        else:
            stage.publish([(B, [A], [(0, 16383)])])
            look(stage.path, 0.0)
            stage.turn()
            look(stage.path, 0.0)
        stage.until(lambda: stage.accepted not in stage.path.clients, sweep=True)
        assert set(stage.drink(client)) <= set(b"v")
        stage.until(lambda: client.closed)
    free(stage)
