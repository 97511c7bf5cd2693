"""Byte streams of the wire format for tests and fuzzers: every way to cut one, ways to make one, and what hiredis says.

Called by: tests/unit/resp and tests/fuzz.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import hiredis
from hypothesis import strategies as st

from proxy.resp.errors import ProtocolFault
from proxy.resp.readers import ReplyReader
from tests.support.cluster import Standalone


class ServerWith(Standalone):
    """One server on a free port, started with options of its own (`--cluster-enabled`, `yes`)."""

    def __init__(self, server: str, *options: str) -> None:
        super().__init__(server)
        self._options = options

    def _settings(self) -> list[str]:
        return [*super()._settings(), *self._options]


class Reader(Protocol):
    """CommandReader or ReplyReader."""

    def feed(self, more: bytes) -> list[Any]: ...


# Frames in order, and the error line of the fault that ended the stream, None when none did.
Outcome = tuple[list[Any], bytes | None]


def drive(reader: Reader, chunks: Iterable[bytes]) -> Outcome:
    """Feeds chunks until there are no more, or one is malformed."""
    frames: list[Any] = []
    try:
        for chunk in chunks:
            frames += reader.feed(chunk)
        reader.feed(b"")  # a fault waits until the frames before it are delivered
    except ProtocolFault as fault:
        return frames, fault.line
    return frames, None


def cuts(data: bytes, points: int = 400) -> Iterator[list[bytes]]:
    """The data whole, byte by byte, and cut in two at every point (at most that many, evenly spread)."""
    yield [data]
    if len(data) <= 4096:
        yield [data[at : at + 1] for at in range(len(data))]
    else:
        yield [data[at : at + 1009] for at in range(0, len(data), 1009)]
    step = max(1, len(data) // points)
    for at in range(1, len(data), step):
        yield [data[:at], data[at:]]


def outcome(make: Callable[[], Reader], data: bytes) -> Outcome:
    """What a reader makes of the data, asserted to be the same however it is cut."""
    whole = drive(make(), [data])
    for chunks in cuts(data):
        assert drive(make(), chunks) == whole, f"cut after {len(chunks[0])} of {len(data)} bytes"
    return whole


# ---- generators

# Without the letters of what hiredis does not know, so that most streams can be compared.
_BODY = st.binary(max_size=120).map(lambda raw: raw.translate(bytes.maketrans(b"|!?", b"abc")))
_TEXT = _BODY.map(lambda raw: raw.translate(None, b"\r\n"))
_INT64 = st.integers(-(1 << 63), (1 << 63) - 1)

commands = st.lists(st.binary(max_size=120), min_size=1, max_size=12)


def encode_command(words: list[bytes]) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)


def _bulk(kind: bytes, body: bytes) -> bytes:
    return b"%s%d\r\n%s\r\n" % (kind, len(body), body)


_hashable = st.one_of(
    _TEXT.map(lambda text: b"+%s\r\n" % text),
    _INT64.map(lambda n: b":%d\r\n" % n),
    _BODY.map(lambda body: _bulk(b"$", body)),
    _BODY.map(lambda body: _bulk(b"=", b"txt:" + body)),
    st.floats(width=64).map(lambda x: b",%s\r\n" % repr(x).encode()),
    st.integers().map(lambda n: b"(%d\r\n" % n),
    st.sampled_from([b"$-1\r\n", b"*-1\r\n", b"_\r\n", b"#t\r\n", b"#f\r\n", b"+OK\r\n", b"$0\r\n\r\n"]),
)
_scalar = _hashable | _TEXT.map(lambda text: b"-ERR %s\r\n" % text)


def _aggregates(inner: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    items = st.lists(inner, max_size=5)
    return st.one_of(
        st.tuples(st.sampled_from(b"*~"), items).map(lambda it: b"%c%d\r\n" % (it[0], len(it[1])) + b"".join(it[1])),
        st.lists(st.tuples(_hashable, inner), max_size=4).map(
            lambda pairs: b"%%%d\r\n" % len(pairs) + b"".join(key + value for key, value in pairs)
        ),
    )


# What hiredis reads too.
plain_value = st.recursive(_scalar, _aggregates, max_leaves=20)
plain_frame = plain_value | st.lists(plain_value, max_size=4).map(lambda v: b">%d\r\n" % len(v) + b"".join(v))


def _extensions(inner: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    items = st.lists(inner, max_size=4)
    pairs = st.lists(st.tuples(inner, inner), max_size=3).map(lambda them: (len(them), b"".join(map(b"".join, them))))
    chunk = st.binary(min_size=1, max_size=20).map(lambda body: _bulk(b";", body))
    return st.one_of(
        _aggregates(inner),
        st.tuples(pairs, inner).map(lambda it: b"|%d\r\n" % it[0][0] + it[0][1] + it[1]),
        st.tuples(st.sampled_from(b"*~"), items).map(lambda it: b"%c?\r\n" % it[0] + b"".join(it[1]) + b".\r\n"),
        pairs.map(lambda them: b"%?\r\n" + them[1] + b".\r\n"),
        st.lists(chunk, max_size=3).map(lambda them: b"$?\r\n" + b"".join(them) + b";0\r\n"),
        st.binary(max_size=20).map(lambda body: _bulk(b"!", body)),
    )


# All of RESP3; streams nested at most a few levels deep.
any_value = st.recursive(_scalar, _extensions, max_leaves=12)


# ---- the oracle

_MORE = object()
_EXTENSIONS = re.compile(rb"[|!?]")
_BIG_COUNT = re.compile(rb"[*%~>]\d{6}")  # hiredis allocates what is announced
_BULK = re.compile(rb"[$=](\d+)\r\n")


def hiredis_reads(data: bytes) -> tuple[list[int], str]:
    """Where hiredis ends frames, and `""`, `more` or the error that ended the stream."""
    reader = hiredis.Reader(notEnoughData=_MORE)
    # hiredis-py 3.5 reads two bytes past a verbatim string: have it keep a buffer with room behind all data.
    reader.setmaxbuf(0)
    reader.feed(b"+" + bytes(2048 + len(data)) + b"\r\n")
    reader.gets()
    ends: list[int] = []
    for at in range(len(data)):
        try:
            reader.feed(data[at : at + 1])
            while reader.gets() is not _MORE:
                ends.append(at + 1)
        except hiredis.ProtocolError as error:
            return ends, str(error)
        except (TypeError, MemoryError) as error:  # hiredis-py cannot build the value
            return ends, type(error).__name__
    return ends, "more" if data and (not ends or ends[-1] < len(data)) else ""


def disagreement(data: bytes) -> str | None:
    """How the reply scanner and hiredis differ on a stream, None when they agree or the difference is a stated one.

    Stated differences: what hiredis does not know (attributes, blob errors, streams: streams with their bytes are not
    compared); the scanner checks the CRLF after a bulk, takes no bulk above 4 GiB, no NUL for a boolean, and gives up
    on a line as soon as it cannot become sound; it takes a leading '+' and any exponent in a double, any text in a big
    number, and any nesting.
    """
    if _EXTENSIONS.search(data) or _BIG_COUNT.search(data):
        return None
    reader = ReplyReader()
    frames, fault = drive(reader, [data])
    ends: list[int] = []
    for frame, _, _ in frames:
        ends.append((ends[-1] if ends else 0) + len(frame))
    theirs, end = hiredis_reads(data)
    if end in ("TypeError", "MemoryError"):
        return None if theirs == ends[: len(theirs)] else f"frames end at {ends}, with hiredis at {theirs}"
    refused = end not in ("", "more")
    if ends == theirs and (fault is not None) == refused:
        return None
    rest = data[reader.taken :]
    if fault is not None and ends == theirs[: len(ends)]:
        bulk = _BULK.match(rest)
        if bulk and rest[bulk.end() + int(bulk[1]) :][:2] != b"\r\n":
            return None
        if bulk and int(bulk[1]) > 1 << 32:
            return None
        if re.match(rb"#\0\r\n", rest):
            return None
        if end == "more" and hiredis_reads(data + b"\r\n")[1] not in ("", "more"):
            return None
    if refused and theirs == ends[: len(theirs)]:
        start = theirs[-1] if theirs else 0
        if end == "Max nesting depth exceeded":
            return None
        if "double" in end and re.search(rb",(\+|[^\r]*[eE])", data[start:]):
            return None
        if end == "Bad bignum value" and re.search(rb"\((?!-?\d+\r)[^\r]*", data[start:]):
            return None
    return f"frames end at {ends} ({fault!r}), with hiredis at {theirs} ({end!r})"
