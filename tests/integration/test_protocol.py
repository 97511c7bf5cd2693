"""The wire: inline commands, LF alone, every size, and input that is not RESP, each handled as one server does."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from proxy.embedded import EmbeddedCluster
from tests.support.cluster import Standalone
from tests.support.proxyd import ProxyDaemon
from tests.support.raw import RawClient, bulk, encode

INLINE = {
    "CRLF": b"SET k v\r\nGET k\r\n",
    "LF alone": b"SET k v\nGET k\n",
    "empty lines": b"\r\n\r\nSET k v\r\n\r\n\nGET k\r\n",
    "blanks": b"   SET   k    v  \r\n\tGET\tk\r\n \r\n",
    "double quotes": b'SET k "a b"\r\nGET k\r\n',
    "single quotes": b"SET k 'a b'\r\nGET k\r\n",
    "escapes": rb'SET k "\x41\n\r\t\b\a\\\"\q"' + b"\r\nGET k\r\n",
    "escape in single quotes": rb"SET k 'it\'s \n'" + b"\r\nGET k\r\n",
    "half a hex escape": rb'SET k "\x4"' + b"\r\nGET k\r\n",
    "empty quotes": b"SET k \"\"\r\nGET k\r\nSET k ''\r\nGET k\r\n",
    "quote inside a word": b'SET k a"b c"\r\nGET k\r\n',
    "binary": b"SET k \xc3\xa9\x01\r\nGET k\r\n",
    "mixed with RESP": b"SET k v\r\n" + encode("GET", "k") + b"PING\n" + encode("DEL", "k") + b"GET k\r\n",
    "split command": b"MSET a 1 b 2 c 3\nMGET a b c none\nDEL a b c\n",
}


@pytest.mark.parametrize("name", INLINE)
def test_inline(name: str, proxy: ProxyDaemon, standalone: Standalone) -> None:
    with proxy.raw() as through, standalone.raw() as direct:
        direct.command("FLUSHALL")
        for client in (through, direct):
            client.send(INLINE[name] + encode("QUIT"))
        assert through.rest() == direct.rest()


MALFORMED = {
    "negative bulk": b"*1\r\n$-5\r\nxxxxx\r\n",
    "bulk length is a word": b"*1\r\n$abc\r\n",
    "bulk length is empty": b"*1\r\n$\r\n\r\n",
    "bulk above the limit": b"*2\r\n$3\r\nGET\r\n$536870913\r\n",
    "huge bulk": b"*2\r\n$3\r\nGET\r\n$99999999999999999999999\r\n",
    "bulk length with a sign": b"*1\r\n$+4\r\nPING\r\n",
    "bulk length with a blank": b"*1\r\n$ 4\r\nPING\r\n",
    "bulk length with leading zero": b"*1\r\n$04\r\nPING\r\n",
    "no dollar": b"*1\r\n!4\r\nPING\r\n",
    "no dollar, a letter": b"*2\r\n$3\r\nGET\r\nkey\r\n",
    "integer for a bulk": b"*2\r\n$3\r\nGET\r\n:1\r\n",
    "multibulk length is a word": b"*abc\r\n",
    "multibulk length with leading zero": b"*01\r\n$4\r\nPING\r\n",
    "huge multibulk": b"*99999999999999999999\r\n",
    "endless multibulk length": b"*" + b"1" * 70000,
    "endless bulk length": b"*1\r\n$" + b"1" * 70000,
    "unbalanced double quotes": b'SET k "v\r\n',
    "unbalanced single quotes": b"SET k 'v\r\n",
    "too big inline": b"GET " + b"x" * 70000,
    "HTTP POST": b"POST / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "HTTP GET": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "host alone": b"Host: x\r\n",
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_input_is_answered_and_closed(name: str, proxy: ProxyDaemon, standalone: Standalone) -> None:
    """What came before is answered first; then Redis's text, then the end of the connection."""
    before = b"" if name.startswith(("HTTP", "host")) else b"SET k v\r\n" + encode("GET", "k")
    data = before + MALFORMED[name]
    # Valid forms do not close the connection: QUIT does then, and is not read otherwise.
    data += b"" if name.startswith(("endless", "too big inline")) else encode("QUIT")
    with proxy.raw() as through, standalone.raw() as direct, proxy.raw() as other:
        for client in (through, direct):
            client.send(data)
        assert through.rest() == direct.rest()
        assert other.command("PING") == b"+PONG\r\n"


def test_text_right_after_a_quote(raw: RawClient) -> None:
    # Redis refuses it, Valkey 9 takes the quotes as part of a word.
    raw.send(b'SET k "v"x\r\nQUIT\r\n')
    assert raw.rest() in (b"-ERR Protocol error: unbalanced quotes in request\r\n", b"+OK\r\n+OK\r\n")


@pytest.mark.parametrize("data", [b"*0\r\n", b"*-1\r\n", b"*-10\r\n", b"\r\n", b"*0\r\n*-1\r\n\r\n"])
def test_empty_commands_are_no_commands(data: bytes, raw: RawClient) -> None:
    raw.send(data + encode("PING"))
    assert raw.frame() == b"+PONG\r\n"


def test_more_arguments_than_allowed(raw: RawClient) -> None:
    raw.send(b"*1048577\r\n")
    assert raw.rest() == b"-ERR Protocol error: invalid multibulk length\r\n"


@pytest.mark.parametrize("size", [0, 1, 2, 1000, 16 << 10, (16 << 10) - 1, 64 << 10, 1 << 20, 20 << 20])
@pytest.mark.parametrize("protocol", [2, 3])
def test_values_of_every_size(size: int, protocol: int, proxy: ProxyDaemon) -> None:
    value = random.Random(size).randbytes(size)
    with proxy.raw(timeout_s=30) as raw:
        raw.command("HELLO", protocol)
        assert raw.command("SET", "big", value) == b"+OK\r\n"
        assert raw.command("STRLEN", "big") == b":%d\r\n" % size
        assert raw.command("GET", "big") == bulk(value)
        assert bulk(value) in raw.command("MGET", "none", "big", "other")
        assert raw.command("DEL", "big") == b":1\r\n"


@pytest.mark.parametrize("size", [1, 1000, 64 << 10, 1 << 20])
def test_keys_of_every_size(size: int, raw: RawClient) -> None:
    key = random.Random(size).randbytes(size)
    assert raw.command("SET", key, "v") == b"+OK\r\n"
    assert raw.command("GET", key) == b"$1\r\nv\r\n"
    assert raw.command("DEL", key, b"x" + key) == b":1\r\n"


def test_many_arguments(raw: RawClient) -> None:
    words = [str(n) for n in range(100_000)]
    assert raw.command("RPUSH", "l", *words) == b":100000\r\n"
    assert raw.command("LRANGE", "l", 0, -1) == b"*100000\r\n" + b"".join(bulk(word.encode()) for word in words)


def test_byte_by_byte(raw: RawClient) -> None:
    for byte in encode("SET", "k", "v\r\n$1") + b"GET k\r\n" + encode("MGET", "k", "none"):
        raw.send(bytes([byte]))
    assert raw.frames(3) == [b"+OK\r\n", b"$5\r\nv\r\n$1\r\n", b"*2\r\n$5\r\nv\r\n$1\r\n$-1\r\n"]


@pytest.mark.parametrize("cut", [1, 2, 3, 7, 100, 4096, 16384, 16385])
def test_a_pipeline_in_pieces(cut: int, proxy: ProxyDaemon) -> None:
    commands = [encode("SET", f"k{n}", "x" * (n * 7)) + encode("GET", f"k{n}") for n in range(60 if cut > 3 else 8)]
    data = b"".join(commands)
    with proxy.raw() as raw:
        for at in range(0, len(data), cut):
            raw.send(data[at : at + cut])
        for n in range(len(commands)):
            assert raw.frames(2) == [b"+OK\r\n", bulk(b"x" * (n * 7))]


def test_a_deep_pipeline(raw: RawClient) -> None:
    count = 20_000
    raw.send(b"".join(encode("INCR", f"n{n % 10}") for n in range(count)))
    assert raw.frames(count) == [b":%d\r\n" % (n // 10 + 1) for n in range(count)]


def test_nested_nulls(raw: RawClient) -> None:
    # joyieldInc/predixy#164: GEOPOS with a missing member killed the shared connection.
    raw.command("GEOADD", "g", 13, 38, "m")
    assert raw.command("GEOPOS", "g", "none", "m", "none").startswith(b"*3\r\n*-1\r\n*2\r\n")
    raw.command("HELLO", 3)
    assert raw.command("GEOPOS", "g", "none") == b"*1\r\n_\r\n"
    assert raw.command("PING") == b"+PONG\r\n"


@pytest.mark.usefixtures("empty")
def test_configured_limits(cluster: EmbeddedCluster, start_proxy: Callable[..., ProxyDaemon]) -> None:
    limits = {"max_bulk": "1kb", "max_arguments": 10, "max_query": "4kb"}
    daemon = start_proxy(cluster.seeds, {"clients": limits})
    with daemon.raw() as raw:
        assert raw.command("SET", "k", "x" * 1024) == b"+OK\r\n"
        raw.send(encode("SET", "k", "x" * 1025))
        assert raw.rest() == b"-ERR Protocol error: invalid bulk length\r\n"
    with daemon.raw() as raw:
        assert raw.command("EXISTS", *"abcdefghi") == b":0\r\n"
        raw.send(encode("EXISTS", *"abcdefghij"))
        assert raw.rest() == b"-ERR Protocol error: invalid multibulk length\r\n"
    with daemon.raw() as raw:
        raw.send(encode("MGET", *("x" * 1000 for _ in range(8)))[:6000])
        assert raw.rest() == b""  # Redis closes without an error line
    with daemon.raw() as raw:
        assert raw.command("PING") == b"+PONG\r\n"
