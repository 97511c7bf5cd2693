"""SCAN's cursor: what goes in comes out, and nothing else is let in."""

from __future__ import annotations

import random

import pytest

from proxy.serve.scan_cursor import INNER_MAX, MARKS, START, Position, decode, encode, mark


def word(at: Position) -> bytes:
    return b"%d" % encode(at)


@pytest.mark.parametrize("slot", [0, 1, 5460, 16383])
@pytest.mark.parametrize("inner", [0, 1, 12345, INNER_MAX])
@pytest.mark.parametrize("target", [False, True])
def test_round_trip(slot: int, inner: int, target: bool) -> None:
    at = Position(slot, inner, mark(b"x", slot), target) if inner else Position(slot)
    assert 0 < encode(at) < 2**63
    assert decode(word(at)) == at
    assert decode(b"000" + word(at)) == at


@pytest.mark.parametrize("zeros", [b"0", b"00", b"0" * 50])
def test_zero_is_the_start(zeros: bytes) -> None:
    assert decode(zeros) == START


@pytest.mark.parametrize(
    "text",
    [b"", b"-1", b"-0", b"+1", b" 1", b"1 ", b"x", b"1x", b"0x10", b"1.0", b"\xb2", b"\xd9\xa1", b"9" * 5000]
    + [b"%d" % n for n in (1, 5, 14336, 2**31, 2**45, 2**46 - 1, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**19)],
)
def test_malformed_and_foreign(text: bytes) -> None:
    assert decode(text) is None


def test_no_small_cursor_of_a_server_is_taken() -> None:
    rng = random.Random(1)
    assert all(decode(b"%d" % rng.randrange(1, 2**46)) is None for _ in range(20_000))


def test_a_begin_is_checked_throughout() -> None:
    good = encode(Position(77))
    assert all(decode(b"%d" % (good ^ 1 << bit)) is None for bit in range(45, 63))


def test_most_other_numbers_are_refused() -> None:
    rng = random.Random(2)
    taken = sum(decode(b"%d" % rng.randrange(2**63)) is not None for _ in range(20_000))
    assert taken < 20_000 // 12


def test_marks() -> None:
    assert mark(b"owner", b"abc") == mark(b"owner", b"abc") != mark(b"owner", b"abd")
    assert mark(b"a", 1) != mark(b"a", 2)
    assert all(1 <= mark(n) <= MARKS for n in range(1000))
    # Another version of the proxy must go on from it.
    assert encode(Position(12)) == 6908170010435256320
