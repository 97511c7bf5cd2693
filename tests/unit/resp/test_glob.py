"""Patterns as Redis matches them, and in bounded time."""

from __future__ import annotations

import random
import time

import pytest

from proxy.embedded import default_server
from proxy.resp.decode import decode
from proxy.resp.glob import Glob
from tests.support.cluster import Standalone

PLENTY = 1 << 40


def matches(pattern: bytes, key: bytes) -> bool:
    return Glob(pattern).matching([key], PLENTY) == [key]


@pytest.mark.parametrize(
    ("pattern", "key", "wanted"),
    [
        (b"*", b"a", True),
        (b"a*b", b"axxb", True),
        (b"a*b", b"axxbc", False),
        (b"a*", b"a", True),
        (b"a?", b"a", False),
        (b"?", b"\xff", True),
        (b"h[ae]llo", b"hello", True),
        (b"h[^e]llo", b"hello", False),
        (b"h[z-a]llo", b"hello", True),
        (b"[\\]]", b"]", True),
        (b"[", b"[", False),
        (b"[^", b"x", True),
        (b"[abc", b"c", True),
        (b"[a-", b"-", True),
        (b"\\*", b"*", True),
        (b"\\*", b"x", False),
        (b"a\\", b"a\\", True),
        (b"", b"", True),
        (b"**", b"", False),
        (b"*?*?*", b"a", False),
        (b"*a*b*a*", b"xxbaxbxax", True),
        (b"\x00*\n", b"\x00\x01\n", True),
    ],
)
def test_one_key(pattern: bytes, key: bytes, wanted: bool) -> None:
    assert matches(pattern, key) is wanted


def test_the_order_of_the_keys_stays() -> None:
    assert Glob(b"a*").matching([b"a2", b"b", b"a1", b"a2"], PLENTY) == [b"a2", b"a1", b"a2"]


def test_a_hostile_pattern_ends_soon() -> None:
    """The recursion that Redis once had took longer than the universe lasts for this."""
    started = time.thread_time()
    assert Glob(b"a*" * 40 + b"b").matching([b"a" * 20_000], PLENTY) == []
    assert time.thread_time() - started < 1.0


def test_a_budget_ends_it() -> None:
    pattern = Glob(b"*" + b"a" * 1000 + b"b")
    assert pattern.matching([b"a" * 100_000], 1_000_000) is None
    assert pattern.matching([b"c"] * 100, 1000) == []
    assert Glob(b"aa").matching([b"aa"] * 100, 100) is None  # for all keys together


def test_a_long_pattern_costs_memory_in_proportion() -> None:
    assert Glob(b"[a-z]" * 100_000).matching([b"abc"], PLENTY) == []
    assert Glob(b"[" * 100_000).matching([b"["], PLENTY) == [b"["]


def test_it_decides_as_a_server_does() -> None:
    """Random patterns over random keys, against SCAN ... MATCH of a real server."""
    rng = random.Random(9)
    letters = [b"a", b"b", b"-", b"]", b"^", b"\\", b"[", b"*", b"?", b"\xff", b"\x80", b"z"]
    keys = sorted({b"".join(rng.choices(letters, k=rng.randrange(1, 7))) for _ in range(400)})
    with Standalone(default_server()) as server, server.raw() as raw:
        for key in keys:
            raw.command("SET", key, "v")
        for _ in range(1500):
            pattern = b"".join(rng.choices(letters, k=rng.randrange(1, 9)))
            found = decode(raw.command("SCAN", 0, "COUNT", 100_000, "MATCH", pattern))[1]
            assert sorted(found) == Glob(pattern).matching(keys, PLENTY), pattern
