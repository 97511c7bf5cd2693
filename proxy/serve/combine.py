"""One reply made of the replies of several nodes: the ways that COMMAND's tip `response_policy` names.

Why: apart from who is asked and how (serve.all_shards), this is a matter of bytes alone. What is made for one certain
report (SLOWLOG GET, MEMORY STATS ...) is in serve.reports.

A Combine takes the replies and, in the same order, the nodes they came from ("host:port", "" when it was not a certain
one), errors among them included, and returns the one reply in the form of the first. Invariants: what one node fails to
say is an error that names the node, never a smaller answer; an error that all nodes give alike is passed on letter for
letter. Unexpected is raised for a reply of a form that its command does not have, TooLong for one that cannot be taken
apart; nothing else is.

Source: https://redis.io/docs/latest/develop/reference/command-tips/
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from proxy.resp import encode, errors
from proxy.resp.readers import split_frames

Combine = Callable[[list[bytes], list[str]], bytes]
Whole = Callable[[list[bytes]], bytes]  # the same without errors among the replies

_ERRORS: Final = (b"-", b"!")
_NULLS: Final = (b"_\r\n", b"$-1\r\n", b"*-1\r\n")
_TRUE: Final = {b":1\r\n": True, b":0\r\n": False, b"#t\r\n": True, b"#f\r\n": False}


# Bytes of replies that are taken apart, element by element: more would hold up everybody (some 0.3 us an element).
READ_MOST: Final = 8 << 20


class Unexpected(Exception):
    """A node's reply is not of the form that its command has."""


class TooLong(Exception):
    """The replies have more elements than can be looked at while others wait."""


# -- frames ------------------------------------------------------------------------------------------------------------


def is_error(reply: bytes) -> bool:
    """Whether it is an error, in either of RESP3's forms."""
    return reply.startswith(_ERRORS)


def size(reply: bytes) -> tuple[int, int]:
    """(elements, offset of the first) of an array, set or map (whose elements are its pairs)."""
    end = reply.find(b"\r\n")
    if not reply.startswith((b"*", b"~", b"%")) or not reply[1:end].isdigit():
        raise Unexpected
    return int(reply[1:end]), end + 2


def elements(reply: bytes) -> list[bytes]:
    """The frames in an array, set or map (keys and values in turn)."""
    _, start = size(reply)
    if len(reply) > READ_MOST:
        raise TooLong
    return split_frames(memoryview(reply)[start:])


def pairs(reply: bytes) -> list[tuple[bytes, bytes]]:
    """(key, value) frames of a map, or of the flat array that stands for one in RESP2."""
    flat = elements(reply)
    if len(flat) % 2:
        raise Unexpected
    return list(zip(flat[::2], flat[1::2], strict=True))


def aggregate(like: bytes, frames: Iterable[bytes]) -> bytes:
    """An array, set or map, whichever `like` is, of these frames (a map: keys and values in turn)."""
    items = list(frames)
    if like[:1] == b"%" and len(items) % 2:
        raise Unexpected
    return b"%b%d\r\n" % (like[:1], len(items) // (2 if like[:1] == b"%" else 1)) + b"".join(items)


def number(reply: bytes) -> int:
    """The value of an integer."""
    if not reply.startswith(b":"):
        raise Unexpected
    return int(reply[1:])


def integer(value: int) -> bytes:
    """An integer's frame; a sum that is more than one holds becomes the most it holds."""
    return encode.integer(max(-(2**63), min(value, 2**63 - 1)))


def text(reply: bytes) -> bytes:
    """The bytes of a simple, bulk or verbatim string, or of an error."""
    kind, end = reply[:1], reply.find(b"\r\n")
    if kind in (b"+", b"-"):
        return reply[1:end]
    if kind not in (b"$", b"=", b"!") or not reply[1:end].isdigit():
        raise Unexpected
    body = reply[end + 2 : -2]
    return body[4:] if kind == b"=" else body


# -- errors ------------------------------------------------------------------------------------------------------------


def failure(replies: list[bytes], labels: list[str]) -> bytes | None:
    """The error that the whole answer is; None when no node has failed."""
    for reply, label in zip(replies, labels, strict=True):
        if is_error(reply):
            return reply if replies.count(reply) == len(replies) else named(reply, label)
    return None


def named(error: bytes, label: str) -> bytes:
    """The error with the node that gave it; its code word stays in front."""
    return errors.line(text(error) + b" (node " + label.encode() + b")") if label else error


def whole(combine: Whole, *, read: bool = True) -> Combine:
    """Of all the replies, or the error of a node that failed. read: they are taken apart."""

    def combined(replies: list[bytes], labels: list[str]) -> bytes:
        if read and sum(map(len, replies)) > READ_MOST:
            raise TooLong
        return failure(replies, labels) or combine(replies)

    return combined


# -- by tip ------------------------------------------------------------------------------------------------------------


def one_succeeded(replies: list[bytes], labels: list[str]) -> bytes:
    """The first reply that is no error. Without one: an error that says more than NOTBUSY, which the other nodes say
    when one has a script that cannot be killed (UNKILLABLE)."""
    for reply in replies:
        if not is_error(reply):
            return reply
    if replies.count(replies[0]) == len(replies):
        return replies[0]
    telling = [(reply, label) for reply, label in zip(replies, labels, strict=True) if b"NOTBUSY" not in reply[:16]]
    return named(*telling[0]) if telling else replies[0]


def _first(replies: list[bytes]) -> bytes:
    return replies[0]


def _numbers(choose: Callable[[list[int]], int]) -> Whole:
    """Of integers, or of arrays of them place by place."""

    def combined(replies: list[bytes]) -> bytes:
        if replies[0].startswith((b"*", b"~")):
            return aggregate(replies[0], map(combined, _by_place(replies)))
        return integer(choose([number(reply) for reply in replies]))

    return combined


def _truths(choose: Callable[[list[bool]], bool]) -> Whole:
    """Of 0 and 1 or RESP3's booleans, or of arrays of them place by place (SCRIPT EXISTS)."""

    def combined(replies: list[bytes]) -> bytes:
        if replies[0].startswith((b"*", b"~")):
            return aggregate(replies[0], map(combined, _by_place(replies)))
        if any(reply not in _TRUE for reply in replies):
            raise Unexpected
        made = choose([_TRUE[reply] for reply in replies])
        return encode.boolean(made, 3) if replies[0].startswith(b"#") else encode.integer(made)

    return combined


def _by_place(replies: list[bytes]) -> list[list[bytes]]:
    columns = [elements(reply) for reply in replies]
    if len({len(column) for column in columns}) != 1:
        raise Unexpected
    return [list(place) for place in zip(*columns, strict=True)]


def _concatenated(replies: list[bytes]) -> bytes:
    """All elements, as bytes: KEYS of a large database has millions."""
    parts: list[bytes | memoryview] = [b""]
    total = 0
    for reply in replies:
        count, start = size(reply)
        if reply[:1] != replies[0][:1]:
            raise Unexpected
        total += count
        parts.append(memoryview(reply)[start:])
    parts[0] = b"%b%d\r\n" % (replies[0][:1], total)
    return b"".join(parts)


def _union(replies: list[bytes]) -> bytes:
    """The elements without repetition, in the order in which they came."""
    return aggregate(replies[0], dict.fromkeys(frame for reply in replies for frame in elements(reply)))


def _packed(replies: list[bytes]) -> bytes:
    """Without a tip (and for `special`, unless it is known better): arrays become one, sets and maps are merged.

    Of anything else, one when all say the same, else an array of the replies.
    """
    told = [reply for reply in replies if reply not in _NULLS]
    if not told or told.count(told[0]) == len(replies):
        return replies[0]
    kinds = {reply[:1] for reply in told}
    if kinds == {b"*"}:
        return _concatenated(told)
    if kinds <= {b"~", b"%"} and sum(map(len, told)) > READ_MOST:
        raise TooLong
    if kinds == {b"~"}:
        return _union(told)
    if kinds == {b"%"}:
        merged = {key: value for reply in told for key, value in pairs(reply)}
        return aggregate(b"%", (frame for pair in merged.items() for frame in pair))
    return encode.array(replies)


all_succeeded: Final = whole(_first, read=False)
total: Final = whole(_numbers(sum))
least: Final = whole(_numbers(min))
most: Final = whole(_numbers(max))
logical_and: Final = whole(_truths(all))
logical_or: Final = whole(_truths(any))
concatenated: Final = whole(_concatenated, read=False)
union: Final = whole(_union)
packed: Final = whole(_packed, read=False)

BY_TIP: Final[dict[str, Combine]] = {
    "one_succeeded": one_succeeded,
    "all_succeeded": all_succeeded,
    "agg_sum": total,
    "agg_min": least,
    "agg_max": most,
    "agg_logical_and": logical_and,
    "agg_logical_or": logical_or,
}
