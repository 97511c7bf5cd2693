"""SCAN's cursor: a place in the cluster's slots as one integer from 0 to below 2^63.

Why: any worker of any proxy must be able to go on from it, also after a failover or a resharding, so it carries all
that is known of the scan. Called by serve.scan and the modules beside it.

63 bits, from the top: 4 of a checksum, 13 of a mark, 1 `target`, 14 of the slot, 31 of the node's own cursor `inner`.
inner 0 is the beginning of a slot, with a mark that only depends on the slot. Otherwise the slot is too large for one
page, and the mark stands for whatever `inner` depends on: see serve.scan_slot.

Invariants: 0 is the beginning (read) or the end (written) and nothing else is; a mark is never 0, so that no server's
own cursor below 2^46 is taken for one of these; of other integers one in 8,191 * 16 is, or one in 16 with an `inner`.
"""

from __future__ import annotations

import zlib
from typing import Final, NamedTuple

from proxy.cluster.topology import SLOTS

SLOT_BITS: Final = 14
INNER_MAX: Final = (1 << 31) - 1
MARKS: Final = (1 << 13) - 1
_DIGITS: Final = 19


class Position(NamedTuple):
    """slot: the first that is not done. inner, mark, target: how far it is; the last is the side of a migration."""

    slot: int
    inner: int = 0
    mark: int = 0
    target: bool = False


START: Final = Position(0)


def mark(*facts: bytes | int) -> int:
    """1 to MARKS: equal for equal facts, in every process and version."""
    return 1 + zlib.crc32(b"\0".join(b"%d" % fact if isinstance(fact, int) else fact for fact in facts)) % MARKS


def encode(at: Position) -> int:
    """Never 0. at: the beginning of a slot, or a place in one with its mark."""
    marked = at.mark if at.inner else mark(at.slot)
    low = (marked << 1 | at.target) << 45 | at.slot << 31 | at.inner
    return _check(low) << 59 | low


def decode(word: bytes) -> Position | None:
    """None for what is no cursor of ours."""
    digits = word.lstrip(b"0")
    if not word.isdigit() or len(digits) > _DIGITS:
        return None
    number = int(digits or b"0")
    if number == 0:
        return START
    low = number & ((1 << 59) - 1)
    marked, target, slot, inner = low >> 46, bool(low >> 45 & 1), low >> 31 & (SLOTS - 1), low & INNER_MAX
    if number >> 63 or number >> 59 != _check(low) or not marked:
        return None
    if inner == 0:
        return Position(slot) if marked == mark(slot) and not target else None
    return Position(slot, inner, marked, target)


def _check(low: int) -> int:
    return zlib.crc32(b"scan %d" % low) & 15
