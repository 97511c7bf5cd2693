"""Nodes that are silent while clients rely on their caches: who is asked, how often, and what is lost."""

from __future__ import annotations

from proxy.forward.pulse import Pulse
from proxy.forward.tracking import Tracking
from proxy.resp.encode import bulk
from tests.support.datapath import A, B, End, Play, Stage
from tests.support.dialogue import GET_A, GET_B, PING

FLUSH = b">2\r\n$10\r\ninvalidate\r\n_\r\n"
PONG = b"+PONG\r\n"


def tracking(stage: Stage, frame: bytes, node: object, **options: bool) -> tuple[End, End]:
    """A client that tracks and has read: it, and its connection to the node."""
    client = stage.client()
    stage.accepted.set_proto(3)
    assert stage.accepted.track(Tracking(**options))
    client.send(frame)
    stage.turn()
    own = stage.nodes[node][-1]
    assert own.get() == frame
    own.send(bulk("1"))
    stage.turn()
    assert client.get() == bulk("1")
    return client, own


def beats(stage: Stage, pulse: Pulse, count: int) -> None:
    for _ in range(count):
        pulse.beat()
        stage.turn()


def test_nobody_is_asked_for_nobody(play: Play) -> None:
    stage = play()
    client = stage.client()
    client.send(GET_A)
    stage.turn()
    shared = stage.node(A)
    shared.send(bulk("1"))
    beats(stage, Pulse(stage.router), 6)
    assert shared.get() == GET_A
    assert client.get() == bulk("1")


def test_a_node_that_answers(play: Play) -> None:
    stage = play()
    pulse = Pulse(stage.router)
    client, own = tracking(stage, GET_A, A)
    for _ in range(10):
        beats(stage, pulse, 1)
        assert own.get() == PING
        own.send(PONG)
        stage.turn()
    client.send(GET_A)
    stage.turn()
    own.send(bulk("2"))
    stage.turn()
    assert client.get() == bulk("2")
    assert not own.closed


def test_a_silent_node(play: Play) -> None:
    """Both clients are told, the one whose connection was asked and the other; not those of another node."""
    stage = play()
    pulse = Pulse(stage.router)
    one, own = tracking(stage, GET_A, A)
    two, other_own = tracking(stage, GET_A, A, optin=True)
    other, at_b = tracking(stage, GET_B, B)
    for n in range(3):
        assert (one.get(), two.get()) == (b"", b""), n
        beats(stage, pulse, 1)
        at_b.send(PONG * (at_b.get() == PING))
        stage.turn()
    beats(stage, pulse, 1)
    assert (one.get(), two.get(), other.get()) == (FLUSH, FLUSH, b"")
    own.get()
    other_own.get()
    assert own.closed
    assert other_own.closed
    assert not at_b.closed


def test_one_silent_connection(play: Play) -> None:
    """The node answers on the other one: that one stays."""
    stage = play()
    pulse = Pulse(stage.router)
    pairs = [tracking(stage, GET_A, A) for _ in range(2)]
    for _ in range(10):
        beats(stage, pulse, 1)
        own = pairs[1][1]
        own.send(PONG * own.get().count(PING))
        stage.turn()
    assert (pairs[0][0].get(), pairs[1][0].get()) == (FLUSH, b"")
    assert not own.closed


def test_a_client_that_waits(play: Play) -> None:
    """What is under way is not lost with a silent node: the stall timeout, or nobody, ends it."""
    stage = play()
    pulse = Pulse(stage.router)
    idle, _ = tracking(stage, GET_A, A)
    busy, own = tracking(stage, GET_A, A)
    busy.send(GET_A)
    stage.turn()
    assert own.get() == GET_A
    beats(stage, pulse, 5)
    assert idle.get() == FLUSH
    assert busy.get() == FLUSH
    own.send(bulk("2"))
    stage.turn()
    assert busy.get() == bulk("2") + FLUSH


def test_few_are_asked_at_a_time(play: Play) -> None:
    """And each in its turn."""
    stage = play()
    pulse = Pulse(stage.router)
    owns = [tracking(stage, GET_A, A)[1] for _ in range(70)]
    asked = [0] * len(owns)
    for _ in range(30):
        beats(stage, pulse, 1)
        got = [own.get() for own in owns]
        assert sum(frame == PING for frame in got) == 3
        for place, frame in enumerate(got):
            owns[place].send(PONG * (frame == PING))
            asked[place] += frame == PING
        stage.turn()
    assert min(asked) >= 1
