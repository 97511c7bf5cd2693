"""A connection owned by one client: made on demand, used by nobody else, ended with its client."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.cluster.topology import Address
from proxy.forward.ask import Ask
from proxy.forward.backend import Backend, BackendState
from proxy.forward.ports import PushPort
from proxy.forward.request import live
from proxy.resp.encode import array, bulk, encode_command
from tests.support.datapath import KEY_A, TEXTS, A, B, Play, Stage
from tests.support.dialogue import GET_A, PING, REFUSALS, ask, asking, exchange, moved

ECHO = encode_command("ECHO", "x")
POP = encode_command("BLPOP", KEY_A, "0")


def leased(stage: Stage, frame: bytes = POP, swallow: int = 0, *, node: Address = A, **options: Any) -> Backend:
    """The client taken last leases a connection; ECHO sends the frame on it from now on."""
    client = stage.accepted
    lease = stage.router.lease(stage.router.nodes[node], client.proto)
    client.lease = lease
    asking(stage, lambda args: Ask([(lease, frame, swallow)], **options))
    return lease


def test_it_connects_on_demand_and_is_its_owners_alone(play: Play) -> None:
    stage = play()
    other, client = stage.client(), stage.client()
    lease = leased(stage)
    assert (lease.state, lease.leased, stage.wanted) == (BackendState.IDLE, True, [])
    other.send(GET_A)
    client.send(GET_A)
    stage.turn()
    shared = stage.node(A)
    assert shared.get() == GET_A * 2
    client.send(ECHO)
    stage.turn()
    mine = stage.node(A)
    assert mine is not shared
    assert mine.get() == POP
    other.send(GET_A)
    stage.turn()
    assert (shared.get(), mine.get()) == (GET_A, b"")
    shared.send(bulk("1") + bulk("2") + bulk("3"))
    stage.turn()
    assert (client.get(), other.get()) == (bulk("2"), bulk("1") + bulk("3"))  # whoever blocks, blocks himself
    mine.send(array([bulk("b"), bulk("v")]))
    stage.turn()
    assert client.get() == array([bulk("b"), bulk("v")])
    assert len(stage.nodes[A]) == 2
    assert not shared.closed


def test_one_connection_for_all_of_its_commands(play: Play) -> None:
    stage = play()
    client = stage.client()
    leased(stage)
    client.send(ECHO + PING + ECHO)
    stage.turn()
    assert stage.node(A).get() == POP + POP
    stage.node(A).send(b"*-1\r\n*0\r\n")
    stage.turn()
    client.send(ECHO)
    stage.turn()
    assert client.get() == b"*-1\r\n+PONG\r\n*0\r\n"
    exchange(stage, A, POP, b"*-1\r\n")
    assert (client.get(), len(stage.nodes[A])) == (b"*-1\r\n", 1)


def test_it_is_one_of_its_nodes_connections(play: Play) -> None:
    """For its figures; its state says nothing of the node, whose shared connections may be up or down."""
    stage = play()
    client = stage.client()
    lease = leased(stage)
    node = stage.router.nodes[A]
    assert node.backends() == [lease]
    client.send(ECHO)
    stage.turn()
    figures = node.figures()
    assert (figures["pending"], figures["connections"]["leased", "up"]) == (1, 1)
    assert repr(lease) == "<Backend 10.0.0.1:7001 RESP2 up pending=1>"
    stage.node(A).send(b"*-1\r\n")
    stage.turn()
    assert client.get() == b"*-1\r\n"


@pytest.mark.parametrize("state", ["idle", "connecting", "waiting", "half answered", "swallowing"])
def test_it_is_closed_when_its_client_leaves(play: Play, state: str) -> None:
    """Whatever is under way on it; nobody is told anything, and the node is not asked again."""
    stage = play()
    client = stage.client()
    lease = leased(stage, GET_A + POP, 1)
    if state != "idle":
        client.send(ECHO)
        stage.loop.run()
    if state in ("waiting", "half answered", "swallowing"):
        stage.turn()
        assert stage.node(A).get() == GET_A + POP
    if state == "half answered":
        stage.node(A).send(b"$-1\r\n" + bulk(b"v" * 30_000)[:20_000])
    if state == "swallowing":
        stage.node(A).send(b"$-1\r\n")
    stage.turn(1 if state != "connecting" else 0)
    client.close()
    if state == "connecting":
        stage.wanted, wanted = [], stage.wanted
        stage.turn()
        stage.wanted = wanted
    stage.turn()
    assert lease.state == BackendState.CLOSED
    assert stage.wanted == []
    assert all(end.closed for end in stage.nodes.get(A, []))
    assert stage.router.nodes[A].backends() == [lease]
    stage.router.sweep()
    assert stage.router.nodes[A].backends() == []
    assert (stage.lost_for, stage.parking.waiting, live()) == ([], 0, stage.live)


@pytest.mark.parametrize("how", ["closed", "garbage", "stalled"])
def test_it_is_lost_and_not_made_again(play: Play, how: str) -> None:
    """What was sent may have been executed; what comes after fails too, and shared connections are as they were."""
    stage = play(stall_s=0.0 if how == "stalled" else 10.0)
    client = stage.client()
    lease = leased(stage)
    client.send(ECHO + PING)
    stage.turn()
    assert stage.node(A).get() == POP
    if how == "closed":
        stage.node(A).close()
    elif how == "garbage":
        stage.node(A).send(b"?\r\n")
    else:
        stage.router.sweep()
    stage.turn(6)
    assert client.get() == TEXTS["lost"] + b"+PONG\r\n"
    assert (lease.state, len(stage.nodes[A]), stage.wanted) == (BackendState.CLOSED, 1, [])
    assert len(stage.lost_for) == 1
    client.send(ECHO + GET_A)
    stage.turn()
    assert (client.get(), len(stage.nodes[A])) == (TEXTS["gone"], 2)
    assert not stage.router.nodes[A].down
    exchange(stage, A, GET_A, bulk("1"))
    assert client.get() == bulk("1")
    stage.router.sweep()
    assert lease not in stage.router.nodes[A].backends()


def test_a_read_or_what_was_not_sent_is_gone_and_not_perhaps_executed(play: Play) -> None:
    """Neither is sent again: its place was this connection and no other."""
    stage = play()
    client = stage.client()
    leased(stage, GET_A, read=True)
    client.send(ECHO)
    stage.turn()
    stage.node(A).close()
    stage.turn(6)
    assert client.get() == TEXTS["gone"]
    other = stage.client()
    lease = leased(stage)
    stage.unreachable.add(A)
    other.send(ECHO + PING)
    stage.turn()
    assert other.get() == TEXTS["gone"] + b"+PONG\r\n"
    assert (lease.state, len(stage.nodes[A])) == (BackendState.CLOSED, 1)
    assert not stage.router.nodes[A].down  # it says nothing of the shared ones
    assert (stage.parking.waiting, sum(stage.count("retries").values())) == (0, 0)


def test_a_renewal_leaves_it_alone(play: Play) -> None:
    stage = play()
    client = stage.client()
    lease = leased(stage)
    client.send(ECHO)
    stage.turn()
    assert stage.router.renew() == []
    stage.turn()
    exchange(stage, A, POP, b"*-1\r\n")
    client.send(ECHO)
    stage.turn()
    exchange(stage, A, POP, b"*0\r\n")
    assert client.get() == b"*-1\r\n*0\r\n"
    assert (lease.state, len(stage.nodes[A])) == (BackendState.UP, 1)


@pytest.mark.parametrize("change", ["role", "removal"])
def test_its_node_changes(play: Play, change: str) -> None:
    """The client that owns it ends it; the node is kept and swept until then."""
    stage = play()
    client = stage.client()
    lease = leased(stage)
    client.send(ECHO)
    stage.turn()
    assert stage.node(A).get() == POP
    stage.publish([(B, [A] if change == "role" else [], [(0, 16383)])])
    stage.turn()
    assert lease.state == BackendState.UP
    stage.router.sweep()
    stage.node(A).send(b"*-1\r\n")
    stage.turn()
    assert client.get() == b"*-1\r\n"
    client.close()
    stage.turn()
    stage.router.sweep()
    stage.router.sweep()
    assert (lease.state, lease.node.backends()) == (BackendState.CLOSED, [])


def test_deadlines_hold_on_it_too(play: Play) -> None:
    stage = play(timeout_s=0.0)
    client = stage.client()
    leased(stage)
    client.send(ECHO)
    stage.turn()
    assert stage.node(A).get() == POP
    stage.router.sweep()
    stage.turn()
    assert client.get() == TEXTS["timeout_sent"]
    stage.node(A).send(b"*-1\r\n")
    client.send(ECHO)
    stage.turn()
    stage.node(A).send(b"*0\r\n")
    stage.turn()
    assert client.get() == b"*0\r\n"


def test_pushes_come_from_it(play: Play) -> None:
    stage = play()
    frames: list[tuple[Backend, bytes]] = []
    stage.router.pushes = PushPort(lambda backend, frame: frames.append((backend, frame)))
    client = stage.client()
    lease = leased(stage)
    client.send(ECHO)
    stage.turn()
    push = b">1\r\n+x\r\n"
    stage.node(A).send(push + b"*-1\r\n")
    stage.turn()
    assert (frames, client.get()) == ([(lease, push)], b"*-1\r\n")


def test_a_refusal_on_it_is_the_answer(play: Play) -> None:
    """EXEC that was refused watches nothing any more: sent again, it would be carried out whatever has changed."""
    stage = play()
    client = stage.client()
    leased(stage)
    for line in REFUSALS.values():
        client.send(ECHO)
        stage.turn()
        exchange(stage, A, POP, line)
        assert client.get() == line
    assert stage.parking.waiting == 0


@pytest.mark.parametrize("line", [moved(B), ask(B)])
def test_a_redirection_does_not_lead_away_from_it(play: Play, line: bytes) -> None:
    """BLPOP on a connection that others share would hold them all: the line goes to whoever leased it."""
    stage = play()
    client = stage.client()
    leased(stage)
    client.send(ECHO)
    stage.turn()
    exchange(stage, A, POP, line)
    assert B not in stage.nodes
    assert client.get() == line


def test_a_window_does_not_hold_what_is_asked_on_it(play: Play) -> None:
    """An Ask is a command that has begun: proxy.serve must not be asked for it twice."""
    stage = play(max_window=50)
    client = stage.client()
    leased(stage)
    client.send(ECHO * 3)
    stage.turn()
    exchange(stage, A, POP * 3, b"*-1\r\n*0\r\n*1\r\n+3\r\n")
    assert client.get() == b"*-1\r\n*0\r\n*1\r\n+3\r\n"


def test_a_timeout_that_closes_its_client(play: Play) -> None:
    """The error line itself is more than the client may hold: the lease is closed in the middle of its own sweep."""
    stage = play(timeout_s=0.0, hard_output=10)
    client = stage.client()
    leased(stage)
    client.send(ECHO * 40)
    stage.turn()
    stage.router.sweep()
    stage.turn()
    assert stage.count("closed")["output_limit"] == 1
    assert live() == stage.live
