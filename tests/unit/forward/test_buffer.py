"""Buffers, seen from outside: what they hold stays intact while they slide, grow, shrink and change hands."""

from __future__ import annotations

import random

import pytest

from proxy.resp.encode import bulk, encode_command
from tests.support.datapath import KEY_A, A, Play

BLOCK = 16384
GET_A = encode_command("GET", KEY_A)


def set_a(size: int, seed: int = 0) -> bytes:
    return encode_command("SET", KEY_A, random.Random(seed).randbytes(size))


@pytest.mark.parametrize("size", [0, 1, BLOCK - 40, BLOCK - 20, BLOCK, BLOCK + 1, 2 * BLOCK, 5 * BLOCK, 20 * BLOCK])
@pytest.mark.parametrize("step", [1000, BLOCK, 70_000])
def test_input_in_pieces(play: Play, size: int, step: int) -> None:
    """An incomplete frame is kept, however it comes; the next frame begins in the same piece."""
    stage = play()
    client = stage.client()
    stream = set_a(size, 1) + set_a(size // 2, 2) + GET_A
    for n in range(0, len(stream), step):
        client.send(stream[n : n + step])
        stage.turn(1)
    stage.turn()
    assert stage.drink(stage.node(A)) == stream
    assert stage.accepted.query_bytes == 0


def test_what_is_held_for_many_does_not_mix(play: Play) -> None:
    """Blocks go back to a pool and out again: halves of frames, and replies not taken, of many clients."""
    stage = play(max_pending=10_000)
    chance = random.Random(3)
    clients = [stage.client() for _ in range(40)]
    frames = [encode_command("ECHO", chance.randbytes(chance.choice([10, 3000, 20_000, 50_000]))) for _ in clients]
    for _ in range(3):
        cuts = [chance.randrange(len(frame)) for frame in frames]
        for client, frame, cut in zip(clients, frames, cuts, strict=True):
            client.send(frame[:cut])
            stage.turn(1)
        for n in chance.sample(range(len(clients)), len(clients)):
            clients[n].send(frames[n][cuts[n] :])
            stage.turn(1)
        stage.turn()
        for client, frame in zip(clients, frames, strict=True):
            assert client.get() == frame.partition(b"ECHO\r\n")[2]
    assert {client.output_bytes + client.query_bytes for client in stage.path.clients} == {0}


def test_the_window_slides(play: Play) -> None:
    """It is never empty, so that its bytes move to the front now and then; all of it is sent again when it is lost."""
    stage = play(max_pending=10_000)
    client = stage.client()
    waiting: list[bytes] = []
    for n in range(300):
        frame = encode_command("GET", b"{b}" + b"k" * (n * 7 % 900) + b"%d" % n)
        client.send(frame)
        waiting.append(frame)
        stage.turn(1)
        if n % 3:
            stage.turn()
            stage.node(A).get()  # what is answered must have been sent
            stage.node(A).send(b"$-1\r\n")
            waiting.pop(0)
            stage.turn(1)
    stage.turn()
    stage.node(A).get()
    stage.node(A).close()
    stage.turn(6)
    assert len(waiting) == 100
    assert stage.drink(stage.node(A)) == b"".join(waiting)
    assert len(stage.nodes[A]) == 2


def test_output_that_is_not_taken(play: Play) -> None:
    """Many small replies and a few large ones gather behind a client that does not read, then it gets them all."""
    stage = play(soft_output=1 << 40)
    client = stage.client()
    wanted = b""
    for n in range(60):
        client.send(GET_A * 10)
        stage.turn()
        reply = bulk(random.Random(n).randbytes([5, 100, 3000, 20_000][n % 4]))
        stage.pour(stage.node(A), reply * 10)
        wanted += reply * 10
    assert stage.accepted.output_bytes > 500_000
    assert stage.drink(client) == wanted
    assert stage.accepted.output_bytes == 0
