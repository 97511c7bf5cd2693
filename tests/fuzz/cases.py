"""What targets share: rounds of Hypothesis examples, a mutated corpus, and the last input for the post-mortem.

Invariant: the same seed gives the same cases in the same order.
"""

from __future__ import annotations

import mmap
import os
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

ROUND = 100  # examples of one run of Hypothesis: what may pass before the clock is looked at

_NUMBERS = b"0 1 2 9 10 -1 -2 01 +1 16384 65536 1048577 536870913 4294967296 9223372036854775807".split()
_NUMBERS += b"9223372036854775808 -9223372036854775808 99999999999999999999".split()
_TOKENS = [b"\r\n", b"\r", b"\n", b"\0", b"\xff", b".\r\n", b";0\r\n", b"|1\r\n", b"*1\r\n", b"*0\r\n", b"$0\r\n\r\n"]
_TOKENS += [bytes([letter]) for letter in b"+-:$*_#,(!=~%>|;.? '\"\\x{}"] + _NUMBERS


class LastInput:
    """Bytes noted before each case, in a mapped file: they outlive a process that a sanitizer ends."""

    SIZE = 1 << 20

    def __init__(self) -> None:
        path = Path(os.environ.get("FUZZ_LAST_INPUT", os.devnull))
        if path == Path(os.devnull):
            self._map: mmap.mmap | None = None
            return
        path.write_bytes(bytes(self.SIZE))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), self.SIZE)

    def note(self, data: bytes) -> None:
        if self._map is not None:
            kept = data[: self.SIZE - 8]
            self._map[: 8 + len(kept)] = len(kept).to_bytes(8, "little") + kept

    @staticmethod
    def path() -> Path:
        return Path(__file__).resolve().parents[2] / "build" / "fuzz" / "last-input"

    @classmethod
    def read(cls) -> bytes:
        path = cls.path()
        data = path.read_bytes() if path.exists() else bytes(8)
        return data[8 : 8 + int.from_bytes(data[:8], "little")]


def mutate(chance: random.Random, corpus: Sequence[bytes]) -> bytes:
    """A few entries of the corpus in a row, damaged in a few places or not at all."""
    data = bytearray(b"".join(chance.choice(corpus) for _ in range(chance.randint(1, 4))))
    for _ in range(chance.choice([0, 1, 1, 2, 3, 8])):
        at, size = chance.randrange(len(data) + 1), chance.choice([1, 1, 1, 2, 5, 20])
        match chance.randrange(6):
            case 0:
                data[at : at + size] = b""
            case 1:
                data[at:at] = chance.choice(_TOKENS)
            case 2:
                data[at : at + size] = chance.choice(_TOKENS)
            case 3:
                data[at : at + 1] = bytes([chance.randrange(256)])
            case 4:
                data[at:at] = data[at : at + size] * chance.choice([1, 2, 50])
            case 5:
                entry = chance.choice(corpus)
                data[at:] = entry[chance.randrange(len(entry) + 1) :]
    return bytes(data)


def pieces(chance: random.Random, data: bytes) -> list[bytes]:
    """The data cut at random: whole, in a few pieces, or in crumbs."""
    if not data:
        return [b""]
    match chance.randrange(4):
        case 0:
            return [data]
        case 1:
            return [data[at : at + 1] for at in range(len(data))]
        case 2:
            points = sorted(chance.randrange(len(data)) for _ in range(chance.randint(1, 6)))
        case _:
            points = sorted({chance.randrange(len(data)) for _ in range(len(data) // 3)})
    return [data[a:b] for a, b in zip([0, *points], [*points, len(data)], strict=True)]


def alternate(
    first_seed: int,
    deadline: float,
    corpus: Sequence[bytes],
    strategy: st.SearchStrategy[Any],
    check: Callable[[Any, random.Random], None],
) -> int:
    """Feeds check() with rounds of Hypothesis examples and of mutated corpus until the deadline; returns the cases.

    strategy and corpus make values of the same type; check() also gets a generator for its own decisions.
    """
    last = LastInput()
    cases = 0
    chance = random.Random(first_seed)

    def one(value: Any, own: random.Random) -> None:
        nonlocal cases
        cases += 1
        last.note(value if isinstance(value, bytes) else repr(value).encode())
        check(value, own)

    @settings(
        max_examples=ROUND,
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy, st.integers(0, (1 << 32) - 1))
    def examples(value: Any, own: int) -> None:
        one(value, random.Random(own))

    turn = 0
    while time.monotonic() < deadline:
        seed(first_seed + turn)(examples)()
        turn += 1
        for _ in range(ROUND * 4):
            data = mutate(chance, corpus)
            try:
                one(data, random.Random(cases))
            except Exception as failure:
                failure.add_note(f"input: {data!r}")
                raise
    return cases
