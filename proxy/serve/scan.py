"""SCAN over the whole cluster: its grammar, and which slots it is about.

Why: a client sees one database. Called through serve.table; the pages are made by serve.scan_page.

Invariants:
- Every key that is there from the scan's first page to its last is returned at least once, whatever fails over or
  moves meanwhile and whichever proxy answers; 0 only at the end. See serve.scan_page for why.
- Errors come in Redis's order: the cursor, then the options from left to right. A word that only some servers know, and
  a type that none of those with a name of Redis's is, are for a server to word.
- A pattern whose keys can only be in one slot (Redis's patternHashSlot) has that slot scanned and no other.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from proxy.cluster.slot import slot_of
from proxy.cluster.topology import SLOTS
from proxy.forward.ask import Ask
from proxy.resp import encode, errors
from proxy.serve import scan_cursor
from proxy.serve.context import Answer, ClientLike, Commands, ServeContext
from proxy.serve.scan_page import Page, Wanted
from proxy.serve.words import integer

_TYPES: Final = frozenset({b"string", b"list", b"set", b"zset", b"hash", b"stream"})
_SPECIAL: Final = re.compile(rb"[*?\[\\]")
_PATTERN_MAX: Final = 1 << 16  # each page compiles it anew, and a key that long is rare


class _Options(NamedTuple):
    """fault: the error at the first option that is wrong, b"" = none. word: the options from one that is not known
    here, to ask a server about, or none."""

    wanted: Wanted
    fault: bytes
    word: tuple[bytes, ...]


def scan(ctx: ServeContext, client: ClientLike, args: list[bytes]) -> Answer:
    """SCAN cursor [MATCH pattern] [COUNT count] [TYPE type]."""
    at = scan_cursor.decode(args[1])
    if at is None:
        return errors.INVALID_CURSOR
    options = _options(args[2:])

    def begin() -> Ask | bytes:
        return options.fault or Page(ctx, client.db, options.wanted, at).begin()

    if not options.word:
        return begin()

    def judged(replies: list[bytes]) -> Ask | bytes:
        return replies[0] if replies[0][:1] == b"-" else begin()

    return Ask([("any", encode.encode_command("SCAN", 0, *options.word), 0)], finish=judged, read=True, errors=True)


def _options(args: list[bytes]) -> _Options:
    count, pattern, kind = 10, b"*", b""
    fault = b""
    word: tuple[bytes, ...] = ()
    at = 0
    while at < len(args) and not fault:
        name, more = args[at].lower(), at + 1 < len(args)
        if name == b"count" and more:
            number = integer(args[at + 1])
            if number is None:
                fault = errors.NOT_AN_INTEGER
            elif number < 1:
                fault = errors.SYNTAX
            else:
                count = number
        elif name == b"match" and more:
            pattern = args[at + 1]
            fault = errors.PATTERN_TOO_LONG if len(pattern) > _PATTERN_MAX else b""
        elif name == b"type" and more:
            kind = args[at + 1].lower()
            if kind not in _TYPES and not word:
                word = (b"COUNT", b"1", b"TYPE", args[at + 1])
        else:
            fault = errors.SYNTAX
            word = word or (b"COUNT", b"1", *args[at : at + 1])
        at += 2
    low, high = 0, SLOTS - 1
    if (slot := only_slot(pattern)) is not None:
        low = high = slot
    return _Options(Wanted(count, b"" if pattern == b"*" else pattern, kind, low, high), fault, word)


def only_slot(pattern: bytes) -> int | None:
    """The slot of every key that matches, when the pattern's beginning says so; else None."""
    special = _SPECIAL.search(pattern)
    if special is None:
        return slot_of(pattern)  # one key
    head = pattern[: special.start()]
    start = head.find(b"{")
    end = head.find(b"}", start + 1) if start >= 0 else -1
    return slot_of(head[: end + 1]) if end > start + 1 else None


COMMANDS: Commands = {b"scan": (-2, scan)}
