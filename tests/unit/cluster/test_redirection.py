"""Error lines read as what they mean for routing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from proxy.cluster.redirection import REFUSALS, parse
from tests.support.cluster import Standalone, servers


@pytest.mark.parametrize(
    ("line", "meaning"),
    [
        (b"-MOVED 3999 127.0.0.1:6381\r\n", ("MOVED", 3999, "127.0.0.1", 6381)),
        (b"-MOVED 0 node-1.example.com:1\r\n", ("MOVED", 0, "node-1.example.com", 1)),
        (b"-ASK 16383 10.0.0.1:65535\r\n", ("ASK", 16383, "10.0.0.1", 65535)),
        (b"-MOVED 1 ::1:6381\r\n", ("MOVED", 1, "::1", 6381)),
        (b"-MOVED 1 2001:db8::2:6381\r\n", ("MOVED", 1, "2001:db8::2", 6381)),
        (b"-MOVED 1 [2001:db8::2]:6381\r\n", ("MOVED", 1, "2001:db8::2", 6381)),
        (b"-MOVED 1 :6381\r\n", ("MOVED", 1, "", 6381)),
        (b"-ASK 1 ?:6381\r\n", ("ASK", 1, "", 6381)),
        (b"-MOVED 1 []:6381\r\n", ("MOVED", 1, "", 6381)),
        (b"-MOVED 1 %s:6381\r\n" % (b"a" * 255), ("MOVED", 1, "a" * 255, 6381)),
    ],
)
def test_redirections(line: bytes, meaning: tuple[str, int, str, int]) -> None:
    assert parse(line) == meaning


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"-",
        b"-\r\n",
        b"+MOVED 1 a:1\r\n",
        b"-ERR MOVED 1 a:1\r\n",
        b"-WRONGTYPE Operation against a key holding the wrong kind of value\r\n",
        b"-CROSSSLOT Keys in request don't hash to the same slot\r\n",
        b"-MOVED\r\n",
        b"-MOVED \r\n",
        b"-MOVED 1\r\n",
        b"-MOVED 1 \r\n",
        b"-MOVED 1 a\r\n",
        b"-MOVED 1 a:\r\n",
        b"-MOVED 1 a:x\r\n",
        b"-MOVED 1 a:0\r\n",
        b"-MOVED 1 a:65536\r\n",
        b"-MOVED 1 a:-1\r\n",
        b"-MOVED 1 a:99999999999999999999\r\n",
        b"-MOVED 1  a:1\r\n",
        b"-MOVED 1 a\tb:1\r\n",
        b"-MOVED 1 a\nb:1\r\n",
        b"-MOVED 1 a\0:1\r\n",
        b"-MOVED  1 a:1\r\n",
        b"-MOVED x a:1\r\n",
        b"-MOVED -1 a:1\r\n",
        b"-MOVED 01 a:1\r\n",
        b"-MOVED 16384 a:1\r\n",
        b"-MOVED 99999999999999999999 a:1\r\n",
        b"-MOVED1 a:1\r\n",
        b"-ASKING 1 a:1\r\n",
        b"-ASK",
        b"-moved 1 a:1\r\n",
        b"-MOVED 1 a:6381",
        b"-MOVED 1 a:6381\n",
        b"-MOVED 1 a:6381\r",
        b"-MOVED 1 a:6381 \r\n",
        b"-MOVED 1 a:6381 and more\r\n",
        b"-MOVED 1 a:6381\r\n\r\n",
        b"-MOVED 1 %s:6381\r\n" % (b"a" * 256),
        b"-ASK 1 a:6381 script: 0123, on @user_script:1.\r\n",
        # what a script may return
        b"-TRYAGAIN\r\n",
        b"-TRYAGAIN later\r\n",
        b"-CLUSTERDOWN x\r\n",
        b"-LOADING\r\n",
        b"-LOADING Other is loading the dataset in memory\r\n",
        b"-READONLY\r\n",
        b"-READONLY You can't write against a read only replica. script: 0123, on @user_script:1.\r\n",
        b"-MASTERDOWN\r\n",
    ],
)
def test_everything_else_is_the_clients(line: bytes) -> None:
    assert parse(line) is None


def test_every_cut_of_a_line_is_none() -> None:
    for line in (b"-MOVED 3999 2001:db8::2:6381\r\n", b"-ASK 1 :1\r\n"):
        assert parse(line) is not None
        for end in range(len(line)):
            assert parse(line[:end]) is None


@pytest.mark.parametrize(("kind", "text", "source"), REFUSALS)
def test_refusals_are_known_to_the_letter(kind: str, text: bytes, source: str) -> None:
    line = text + b"\r\n"
    assert text.startswith(b"-" + kind.encode() + b" ")
    assert ".c " in source
    assert parse(line) == (kind, -1, "", 0)
    for end in range(len(line)):
        assert parse(line[:end]) is None
    for at in range(len(line)):
        assert parse(line[:at] + bytes((line[at] ^ 1,)) + line[at + 1 :]) is None
    for more in (b" ", b".", b" script: 0123, on @user_script:1."):
        assert parse(text + more + b"\r\n") is None
        assert parse(line + more) is None


def test_every_refusal_stands_once() -> None:
    assert len({text for _, text, _ in REFUSALS}) == len(REFUSALS)
    kinds = {"TRYAGAIN", "CLUSTERDOWN", "LOADING", "READONLY", "MASTERDOWN", "NOSCRIPT"}
    assert {kind for kind, _, _ in REFUSALS} == kinds


@pytest.mark.parametrize("kind", sorted(servers()))
def test_the_servers_have_no_other_texts(kind: str) -> None:
    """Every text in the binary that begins as a refusal does is one of the table (`%s`: the server's name)."""
    program = Path(servers()[kind]).resolve().read_bytes()
    words = b"|".join({k.encode() for k, _, _ in REFUSALS})
    found = set(re.findall(rb"\0(-(?:%s) [ -~]+)(?:\r\n)?\0" % words, program))
    known = {text for _, text, _ in REFUSALS}
    assert {text.replace(b"%s", kind.capitalize().encode()) for text in found} - known == set()
    assert len(found) >= 7


def test_a_replica_refuses_in_these_words(standalone: Standalone) -> None:
    with standalone.raw() as client:
        try:
            assert client.command("REPLICAOF", "127.0.0.1", "1") == b"+OK\r\n"
            refused: dict[str, list[tuple[str, ...]]] = {
                "READONLY": [("SET", "k", "v"), ("EVAL", "#!lua\nreturn 1", "0")],
                "MASTERDOWN": [
                    ("GET", "k"),
                    ("EVAL", "return 1", "0"),
                    ("EVAL", "#!lua flags=no-writes\nreturn 1", "0"),
                ],
            }
            for kind, calls in refused.items():
                stale = b"no" if kind == "MASTERDOWN" else b"yes"
                assert client.command("CONFIG", "SET", "replica-serve-stale-data", stale) == b"+OK\r\n"
                for call in calls:
                    line = client.command(*call)
                    assert parse(line) == (kind, -1, "", 0), line
            # inside a script, which may have done something before: the client's
            assert client.command("CONFIG", "SET", "replica-serve-stale-data", "yes") == b"+OK\r\n"
            assert parse(client.command("EVAL", "return redis.call('SET', KEYS[1], 1)", "1", "k")) is None
            assert parse(client.command("EVAL", "return redis.error_reply('TRYAGAIN later')", "0")) is None
        finally:
            client.command("REPLICAOF", "NO", "ONE")
            client.command("CONFIG", "SET", "replica-serve-stale-data", "yes")
