"""What several clients that pipeline may have under way: together so little that nobody waits long behind them."""

from __future__ import annotations

from contextlib import suppress

import pytest

from proxy.resp.encode import bulk
from tests.support.datapath import A, End, Play, Stage
from tests.support.dialogue import GET_A, SET_A

TOGETHER, LEAST = 512, 32  # proxy.forward.reactor
TOGETHER_BYTES = 1 << 20
REST = bytearray()  # of what the node has got
CUT: dict[End, int] = {}  # bytes of a last frame that a client has sent


def press(client: End, frame: bytes) -> None:
    """It sends as many of these as it can."""
    with suppress(BlockingIOError):  # it has enough to do
        sent = client.sock.send((frame * (65536 // len(frame) + 2))[CUT.get(client, 0) :])
        CUT[client] = (CUT.get(client, 0) + sent) % len(frame)


def answer(stage: Stage, reply: bytes) -> None:
    """The node answers each command that it has got as a whole."""
    end = stage.node(A)
    REST.extend(stage.drink(end))
    heard = 0
    while found := [frame for frame in (GET_A, SET_A) if REST.startswith(frame)]:
        del REST[: len(found[0])]
        heard += 1
    end.send(reply * heard)
    stage.turn(1)


def answered(stage: Stage, clients: list[End], frame: bytes, reply: bytes) -> int:
    """Each has sent as much as it may; all of that is answered. How many commands were under way before."""
    for client in clients:
        press(client, frame)
        client.get()
    stage.turn(1)
    under_way: int = stage.count("inflight")
    answer(stage, reply)
    return under_way


def warm(stage: Stage) -> End:
    """A client that waits for nobody; the connection to the node is up."""
    client = stage.client()
    client.send(GET_A)
    stage.turn()
    REST.clear()
    CUT.clear()
    answer(stage, bulk("v"))
    stage.turn()
    assert client.get() == bulk("v")
    return client


@pytest.mark.parametrize("several", [2, 5, 40])
def test_those_who_pipeline_have_a_share_each(play: Play, several: int) -> None:
    stage = play(max_pending=1024)
    warm(stage)
    clients = [stage.client() for _ in range(several)]
    most = max(TOGETHER, several * LEAST)
    stage.until(lambda: most - several <= answered(stage, clients, GET_A, bulk("v")) <= most)
    for _ in range(3):
        assert 0 < answered(stage, clients, GET_A, bulk("v")) <= 2 * most  # it grows again when nobody is stopped


def test_one_alone_has_what_its_settings_allow(play: Play) -> None:
    stage = play(max_pending=1024)
    client = warm(stage)
    stage.until(lambda: answered(stage, [client], GET_A, bulk("v")) == 1024)


def test_one_beside_somebody_else(play: Play) -> None:
    """Who asks for little has a short queue before it; when it has left, the other one has everything again."""
    stage = play(max_pending=1024)
    polite = warm(stage)
    client = stage.client()

    def beside() -> bool:
        polite.send(SET_A)
        return 0 < answered(stage, [client], GET_A, bulk("v")) <= TOGETHER + 1

    stage.until(beside)
    polite.close()
    stage.until(lambda: answered(stage, [client], GET_A, bulk("v")) == 1024)


def test_settings_below_the_share_hold(play: Play) -> None:
    stage = play(max_pending=10)
    warm(stage)
    clients = [stage.client() for _ in range(4)]
    for _ in range(20):
        assert answered(stage, clients, GET_A, bulk("v")) <= 40
