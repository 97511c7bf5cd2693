"""Invariants of what reads one line or one frame, on any bytes:
* redirection.parse, split_inline, InlineSplitter, decode and the numbers behind them never read outside their input;
* a redirection's slot and port are in range, its host is in the line and has no spaces;
* split_inline's words, quoted again, are split into the same words;
* decode raises nothing but ProtocolFault.
"""

from __future__ import annotations

import contextlib
import random
from array import array

from hypothesis import strategies as st

from proxy.cluster.redirection import parse
from proxy.resp.decode import decode
from proxy.resp.encode import encode_command
from proxy.resp.errors import ProtocolFault
from proxy.resp.inline import InlineSplitter
from proxy.resp.readers import split_inline
from tests.fuzz.cases import alternate

CORPUS = [
    b"-MOVED 3999 127.0.0.1:6381\r\n",
    b"-ASK 16383 2001:db8::2:65535\r\n",
    b"-MOVED 1 [::1]:1\r\n",
    b"-MOVED 1 ?:6379\r\n",
    b"-ASK 0 :6379\r\n",
    b"-TRYAGAIN Multiple keys request during rehashing of slot\r\n",
    b"-CLUSTERDOWN Hash slot not served\r\n",
    b"-LOADING Redis is loading the dataset in memory\r\n",
    b"-READONLY You can't write against a read only replica.\r\n",
    b"-MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.\r\n",
    b"set a 'b c' \"d\\x41\\n\"",
    b"'\\'' \"\\\"\"",
    b"*2\r\n|1\r\n+a\r\n+b\r\n:1\r\n$?\r\n;1\r\na\r\n;0\r\n",
    b"%?\r\n*1\r\n:1\r\n=5\r\ntxt:a\r\n.\r\n",
]
LINES = st.binary(max_size=60) | st.lists(st.sampled_from([*CORPUS, b" ", b":", b"\\x4", b'"', b"'"]), max_size=4).map(
    b"".join
)


def check(data: bytes, chance: random.Random) -> None:
    data = data[: chance.randint(0, len(data))] if chance.random() < 0.3 else data
    meaning = parse(bytearray(data))
    if meaning is not None:
        kind, slot, host, port = meaning
        assert data.startswith(b"-" + kind.encode())
        if kind in ("MOVED", "ASK"):
            assert 0 <= slot < 16384
            assert 0 < port < 65536
            assert not set(host) & set(" \t\r\n\0")
        else:
            assert (slot, host, port) == (-1, "", 0)
    words = split_inline(data)
    # The array's memory ends with the line, so that the address sanitizer sees a byte read too many.
    made = InlineSplitter().split(memoryview(array("B", data)))
    assert made == (None if words is None else (encode_command(*words) if words else b"", words))
    if words is not None:
        quoted = b" ".join(b'"%s"' % b"".join(b"\\x%02x" % byte for byte in word) for word in words)
        assert split_inline(quoted) == words
    with contextlib.suppress(ProtocolFault):
        decode(data)


def run(seed: int, deadline: float) -> int:
    return alternate(seed, deadline, CORPUS, LINES, check)
