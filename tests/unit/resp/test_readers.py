"""The scanner for Python, inline words as sdssplitargs parts them, fault texts."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.resp.errors import ProtocolFault
from proxy.resp.readers import CommandReader, ReplyReader, fault_text, split_array, split_frames, split_inline
from tests.support.cluster import Standalone, servers
from tests.support.raw import bulk


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"", []),
        (b" \t\v\f ", []),
        (b"PING", [b"PING"]),
        (b"  SET  a\tb ", [b"SET", b"a", b"b"]),
        (b'ECHO "a b"', [b"ECHO", b"a b"]),
        (b'ECHO ""', [b"ECHO", b""]),
        (b"ECHO ''", [b"ECHO", b""]),
        (rb'ECHO "\x41\x0a\xfF\n\r\t\b\a\"\\\q"', [b"ECHO", b'A\n\xff\n\r\t\x08\x07"\\q']),
        (rb'ECHO "\x4"', [b"ECHO", b"x4"]),
        (rb'ECHO "\xzz"', [b"ECHO", b"xzz"]),
        (rb"ECHO 'a\'b\n\x41'", [b"ECHO", rb"a'b\n\x41"]),
        (rb"ECHO \x41\n", [b"ECHO", rb"\x41\n"]),
        (b'ECHO a"b c"', [b"ECHO", b"ab c"]),
        (b"ECHO a\vb", [b"ECHO", b"a\vb"]),
        (b"ECHO 'a'\vb", [b"ECHO", b"a", b"b"]),
        (b"a\rb\nc", [b"a", b"b", b"c"]),
        (b"ECHO a\0b", [b"ECHO", b"a"]),
        (b'ECHO "a', None),
        (b"ECHO 'a", None),
        (b'ECHO "a"b', None),
        (b"ECHO 'a'b", None),
        (b"ECHO 'a''b'", None),
        (b'ECHO "a\\', None),
        (b"ECHO 'a\0'", None),
    ],
)
def test_inline_words(line: bytes, words: list[bytes] | None) -> None:
    assert split_inline(line) == words


WORD = st.lists(st.sampled_from([b"a", b" ", b'"', b"'", b"\\", b"x41", b"n", b"\t", b"\xff"]), max_size=8)


@pytest.fixture(scope="module")
def redis_server() -> Iterator[Standalone]:
    """Redis itself: Valkey 9 goes on after a closing quote and parts words at other bytes."""
    if "redis" not in servers():
        pytest.skip("redis-server is not on PATH")
    with Standalone(servers()["redis"]) as started:
        yield started


@settings(derandomize=True, deadline=None, max_examples=200)
@given(WORD)
def test_inline_words_are_the_servers(redis_server: Standalone, pieces: list[bytes]) -> None:
    words = split_inline(b"ECHO " + b"".join(pieces))
    with redis_server.raw() as client:
        client.send(b"ECHO " + b"".join(pieces) + b"\r\n")
        if words is None:
            assert client.rest() == fault_text(9)
        elif len(words) == 2:
            assert client.frame() == bulk(words[1])
        else:
            assert client.frame() == b"-ERR wrong number of arguments for 'echo' command\r\n"


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (1, b"invalid multibulk length"),
        (2, b"invalid bulk length"),
        (4, b"too big inline request"),
        (5, b"too big mbulk count string"),
        (6, b"too big bulk count string"),
        (7, b"unauthenticated multibulk length"),
        (8, b"unauthenticated bulk length"),
        (9, b"unbalanced quotes in request"),
        (11, b"invalid CRLF in request"),
    ],
)
def test_fault_texts(code: int, text: bytes) -> None:
    assert fault_text(code) == b"-ERR Protocol error: " + text + b"\r\n"


@pytest.mark.parametrize(
    ("got", "shown"), [(ord("x"), b"x"), (10, b" "), (13, b" "), (0, b"\0"), (0xFF, b"\xff"), (-1, b"\xff"), (37, b"%")]
)
def test_what_stood_instead_of_the_dollar_is_shown_raw(got: int, shown: bytes) -> None:
    assert fault_text(3, got) == b"-ERR Protocol error: expected '$', got '%s'\r\n" % shown


def test_no_memory_is_an_error_too() -> None:
    assert fault_text(10).startswith(b"-OOM ")


@pytest.mark.parametrize(("make", "bad"), [(CommandReader, b"*x\r\n"), (ReplyReader, b"x")])
def test_a_reader_stays_broken(make: type[CommandReader] | type[ReplyReader], bad: bytes) -> None:
    reader = make()
    for data in (bad, b"", b"+OK\r\n"):
        with pytest.raises(ProtocolFault) as caught:
            reader.feed(data)
        assert caught.value.line.startswith(b"-ERR Protocol error: ")
        assert str(caught.value) == caught.value.line[1:-2].decode()


def test_authentication_may_change_between_frames() -> None:
    reader = CommandReader(authenticated=False)
    reader.feed(b"PING\r\n")
    reader.authenticated = True
    assert reader.feed(b"*11\r\n") == []


@pytest.mark.parametrize("data", [bytearray(b"PING\n"), memoryview(b"PING\n")])
def test_any_contiguous_buffer_may_be_fed(data: bytearray | memoryview) -> None:
    assert CommandReader().feed(data) == [(b"PING\n", [b"PING"])]


@pytest.mark.parametrize("reader", [CommandReader(), ReplyReader()])
def test_nothing_else_may_be_fed(reader: CommandReader | ReplyReader) -> None:
    for wrong in (None, "PING\n", 1):
        with pytest.raises(TypeError):
            reader.feed(wrong)  # type: ignore[arg-type]


def test_frames_one_after_the_other() -> None:
    frames = [
        b":1\r\n",
        bulk(b"a\r\n$3\r\n"),
        b"*2\r\n_\r\n%1\r\n+a\r\n#t\r\n",
        b"-ERR x\r\n",
        b"*0\r\n",
        b"|1\r\n+a\r\n:1\r\n:2\r\n",
    ]
    assert split_frames(b"".join(frames)) == frames
    assert split_frames(memoryview(b"*1\r\n:5\r\n")[4:]) == [b":5\r\n"]
    assert split_frames(b"") == []


@pytest.mark.parametrize("body", [b":1\r\n:2", b":1\r\n$3\r\nab", b"x\r\n", b":1\r\n\r\n", b"*1\r\n"])
def test_what_is_no_frame(body: bytes) -> None:
    with pytest.raises(ProtocolFault):
        split_frames(body)


def test_where_the_elements_of_an_array_begin() -> None:
    elements = [b":1\r\n", b"*2\r\n+a\r\n$1\r\nb\r\n", b"$4\r\n\r\n:1\r\n", b"|1\r\n+a\r\n:1\r\n:2\r\n", b"_\r\n"]
    frame = b"*5\r\n" + b"".join(elements)
    starts = [4 + len(b"".join(elements[:n])) for n in range(6)]
    assert split_array(frame, list(range(6))) == starts
    assert split_array(frame, [0, 0, 3, 3, 5, 9]) == [starts[n] for n in (0, 0, 3, 3, 5, 5)]
    assert split_array(frame, []) == []
    assert split_array(b"*0\r\n", [0, 1]) == [4, 4]


@pytest.mark.parametrize(
    "frame", [b"", b"*", b"*1", b":1\r\n", b"*1\r\n:", b"*2\r\n:1\r\n$5\r\nab", b"*1\r\n?\r\n", b"*?\r\n.\r\n"]
)
def test_what_is_no_whole_array(frame: bytes) -> None:
    with pytest.raises(ValueError, match="array"):
        split_array(frame, [9])
