"""A reply that proxy.serve makes of the parts' replies."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from proxy.forward.request import live
from proxy.resp.encode import bulk, encode_command
from tests.support.datapath import SLOT_A, SLOT_B, SLOT_C, A, B, C, Play
from tests.support.dialogue import GET_A, GET_B, GET_C, INTERNAL, PING, always, exchange

ECHO = encode_command("ECHO", "x")


def test_one_part_and_a_transform(play: Play) -> None:
    """In its turn; serve is given the whole reply, and what it makes of it is the client's."""
    stage = play()
    given: list[list[bytes]] = []

    def finish(replies: list[bytes]) -> bytes:
        given.append(replies)
        return b"+seen\r\n"

    always(stage, (SLOT_A, GET_A, 0), finish=finish)
    client = stage.client()
    client.send(GET_B + ECHO + PING + ECHO)
    stage.turn()
    large = bulk(b"v" * 50_000)
    exchange(stage, A, GET_A, bulk("1"))
    assert (client.get(), given) == (b"", [[bulk("1")]])
    exchange(stage, B, GET_B, bulk("2"))
    exchange(stage, A, GET_A, large)  # one at a time
    assert given[1:] == [[large]]
    assert client.get() == bulk("2") + b"+seen\r\n+PONG\r\n+seen\r\n"
    assert stage.count("commands")["echo"]["calls"] == 2


@pytest.mark.parametrize("size", [0, 1, 100, 200_000])
@pytest.mark.parametrize("turn", ["its own", "not yet"])
def test_what_a_transform_makes_may_have_any_size(play: Play, size: int, turn: str) -> None:
    stage = play()
    made = bulk(random.Random(size).randbytes(size))
    always(stage, (SLOT_A, GET_A, 0), finish=lambda replies: made)
    client = stage.client()
    client.send((GET_B if turn == "not yet" else b"") + ECHO + PING)
    stage.turn()
    exchange(stage, A, GET_A, b"$-1\r\n")
    if turn == "not yet":
        exchange(stage, B, GET_B, bulk("2"))
    assert stage.drink(client) == (bulk("2") if turn == "not yet" else b"") + made + b"+PONG\r\n"
    assert stage.accepted.output_bytes == 0


def test_a_transform_is_told_nothing_of_a_part_that_failed(play: Play) -> None:
    """The part's own error is the answer."""
    stage = play()
    called: list[object] = []
    always(stage, (SLOT_A, GET_A, 0), (SLOT_B, GET_B, 0), finish=called.append)
    client = stage.client()
    client.send(ECHO)
    stage.turn()
    exchange(stage, A, GET_A, bulk("1"))
    exchange(stage, B, GET_B, b"-WRONGTYPE x\r\n")
    assert (client.get(), called) == (b"-WRONGTYPE x\r\n", [])
    assert stage.count("commands")["echo"]["errors"] == {"WRONGTYPE": 1}


def test_an_error_that_a_transform_makes_is_counted(play: Play) -> None:
    stage = play()
    always(stage, (SLOT_A, GET_A, 0), finish=lambda replies: b"-NOSCRIPT x\r\n")
    client = stage.client()
    client.send(ECHO)
    stage.turn()
    exchange(stage, A, GET_A, bulk("1"))
    assert client.get() == b"-NOSCRIPT x\r\n"
    assert stage.count("commands")["echo"]["errors"] == {"NOSCRIPT": 1}


def raising(replies: list[bytes]) -> bytes:
    raise KeyError("no such thing")


@pytest.mark.parametrize(
    "finish", [raising, lambda replies: "text", lambda replies: 7, lambda replies: bytearray(b"+x")]
)
@pytest.mark.parametrize("turn", ["its own", "not yet"])
def test_a_transform_that_raises_or_makes_no_bytes(
    play: Play, finish: Callable[[list[bytes]], bytes], turn: str
) -> None:
    """The client is told, later replies stay where they belong, and the log hears of it."""
    stage = play()
    always(stage, (SLOT_A, GET_A, 0), (SLOT_C, GET_C, 0), finish=finish)
    client = stage.client()
    client.send((GET_B if turn == "not yet" else b"") + ECHO + PING)
    stage.turn()
    exchange(stage, A, GET_A, bulk("1"))
    exchange(stage, C, GET_C, bulk("3"))
    if turn == "not yet":
        exchange(stage, B, GET_B, bulk("2"))
    assert client.get() == (bulk("2") if turn == "not yet" else b"") + INTERNAL + b"+PONG\r\n"
    assert stage.count("internal_errors") == 1
    assert stage.count("commands")["echo"]["errors"] == {"ERR": 1}
    assert live() == stage.live


def test_a_transform_that_raises_is_told_to_the_log(play: Play) -> None:
    stage = play()
    always(stage, (SLOT_A, GET_A, 0), finish=raising)
    client = stage.client()
    client.send(ECHO)
    stage.turn()
    exchange(stage, A, GET_A, bulk("1"))
    assert client.get() == INTERNAL
    assert [repr(error) for _, error in stage.raised] == ["KeyError('no such thing')"]


def test_a_transform_that_makes_nothing(play: Play) -> None:
    stage = play()
    always(stage, (SLOT_A, GET_A, 0), finish=lambda replies: None)
    client = stage.client()
    client.send(ECHO + PING)
    stage.turn()
    exchange(stage, A, GET_A, bulk("1"))
    assert client.get() == INTERNAL + b"+PONG\r\n"
    assert stage.count("internal_errors") == 1


def test_a_transform_that_closes_its_client(play: Play) -> None:
    stage = play()
    client = stage.client()
    inside = stage.accepted

    def finish(replies: list[bytes]) -> bytes:
        inside.kill()
        return b"+OK\r\n"

    always(stage, (SLOT_A, GET_A, 0), finish=finish)
    client.send(ECHO)
    stage.turn()
    exchange(stage, A, GET_A, bulk("1"))
    assert (client.get(), client.closed) == (b"", True)
    assert live() == stage.live


def test_a_transform_that_pushes_to_its_client(play: Play) -> None:
    """A subscription is confirmed by pushes: they come before the reply, and the reply is whole."""
    stage = play()
    client = stage.client()
    inside = stage.accepted
    push = b">1\r\n" + bulk(b"p" * 20_000)

    def finish(replies: list[bytes]) -> bytes:
        inside.push(push)
        return b"+OK\r\n"

    always(stage, (SLOT_A, GET_A, 0), finish=finish)
    client.send(ECHO + PING)
    stage.turn()
    exchange(stage, A, GET_A, bulk("1"))
    assert client.get() == push + b"+OK\r\n+PONG\r\n"


def test_a_client_that_leaves_before_the_transform(play: Play) -> None:
    """It is not called for nobody."""
    stage = play()
    called: list[object] = []
    always(stage, (SLOT_A, GET_A, 0), (SLOT_B, GET_B, 0), finish=called.append)
    client = stage.client()
    client.send(ECHO)
    stage.turn()
    exchange(stage, A, GET_A, bulk("1"))
    client.close()
    stage.turn()
    exchange(stage, B, GET_B, bulk("2"))
    assert called == []
    assert live() == stage.live
