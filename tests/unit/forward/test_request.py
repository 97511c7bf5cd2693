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
        stage.until(lambda: live() == start + 6001)  # a client has its turns
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


# -- owners: every move there is (request.pyx), on which a sanitizer build aborts if it is not legal


LOADING = b"-LOADING Redis is loading the dataset in memory\r\n"


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize(
    "way",
    [
        "answered",
        "refused before it was sent",
        "parked, sent, answered",
        "parked twice",
        "parked until its deadline",
        "parked until the end",
        "redirected",
        "lost and parked",
        "lost and failed",
        "timed out when sent",
        "timed out unsent",
        "cancelled and lost",
        "never sent",
    ],
)
@pytest.mark.parametrize("form", ["single", "parts"])
def test_every_way_a_request_may_go(play: Play, way: str, form: str, left: bool) -> None:
    """Alone or as a part, with its client or after it has left: it is given back, once."""
    start = live()
    timed = "timed out" in way or "deadline" in way or way == "cancelled and lost"
    stage = play(
        [(A, [], [(16000, 16383)])] if way == "refused before it was sent" else None,
        timeout_s=0.0 if timed and "parked" not in way else 100.0,
        backoff_s=1000.0,
    )
    client = stage.client()
    frame = encode_command("SET", KEY_A, "1") if form == "single" else encode_command("MSET", KEY_A, "1", "{c}", "2")
    mine = encode_command("SET" if form == "single" else "MSET", KEY_A, "1")
    unsent = way in ("timed out unsent", "cancelled and lost", "never sent")
    client.send(frame)
    stage.loop.run()
    wanted, stage.wanted = stage.wanted, []
    if left and unsent:
        client.close()
        stage.turn()
    if unsent:
        stage.router.sweep()
        if way == "cancelled and lost":
            stage.unreachable.update((A, B))
            stage.wanted = wanted
        elif way == "timed out unsent":
            stage.wanted = wanted
        stage.turn(1)
        stage.unreachable.clear()
        stage.turn()
    elif way != "refused before it was sent":
        stage.wanted = wanted
        stage.turn()
        if left:
            client.close()
            stage.turn()
        node = stage.node(A)
        assert node.get() == mine
        if way.startswith("parked"):
            node.send(LOADING)
            stage.turn()
            assert stage.parking.waiting == (0 if left else 1)
        if way in ("parked, sent, answered", "parked twice"):
            stage.parking.wake_all()
            stage.turn()
            assert node.get() == (b"" if left else mine)
        if way == "parked until its deadline":
            stage.pass_time(200.0)
            assert stage.parking.waiting == 0
        elif way == "redirected":
            node.send(b"-ASK 3300 %s\r\n" % str(B).encode())
        elif way.startswith("lost"):
            node.close()
        elif way == "timed out when sent":
            stage.router.sweep()
            node.send(b"+OK\r\n")
        elif way == "parked twice" and not left:
            node.send(LOADING)
        elif way in ("answered", "parked, sent, answered") and (way == "answered" or not left):
            node.send(b"+OK\r\n")
        stage.turn(6)
    if way == "parked until the end":
        stage.parking.stop()
    if way == "answered" and form == "parts" and not left:
        stage.node(B).send(b"+OK\r\n")
        stage.turn()
        assert client.get() == b"+OK\r\n"
    if not left and way in ("answered", "parked, sent, answered") and form == "single":
        assert client.get() == b"+OK\r\n"
        assert live() == start
