"""Invariants of slots, on any key and any changes:
* slot_of never reads outside the key and is what a real server's CLUSTER KEYSLOT says;
* a slot table says what was last assigned, and counts the covered slots right.
"""

from __future__ import annotations

import random
import time

from proxy.cluster.slot import slot_of
from proxy.cluster.slot_table import SlotTable
from tests.support.cluster import servers
from tests.support.raw import encode
from tests.support.resp import ServerWith

BATCH = 500


def a_key(chance: random.Random) -> bytes:
    if chance.random() < 0.5:
        return chance.randbytes(chance.choice([0, 1, 7, 8, 9, 16, 40, chance.randrange(300)]))
    return bytes(chance.choices(b"{}ab\0\xff", k=chance.randrange(24)))


def run(seed: int, deadline: float) -> int:
    chance = random.Random(seed)
    cases = 0
    table: SlotTable = SlotTable()
    model: list[int | None] = [None] * 16384
    with ServerWith(servers()["valkey"], "--cluster-enabled", "yes") as node, node.raw() as client:
        while time.monotonic() < deadline:
            keys = [a_key(chance) for _ in range(BATCH)]
            client.send(b"".join(encode("CLUSTER", "KEYSLOT", key) for key in keys))
            for key, answer in zip(keys, client.frames(BATCH), strict=True):
                assert answer == b":%d\r\n" % slot_of(bytearray(key)), key
            first, last = sorted(chance.choices(range(16384), k=2))
            shard = chance.choice([None, 0, 1, 65534])
            table.assign(first, last, shard)
            model[first : last + 1] = [shard] * (last + 1 - first)
            assert [table.get(slot) for slot in range(16384)] == model
            assert table.covered == 16384 - model.count(None)
            assert sum(end + 1 - begin for begin, end, _ in table.ranges()) == table.covered
            cases += BATCH
    return cases
