"""Words of commands as Redis reads them, and answers that many commands share."""

from __future__ import annotations

from typing import Final

from proxy.resp import encode
from proxy.resp.readers import ReplyReader

DEFAULT_USER: Final = "default"
ADMIN_USER: Final = "admin"  # to whom PROXY answers, if clients.admin_password is set
OK: Final = encode.simple("OK")
# Commands that the proxy answers and that have subcommands.
CONTAINERS: Final = frozenset({b"acl", b"client", b"cluster", b"command", b"config", b"function", b"proxy", b"script"})
TEXT_MAX: Final = 4096  # bytes of a client's name and of what it says of its library: CLIENT LIST repeats them all
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


def elements(frame: bytes) -> list[bytes]:
    """The frames that an array, a set or a map (names and values in turn) consists of; ValueError for any other."""
    if frame[:1] not in (b"*", b"~", b"%"):
        raise ValueError(f"no aggregate: {frame[:20]!r}")
    return [item for item, _, _ in ReplyReader().feed(frame[frame.index(b"\r\n") + 2 :])]


def version(text: str) -> tuple[int, int]:
    """(major, minor) of a server's version; (0, 0) of what is none."""
    major, _, rest = text.partition(".")
    minor = rest.partition(".")[0]
    return (int(major), int(minor)) if major.isdigit() and minor.isdigit() else (0, 0)


def printable(word: bytes) -> bool:
    """What a client may call itself: no blanks, no control characters, ASCII (validateClientAttr)."""
    return not word.translate(None, _PRINTABLE)
