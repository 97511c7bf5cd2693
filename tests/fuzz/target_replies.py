"""Invariants of the reply scanner, on any bytes:
* it never reads outside its buffer, never crashes, and refuses malformed input with exactly one kind of exception;
* the frames and the fault are the same however the stream is cut, and frames are the stream, without gaps;
* hiredis accepts, refuses and ends frames at the same bytes, but for the differences resp.disagreement states;
* what the scanner lets through has a value (resp.decode).
"""

from __future__ import annotations

import random

from hypothesis import strategies as st

from proxy.resp.decode import decode
from proxy.resp.readers import ReplyReader
from tests.fuzz.cases import alternate, pieces
from tests.support import resp

CORPUS = [
    b"+OK\r\n",
    b"+PONG\r\n",
    b"-ERR unknown command 'FOO', with args beginning with: 'a' \r\n",
    b"-MOVED 3999 127.0.0.1:6381\r\n",
    b":0\r\n",
    b":-9223372036854775808\r\n",
    b"$-1\r\n",
    b"$0\r\n\r\n",
    b"$64\r\n" + b"x" * 64 + b"\r\n",
    b"$6\r\n*1\r\n+a\r\n",
    b"*-1\r\n",
    b"*0\r\n",
    b"*3\r\n$3\r\nabc\r\n$-1\r\n*1\r\n:1\r\n",
    b"*1\r\n*1\r\n*2\r\n*0\r\n+a\r\n",
    b"%2\r\n$1\r\na\r\n:1\r\n$1\r\nb\r\n*1\r\n_\r\n",
    b"~2\r\n#t\r\n#f\r\n",
    b">3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$1\r\nm\r\n",
    b",1.5\r\n",
    b",-inf\r\n",
    b"(12345678901234567890\r\n",
    b"=7\r\ntxt:abc\r\n",
    b"!5\r\nERR x\r\n",
    b"|1\r\n+ttl\r\n:10\r\n$1\r\na\r\n",
    b"$?\r\n;4\r\nHell\r\n;1\r\no\r\n;0\r\n",
    b"*?\r\n:1\r\n%?\r\n+a\r\n+b\r\n.\r\n.\r\n",
]
STREAMS = st.lists(resp.plain_frame | resp.any_value, min_size=1, max_size=4).map(b"".join)


def check(data: bytes, chance: random.Random) -> None:
    whole = resp.drive(ReplyReader(), [data])
    assert resp.drive(ReplyReader(), pieces(chance, data)) == whole
    frames, _ = whole
    assert data.startswith(b"".join(frame for frame, _, _ in frames))
    for frame, kind, push in frames:
        assert frame.startswith((kind.encode(), b"|"))
        assert push == (kind == ">")
        decode(frame)
    difference = resp.disagreement(data)
    assert difference is None, difference


def run(seed: int, deadline: float) -> int:
    return alternate(seed, deadline, CORPUS, STREAMS, check)
