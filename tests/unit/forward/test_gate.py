"""PROXY PAUSE in the data path: what waits, what goes on, and that time stands still for what was begun before."""

from __future__ import annotations

import socket

import pytest

from proxy.forward.clients import close_idle, drain
from proxy.forward.gate import held, pending, set_paused
from proxy.resp import errors
from proxy.resp.encode import encode_command
from tests.support.blocked import NODE_ID, POP, blocked, free, leases, shared, unblock
from tests.support.datapath import KEY_A, A, B, End, Play, Stage
from tests.support.dialogue import GET_A, GET_B, PING, REFUSALS, SET_A, exchange, moved, sized


def pause(stage: Stage, *addresses: object) -> None:
    set_paused(stage.path, [stage.router.nodes[address] for address in addresses])  # type: ignore[index]
    stage.turn()


def test_what_is_for_the_node_waits_and_the_rest_goes_on(play: Play) -> None:
    stage = play()
    client, other = stage.client(), stage.client()
    client.send(GET_A)
    stage.turn()
    pause(stage, A)
    assert pending(stage.router.nodes[A]) == 1
    exchange(stage, A, GET_A, b"$1\r\n1\r\n")  # what was sent before is answered
    assert pending(stage.router.nodes[A]) == 0
    client.send(GET_B + SET_A + GET_A + GET_B + PING)
    other.send(PING)
    exchange(stage, B, GET_B, b"$1\r\n2\r\n")
    assert (client.get(), other.get()) == (b"$1\r\n1\r\n$1\r\n2\r\n", b"+PONG\r\n")
    assert (held(stage.path), stage.node(A).get()) == (1, b"")
    pause(stage)
    exchange(stage, A, SET_A + GET_A, b"+OK\r\n$1\r\n3\r\n")
    exchange(stage, B, GET_B, b"$1\r\n4\r\n")
    assert client.get() == b"+OK\r\n$1\r\n3\r\n$1\r\n4\r\n+PONG\r\n"
    assert held(stage.path) == 0


def over_tcp(stage: Stage) -> End:
    """A client whose close() is an end of input like any other, as far as the other side can see."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        far = socket.create_connection(server.getsockname())
        return stage.take(server.accept()[0], far)


@pytest.mark.parametrize("how", ["half", "close"])
def test_who_ends_his_input_is_carried_out(play: Play, how: str) -> None:
    stage = play()
    pause(stage, A)
    client = over_tcp(stage)
    client.send(SET_A + GET_A)
    stage.until(lambda: held(stage.path))
    if how == "half":
        client.sock.shutdown(socket.SHUT_WR)
    else:
        client.close()
    stage.until(lambda: stage.accepted.half_closed)
    stage.turn()
    assert held(stage.path) == 1
    pause(stage)
    exchange(stage, A, SET_A + GET_A, b"+OK\r\n$1\r\n1\r\n")
    if how == "half":
        assert stage.hear(client, 12) == b"+OK\r\n$1\r\n1\r\n"
    stage.until(lambda: not stage.path.clients)
    assert stage.path.client_memory == 0


def test_only_so_many_stay_of_those_who_end_their_input(play: Play) -> None:
    """They would take the places of those who come; and what one holds is bounded, too."""
    stage = play()
    stage.path.most_left = 2
    pause(stage, A)
    clients = [stage.client() for _ in range(6)]
    for client in clients:
        client.send(SET_A)
    stage.turn()
    for client in clients[:5]:
        client.sock.shutdown(socket.SHUT_WR)
        stage.turn()
    assert [client.closed for client in clients] == [False, False, True, True, True, False]
    clients[0].close()  # for good: its place is another one's
    stage.turn()
    clients[5].sock.shutdown(socket.SHUT_WR)
    stage.turn()
    assert (held(stage.path), clients[5].closed) == (2, False)
    pause(stage)
    exchange(stage, A, SET_A * 2, b"+OK\r\n+OK\r\n")
    assert [clients[n].get() for n in (1, 5)] == [b"+OK\r\n"] * 2
    pause(stage, A)
    for _ in range(2):  # the places are free again
        client = stage.client()
        client.send(SET_A)
        client.sock.shutdown(socket.SHUT_WR)
        stage.turn()
    assert held(stage.path) == 2


def test_much_is_not_kept_for_who_has_ended_his_input(play: Play) -> None:
    stage = play()
    pause(stage, A)
    client = stage.client()
    stage.pour(client, sized(1_500_000))
    assert held(stage.path) == 1
    client.sock.shutdown(socket.SHUT_WR)
    stage.turn()
    assert (held(stage.path), client.closed) == (0, True)


def test_who_is_to_go_is_carried_out(play: Play) -> None:
    """More go on at the end of a pause than in one turn of the loop: the last ones are drained before it is theirs."""
    stage = play()
    stage.path.most_left = 0
    pause(stage, A)
    client = stage.client()
    client.send(SET_A)
    stage.turn()
    drain(stage.accepted)
    stage.turn()
    assert (held(stage.path), client.closed) == (1, False)
    pause(stage)
    exchange(stage, A, SET_A, b"+OK\r\n")
    assert client.get() == b"+OK\r\n"
    assert client.closed


@pytest.mark.parametrize("how", ["half", "close"])
def test_who_has_left_does_not_begin_to_wait_in_a_drain(play: Play, how: str) -> None:
    """An element that comes meanwhile would be popped for nobody."""
    stage = play()
    common = shared(stage)
    pause(stage, A)
    client = over_tcp(stage)
    client.send(encode_command("CLIENT", "REPLY", "SKIP") + SET_A + POP)
    stage.until(lambda: held(stage.path))
    if how == "half":
        client.sock.shutdown(socket.SHUT_WR)
    else:
        client.close()
    stage.until(lambda: stage.accepted.half_closed)
    drain(stage.accepted)
    pause(stage)
    assert common.get() == SET_A
    common.send(b"+OK\r\n")
    stage.until(lambda: leases(stage))
    for lease in leases(stage):
        lease.client_id = NODE_ID
    stage.until(lambda: common.get() == unblock())
    stage.node(A).send(errors.UNBLOCKED)
    common.send(b":1\r\n")
    stage.until(lambda: stage.accepted not in stage.path.clients)
    assert stage.count("blocked") == 0


def test_nobody_was_idle(play: Play) -> None:
    """Neither those that are held, nor those that are let go and have not had their turn yet."""
    stage = play()
    pause(stage, A)
    clients = [stage.client() for _ in range(300)]
    for client in clients:
        client.send(SET_A)
    stage.turn()
    assert held(stage.path) == 300
    stage.pass_time(300.0)
    close_idle(stage.path, 250.0)
    set_paused(stage.path, [])
    close_idle(stage.path, 250.0)  # as a worker does, in the same sweep
    stage.loop.run()
    close_idle(stage.path, 250.0)
    stage.turn()
    assert (len(stage.path.clients), held(stage.path)) == (300, 0)
    exchange(stage, A, SET_A * 300, b"+OK\r\n" * 300)
    assert {client.get() for client in clients} == {b"+OK\r\n"}


def test_who_cannot_be_answered_takes_what_is_held(play: Play) -> None:
    stage = play()
    client = stage.client()
    client.send(GET_A)
    exchange(stage, A, GET_A, b"$-1\r\n")
    pause(stage, A)
    client.send(SET_A)
    stage.turn()
    assert held(stage.path) == 1
    client.close()
    stage.turn()
    assert held(stage.path) == 0
    pause(stage)
    assert stage.node(A).get() == b""


def test_time_stands_still_for_what_was_begun(play: Play) -> None:
    """A request that its node refuses, to be sent again, when the node is paused meanwhile: and one behind it."""
    stage = play(timeout_s=1000.0, backoff_s=10.0)
    client, other = stage.client(), stage.client()
    client.send(SET_A)
    other.send(GET_A)
    stage.turn()
    pause(stage, A)
    exchange(stage, A, SET_A + GET_A, REFUSALS["loading"] * 2)
    stage.pass_time(1200.0, sweep=True)
    assert (client.get(), other.get(), stage.parking.waiting) == (b"", b"", 2)
    pause(stage)
    exchange(stage, A, SET_A + GET_A, b"+OK\r\n$1\r\n1\r\n")
    assert (client.get(), other.get()) == (b"+OK\r\n", b"$1\r\n1\r\n")


def test_a_redirection_to_a_paused_node(play: Play) -> None:
    stage = play(timeout_s=1000.0)
    client = stage.client()
    client.send(GET_A)
    stage.turn()
    pause(stage, B)
    exchange(stage, A, GET_A, moved(B))
    stage.pass_time(1200.0, sweep=True)
    assert client.get() == b""
    pause(stage)
    exchange(stage, B, GET_A, b"$1\r\n1\r\n")
    assert client.get() == b"$1\r\n1\r\n"


def test_a_connection_that_the_node_closes_is_not_made_again(play: Play) -> None:
    stage = play()
    client = stage.client()
    client.send(GET_A)
    exchange(stage, A, GET_A, b"$-1\r\n")
    pause(stage, A)
    stage.node(A).close()
    stage.turn()
    made = len(stage.nodes[A])
    client.send(GET_A)
    stage.turn()
    assert len(stage.nodes[A]) == made
    assert stage.router.nodes[A].connect_failures == 0
    pause(stage)
    exchange(stage, A, GET_A, b"$1\r\n1\r\n")
    assert client.get() == b"$-1\r\n$1\r\n1\r\n"


def test_parts_of_a_command_and_keyless_ones(play: Play) -> None:
    """All of a split command waits; what any primary does is done by another."""
    stage = play()
    client = stage.client()
    pause(stage, A)
    client.send(encode_command("MGET", GET_A.split(b"\r\n")[4], GET_B.split(b"\r\n")[4]))
    for _ in range(4):
        other = stage.client()  # each would have another primary
        other.send(encode_command("LOLWUT"))
    stage.turn()
    assert held(stage.path) == 1
    assert [end.get() for end in stage.nodes.get(A, [])] == []
    asked = b"".join(end.get() for address, ends in stage.nodes.items() if address != A for end in ends)
    assert asked == encode_command("LOLWUT") * 4


def test_time_stands_still_where_the_node_was_down_before(play: Play) -> None:
    stage = play(timeout_s=200.0, backoff_s=10.0, failover_s=5000.0)
    stage.unreachable.add(A)
    client = stage.client()
    client.send(SET_A)
    stage.turn()
    pause(stage, A)
    stage.pass_time(400.0, sweep=True)
    assert (client.get(), stage.parking.waiting) == (b"", 1)
    stage.unreachable.clear()
    pause(stage)
    exchange(stage, A, SET_A, b"+OK\r\n")
    assert client.get() == b"+OK\r\n"


def test_time_goes_on_for_what_waits_for_another_node(play: Play) -> None:
    """Each for its own: those of one slot wait behind each other, but not for the pause."""
    stage = play(timeout_s=200.0, backoff_s=10.0, failover_s=5000.0)
    stage.unreachable.add(A)
    pause(stage, B)
    clients = [stage.client() for _ in range(4)]
    for client in clients:
        client.send(SET_A)
        stage.pass_time(30.0, sweep=True)
    assert stage.parking.waiting == 4
    stage.pass_time(200.0, sweep=True)
    assert [client.get() for client in clients] == [errors.NODE_DOWN] * 4


def test_time_stands_still_whatever_is_said_of_scripts(play: Play) -> None:
    stage = play(timeout_s=200.0, backoff_s=10.0)
    client = stage.client()
    client.send(SET_A)
    stage.turn()
    pause(stage, A)
    exchange(stage, A, SET_A, REFUSALS["loading"])
    for _ in range(20):
        stage.parking.script_answered(b"0" * 40, False)
        stage.pass_time(20.0)
        stage.parking.script_answered(b"0" * 40, False)
    pause(stage)
    stage.router.sweep()
    exchange(stage, A, SET_A, b"+OK\r\n")
    assert client.get() == b"+OK\r\n"


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
