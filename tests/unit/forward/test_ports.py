"""Pushes of a node, and to whom they are given."""

from __future__ import annotations

import pytest

from proxy.cluster.topology import Address
from proxy.forward.backend import Backend
from proxy.forward.ports import PushPort
from proxy.resp.encode import bulk, encode_command
from tests.support.datapath import KEY_A, TEXTS, A, B, Play, Stage
from tests.support.dialogue import GET_A, SET_A


def test_pushes_are_dropped(play: Play) -> None:
    stage = play()
    client = stage.client()
    client.send(GET_A + GET_A)
    stage.turn()
    push = b">2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\nb\r\n"
    large = b">2\r\n+message\r\n" + bulk(b"m" * 30_000)
    stage.node(A).send(push + bulk("1") + push + large[:20_000])
    stage.turn()
    assert client.get() == bulk("1")
    stage.node(A).send(large[20_000:] + bulk("2") + push)
    stage.turn()
    assert client.get() == bulk("2")
    stage.node(A).send(push + push[:9])  # with nothing pending too
    stage.turn()
    stage.node(A).send(push[9:])
    stage.turn()
    client.send(GET_A)
    stage.turn()
    stage.node(A).send(bulk("3"))
    stage.turn()
    assert client.get() == bulk("3")
    assert stage.lost_for == []


def pushes(size: int) -> list[bytes]:
    """Frames of about that size: flat, nested, and with what looks like a reply inside."""
    return [
        b">2\r\n$10\r\ninvalidate\r\n*1\r\n" + bulk(b"k" * size),
        b">3\r\n+message\r\n" + bulk("channel") + bulk(b"\r\n+OK\r\n"[: size % 8] + b"m" * size),
        b">1\r\n*2\r\n" + bulk(b"x" * (size // 2)) + bulk(b"y" * (size // 2)),
    ]


def heard(stage: Stage) -> list[bytes]:
    """What connections made from now on give to the port."""
    frames: list[bytes] = []
    stage.router.pushes = PushPort(lambda backend, frame: frames.append(frame))
    return frames


@pytest.mark.parametrize("size", [0, 100, 9000, 300_000])
def test_pushes_come_whole_and_replies_stay_where_they_belong(play: Play, size: int) -> None:
    """Smaller and larger than what is passed on in pieces (8 KB), and than the receive buffer (256 KB)."""
    stage = play()
    frames = heard(stage)
    client = stage.client()
    client.send(GET_A + SET_A + GET_A)
    stage.turn()
    one, two, three = pushes(size)
    large = bulk(b"v" * 20_000)
    stage.pour(stage.node(A), one + large + two + three + b"-ERR no\r\n" + one + bulk("3") + two)
    assert stage.drink(client) == large + b"-ERR no\r\n" + bulk("3")
    assert frames == [one, two, three, one, two]
    assert stage.lost_for == []


def test_pushes_may_be_cut_anywhere(play: Play) -> None:
    """Nothing of a push is kept when it has been given away, nor of what comes between two."""
    stage = play()
    frames = heard(stage)
    client = stage.client()
    one, two, three = pushes(9)
    stream = one + bulk("1") + two + three + bulk("2")
    for cut in range(len(stream) + 1):
        client.send(GET_A + GET_A)
        stage.turn()
        stage.node(A).send(stream[:cut])
        stage.turn()
        stage.node(A).send(stream[cut:])
        stage.turn()
        assert client.get() == bulk("1") + bulk("2"), cut
        assert frames == [one, two, three], cut
        frames.clear()
    assert len(stage.nodes[A]) == 1


@pytest.mark.parametrize("piece", [1, 7, 4096])
def test_a_push_that_trickles_in(play: Play, piece: int) -> None:
    stage = play()
    frames = heard(stage)
    client = stage.client()
    client.send(GET_A)
    stage.turn()
    push = pushes(500 if piece < 4096 else 50_000)[0]
    for n in range(0, len(push), piece):
        assert frames == []
        stage.node(A).send(push[n : n + piece])
        stage.turn(1)
    stage.node(A).send(bulk("1"))
    stage.turn()
    assert (frames, client.get()) == ([push], bulk("1"))


def test_the_port_is_told_whose_push_it_is(play: Play) -> None:
    stage = play()
    told: list[tuple[Address, bytes]] = []
    stage.router.pushes = PushPort(lambda backend, frame: told.append((backend.node.address, frame)))
    stage.router.warm(3)
    stage.turn()
    push = pushes(3)[0]
    for address in (B, A):
        stage.node(address).send(push)
        stage.turn()
    assert told == [(B, push), (A, push)]


def test_half_a_push_is_forgotten_with_its_connection(play: Play) -> None:
    stage = play()
    frames = heard(stage)
    client = stage.client()
    client.send(GET_A)
    stage.turn()
    large, other, _ = pushes(20_000)
    stage.node(A).send(large[:15_000])
    stage.turn()
    stage.node(A).close()
    stage.turn(6)
    stage.node(A).send(other + bulk("1"))
    stage.turn()
    assert (frames, client.get()) == ([other], bulk("1"))


def test_a_port_that_ends_the_connection(play: Play) -> None:
    """What comes behind the push is not read any more, and what was under way is handed to recovery."""
    stage = play()
    frames: list[bytes] = []

    def end(backend: Backend, frame: bytes) -> None:
        frames.append(frame)
        backend.close()

    stage.router.pushes = PushPort(end)
    client = stage.client()
    client.send(SET_A)
    stage.turn()
    push = pushes(10)[0]
    stage.node(A).send(push + push + b"+OK\r\n")
    stage.turn()
    assert (frames, client.get()) == ([push], TEXTS["lost"])


def test_a_push_while_a_command_is_not_wholly_sent(play: Play) -> None:
    """It is no reply: nothing is blamed, nothing is lost."""
    stage = play()
    frames = heard(stage)
    client = stage.client()
    stage.router.warm(2)
    stage.turn()
    large = encode_command("SET", KEY_A, b"v" * 1_000_000)
    stage.pour(client, large)
    push = pushes(20_000)[1]
    stage.node(A).send(push[:10_000])
    stage.turn()
    stage.node(A).send(push[10_000:])
    stage.turn()
    assert stage.drink(stage.node(A)) == large
    stage.node(A).send(b"+OK\r\n")
    stage.turn()
    assert (frames, client.get(), stage.lost_for) == ([push], b"+OK\r\n", [])


def test_a_port_that_comes_later_is_for_later_connections(play: Play) -> None:
    stage = play()
    client = stage.client()
    client.send(GET_A)
    stage.turn()
    frames = heard(stage)
    push = pushes(10)[0]
    stage.node(A).send(push + bulk("1"))
    stage.turn()
    assert (frames, client.get()) == ([], bulk("1"))
    stage.router.renew()
    client.send(GET_A)
    stage.turn()
    stage.node(A).send(push + bulk("1"))
    stage.turn()
    assert (frames, client.get()) == ([push], bulk("1"))
