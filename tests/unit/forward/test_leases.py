"""Connections that one client has for a while: given back clean, taken again, closed when nobody wants them."""

from __future__ import annotations

import pytest

from proxy.forward.backend import BackendState
from proxy.resp.encode import encode_command
from tests.support.datapath import KEY_A, A, B, End, Play, Stage
from tests.support.dialogue import exchange

WATCH, UNWATCH, OK = encode_command("WATCH", KEY_A), encode_command("UNWATCH"), b"+OK\r\n"


def watching(stage: Stage, made: bool = True) -> End:
    before = len(stage.nodes.get(A, []))
    client = stage.client()
    client.send(WATCH)
    stage.turn()
    assert len(stage.nodes[A]) == before + made
    exchange(stage, A, WATCH, OK)
    assert client.get() == OK
    return client


def given_back(stage: Stage, client: End) -> None:
    client.send(UNWATCH)
    stage.turn()
    exchange(stage, A, UNWATCH, OK)


def states(stage: Stage) -> list[int]:
    return [backend.state for backend in stage.router.nodes[A].backends() if backend.leased]


def test_it_is_taken_again(play: Play) -> None:
    stage = play()
    for n in range(5):
        given_back(stage, watching(stage, made=n == 0))
    assert states(stage) == [BackendState.UP]


def test_whoever_takes_it_comes_behind_unwatch(play: Play) -> None:
    stage = play()
    one = watching(stage)
    two = stage.client()
    one.close()
    stage.turn(1)
    two.send(WATCH)
    stage.turn()
    exchange(stage, A, UNWATCH + WATCH, OK * 2)
    assert two.get() == OK


def test_idle_ones_are_closed(play: Play) -> None:
    stage = play()
    one, two = watching(stage), watching(stage)
    stage.path.leases.idle_ns = 0
    given_back(stage, two)
    stage.turn()
    stage.path.leases.sweep()
    stage.router.sweep()
    assert states(stage) == [BackendState.UP]
    given_back(stage, one)


def test_one_that_was_lost_while_idle(play: Play) -> None:
    stage = play()
    given_back(stage, watching(stage))
    stage.node(A).close()
    stage.turn()
    stage.path.leases.sweep()
    watching(stage)


def test_one_whose_unwatch_is_not_answered(play: Play) -> None:
    """It is not kept for ever, and nobody is told."""
    stage = play(stall_s=0.0)
    client = watching(stage)
    client.send(UNWATCH)
    stage.turn()
    assert client.get() == OK
    stage.router.sweep()
    stage.path.leases.sweep()
    stage.router.sweep()
    assert states(stage) == []


@pytest.mark.parametrize("change", ["role", "removal"])
def test_its_node_changes(play: Play, change: str) -> None:
    stage = play()
    one, two = watching(stage), watching(stage)
    given_back(stage, two)
    stage.publish([(B, [A] if change == "role" else [], [(0, 16383)])])
    one.send(UNWATCH)
    stage.turn()
    assert one.get() == OK
    stage.path.leases.sweep()
    if change == "role":
        stage.publish([(B, [A], [(0, 16383)])])
    stage.turn()
    stage.router.sweep()
    idle = [end for end in stage.nodes[A] if not end.closed]
    assert len(idle) == (1 if change == "role" else 0)  # (what was idle is of no use, and goes with the time)


def test_other_credentials(play: Play) -> None:
    """What is idle is closed at once, what is in use when it is given back."""
    stage = play()
    one, two = watching(stage), watching(stage)
    given_back(stage, two)
    stage.path.leases.renew([str(B)])  # the other node refuses the new ones
    stage.turn()
    assert states(stage) == [BackendState.UP] * 2
    stage.path.leases.renew()
    stage.turn()
    stage.router.sweep()
    assert states(stage) == [BackendState.UP]
    one.send(UNWATCH)
    stage.turn()
    stage.router.sweep()
    assert (one.get(), states(stage)) == (OK, [])
    watching(stage)


def test_the_cap_counts_each_protocol_by_itself(play: Play) -> None:
    stage = play()
    stage.path.leases.most = 1
    watching(stage)
    other = stage.client()
    other.send(encode_command("HELLO", "3") + WATCH)
    stage.turn()
    exchange(stage, A, WATCH, OK)
    assert other.get().endswith(OK)
    third = stage.client()
    third.send(WATCH)
    stage.turn()
    assert third.get().startswith(b"-ERR no connection")
    assert stage.path.leases.refused == 1


def test_the_cap_of_all_closes_idle_ones_first(play: Play) -> None:
    """Of any protocol, database and node: what one client has given back is not in another's way."""
    stage = play()
    leases = stage.path.leases
    leases.all_most = 2
    one, two = watching(stage), watching(stage)
    given_back(stage, two)
    other = stage.client()
    other.send(encode_command("HELLO", "3") + WATCH)
    stage.turn()
    exchange(stage, A, WATCH, OK)
    assert other.get().endswith(OK)
    stage.router.sweep()
    assert states(stage) == [BackendState.UP] * 2
    third = stage.client()
    third.send(WATCH)
    stage.turn()
    assert third.get().startswith(b"-ERR no connection")
    assert leases.refused == 1
    assert not one.closed


def test_room_for_none(play: Play) -> None:
    stage = play()
    stage.path.leases.all_most = 0
    client = stage.client()
    client.send(WATCH)
    stage.turn()
    assert client.get().startswith(b"-ERR no connection")


def test_too_many_are_shed_when_the_cap_falls(play: Play) -> None:
    stage = play()
    one, two, three = watching(stage), watching(stage), watching(stage)
    given_back(stage, three)
    leases = stage.path.leases
    leases.all_most = 3
    assert leases.shed() == 0
    assert states(stage) == [BackendState.UP] * 3
    leases.all_most = 1
    assert leases.shed() == 1  # those in use are their clients'
    stage.router.sweep()
    assert states(stage) == [BackendState.UP] * 2
    two.send(UNWATCH)
    stage.turn()
    assert leases.shed() == 0
    stage.router.sweep()
    assert states(stage) == [BackendState.UP]
    assert not one.closed
