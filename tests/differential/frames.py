"""Reply frames as values that can be compared in part.

Called by: grammar (reads COMMAND DOCS) and differences.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Value:
    """One reply: its first byte as text, and bytes (line or body), a tuple of Values, or None for null."""

    kind: str
    body: bytes | tuple[Value, ...] | None

    @property
    def items(self) -> tuple[Value, ...]:
        return self.body if isinstance(self.body, tuple) else ()

    @property
    def text(self) -> bytes:
        return self.body if isinstance(self.body, bytes) else b""


def parse(frame: bytes) -> Value:
    """A whole frame; of a map the items are keys and values in turn."""
    value, _ = _parse(frame, 0)
    return value


def plain(value: Value) -> Any:
    """Maps as dict, arrays and sets as list, integers as int, all else as bytes or None."""
    match value.kind:
        case "%":
            flat = [plain(item) for item in value.items]
            return dict(zip(flat[::2], flat[1::2], strict=True))
        case "*" | "~" | ">":
            return None if value.body is None else [plain(item) for item in value.items]
        case ":":
            return int(value.text)
    return value.body


def _parse(frame: bytes, at: int) -> tuple[Value, int]:
    end = frame.index(b"\r\n", at)
    kind, rest = chr(frame[at]), frame[at + 1 : end]
    at = end + 2
    if kind in "$=!":
        size = int(rest)
        return (Value(kind, None), at) if size < 0 else (Value(kind, frame[at : at + size]), at + size + 2)
    if kind not in "*~>%|":
        return Value(kind, rest), at
    count = int(rest)
    if count < 0:
        return Value(kind, None), at
    items = []
    for _ in range(count * (2 if kind in "%|" else 1)):
        item, at = _parse(frame, at)
        items.append(item)
    return Value(kind, tuple(items)), at
