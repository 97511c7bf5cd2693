"""Whole replies as Python values, for what is not the data path: handshakes with nodes, CONFIG GET, tests.

hiredis does the work. What it cannot do (attributes, blob errors, streamed strings and aggregates, maps whose keys are
aggregates) is decoded here, so that every frame the scanner accepts has a value. The scanner decides what is well
formed; attributes are dropped.

Values: bytes for simple, bulk, verbatim strings and big numbers; int; float; bool; None; list for arrays and sets; dict
for maps, but a list of pairs when a key cannot be hashed; ReplyError (never raised) for errors; Push for pushes.
"""

from typing import Any, Final

import hiredis

from proxy.resp.errors import ProtocolFault
from proxy.resp.readers import ReplyReader

_MORE: Final = object()
_MALFORMED: Final = b"-ERR Protocol error: malformed reply\r\n"


class ReplyError(Exception):
    """A node's error reply, as a value. str() is its text without '-' and CRLF."""

    @property
    def code(self) -> str:
        """First word of the text: ERR, MOVED, NOAUTH ..."""
        return str(self).split(" ", 1)[0]


class Push(list[Any]):
    """A RESP3 push: its kind (bytes) and what belongs to it."""


class Decoder:
    """feed(bytes) -> the values of the frames that became whole; raises ProtocolFault as ReplyReader does."""

    def __init__(self) -> None:
        self._reader = ReplyReader()

    def feed(self, data: bytes) -> list[Any]:
        return [decode(frame) for frame, _, _ in self._reader.feed(data)]


def decode(frame: bytes) -> Any:
    """The value of one whole frame; raises ProtocolFault when it is not one."""
    reader = hiredis.Reader(replyError=ReplyError, errors="replace", notEnoughData=_MORE)
    reader.feed(frame)
    if frame[:1] != b"|":  # hiredis takes an attribute for a reply of its own
        try:
            value = reader.gets()
        except (hiredis.ProtocolError, TypeError):
            value = _MORE
        if value is not _MORE and not reader.has_data() and not isinstance(value, list | dict):
            return value
        if value is not _MORE and not reader.has_data() and b"\r\n|" not in frame:
            return Push(value) if isinstance(value, hiredis.PushNotification) else value
    try:
        value, end = _value(frame, 0)
    except (ValueError, IndexError, RecursionError):
        raise ProtocolFault(_MALFORMED) from None
    if end != len(frame):
        raise ProtocolFault(_MALFORMED)
    return value


def _value(frame: bytes, at: int) -> tuple[Any, int]:
    """The value that begins at an offset, and the offset behind it."""
    end = frame.index(b"\r\n", at)
    kind, text, after = frame[at : at + 1], frame[at + 1 : end], end + 2
    if kind in b"+(":
        return text, after
    if kind == b"-":
        return ReplyError(text.decode(errors="replace")), after
    if kind == b":":
        return int(text), after
    if kind == b",":
        return float(text), after
    if kind == b"#":
        return text in b"tT", after
    if kind == b"_":
        return None, after
    if kind == b"|":
        return _value(frame, _elements(frame, after, 2 * int(text))[1])
    if text == b"-1":
        return None, after
    if kind in b"$=!":
        return _string(kind, frame, text, after)
    items, after = _elements(frame, after, None if text == b"?" else int(text) * (2 if kind == b"%" else 1))
    if kind == b">":
        return Push(items), after
    if kind == b"%":
        pairs = list(zip(items[::2], items[1::2], strict=True))
        try:
            return dict(pairs), after
        except TypeError:
            return pairs, after
    if kind in b"*~":
        return items, after
    raise ValueError


def _string(kind: bytes, frame: bytes, text: bytes, at: int) -> tuple[Any, int]:
    """A string of a stated or streamed length whose body, or first chunk, begins at an offset."""
    body = b""
    if text != b"?":
        body, at = _body(frame, at, int(text))
        if kind == b"!":
            return ReplyError(body.decode(errors="replace")), at
        return body[4:] if kind == b"=" else body, at
    chunks: list[bytes] = []
    while frame[at : at + 1] == b";":
        end = frame.index(b"\r\n", at)
        size = int(frame[at + 1 : end])
        if size == 0:
            return b"".join(chunks), end + 2
        body, at = _body(frame, end + 2, size)
        chunks.append(body)
    raise ValueError


def _body(frame: bytes, at: int, size: int) -> tuple[bytes, int]:
    if frame[at + size : at + size + 2] != b"\r\n":
        raise ValueError
    return frame[at : at + size], at + size + 2


def _elements(frame: bytes, at: int, count: int | None) -> tuple[list[Any], int]:
    """That many values, or those up to the `.` of a streamed aggregate (count None)."""
    items: list[Any] = []
    while len(items) != count:
        if count is None and frame[at : at + 3] == b".\r\n":
            return items, at + 3
        item, at = _value(frame, at)
        items.append(item)
    return items, at
