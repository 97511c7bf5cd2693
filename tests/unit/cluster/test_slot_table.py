"""The slot table and its count of covered slots."""

from __future__ import annotations

import random
import struct

import pytest

from proxy.cluster.slot_table import SlotTable


def test_a_new_table_covers_nothing() -> None:
    table = SlotTable()
    assert table.covered == 0
    assert table.get(0) is None
    assert table.get(16383) is None
    assert table.ranges() == []


def test_ranges_are_as_long_as_they_can_be() -> None:
    table = SlotTable()
    table.assign(0, 5460, 0)
    table.assign(5461, 10922, 1)
    table.assign(10923, 16383, 2)
    assert table.covered == 16384
    assert table.ranges() == [(0, 5460, 0), (5461, 10922, 1), (10923, 16383, 2)]
    table.assign(100, 100, 2)
    table.assign(5461, 5461, 0)
    table.assign(16383, 16383, None)
    assert table.ranges() == [
        (0, 99, 0),
        (100, 100, 2),
        (101, 5461, 0),
        (5462, 10922, 1),
        (10923, 16382, 2),
    ]
    assert table.covered == 16383


def test_covered_counts_whatever_happens() -> None:
    chance = random.Random(3)
    table, model = SlotTable(), {}
    for _ in range(500):
        first = chance.randrange(16384)
        last = min(16383, first + chance.randrange(300))
        shard = chance.choice([None, 0, 1, 65534])
        table.assign(first, last, shard)
        for slot in range(first, last + 1):
            model[slot] = shard
        assert table.covered == sum(owner is not None for owner in model.values())
    assert all(table.get(slot) == owner for slot, owner in model.items())


def owners(*ranges: tuple[int, int, int]) -> bytes:
    """What load takes."""
    table = [0xFFFF] * 16384
    for first, last, shard in ranges:
        table[first : last + 1] = [shard] * (last + 1 - first)
    return struct.pack("<16384H", *table)


def test_load_and_clear() -> None:
    table = SlotTable()
    table.assign(0, 100, 2)
    table.load(owners((7, 9, 3), (256, 16383, 0x0102)), 0x0103)
    assert (table.ranges(), table.covered) == ([(7, 9, 3), (256, 16383, 0x0102)], 16131)
    table.load(owners((0, 16383, 0xFFFE)), 0xFFFF)
    assert (table.ranges(), table.covered) == ([(0, 16383, 0xFFFE)], 16384)
    table.load(owners(), 0)
    assert (table.ranges(), table.covered) == ([], 0)
    table.assign(0, 100, 2)
    table.clear()
    assert (table.ranges(), table.covered) == ([], 0)


@pytest.mark.parametrize(
    ("data", "shards"),
    [
        (b"", 1),
        (owners()[:-1], 1),
        (owners() + b"\0", 1),
        (owners((5, 5, 3)), 3),
        (owners((16383, 16383, 0xFFFE)), 0xFFFE),
        (owners((0, 0, 0)), 0),
        (owners(), -1),
        (owners(), 0x10000),
    ],
)
def test_what_does_not_fit_is_not_loaded(data: bytes, shards: int) -> None:
    table = SlotTable()
    table.assign(0, 100, 2)
    with pytest.raises(ValueError, match=r"owners of slots|no shard index|no number of shards"):
        table.load(data, shards)
    assert (table.ranges(), table.covered) == ([(0, 100, 2)], 101)


@pytest.mark.parametrize(
    ("first", "last", "shard"), [(-1, 0, 0), (0, 16384, 0), (5, 4, 0), (0, 0, -1), (0, 0, 65535), (0, 0, 1 << 20)]
)
def test_what_is_out_of_range_is_refused(first: int, last: int, shard: int) -> None:
    table = SlotTable()
    with pytest.raises(ValueError, match=r"no (slot range|shard index)"):
        table.assign(first, last, shard)
    assert table.covered == 0


@pytest.mark.parametrize("slot", [-1, 16384])
def test_no_such_slot(slot: int) -> None:
    with pytest.raises(ValueError, match="no slot"):
        SlotTable().get(slot)
