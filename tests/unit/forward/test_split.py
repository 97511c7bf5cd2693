"""Commands over many slots: how they are cut into one sub-command per slot."""

from __future__ import annotations

import random

import pytest

from proxy.cluster.slot import slot_of
from proxy.resp.encode import array, bulk, encode_command, integer
from proxy.resp.readers import CommandReader
from tests.support.datapath import KEY_A, KEY_B, SLOT_A, A, B, C, Play
from tests.support.dialogue import answer

MGET_A, MGET_B = encode_command("MGET", KEY_A), encode_command("MGET", KEY_B)
DEL_A, DEL_B = encode_command("DEL", KEY_A), encode_command("DEL", KEY_B)
MSET_A, MSET_B = encode_command("MSET", KEY_A, "1"), encode_command("MSET", KEY_B, "2")
MGET, DEL = encode_command("MGET", KEY_A, KEY_B), encode_command("DEL", KEY_A, KEY_B)
MSET = encode_command("MSET", KEY_A, "1", KEY_B, "2")


@pytest.mark.parametrize(
    "frame",
    [
        encode_command("MGET", "{b}1", "{b}2", "{b}1"),
        encode_command("mset", "{b}1", "x", "{b}2", "y"),
        encode_command("DEL", KEY_A),
        b"*3\r\n$6\r\nUnLink\r\n$4\r\n{b}1\r\n$4\r\n{b}2\r\n",
    ],
)
def test_one_slot_stays_one_command(play: Play, frame: bytes) -> None:
    stage = play()
    client = stage.client()
    client.send(frame)
    assert answer(stage, {frame: b"+whatever\r\n"}) == [frame]
    assert client.get() == b"+whatever\r\n"
    assert sum(command["split"] for command in stage.count("commands").values()) == 0


def test_one_part_per_slot_and_the_answer_in_the_order_of_the_keys(play: Play) -> None:
    """Not one per key, and not one per node, where it would be CROSSSLOT. Elements travel as they came."""
    stage = play()
    client = stage.client()
    client.send(encode_command("mGet", KEY_A, "{c}1", "{b}2", "f", KEY_B, b"\r\n{b}"))
    assert slot_of(b"f") != SLOT_A
    parts = {
        encode_command("mGet", KEY_A, "{b}2", b"\r\n{b}"): array([bulk("b"), b"$-1\r\n", bulk("b2")]),
        encode_command("mGet", "{c}1", KEY_B): array([bulk("c1"), bulk(b"*\r\n$")]),
        encode_command("mGet", "f"): array([bulk("")]),
    }
    assert answer(stage, parts) == sorted(parts)
    assert client.get() == array([bulk("b"), bulk("c1"), b"$-1\r\n", bulk(""), bulk(b"*\r\n$"), bulk("b2")])
    figures = stage.count("commands")["mget"]
    assert (figures["split"], figures["calls"], figures["errors"]) == (1, 1, {})
    assert list(stage.nodes) == [A, B]


def test_duplicates_get_their_value_each_time(play: Play) -> None:
    stage = play()
    client = stage.client()
    client.send(encode_command("MGET", KEY_B, KEY_A, KEY_B, KEY_A, KEY_B))
    parts = {
        encode_command("MGET", KEY_B, KEY_B, KEY_B): array([bulk("2"), bulk("2"), bulk("2")]),
        encode_command("MGET", KEY_A, KEY_A): array([bulk("1"), bulk("1")]),
    }
    answer(stage, parts)
    assert client.get() == array([bulk(n) for n in (2, 1, 2, 1, 2)])


def test_parts_of_a_batch_leave_with_everything_else(play: Play) -> None:
    stage = play(packets=True)
    stage.router.warm(2)
    stage.turn()
    client = stage.client()
    client.send(MGET + DEL + MSET)
    stage.turn()
    assert stage.node(A).packets() == [MGET_A + DEL_A + MSET_A]
    assert stage.node(B).packets() == [MGET_B + DEL_B + MSET_B]
    stage.node(B).send(array([bulk("2")]) + integer(1) + b"+OK\r\n")
    stage.turn()
    assert client.packets() == []
    stage.node(A).send(array([bulk("1")]) + integer(1) + b"+OK\r\n")
    stage.turn()
    assert client.packets() == [array([bulk("1"), bulk("2")]) + integer(2) + b"+OK\r\n"]


def test_mset_keeps_pairs_and_their_order(play: Play) -> None:
    """The last of two values for one key wins, as it does unsplit."""
    stage = play()
    client = stage.client()
    client.send(encode_command("MSET", KEY_A, b"\r\n", KEY_B, "", KEY_A, "last"))
    parts = {
        encode_command("MSET", KEY_A, b"\r\n", KEY_A, "last"): b"+OK\r\n",
        encode_command("MSET", KEY_B, ""): b"+OK\r\n",
    }
    assert answer(stage, parts) == sorted(parts)
    assert client.get() == b"+OK\r\n"


def test_many_keys_over_many_slots(play: Play) -> None:
    """Thousands of parts, twice, so that what is reused from command to command is proven clean."""
    stage = play(hard_output=1 << 30)
    client = stage.client()
    chance = random.Random(1)
    for count in (3000, 50, 3000):
        keys = [b"key:%d" % chance.randrange(5000) for _ in range(count)]
        client.send(encode_command("MGET", *keys))
        stage.turn()
        frames = 0
        for end in (stage.node(n) for n in (A, B, C)):
            reader = CommandReader()
            while asked := stage.drink(end):
                for _, words in reader.feed(asked):
                    assert len({slot_of(key) for key in words[1:]}) == 1
                    frames += 1
                    stage.pour(end, array([bulk(b"<" + key + b">") for key in words[1:]]))
        assert frames == len({slot_of(key) for key in keys})
        assert stage.drink(client) == array([bulk(b"<" + key + b">") for key in keys])
