"""PROXY PAUSE in the data path: what waits, what goes on, and that time stands still for what was begun before."""

from __future__ import annotations

import socket

import pytest

from proxy.forward.clients import close_idle, drain
from proxy.forward.gate import held, pending, set_paused
from proxy.resp import errors
from proxy.resp.encode import encode_command
from tests.support.blocked import NODE_ID, POP, leases, shared, unblock
from tests.support.datapath import A, B, End, Play, Stage
from tests.support.dialogue import GET_A, GET_B, PING, REFUSALS, SET_A, exchange, moved, pause, sized


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
