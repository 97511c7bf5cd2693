"""What a client has queued since MULTI, as proxy.serve sees it."""

from __future__ import annotations

import contextlib

from proxy.resp.encode import encode_command
from tests.support.datapath import Play
from tests.support.dialogue import SET_A, SET_B

MULTI, SELECT = encode_command("MULTI"), encode_command("SELECT", "0")


def test_how_many_there_are(play: Play) -> None:
    """Also of one that is lost: the client has been told QUEUED."""
    stage = play()
    client = stage.client()
    seen = [stage.accepted.multi]
    for frame in (MULTI, SET_A, SELECT, encode_command("NOSUCH"), SET_A, SELECT, SET_B, encode_command("DISCARD")):
        client.send(frame)
        stage.turn()
        seen.append(stage.accepted.multi)
    assert seen == [-1, 0, 1, 2, 2, 3, 4, 4, -1]


def test_what_is_held_is_counted_until_it_is_lost(play: Play) -> None:
    stage = play()
    client = stage.client()
    client.send(MULTI + encode_command("CLIENT", "SETNAME", "x" * 5000))
    stage.turn()
    assert 5000 < stage.accepted.memory == stage.path.client_memory
    client.send(encode_command("SET", "a", "x" * 5000))
    stage.turn()
    assert 10_000 < stage.accepted.memory == stage.path.client_memory
    client.send(encode_command("NOSUCH") + encode_command("SET", "a", "x" * 5000) + SELECT)
    stage.turn()
    assert stage.accepted.memory == stage.path.client_memory == 0


def test_the_most_that_all_may_hold(play: Play) -> None:
    """A transaction counts for its client."""
    stage = play()
    stage.path.max_memory = 1 << 20
    client = stage.client()
    stage.pour(client, MULTI + encode_command("SET", "a", "x" * 200_000) * 3)
    assert not client.closed
    with contextlib.suppress(BrokenPipeError):
        stage.pour(client, encode_command("SET", "a", "x" * 200_000) * 3)
    assert stage.count("closed")["memory_limit"] == 1
    assert stage.path.client_memory == 0
