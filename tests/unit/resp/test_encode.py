"""What the proxy says, checked to the byte and read back with hiredis."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.resp import encode
from proxy.resp.decode import decode
from proxy.resp.readers import CommandReader, ReplyReader


@pytest.mark.parametrize(
    ("made", "frame"),
    [
        (lambda: encode.encode_command("GET", b"k", 1), b"*3\r\n$3\r\nGET\r\n$1\r\nk\r\n$1\r\n1\r\n"),
        (lambda: encode.encode_command(), b"*0\r\n"),
        (lambda: encode.simple("OK"), b"+OK\r\n"),
        (lambda: encode.simple(b"a\r\nb"), b"+a  b\r\n"),
        (lambda: encode.error("ERR no"), b"-ERR no\r\n"),
        (lambda: encode.error(b"-ERR a\r\nb\n"), b"-ERR a  b \r\n"),
        (lambda: encode.integer(0), b":0\r\n"),
        (lambda: encode.integer(-7), b":-7\r\n"),
        (lambda: encode.integer(2**63 - 1), b":9223372036854775807\r\n"),
        (lambda: encode.integer(-(2**63)), b":-9223372036854775808\r\n"),
        (lambda: encode.bulk(b""), b"$0\r\n\r\n"),
        (lambda: encode.bulk("é"), b"$2\r\n\xc3\xa9\r\n"),
        (lambda: encode.bulk(12), b"$2\r\n12\r\n"),
        (lambda: encode.null(2), b"$-1\r\n"),
        (lambda: encode.null(3), b"_\r\n"),
        (lambda: encode.null_array(2), b"*-1\r\n"),
        (lambda: encode.null_array(3), b"_\r\n"),
        (lambda: encode.array([]), b"*0\r\n"),
        (lambda: encode.array(iter([b":1\r\n", b"_\r\n"])), b"*2\r\n:1\r\n_\r\n"),
        (lambda: encode.map_([(b"+a\r\n", b":1\r\n")], 2), b"*2\r\n+a\r\n:1\r\n"),
        (lambda: encode.map_(iter([(b"+a\r\n", b":1\r\n")]), 3), b"%1\r\n+a\r\n:1\r\n"),
        (lambda: encode.map_([], 3), b"%0\r\n"),
        (lambda: encode.set_([b":1\r\n"], 2), b"*1\r\n:1\r\n"),
        (lambda: encode.set_([b":1\r\n"], 3), b"~1\r\n:1\r\n"),
        (lambda: encode.push([b"+a\r\n"]), b">1\r\n+a\r\n"),
        (lambda: encode.boolean(True, 2), b":1\r\n"),
        (lambda: encode.boolean(False, 2), b":0\r\n"),
        (lambda: encode.boolean(True, 3), b"#t\r\n"),
        (lambda: encode.boolean(False, 3), b"#f\r\n"),
        (lambda: encode.double(1.0, 3), b",1\r\n"),
        (lambda: encode.double(-2.5, 2), b"$4\r\n-2.5\r\n"),
        (lambda: encode.double(math.inf, 3), b",inf\r\n"),
        (lambda: encode.double(-math.inf, 3), b",-inf\r\n"),
        (lambda: encode.double(math.nan, 3), b",nan\r\n"),
        (lambda: encode.verbatim("abc", "txt", 2), b"$3\r\nabc\r\n"),
        (lambda: encode.verbatim(b"abc", "txt", 3), b"=7\r\ntxt:abc\r\n"),
    ],
)
def test_frames(made: Callable[[], bytes], frame: bytes) -> None:
    assert made() == frame


@pytest.mark.parametrize("wrong", [None, 1.5, True, ["a"]])
def test_what_has_no_bytes_is_refused(wrong: object) -> None:
    with pytest.raises(TypeError):
        encode.encode_command("GET", wrong)  # type: ignore[arg-type]


def test_a_format_has_three_letters() -> None:
    with pytest.raises(ValueError, match="three letters"):
        encode.verbatim("a", "text", 3)


def test_numbers_beyond_int64_are_refused() -> None:
    with pytest.raises(OverflowError):
        encode.integer(2**63)


STEADY = settings(derandomize=True, deadline=None, max_examples=100)


@STEADY
@given(st.lists(st.binary(max_size=100), min_size=1, max_size=12))
def test_commands_read_back(words: list[bytes]) -> None:
    frame = encode.encode_command(*words)
    assert CommandReader().feed(frame) == [(frame, words)]


@STEADY
@given(st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False), st.binary(), st.text())
def test_values_read_back(n: int, x: float, b: bytes, text: str) -> None:
    assert decode(encode.integer(n)) == n
    assert decode(encode.double(x, 3)) == x
    assert float(decode(encode.double(x, 2))) == x
    assert decode(encode.bulk(b)) == b
    assert decode(encode.verbatim(b, "txt", 3)) == b
    for frame in (encode.simple(text), encode.error(text)):
        assert [found for found, _, _ in ReplyReader().feed(frame)] == [frame]
