"""Requests, seen from outside: what they hold back, and that each of them is given back."""

from __future__ import annotations

import random

import pytest

from proxy.forward.request import live
from proxy.resp.encode import bulk, encode_command
from tests.support.datapath import KEY_A, KEY_B, A, B, Play

GET_A, GET_B = encode_command("GET", KEY_A), encode_command("GET", KEY_B)


@pytest.mark.parametrize("size", [0, 90, 96, 97, 98, 104, 105, 208, 5000, 100_000])
def test_held_replies_of_every_size(play: Play, size: int) -> None:
    """Up to 104 bytes stand in the request itself; more is allocated, and grows with pieces."""
    stage = play()
    client = stage.client()
    client.send(GET_A + GET_B + GET_B)
    stage.turn()
    reply = bulk(random.Random(size).randbytes(size))
    for n in range(0, 2 * len(reply), 9000):
        stage.node(B).send((reply * 2)[n : n + 9000])
        stage.turn()
    assert client.get() == b""
    assert stage.accepted.output_bytes == 2 * len(reply)
    stage.node(A).send(bulk("first"))
    stage.turn()
    assert stage.drink(client) == bulk("first") + reply * 2


def test_each_is_counted_until_it_is_answered(play: Play) -> None:
    start = live()
    stage = play()
    client = stage.client()
    client.send(GET_A + encode_command("PING") + encode_command("MGET", KEY_A, KEY_B))
    stage.turn()
    assert live() == start + 5  # the PING waits for its turn; the MGET has two parts
    stage.node(B).send(b"*1\r\n$-1\r\n")
    stage.node(A).send(b"$-1\r\n*1\r\n$-1\r\n")
    stage.turn()
    assert client.get() == b"$-1\r\n+PONG\r\n*2\r\n$-1\r\n$-1\r\n"
    assert live() == start


def test_more_than_are_kept_for_reuse(play: Play) -> None:
    """Freed structs are reused clean: flags, errors and held bytes of their former lives are gone."""
    start = live()
    stage = play(max_pending=20_000, soft_output=1 << 40, max_pending_bytes=1 << 40)
    client = stage.client()
    for _ in range(2):
        stage.pour(client, GET_B + GET_A * 6000)
        assert live() == start + 6001
        stage.drink(stage.node(A))
        stage.pour(stage.node(A), (b"-ERR " + b"x" * 200 + b"\r\n" + bulk("v")) * 3000)
        stage.node(B).send(b"-LOADING Redis is loading the dataset in memory\r\n")
        stage.turn()
        stage.node(B).send(b"$-1\r\n")
        stage.turn()
        assert stage.drink(client) == b"$-1\r\n" + (b"-ERR " + b"x" * 200 + b"\r\n" + bulk("v")) * 3000
        assert live() == start


def test_those_of_clients_that_left_go_with_their_replies(play: Play) -> None:
    start = live()
    stage = play()
    clients = [stage.client() for _ in range(10)]
    for client in clients:
        client.send(GET_A + GET_B + encode_command("PING"))
    stage.turn()
    stage.node(B).send(b"$-1\r\n" * 5)
    stage.turn()
    for client in clients:
        client.close()
    stage.turn()
    assert live() == start + 15  # what is answered is freed with the client
    stage.node(A).send(b"$-1\r\n" * 10)
    stage.turn()
    assert live() == start + 5
    stage.node(B).close()
    stage.turn()
    assert live() == start
