"""Words of commands as Redis reads them, and answers that many commands share."""

from __future__ import annotations

from typing import Final

from proxy.resp import encode

DEFAULT_USER: Final = "default"
OK: Final = encode.simple("OK")
_PRINTABLE: Final = bytes(range(0x21, 0x7F))


def integer(word: bytes) -> int | None:
    """A 64-bit integer in the only form Redis accepts (string2ll): no plus, blanks, leading zeros or `-0`."""
    digits = word.removeprefix(b"-")
    if not digits.isdigit() or len(digits) > 19 or (digits[:1] == b"0" and word != b"0"):
        return None
    number = int(word)
    return number if -(2**63) <= number < 2**63 else None


def printable(word: bytes) -> bool:
    """What a client may call itself: no blanks, no control characters, ASCII (validateClientAttr)."""
    return not word.translate(None, _PRINTABLE)
