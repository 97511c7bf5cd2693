"""Commands and replies whole, byte by byte and cut everywhere; hiredis and real servers as oracles."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.resp.readers import CommandReader, ReplyReader
from tests.support import resp
from tests.support.cluster import Standalone, servers
from tests.support.raw import RawClient
from tests.support.resp import encode_command, outcome

STEADY = settings(derandomize=True, deadline=None, max_examples=150)
ALL_BYTES = bytes(range(256))


def protocol_error(text: str) -> bytes:
    return b"-ERR Protocol error: %s\r\n" % text.encode()


MULTIBULK_LENGTH = protocol_error("invalid multibulk length")
BULK_LENGTH = protocol_error("invalid bulk length")
CRLF = protocol_error("invalid CRLF in request")
BIG_INLINE = protocol_error("too big inline request")
BIG_COUNT = protocol_error("too big mbulk count string")
BIG_BULK_COUNT = protocol_error("too big bulk count string")
MALFORMED = protocol_error("malformed reply")


# ---- commands


@pytest.mark.parametrize(
    "words",
    [
        [b"PING"],
        [b"GET", b"key:000000000001"],
        [b"SET", b"", b""],
        [b"SET", b"k", ALL_BYTES],
        [b"ECHO", b"*1\r\n$4\r\nPING\r\n"],
        [b"E" * 9, b"E" * 10, b"E" * 99, b"E" * 100],
        [b"MGET", *(b"%d" % n for n in range(40))],
    ],
    ids=lambda words: words[0][:9].decode(),
)
def test_a_command_is_its_bytes_and_its_arguments(words: list[bytes]) -> None:
    frame = encode_command(words)
    assert outcome(CommandReader, frame) == ([(frame, words)], None)


def test_a_pipeline_of_both_kinds() -> None:
    stream = b'*1\r\n$4\r\nPING\r\nSET a "b c"\r\n*0\r\n*-1\r\n\r\nGET a\n*2\r\n$3\r\nGET\r\n$0\r\n\r\n'
    frames, fault = outcome(CommandReader, stream)
    assert fault is None
    assert b"".join(frame for frame, _ in frames) == stream
    assert [words for _, words in frames] == [
        [b"PING"],
        [b"SET", b"a", b"b c"],
        [],
        [],
        [],
        [b"GET", b"a"],
        [b"GET", b""],
    ]


def test_a_half_command_is_no_frame() -> None:
    assert outcome(CommandReader, b"*2\r\n$3\r\nGET\r\n$3\r\nke") == ([], None)
    assert outcome(CommandReader, b"PING") == ([], None)


@pytest.mark.parametrize(
    ("stream", "error"),
    [
        (b"*x\r\n", MULTIBULK_LENGTH),
        (b"*\r\n", MULTIBULK_LENGTH),
        (b"*01\r\n", MULTIBULK_LENGTH),
        (b"*-0\r\n", MULTIBULK_LENGTH),
        (b"*+1\r\n", MULTIBULK_LENGTH),
        (b"* 1\r\n", MULTIBULK_LENGTH),
        (b"*1 \r\n", MULTIBULK_LENGTH),
        (b"*2147483648\r\n", MULTIBULK_LENGTH),
        (b"*99999999999999999999999\r\n", MULTIBULK_LENGTH),
        (b"*1\r\n$x\r\n", BULK_LENGTH),
        (b"*1\r\n$\r\n", BULK_LENGTH),
        (b"*1\r\n$-1\r\n", BULK_LENGTH),
        (b"*1\r\n$01\r\na\r\n", BULK_LENGTH),
        (b"*1\r\n$+1\r\na\r\n", BULK_LENGTH),
        (b"*1\r\n$536870913\r\n", BULK_LENGTH),
        (b"*1\r\n$99999999999999999999999\r\n", BULK_LENGTH),
        (b"*1\r\n:1\r\n", protocol_error("expected '$', got ':'")),
        (b"*1\r\n4\r\nPING\r\n", protocol_error("expected '$', got '4'")),
        (b"*1\r\n\r\n", protocol_error("expected '$', got ' '")),
        (b"*2\r\n$3\r\nGET\r\nfoo\r\n", protocol_error("expected '$', got 'f'")),
        (b"*1" + b"1" * 65535, BIG_COUNT),
        (b"*1\r\n$" + b"1" * 65536, BIG_BULK_COUNT),
        (b"A" * 65537, BIG_INLINE),
        (b"SET a 'b\r\n", protocol_error("unbalanced quotes in request")),
    ],
    ids=lambda value: repr(value[:24]) if value[:1] != b"-" else "",
)
@pytest.mark.parametrize("kind", ["valkey", "redis"])
def test_malformed_commands_get_the_servers_words(
    stream: bytes, error: bytes, kind: str, standalones: Callable[[str], Standalone]
) -> None:
    assert outcome(CommandReader, stream) == ([], error)
    with standalones(kind).raw() as client:
        client.send(stream)
        assert client.rest() == error


@pytest.fixture(scope="module")
def standalones(request: pytest.FixtureRequest) -> Callable[[str], Standalone]:
    """One server of each kind, started when first asked for; skips what is not installed."""
    started: dict[str, Standalone] = {}

    def give(kind: str) -> Standalone:
        if kind not in servers():
            pytest.skip("redis-server is not on PATH")
        if kind not in started:
            started[kind] = resp.ServerWith(servers()[kind], "--enable-debug-command", "yes")
            started[kind].__enter__()
            request.addfinalizer(lambda: started[kind].__exit__(None, None, None))
        return started[kind]

    return give


@pytest.mark.parametrize(
    "stream",
    [b"*2\r\n$3\r\nGETxx$1\r\na\r\n", b"*1\rX$4\r\nPING\r\n", b"*1\r\n$4\rXPING\r\n", b"*1\r\n$4\r\nPING\rX"],
)
def test_line_ends_are_checked_as_valkey_does(stream: bytes, standalones: Callable[[str], Standalone]) -> None:
    assert outcome(CommandReader, stream) == ([], CRLF)
    with standalones("valkey").raw() as client:
        client.send(stream)
        assert client.rest() == CRLF


def test_frames_before_a_fault_are_delivered() -> None:
    good = encode_command([b"GET", b"a"])
    assert outcome(CommandReader, good * 2 + b"*1\r\n:") == ([(good, [b"GET", b"a"])] * 2, None)
    assert outcome(CommandReader, good * 2 + b"*1\r\n:1\r\n")[1] == protocol_error("expected '$', got ':'")
    assert outcome(CommandReader, good * 2 + b"*1\r\n:1\r\n")[0] == [(good, [b"GET", b"a"])] * 2


def test_the_longest_lines() -> None:
    inline = b"A" * 65536 + b"\n"
    assert outcome(CommandReader, inline)[0] == [(inline, [b"A" * 65536])]
    assert outcome(CommandReader, b"*" + b"1" * 65534) == ([], None)
    assert outcome(CommandReader, b"*" + b"1" * 65535 + b"\r\n") == ([], MULTIBULK_LENGTH)
    assert outcome(CommandReader, b"A" * 65536) == ([], None)


def test_limits_are_settings() -> None:
    def make() -> CommandReader:
        return CommandReader(max_bulk=4, max_args=3, max_inline=8)

    good = encode_command([b"abcd"] * 3)
    assert outcome(make, good) == ([(good, [b"abcd"] * 3)], None)
    assert outcome(make, encode_command([b"abcde"])) == ([], BULK_LENGTH)
    assert outcome(make, encode_command([b"a"] * 4)) == ([], MULTIBULK_LENGTH)
    assert outcome(make, b"12345678\n")[1] is None
    assert outcome(make, b"123456789\n")[1] == BIG_INLINE
    assert outcome(make, b"*123456789")[1] == BIG_COUNT


def test_limits_before_authentication() -> None:
    def make() -> CommandReader:
        return CommandReader(authenticated=False)

    ten = encode_command([b"a"] * 9 + [b"b" * 16384])
    assert outcome(make, ten)[1] is None
    assert outcome(make, b"*11\r\n") == ([], protocol_error("unauthenticated multibulk length"))
    assert outcome(make, b"*1\r\n$16385\r\n") == ([], protocol_error("unauthenticated bulk length"))
    assert outcome(make, b"*9999999\r\n") == ([], MULTIBULK_LENGTH)
    assert outcome(make, b"*1\r\n$536870913\r\n") == ([], BULK_LENGTH)


def test_a_million_arguments() -> None:
    count = 1 << 20
    frame = b"*%d\r\n" % count + b"$1\r\nx\r\n" * count
    (found,) = CommandReader().feed(frame)
    assert found[0] == frame
    assert len(found[1]) == count
    assert outcome(CommandReader, b"*%d\r\n" % (count + 1)) == ([], MULTIBULK_LENGTH)


def test_announcing_arguments_takes_no_memory() -> None:
    def virtual_pages() -> int:
        with open("/proc/self/statm", encoding="ascii") as statm:
            return int(statm.read().split()[0])

    before = virtual_pages()
    readers = [CommandReader() for _ in range(1000)]
    for reader in readers:
        reader.feed(b"*1048576\r\n$536870912\r\n")
    assert (virtual_pages() - before) * 4096 < 64 << 20


@STEADY
@given(st.lists(resp.commands, min_size=1, max_size=4), st.data())
def test_any_commands_under_any_cuts(batch: list[list[bytes]], data: st.DataObject) -> None:
    stream = b"".join(map(encode_command, batch))
    points = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    chunks = [stream[a:b] for a, b in zip([0, *points], [*points, len(stream)], strict=True)]
    assert resp.drive(CommandReader(), chunks) == ([(encode_command(words), words) for words in batch], None)


@STEADY
@given(st.lists(st.sampled_from([b"*", b"$", b"1", b"2", b"-", b"\r", b"\n", b"\r\n", b"a", b'"', b" "]), max_size=30))
def test_the_outcome_of_noise_does_not_depend_on_cuts(pieces: list[bytes]) -> None:
    outcome(CommandReader, b"*2\r\n$1\r\na\r\n" + b"".join(pieces))


# ---- replies

REPLIES = [
    (b"+OK\r\n", "+"),
    (b"+\r\n", "+"),
    (b"+PONG\r\n", "+"),
    (b"-ERR no\r\n", "-"),
    (b"-MOVED 1 a:1\r\n", "-"),
    (b":0\r\n", ":"),
    (b":-1\r\n", ":"),
    (b":9223372036854775807\r\n", ":"),
    (b":-9223372036854775808\r\n", ":"),
    (b"$0\r\n\r\n", "$"),
    (b"$-1\r\n", "$"),
    (b"$6\r\n*1\r\n+a\r\n", "$"),
    (b"$256\r\n" + ALL_BYTES + b"\r\n", "$"),
    (b"*0\r\n", "*"),
    (b"*-1\r\n", "*"),
    (b"*2\r\n*1\r\n$-1\r\n*-1\r\n", "*"),
    (b"*3\r\n*2\r\n$3\r\n1.5\r\n$3\r\n2.5\r\n*-1\r\n*0\r\n", "*"),
    (b"_\r\n", "_"),
    (b"#t\r\n", "#"),
    (b"#f\r\n", "#"),
    (b",1.5\r\n", ","),
    (b",-1.5e-7\r\n", ","),
    (b",10\r\n", ","),
    (b",inf\r\n", ","),
    (b",-inf\r\n", ","),
    (b",nan\r\n", ","),
    (b"(3492890328409238509324850943850943825024385\r\n", "("),
    (b"(-1\r\n", "("),
    (b"!5\r\nERR x\r\n", "!"),
    (b"=7\r\ntxt:abc\r\n", "="),
    (b"=4\r\ntxt:\r\n", "="),
    (b"~2\r\n:1\r\n+a\r\n", "~"),
    (b"%2\r\n+a\r\n:1\r\n+b\r\n*1\r\n%0\r\n", "%"),
    (b">3\r\n+message\r\n$1\r\nc\r\n$1\r\nm\r\n", ">"),
    (b"|1\r\n+ttl\r\n:10\r\n$1\r\na\r\n", "$"),
    (b"|1\r\n+a\r\n*2\r\n:1\r\n:2\r\n|0\r\n:7\r\n", ":"),
    (b"*2\r\n|1\r\n+a\r\n+b\r\n:1\r\n:2\r\n", "*"),
    (b"|1\r\n+a\r\n|1\r\n+b\r\n+c\r\n+d\r\n+e\r\n", "+"),
    (b"|1\r\n+a\r\n+b\r\n>1\r\n+c\r\n", ">"),
    (b"|1\r\n+a\r\n*?\r\n:1\r\n.\r\n_\r\n", "_"),
    (b"$?\r\n;4\r\nHell\r\n;1\r\no\r\n;0\r\n", "$"),
    (b"$?\r\n;0\r\n", "$"),
    (b"*?\r\n:1\r\n*?\r\n.\r\n*2\r\n:1\r\n$?\r\n;1\r\n.\r\n;0\r\n.\r\n", "*"),
    (b"~?\r\n.\r\n", "~"),
    (b"%?\r\n.\r\n", "%"),
    (b"%?\r\n%?\r\n.\r\n*?\r\n:1\r\n.\r\n:1\r\n:2\r\n.\r\n", "%"),
    (b"%?\r\n+a\r\n|1\r\n+x\r\n+y\r\n:1\r\n.\r\n", "%"),
]


@pytest.mark.parametrize(("frame", "kind"), REPLIES, ids=lambda value: repr(value[:30]))
def test_a_reply_ends_where_it_ends(frame: bytes, kind: str) -> None:
    expected = (frame, kind, kind == ">")
    assert outcome(ReplyReader, frame) == ([expected], None)
    assert outcome(ReplyReader, frame * 2 + b"+OK\r\n") == ([expected, expected, (b"+OK\r\n", "+", False)], None)
    assert outcome(ReplyReader, frame[:-1]) == ([], None)


@pytest.mark.parametrize(("frame", "kind"), REPLIES, ids=lambda value: repr(value[:30]))
def test_the_kind_is_known_with_the_first_byte_of_the_value(frame: bytes, kind: str) -> None:
    if frame[:1] != b"|":
        reader = ReplyReader()
        reader.feed(frame[:1])
        assert reader.kind == kind


def test_the_kind_is_unknown_inside_a_leading_attribute() -> None:
    reader = ReplyReader()
    for byte in b"|1\r\n*2\r\n:1\r\n:2\r\n+a\r\n":
        reader.feed(bytes([byte]))
        assert reader.kind == ""
    reader.feed(b"$")
    assert reader.kind == "$"


@pytest.mark.parametrize(
    "stream",
    [
        b"x",
        b"\r\n",
        b"\n",
        b".\r\n",
        b";0\r\n",
        b"?",
        b"??",
        b"x?",
        b">?",
        b":\r\n",
        b":1x\r\n",
        b":01\r\n",
        b":-0\r\n",
        b":9223372036854775808\r\n",
        b":" + b"1" * 30,
        b":1\rx",
        b":1\n",
        b"$\r\n",
        b"$-2\r\n",
        b"$x\r\n",
        b"$4294967297\r\n",
        b"$9223372036854775807\r\n",
        b"$1\r\naX\n",
        b"$1\r\na\rX",
        b"$1\r\nab\r\n",
        b"$3\r\nab\r\n:",
        b"*-2\r\n",
        b"*x\r\n",
        b"*4294967296\r\n",
        b"*9223372036854775807\r\n",
        b"|-1\r\n",
        b"*2\r\n:1\r\nx",
        b"+a\nb\r\n",
        b"-a\nb\r\n",
        b"+a\rb",
        b"_x\r\n",
        b"#\r\n",
        b"#x\r\n",
        b"#tt\r\n",
        b",\r\n",
        b",x\r\n",
        b",1e\r\n",
        b",1.2.3\r\n",
        b",infinity\r\n",
        b"," + b"1" * 400,
        b"=3\r\nabc\r\n",
        b"=4\r\nabcd",
        b">?\r\n",
        b"=?\r\n",
        b"$?\r\n:1\r\n",
        b"$?\r\n;-1\r\n",
        b"$?\r\n$1\r\n",
        b"*?x",
        b"*-2\r\n*?\r\n.\r\n",
        b"*4294967296\r\n$?\r\n;0\r\n",
        b"+a\nb\r\n*?\r\n.\r\n",
        b"*?\r\n.x",
        b"*1\r\n.\r\n",
        b"*?\r\n" * 17,
        b"%?\r\n+a\r\n.\r\n",
        b"%?\r\n+a\r\n|1\r\n:1\r\n:1\r\n.\r\n",
    ],
    ids=lambda value: repr(value[:24]),
)
def test_malformed_replies(stream: bytes) -> None:
    assert outcome(ReplyReader, stream) == ([], MALFORMED)
    frames, fault = outcome(ReplyReader, b"+OK\r\n" + stream)
    assert (frames, fault) == ([(b"+OK\r\n", "+", False)], MALFORMED)


@pytest.mark.parametrize("kind", ["+", "-", "("])
@pytest.mark.parametrize("size", [0, 1, 8191, 8192, 70_000, 3 << 20])
def test_a_long_line_of_a_reply(kind: str, size: int) -> None:
    """A script makes lines of any length, and big numbers of any text."""
    frame = kind.encode() + b"a" * size + b"\r\n"
    nested = b"*2\r\n" + frame + b":1\r\n"
    for cut in (1, 5000, 8191, 8192, 8193, 8194, size, size + 1, size + 2):
        assert resp.drive(ReplyReader(), [frame[:cut], frame[cut:]]) == ([(frame, kind, False)], None)
        assert resp.drive(ReplyReader(), [nested[:cut], nested[cut:]]) == ([(nested, "*", False)], None)


def test_a_line_feed_in_a_long_line() -> None:
    """It can only be the middle of something else."""
    assert outcome(ReplyReader, b"+" + b"a" * 9000 + b"\n" + b"a" * 9000 + b"\r\n") == ([], MALFORMED)
    assert outcome(ReplyReader, b"+" + b"a" * 9000 + b"\rb" + b"a" * 9000 + b"\r\n") == ([], MALFORMED)


def test_nesting_does_not_recurse() -> None:
    frame = b"*1\r\n" * 200_000 + b":1\r\n"
    assert resp.drive(ReplyReader(), [frame]) == ([(frame, "*", False)], None)


def test_counts_cannot_overflow() -> None:
    stream = b"*4294967295\r\n" * (1 << 20)
    assert resp.drive(ReplyReader(), [stream]) == ([], None)


def test_a_bulk_is_passed_on_as_it_comes() -> None:
    reader = ReplyReader()
    reader.feed(b"$1000\r\n" + b"x" * 10)
    assert reader.taken == 17
    reader.feed(b"x" * 990)
    assert reader.taken == 1007
    reader.feed(b"\r")
    assert reader.taken == 1007
    assert reader.feed(b"\n+O")[0][0] == b"$1000\r\n" + b"x" * 1000 + b"\r\n"
    assert reader.taken == 1009


@STEADY
@given(st.lists(resp.plain_frame, min_size=1, max_size=3))
def test_hiredis_ends_frames_at_the_same_byte(frames: list[bytes]) -> None:
    stream = b"".join(frames)
    found, fault = resp.drive(ReplyReader(), [stream])
    assert fault is None
    assert [frame for frame, _, _ in found] == frames
    ends, verdict = resp.hiredis_reads(stream)
    if verdict not in ("TypeError", "MemoryError"):
        assert verdict == ""
        assert [len(b"".join(frames[: n + 1])) for n in range(len(frames))] == ends


@STEADY
@given(resp.any_value, st.data())
def test_any_reply_under_any_cuts(frame: bytes, data: st.DataObject) -> None:
    points = sorted(data.draw(st.lists(st.integers(0, len(frame)), max_size=8)))
    chunks = [frame[a:b] for a, b in zip([0, *points], [*points, len(frame)], strict=True)]
    found, fault = resp.drive(ReplyReader(), [*chunks, b"+OK\r\n"])
    assert fault is None
    assert [it[0] for it in found] == [frame, b"+OK\r\n"]


@STEADY
@given(resp.plain_frame, st.integers(0, 1 << 16), st.sampled_from([b"", b"\r", b"\n", b"$", b"*", b"9", b"-", b"x"]))
def test_hiredis_refuses_what_we_refuse(frame: bytes, where: int, noise: bytes) -> None:
    at = where % len(frame)
    for stream in (frame[:at] + noise + frame[at:], frame[:at] + noise + frame[at + 1 :]):
        assert resp.disagreement(stream) is None
        outcome(ReplyReader, stream[:300])


def test_a_real_servers_replies(standalones: Callable[[str], Standalone]) -> None:
    """DEBUG PROTOCOL says every type there is, in both protocols."""
    kinds = b"string integer double null array set map attrib push verbatim true false bignum"
    for proto in (2, 3):
        with standalones("valkey").raw() as client:
            client.command("HELLO", proto)
            for kind in kinds.split():
                assert_one_frame(client, [b"DEBUG", b"PROTOCOL", kind], 2 if kind == b"push" and proto == 3 else 1)


def assert_one_frame(client: RawClient, command: list[bytes], count: int) -> None:
    client.send(encode_command(command) + encode_command([b"PING"]))
    reader = ReplyReader()
    frames: list[tuple[bytes, str, bool]] = []
    while not frames or frames[-1][0] != b"+PONG\r\n":
        data = client.sock.recv(1)
        assert data, "the server closed"
        frames += reader.feed(data)
    assert len(frames) == count + 1
