"""A read that makes its node close the connection: found among those that were under way with it, and given up."""

from __future__ import annotations

from proxy.resp.encode import bulk, encode_command
from tests.support.datapath import KEY_A, TEXTS, A, Play
from tests.support.dialogue import GET_A, SET_A, exchange

STRLEN_A = encode_command("STRLEN", KEY_A)


def test_the_read_that_a_node_cannot_bear(play: Play) -> None:
    """It costs three connections and the others' writes of the first one only; no innocent read fails."""
    stage = play()
    other, poison, writer = stage.client(), stage.client(), stage.client()
    other.send(STRLEN_A)
    poison.send(GET_A)
    writer.send(SET_A)
    stage.turn()
    assert stage.node(A).get() == STRLEN_A + GET_A + SET_A
    stage.node(A).close()
    stage.turn(6)
    assert writer.get() == TEXTS["lost"]
    writer.send(SET_A)
    stage.turn(6)
    assert stage.node(A).get() == STRLEN_A + GET_A  # together, and nothing else with them
    stage.node(A).close()
    stage.turn(6)
    assert stage.node(A).get() == STRLEN_A  # each by itself
    stage.node(A).send(b":1\r\n")
    stage.turn()
    assert (stage.node(A).get(), other.get()) == (GET_A, b":1\r\n")
    stage.node(A).close()
    stage.turn(6)
    assert (poison.get(), stage.node(A).get()) == (TEXTS["cut"], SET_A)  # what was not sent was not lost
    stage.node(A).send(b"+OK\r\n")
    stage.turn()
    assert writer.get() == b"+OK\r\n"
    for _ in range(2):  # and nothing is left of it
        other.send(STRLEN_A)
        writer.send(SET_A)
        stage.turn()
        exchange(stage, A, STRLEN_A + SET_A, b":1\r\n+OK\r\n")
        assert (other.get(), writer.get()) == (b":1\r\n", b"+OK\r\n")


def test_a_node_that_is_gone_for_a_while_costs_no_read(play: Play) -> None:
    """Only connections that it took and closed count: a read goes on waiting for a node that cannot be reached."""
    stage = play()
    client = stage.client()
    client.send(GET_A)
    for _ in range(2):
        stage.turn(6)
        assert stage.node(A).get() == GET_A
        stage.unreachable.add(A)
        stage.node(A).close()
        stage.turn(20)
        stage.unreachable.clear()
    exchange(stage, A, GET_A, bulk("1"))
    assert client.get() == bulk("1")


def test_a_suspect_whose_time_is_over_keeps_its_place(play: Play) -> None:
    """What comes behind it is sent when the node has answered it, or is gone."""
    stage = play(timeout_s=200.0, stall_s=5000.0)
    client, other = stage.client(), stage.client(timeout_ns=10**15)
    client.send(GET_A)
    stage.turn()
    stage.node(A).close()
    stage.turn(6)
    assert stage.node(A).get() == GET_A
    other.send(SET_A)
    stage.pass_time(250.0, sweep=True)
    assert (client.get(), stage.node(A).get()) == (TEXTS["timeout"], b"")
    stage.node(A).send(bulk("1"))
    stage.turn()
    exchange(stage, A, SET_A, b"+OK\r\n")
    assert (client.get(), other.get()) == (b"", b"+OK\r\n")


def test_parts_are_suspects_too(play: Play) -> None:
    stage = play()
    client = stage.client()
    keys = [b"{%b}%d" % (KEY_A, n) for n in range(2)]
    client.send(encode_command("MGET", *keys))
    for _ in range(3):
        stage.turn(6)
        assert stage.node(A).get() == encode_command("MGET", *keys)
        stage.node(A).close()
    stage.turn(6)
    assert (client.get(), stage.node(A).get()) == (TEXTS["cut"], b"")
