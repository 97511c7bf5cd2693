"""Words of commands as Redis reads them, and answers that many commands share."""

from __future__ import annotations

from typing import Final

from proxy.resp import encode

DEFAULT_USER: Final = "default"
OK: Final = encode.simple("OK")
# Commands that the proxy answers and that have subcommands.
CONTAINERS: Final = frozenset({b"acl", b"client", b"cluster", b"command", b"config", b"function", b"script"})
_PRINTABLE: Final = bytes(range(0x21, 0x7F))


def full_name(words: list[bytes]) -> bytes:
    """The command's name as COMMAND writes it, taken for a container when it has a further word: see CONTAINERS."""
    name = words[0].lower()
    return name + b"|" + words[1].lower() if name in CONTAINERS and len(words) > 1 else name


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
