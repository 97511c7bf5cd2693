"""Calls: the slot that a command's keys share, found once."""

from __future__ import annotations

import pytest

from proxy.cluster.topology import Address
from proxy.resp.encode import encode_command
from tests.support.datapath import KEY_A, KEY_B, KEY_C, A, B, C, Play, Stage
from tests.support.dialogue import PING


def places(stage: Stage, frame: bytes) -> list[Address]:
    """The nodes that get it."""
    client = stage.client()
    client.send(frame)
    stage.turn()
    return [address for address, ends in stage.nodes.items() for end in ends if frame in end.get()]


@pytest.mark.parametrize(
    ("words", "place"),
    [
        (["GET", KEY_B], B),
        (["SORT", KEY_C, "BY", "x*"], C),
        (["EVAL", "return 1", "2", "{b}1", "{b}2", KEY_C], A),
        (["ZUNIONSTORE", "{c}1", "2", "{c}2", "{c}3", "WEIGHTS", "1", "2"], B),
        (["XREAD", "COUNT", "1", "STREAMS", "{a}1", "{a}2", "0", "0"], C),
        (["XREADGROUP", "GROUP", "streams", "c", "STREAMS", KEY_B, ">"], B),
        (["OBJECT", "ENCODING", KEY_A], A),
        (["RENAME", "{b}1", "{b}2"], A),
    ],
)
def test_a_command_goes_where_its_keys_are(play: Play, words: list[str | bytes], place: Address) -> None:
    assert places(play(), encode_command(*words)) == [place]


@pytest.mark.parametrize(
    "words",
    [
        ["RENAME", KEY_A, KEY_B],
        ["SUNION", KEY_A, "{b}1", KEY_C],
        ["EVAL", "return 1", "2", KEY_A, KEY_B],
        ["ZUNIONSTORE", KEY_A, "1", KEY_B],
        ["XREAD", "STREAMS", KEY_A, KEY_B, "0", "0"],
    ],
)
def test_keys_of_more_than_one_slot(play: Play, words: list[str | bytes]) -> None:
    stage = play()
    client = stage.client()
    client.send(encode_command(*words) + PING)
    stage.turn()
    assert client.get() == b"-CROSSSLOT Keys in request don't hash to the same slot\r\n+PONG\r\n"
    assert stage.nodes == {}


@pytest.mark.parametrize(
    "words",
    [["EVAL", "return 1", "x", KEY_A], ["EVAL", "return 1", "9", KEY_A], ["XREAD", "COUNT", "1", "2", "3"]],
)
def test_arguments_that_do_not_fit_leave_it_without_keys(play: Play, words: list[str | bytes]) -> None:
    """Whichever server gets it says what is wrong with it."""
    assert len(places(play(), encode_command(*words))) == 1
