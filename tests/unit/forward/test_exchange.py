"""What becomes of a request that cannot simply be sent and answered: redirections, refusals, losses, deadlines."""

from __future__ import annotations

import pytest

from proxy.resp.encode import bulk
from tests.support.datapath import TEXTS, A, B, Play
from tests.support.dialogue import GET_A, GET_B, REFUSALS, SET_A, exchange, moved


def test_a_lost_write_that_was_sent_is_never_repeated(play: Play) -> None:
    stage = play()
    client, other = stage.client(), stage.client()
    client.send(SET_A + GET_A + SET_A)
    other.send(GET_A)
    stage.turn()
    assert sorted(stage.node(A).get()) == sorted((SET_A + GET_A) * 2)
    stage.node(A).close()
    exchange(stage, A, GET_A * 2, bulk("1") + bulk("1"))
    assert client.get() == TEXTS["lost"] + bulk("1") + TEXTS["lost"]
    assert other.get() == bulk("1")
    stage.turn(10)
    assert (client.get(), stage.node(A).get()) == (b"", b"")
    retries = stage.count("retries")
    assert (retries["connection_lost", "unsafe"], retries["connection_lost", "retried"]) == (2, 2)
    assert stage.lost_for == ["closed by the node"]


def test_a_node_that_cannot_be_reached_and_recovers(play: Play) -> None:
    stage = play()
    stage.unreachable.add(A)
    client = stage.client()
    client.send(SET_A + GET_B)
    stage.turn()
    assert stage.router.nodes[A].down
    assert (client.get(), stage.parking.waiting) == (b"", 1)
    stage.node(B).send(bulk("2"))
    stage.turn(20)
    assert (client.get(), stage.parking.waiting) == (b"", 1)
    stage.unreachable.clear()
    exchange(stage, A, SET_A, b"+OK\r\n")
    assert client.get() == b"+OK\r\n" + bulk("2")
    assert not stage.router.nodes[A].down
    assert stage.count("retries")["node_down", "retried"] > 0


def test_a_node_that_stays_down_until_the_deadline(play: Play) -> None:
    stage = play(timeout_s=500.0, failover_s=5000.0)
    stage.unreachable.add(A)
    client = stage.client()
    client.send(SET_A + GET_A)
    stage.turn(6)
    stage.pass_time(600.0)
    assert stage.hear(client, 2 * len(TEXTS["down"])) == TEXTS["down"] * 2
    assert stage.nodes == {}
    gave_up = [count for (_, outcome), count in stage.count("retries").items() if outcome == "gave_up"]
    assert (sum(gave_up), stage.count("timeouts")) == (2, 2)


@pytest.mark.parametrize("limit", [0, 1, 2])
def test_limits_may_be_changed(play: Play, limit: int) -> None:
    """They hold from the next redirection, or the next time something is parked, on."""
    stage = play(backoff_s=1000.0, timeout_s=5000.0)
    client = stage.client()
    stage.exchange.redirect.max_redirections = limit
    client.send(SET_A)
    stage.turn()
    for n in range(limit + 1):
        assert stage.parking.waiting == 0
        exchange(stage, (A, B)[n % 2], SET_A, moved((B, A)[n % 2]))
    stage.turn(6)
    assert (client.get(), stage.parking.waiting) == (b"", 1)
    stage.parking.backoff_min_ns = stage.parking.backoff_max_ns = 1000
    stage.parking.wake_all()
    at = (A, B, A)[limit]
    exchange(stage, at, SET_A, REFUSALS["loading"])
    exchange(stage, at, SET_A, b"+OK\r\n")
    assert client.get() == b"+OK\r\n"


def test_answers_in_the_socket_are_taken_before_the_connection_is_given_up(play: Play) -> None:
    """+OK was there: nobody is told that his write may have been executed."""
    stage = play()
    one, two = stage.client(), stage.client()
    one.send(SET_A)
    stage.turn()
    assert stage.node(A).get() == SET_A
    stage.node(A).send(b"+OK\r\n")
    stage.node(A).close()
    two.send(SET_A)
    stage.turn(6)
    assert one.get() == b"+OK\r\n"
    exchange(stage, A, SET_A, b"+OK\r\n")
    assert two.get() == b"+OK\r\n"
