"""A node as the data path knows it: its pools, whether it is down, its figures."""

from __future__ import annotations

from proxy.forward.node import STATE_NAMES
from proxy.resp.encode import bulk, encode_command
from tests.support.datapath import THIRDS, A, B, C, Play
from tests.support.dialogue import GET_A, exchange


def test_figures(play: Play) -> None:
    stage = play(shards=[(A, [B], [(0, 16383)])])
    node = stage.router.nodes[A]
    assert (node.label, node.address, node.up, node.down, node.gone) == ("10.0.0.1:7001", A, False, False, False)
    client = stage.client()
    client.send(GET_A)
    stage.turn()
    figures = node.figures()
    assert {key: n for key, n in figures["connections"].items() if n} == {("shared", "up"): 1}
    assert {state for purpose, state in figures["connections"] if purpose == "leased"} == set(STATE_NAMES)
    assert (figures["role"], figures["up"], figures["pending"]) == ("primary", True, 1)
    assert repr(node.backends()[0]) == "<Backend 10.0.0.1:7001 RESP2 up pending=1>"
    stage.node(A).send(bulk("1"))
    stage.turn()
    figures = node.figures()
    assert (figures["pending"], sum(figures["buckets"])) == (0, 1)
    assert 0 < figures["sum_s"] < 10
    stage.unreachable.add(A)
    stage.node(A).close()
    stage.turn(1)
    stage.turn(1)
    figures = node.figures()
    assert figures["connections"]["shared", "backoff"] == 1
    assert (figures["up"], figures["connect_failures"] > 0, node.down) == (False, True, True)
    stage.unreachable.clear()
    stage.turn()
    assert (node.up, node.down) == (True, False)
    assert stage.router.nodes[B].figures()["role"] == "replica"


def test_a_handshake_that_fails_in_one_protocol_says_nothing_of_the_other(play: Play) -> None:
    """Readers of RESP2 keep their replica while its RESP3 connection cannot be made."""
    stage = play(shards=[(A, [B], [(0, 16383)])], reads="prefer_replica", failover_s=0.0, backoff_s=0.001)
    two, three = stage.client(), stage.client()
    two.send(GET_A)
    stage.turn()
    exchange(stage, B, GET_A, bulk("1"))
    stage.unreachable.add(B)
    three.send(encode_command("HELLO", "3") + GET_A)
    stage.turn()
    exchange(stage, A, GET_A, bulk("2"))
    assert (two.get(), three.get()[-7:]) == (bulk("1"), bulk("2"))
    node = stage.router.nodes[B]
    assert (node.up, node.down) == (True, False)
    two.send(GET_A)
    stage.turn()
    exchange(stage, B, GET_A, bulk("3"))
    assert two.get() == bulk("3")
    stage.nodes[B][0].close()
    stage.until(lambda: node.down)
    stage.unreachable.clear()
    stage.until(lambda: node.up)


def test_one_connection_of_several_says_nothing_while_another_is_up(play: Play) -> None:
    stage = play(connections=2)
    clients = [stage.client() for _ in range(2)]
    for client in clients:
        client.send(GET_A)
    stage.turn()
    one, two = stage.nodes[A]
    assert one.get() == two.get() == GET_A
    stage.unreachable.add(A)
    one.close()
    stage.turn(6)
    node = stage.router.nodes[A]
    assert (node.up, node.down, node.connect_failures > 0) == (True, False, True)
    two.send(bulk("2"))
    stage.turn()
    assert [client.get() for client in clients].count(bulk("2")) == 1
    assert stage.parking.waiting == 1
    stage.unreachable.clear()
    exchange(stage, A, GET_A, bulk("1"))
    assert stage.parking.waiting == 0


def test_nodes_have_numbers_of_their_own(play: Play) -> None:
    """Never given twice: a request that is for one of them finds no other in its place."""
    stage = play()
    numbers = {node.number for node in stage.router.nodes.values()}
    assert len(numbers) == 3
    gone = stage.router.nodes[C]
    stage.publish(THIRDS[:2])
    assert gone.gone
    stage.publish(THIRDS)
    assert stage.router.nodes[C].number not in numbers
    assert stage.router.nodes[A].number in numbers
