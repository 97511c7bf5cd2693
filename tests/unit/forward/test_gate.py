"""PROXY PAUSE in the data path: what waits, what goes on, and that time stands still for what was begun before."""

from __future__ import annotations

import time

from proxy.forward.gate import held, pending, set_paused
from proxy.resp.encode import encode_command
from tests.support.datapath import A, B, Play, Stage
from tests.support.dialogue import GET_A, GET_B, PING, REFUSALS, SET_A, exchange, moved


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


def test_who_leaves_takes_what_is_held(play: Play) -> None:
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
    stage = play(timeout_s=0.3, backoff_s=0.01)
    client, other = stage.client(), stage.client()
    client.send(SET_A)
    other.send(GET_A)
    stage.turn()
    pause(stage, A)
    exchange(stage, A, SET_A + GET_A, REFUSALS["loading"] * 2)
    until_s = time.monotonic() + 0.6
    stage.until(lambda: time.monotonic() > until_s, sweep=True)
    assert (client.get(), other.get(), stage.parking.waiting) == (b"", b"", 2)
    pause(stage)
    exchange(stage, A, SET_A + GET_A, b"+OK\r\n$1\r\n1\r\n")
    assert (client.get(), other.get()) == (b"+OK\r\n", b"$1\r\n1\r\n")


def test_a_redirection_to_a_paused_node(play: Play) -> None:
    stage = play(timeout_s=0.3)
    client = stage.client()
    client.send(GET_A)
    stage.turn()
    pause(stage, B)
    exchange(stage, A, GET_A, moved(B))
    until_s = time.monotonic() + 0.5
    stage.until(lambda: time.monotonic() > until_s, sweep=True)
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
