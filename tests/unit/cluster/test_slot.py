"""Slots against the specification, redis-py and the servers' CLUSTER KEYSLOT."""

from __future__ import annotations

import random

import pytest
from redis.crc import key_slot as redis_py_slot

from proxy.cluster.slot import slot_of
from tests.support import cluster
from tests.support.raw import encode
from tests.support.resp import ServerWith


def keys(count: int) -> list[bytes]:
    """Random keys of 0 to 60 bytes, half of them rich in braces."""
    chance = random.Random(20)
    made = [chance.randbytes(chance.randrange(61)) for _ in range(count // 2)]
    while len(made) < count:
        made.append(bytes(chance.choices(b"{}ab{}", k=chance.randrange(20))))
    return made


@pytest.mark.parametrize(
    ("key", "slot"),
    [
        (b"123456789", 0x31C3 % 16384),  # the check value of CRC-16/XMODEM
        (b"", 0),
        (b"foo", 12182),
        (b"{foo}", 12182),
        (b"bar{foo}baz", 12182),
        (b"{foo}{bar}", 12182),
        (b"{foo", slot_of(b"{foo")),
    ],
)
def test_known_slots(key: bytes, slot: int) -> None:
    assert slot_of(key) == slot


@pytest.mark.parametrize("key", [b"{}foo", b"foo{}{bar}", b"foo{bar", b"foo}bar{", b"{", b"}", b"}{", b"{}", b"a{"])
def test_no_hash_tag_means_the_whole_key(key: bytes) -> None:
    assert slot_of(key) == redis_py_slot(key) == cluster.slot_of(key)


def test_the_tag_ends_at_the_first_brace() -> None:
    assert slot_of(b"foo{{bar}}zap") == slot_of(b"{bar")
    assert slot_of(b"{a}b}") == slot_of(b"a")


def test_every_length_and_byte() -> None:
    for key in [bytes([byte]) * length for byte in (0, 1, 0x7F, 0x80, 0xFF) for length in range(70)] + keys(2000):
        assert slot_of(key) == redis_py_slot(key)
    for byte in range(256):
        for place in range(8):
            key = bytes(place) + bytes([byte]) + bytes(7 - place) + b"tail"
            assert slot_of(key) == redis_py_slot(key)


def test_the_server_agrees(server: str) -> None:
    batch = keys(1000)
    with ServerWith(server, "--cluster-enabled", "yes") as node, node.raw() as client:
        client.send(b"".join(encode("CLUSTER", "KEYSLOT", key) for key in batch))
        assert client.frames(len(batch)) == [b":%d\r\n" % slot_of(key) for key in batch]
