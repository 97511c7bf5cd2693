"""Every type as its value, what hiredis cannot read included."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings

from proxy.resp.decode import Decoder, Push, ReplyError, decode
from proxy.resp.errors import ProtocolFault
from tests.support import resp


@pytest.mark.parametrize(
    ("frame", "value"),
    [
        (b"+OK\r\n", b"OK"),
        (b":-3\r\n", -3),
        (b"$3\r\na\r\n\r\n", b"a\r\n"),
        (b"$-1\r\n", None),
        (b"*-1\r\n", None),
        (b"_\r\n", None),
        (b"#f\r\n", False),
        (b"#t\r\n", True),
        (b",1.5\r\n", 1.5),
        (b",-inf\r\n", -math.inf),
        (b"(12345678901234567890\r\n", b"12345678901234567890"),
        (b"=7\r\ntxt:abc\r\n", b"abc"),
        (b"*3\r\n*1\r\n$-1\r\n*-1\r\n*0\r\n", [[None], None, []]),
        (b"~1\r\n+a\r\n", [b"a"]),
        (b"%1\r\n+a\r\n%1\r\n+b\r\n:1\r\n", {b"a": {b"b": 1}}),
        (b"%1\r\n*1\r\n:1\r\n+a\r\n", [([1], b"a")]),
        (b"|1\r\n+a\r\n+b\r\n+c\r\n", b"c"),
        (b"*2\r\n|1\r\n+a\r\n+b\r\n:1\r\n$2\r\n\r\n\r\n", [1, b"\r\n"]),
        (b"*1\r\n$3\r\n\r\n|\r\n", [b"\r\n|"]),
        (b"$?\r\n;2\r\nab\r\n;1\r\nc\r\n;0\r\n", b"abc"),
        (b"*?\r\n:1\r\n%?\r\n+a\r\n#t\r\n.\r\n~?\r\n.\r\n.\r\n", [1, {b"a": True}, []]),
        (
            b"*2\r\n(1\r\n*?\r\n,1.5\r\n_\r\n$1\r\na\r\n=5\r\ntxt:b\r\n$-1\r\n.\r\n",
            [b"1", [1.5, None, b"a", b"b", None]],
        ),
    ],
)
def test_values(frame: bytes, value: Any) -> None:
    found = decode(frame)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("frame", [b"-MOVED 1 a:1\r\n", b"!11\r\nMOVED 1 a:1\r\n"])
def test_errors_are_values(frame: bytes) -> None:
    for found in (decode(frame), decode(b"*1\r\n" + frame)[0]):
        assert isinstance(found, ReplyError)
        assert str(found) == "MOVED 1 a:1"
        assert found.code == "MOVED"


def test_an_error_that_is_no_utf8() -> None:
    assert str(decode(b"-ERR \xff\r\n")) == "ERR �"


@pytest.mark.parametrize("attribute", [b"", b"|1\r\n+a\r\n+b\r\n"])
def test_pushes(attribute: bytes) -> None:
    found = decode(attribute + b">2\r\n+a\r\n:1\r\n")
    assert isinstance(found, Push)
    assert found == [b"a", 1]


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"+a",
        b"*1\r\n",
        b"+a\r\n+b\r\n",
        b"x",
        b"|1\r\n+a\r\n",
        b"$?\r\n;1\r\n",
        b"$?\r\n:1\r\n",
        b"*?\r\n?\r\n.\r\n",
        b"!3\r\nabcd\r\n",
        b"*1\r\n" * 5000 + b":1\r\n",
    ],
)
def test_what_is_no_frame(frame: bytes) -> None:
    with pytest.raises(ProtocolFault):
        decode(frame)


def test_a_stream_of_replies() -> None:
    decoder = Decoder()
    assert decoder.feed(b"+a\r\n:1") == [b"a"]
    assert decoder.feed(b"\r\n$1\r\nx\r\n-ERR") == [1, b"x"]
    assert [str(value) for value in decoder.feed(b" y\r\n")] == ["ERR y"]
    with pytest.raises(ProtocolFault):
        decoder.feed(b"?")


@settings(derandomize=True, deadline=None, max_examples=150)
@given(resp.any_value)
def test_every_sound_frame_has_a_value(frame: bytes) -> None:
    decode(frame)
