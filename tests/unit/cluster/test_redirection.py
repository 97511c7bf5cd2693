"""Error lines read as what they mean for routing."""

from __future__ import annotations

import pytest

from proxy.cluster.redirection import parse


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
        (b"-MOVED 1 a:6381 and more\r\n", ("MOVED", 1, "a", 6381)),
        (b"-MOVED 1 a:6381", ("MOVED", 1, "a", 6381)),
        (b"-TRYAGAIN Multiple keys request during rehashing of slot\r\n", ("TRYAGAIN", -1, "", 0)),
        (b"-CLUSTERDOWN Hash slot not served\r\n", ("CLUSTERDOWN", -1, "", 0)),
        (b"-CLUSTERDOWN The cluster is down\r\n", ("CLUSTERDOWN", -1, "", 0)),
        (b"-LOADING Redis is loading the dataset in memory\r\n", ("LOADING", -1, "", 0)),
        (b"-READONLY You can't write against a read only replica.\r\n", ("READONLY", -1, "", 0)),
        (
            b"-MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.\r\n",
            ("MASTERDOWN", -1, "", 0),
        ),
        (b"-LOADING\r\n", ("LOADING", -1, "", 0)),
        (b"-READONLY", ("READONLY", -1, "", 0)),
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
        b"-LOADINGS x\r\n",
        b"-READONLY.\r\n",
        b"-CLUSTERDOWNS\r\n",
    ],
)
def test_everything_else_is_the_clients(line: bytes) -> None:
    assert parse(line) is None


def test_every_cut_of_a_line_is_safe() -> None:
    line = b"-MOVED 3999 2001:db8::2:6381\r\n"
    for end in range(len(line)):
        meaning = parse(line[:end])
        assert meaning is None or meaning[:3] == ("MOVED", 3999, "2001:db8::2") or end < 26
