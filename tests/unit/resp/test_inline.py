"""Inline commands: the words of sdssplitargs, the frame made of them, and the memory it takes."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.resp.inline import InlineSplitter
from proxy.resp.readers import CommandReader, split_inline
from tests.support.raw import encode

SPACES = b" \t\n\v\f\r"
HEX = b"0123456789abcdefABCDEF"
ESCAPES = {b"n"[0]: b"\n", b"r"[0]: b"\r", b"t"[0]: b"\t", b"b"[0]: b"\b", b"a"[0]: b"\a"}
KEEP = 65536


def sdssplitargs(line: bytes) -> list[bytes] | None:
    """sdssplitargs of Redis's sds.c, statement by statement; a line read beyond its end is a NUL, as in an sds."""
    text = line.partition(b"\0")[0] + b"\0\0\0\0"
    words: list[bytes] = []
    i = 0
    while True:
        while text[i] in SPACES:
            i += 1
        if text[i] == 0:
            return words
        word = bytearray()
        double = single = done = False
        while not done:
            c = text[i]
            if double:
                if text[i : i + 2] == b"\\x" and text[i + 2] in HEX and text[i + 3] in HEX:
                    word.append(int(text[i + 2 : i + 4], 16))
                    i += 3
                elif c == b"\\"[0] and text[i + 1]:
                    i += 1
                    word += ESCAPES.get(text[i], text[i : i + 1])
                elif c == b'"'[0]:
                    if text[i + 1] and text[i + 1] not in SPACES:
                        return None
                    done = True
                elif c == 0:
                    return None
                else:
                    word.append(c)
            elif single:
                if text[i : i + 2] == b"\\'":
                    i += 1
                    word += b"'"
                elif c == b"'"[0]:
                    if text[i + 1] and text[i + 1] not in SPACES:
                        return None
                    done = True
                elif c == 0:
                    return None
                else:
                    word.append(c)
            elif c in b" \n\r\t\0":
                done = True
            elif c == b'"'[0]:
                double = True
            elif c == b"'"[0]:
                single = True
            else:
                word.append(c)
            if text[i]:
                i += 1
        words.append(bytes(word))


def check(line: bytes, splitter: InlineSplitter) -> None:
    words = sdssplitargs(line)
    made = splitter.split(line)
    assert split_inline(line) == words
    if words is None:
        assert made is None
    else:
        assert made == (encode(*words) if words else b"", words)
    if words:
        assert CommandReader().feed(encode(*words)) == [(encode(*words), words)]


@pytest.fixture(scope="module")
def splitter() -> InlineSplitter:
    """One for all lines, as in a worker: nothing of a line may be left in the next."""
    return InlineSplitter()


PIECES = [
    b"a", b"PING", b" ", b"  ", b"\t", b"\n", b"\r", b"\v", b"\f", b'"', b"'", b"\\", b"\\n", b"\\x", b"\\x4", b"\\x41",
    b"\\xfF", b"\\xzz", b"\\x4g", b"\\'", b'\\"', b"\\\\", b"x", b"41", b"\0", b"\xff", b"\x80", b"\x7f", b"\x1f",
]  # fmt: skip
LINES = st.lists(st.sampled_from(PIECES), max_size=12).map(b"".join)


@given(LINES | st.binary(max_size=40))
@example(b"")
@example(b"\0")
@example(b'"\0"')
@example(b"'\\")
@example(b'"\\x4\0"')
def test_the_words_are_those_of_sdssplitargs(splitter: InlineSplitter, line: bytes) -> None:
    check(line, splitter)


@pytest.mark.parametrize(
    "line",
    [
        rb'SET "k\x41\x4z\xg1\n\"\\" ' + rb"'it\'s \x41' v",
        b"a'b c'\t\"d\"\v'e'\ff\vg  \xff\xfe \r\n",
        b'"" \'\' a"" b\'\' "c"\0"d',
        b'"a"b',
        b"'a''b'",
    ],
)
def test_every_cut_of_a_line(splitter: InlineSplitter, line: bytes) -> None:
    for start in range(len(line)):
        for end in range(start, len(line) + 1):
            check(line[start:end], splitter)


@pytest.mark.parametrize("quote", [b"", b'"', b"'"])
def test_every_byte_and_every_escape(splitter: InlineSplitter, quote: bytes) -> None:
    for byte in range(256):
        one = bytes((byte,))
        for line in (one, b"a" + one + b"b", b"\\" + one, b"\\x" + one + b"4", b"\\x4" + one):
            check(quote + line + quote, splitter)
            check(quote + line, splitter)


@pytest.mark.parametrize("quote", [b'"', b"'"])
def test_what_follows_a_line_is_not_read(splitter: InlineSplitter, quote: bytes) -> None:
    for inside in (b"", b"a", b"\\", b"\\x", b"\\x4", b"\\x41", b"a" + quote, b"a" + quote + b" "):
        line = quote + inside
        for after in (b"", b"1", b"41", quote, quote + b" ", b" ", b"\0", b"z"):
            whole = memoryview(line + after)
            assert splitter.split(whole[: len(line)]) == InlineSplitter().split(line), (line, after)


@pytest.mark.parametrize("size", [1, 9, 10, 99, 100, 999, 1000, 9999, 10000, 65535, 65536])
def test_sizes_around_every_header(splitter: InlineSplitter, size: int) -> None:
    for line in (b"a" * size, b"a " * (size // 2), b'"' + b"\\x41" * (size // 4) + b'"', b" " * size, b"'" * size):
        check(line, splitter)
    check(b" ".join(b"%d" % n for n in range(size // 5)), splitter)


def test_memory_grows_with_the_line_and_is_given_back() -> None:
    splitter = InlineSplitter()
    assert splitter.held == 0
    splitter.split(b"PING")
    small = splitter.held
    assert small <= 1024
    splitter.split(b"SET k v")
    splitter.trim()
    assert splitter.held == small
    splitter.split(b"a" * KEEP)
    assert KEEP < splitter.held < KEEP + 2048
    splitter.trim()
    assert splitter.held == 0
    splitter.split(b"a " * (KEEP // 2))
    assert splitter.held < 20 * KEEP
    splitter.trim()
    assert splitter.held == 0
    check(b"PING", splitter)


def test_a_line_that_is_no_command_leaves_none_behind() -> None:
    splitter = InlineSplitter()
    splitter.split(b"SET k v")
    assert splitter.split(b" ") == (b"", [])
    assert splitter.split(b"GET 'k") is None
    assert splitter.split(b"\0GET k") == (b"", [])
