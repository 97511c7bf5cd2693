"""PROXY PAUSE in the data path: what blocks is ended at the node, kept by the proxy, and begun again."""

from __future__ import annotations

import pytest

from proxy.forward.gate import held, pending, set_paused
from proxy.resp import errors
from proxy.resp.encode import encode_command
from tests.support.blocked import NODE_ID, POP, blocked, free, leases, shared, unblock
from tests.support.datapath import KEY_A, A, B, Play
from tests.support.dialogue import REFUSALS, SET_A, exchange, moved, pause


def test_what_blocks_is_ended_in_turns(play: Play) -> None:
    """Ten thousand would hold up everybody for a fifth of a second."""
    stage = play()
    node = shared(stage)
    clients = [stage.client() for _ in range(200)]
    for client in clients:
        client.send(POP)
    stage.turn()
    for lease in leases(stage):
        lease.client_id = NODE_ID
    set_paused(stage.path, [stage.router.nodes[A]])
    assert pending(stage.router.nodes[A]) < 200 + 200
    stage.turn()
    assert node.get() == unblock() * 200
    node.send(b":1\r\n" * 200)
    for end in stage.nodes[A]:
        if end is not node:
            end.send(errors.UNBLOCKED)
    stage.turn()
    assert pending(stage.router.nodes[A]) == 0
    assert {client.get() for client in clients} == {b""}
    pause(stage)
    assert pending(stage.router.nodes[A]) == 200


def test_what_is_asked_about_a_wait_does_not_wait_for_the_pause(play: Play) -> None:
    """The connection on which it was asked is lost: the wait is held, and can be ended like any other."""
    stage = play()
    node = shared(stage)
    client, waiting = blocked(stage)
    pause(stage, A)
    assert node.get() == unblock()
    waiting.send(errors.UNBLOCKED)
    node.close()
    stage.turn()
    told: list[bool] = []
    stage.accepted.unblock(True, told.append)
    stage.turn()
    assert (told, client.get()) == ([True], errors.UNBLOCKED)


@pytest.mark.parametrize("over", ["before it is ended", "before that is told"])
def test_a_pause_that_is_over_while_what_blocks_is_being_ended(play: Play, over: str) -> None:
    """What is told then is of the attempt before: CLIENT UNBLOCK comes to the one that follows."""
    stage = play()
    node = shared(stage)
    client, waiting = blocked(stage)
    pause(stage, A)
    assert node.get() == unblock()
    if over == "before it is ended":
        pause(stage)
    waiting.send(errors.UNBLOCKED)
    stage.turn()
    pause(stage)
    assert [end.get() for end in stage.nodes[A]] == [b"", b""]
    node.send(b":1\r\n")
    stage.turn()
    assert waiting.get() == POP
    told: list[bool] = []
    stage.accepted.unblock(True, told.append)
    stage.turn()
    assert (node.get(), told) == (unblock(), [])
    node.send(b":1\r\n")
    waiting.send(errors.UNBLOCKED)
    stage.turn()
    assert (client.get(), told) == (errors.UNBLOCKED, [True])


@pytest.mark.parametrize("error", [True, False])
@pytest.mark.parametrize("paused", [True, False])
def test_who_asks_for_its_end_while_it_is_being_suspended(play: Play, paused: bool, error: bool) -> None:
    """It has been ended, but for the pause: it is not begun again, and its client hears of it."""
    stage = play()
    node = shared(stage)
    client, waiting = blocked(stage)
    pause(stage, A)
    waiting.send(errors.UNBLOCKED)
    stage.turn()
    if not paused:
        pause(stage)
    told: list[bool] = []
    stage.accepted.unblock(error, told.append)
    node.send(b":1\r\n")
    stage.turn()
    assert (client.get(), told, waiting.get()) == (errors.UNBLOCKED if error else b"*-1\r\n", [True], b"")


@pytest.mark.parametrize("told_first", [True, False])
def test_who_asks_for_the_end_of_its_time_while_it_is_being_suspended(play: Play, told_first: bool) -> None:
    """CLIENT UNBLOCK without ERROR: it gets nothing, as at its timeout, though its node ends it with an error."""
    stage = play()
    node = shared(stage)
    client, waiting = blocked(stage)
    pause(stage, A)
    told: list[bool] = []
    stage.accepted.unblock(False, told.append)
    assert node.get() == unblock()
    answers = [(node, b":1\r\n"), (waiting, errors.UNBLOCKED)]
    for end, answer in answers if told_first else reversed(answers):
        end.send(answer)
        stage.turn()
    assert (client.get(), told, waiting.get()) == (b"*-1\r\n", [True], b"")
    free(stage)


def test_what_is_refused_while_it_is_being_suspended(play: Play) -> None:
    """It was to be ended where it was: what is sent anew, after the pause, is left alone."""
    stage = play()
    node = shared(stage)
    client, waiting = blocked(stage)
    pause(stage, A)
    assert node.get() == unblock()
    pause(stage)
    waiting.send(REFUSALS["tryagain"])
    stage.turn()
    node.send(b":0\r\n")
    stage.until(lambda: pending(stage.router.nodes[A]) == 1)
    assert stage.hear(stage.node(A), len(POP)) == POP
    for lease in leases(stage):
        lease.client_id = NODE_ID
    stage.turn(10)
    assert (node.get(), client.get()) == (b"", b"")
    told: list[bool] = []
    stage.accepted.unblock(True, told.append)
    stage.turn()
    assert (node.get(), told) == (unblock(), [])


def test_what_blocks_goes_on_before_what_was_held(play: Play) -> None:
    """What was held was sent later: XREAD with $ would miss it. In more turns than one, and on new connections."""
    stage = play()
    node = shared(stage)
    for _ in range(200):
        stage.client().send(POP)
    stage.turn()
    for lease in leases(stage):
        lease.client_id = NODE_ID
    pause(stage, A)
    node.send(b":1\r\n" * 200)
    ends = [end for end in stage.nodes[A] if end is not node]
    for end in ends:
        assert end.get() == POP
        end.send(errors.UNBLOCKED)
    stage.turn()
    for end in ends[:3]:
        end.close()
    writer = stage.client()
    writer.send(SET_A)
    stage.turn()
    assert (held(stage.path), pending(stage.router.nodes[A])) == (1, 0)
    node.get()
    got: list[bytes] = []
    sent = 0
    set_paused(stage.path, [])
    stage.put_forward(-1000.0)  # its patience does not end in the middle of this
    while not any(got):
        sent += sum(end.get() == POP for end in stage.nodes[A] if end is not node)
        stage.turn(1)
        got.append(node.get())
    assert (b"".join(got), sent) == (SET_A, 200)


def test_what_was_held_does_not_wait_for_long(play: Play) -> None:
    """A connection on which something is to block may never come about."""
    stage = play()
    node = shared(stage)
    client, waiting = blocked(stage)
    pause(stage, A)
    node.get()
    node.send(b":1\r\n")
    waiting.send(errors.UNBLOCKED)
    stage.turn()
    waiting.close()
    writer = stage.client()
    writer.send(SET_A)
    stage.turn()
    set_paused(stage.path, [])
    stage.loop.run()
    stage.put_forward(10.0)
    for _ in range(3):
        stage.loop.run()  # and no connection is made
    assert (node.get(), client.get()) == (SET_A, b"")


def test_a_redirection_in_doubt_while_its_node_is_paused(play: Play) -> None:
    """Whether a script has said it cannot be asked now: the script waits for the pause like any command."""
    stage = play(timeout_s=200.0, backoff_s=10.0)
    script = encode_command("EVAL", "return redis.call('get', KEYS[1])", "1", KEY_A)
    client = stage.client()
    client.send(script)
    stage.turn()
    pause(stage, A)
    exchange(stage, A, script, moved(B))
    stage.pass_time(400.0, sweep=True)
    assert client.get() == b""
    pause(stage)
    exchange(stage, A, script, b"$1\r\n1\r\n")
    assert client.get() == b"$1\r\n1\r\n"
