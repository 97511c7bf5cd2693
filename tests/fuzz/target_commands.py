"""Invariants of the command scanner, on any bytes:
* it never reads outside its buffer, never crashes, and refuses malformed input with exactly one kind of exception;
* the frames, their arguments and the fault are the same however the stream is cut;
* frames are the stream, in order and without gaps, and every argument stands in its frame;
* a multibulk frame re-encoded from its arguments says the same command, as do all commands Hypothesis makes.
"""

from __future__ import annotations

import random

from hypothesis import strategies as st

from proxy.resp.encode import encode_command
from proxy.resp.readers import CommandReader
from tests.fuzz.cases import alternate, pieces
from tests.support import resp

CORPUS = [
    b"PING\r\n",
    b"set a 'b c' \"d\\x41\\n\"\n",
    b"\r\n",
    b"*0\r\n",
    b"*-1\r\n",
    *(
        encode_command(*words)
        for words in (
            [b"PING"],
            [b"GET", b"key:000000012345"],
            [b"SET", b"", bytes(range(256))],
            [b"MSET", *[b"%d" % n for n in range(24)]],
            [b"ECHO", b"x" * 1200],
            [b"EVAL", b"*1\r\n$4\r\nPING\r\n", 0],
        )
    ),
]
STREAMS = st.lists(resp.commands.map(lambda words: encode_command(*words)) | st.sampled_from(CORPUS), max_size=5).map(
    b"".join
)


def check(data: bytes, chance: random.Random) -> None:
    tight = chance.random() < 0.2
    authenticated = chance.random() < 0.8

    def reader() -> CommandReader:
        if tight:
            return CommandReader(max_bulk=300, max_args=8, max_inline=64, authenticated=authenticated)
        return CommandReader(authenticated=authenticated)

    whole = resp.drive(reader(), [data])
    assert resp.drive(reader(), pieces(chance, data)) == whole
    frames, fault = whole
    stream = b"".join(frame for frame, _ in frames)
    assert data.startswith(stream)
    assert fault is None or fault.startswith(b"-ERR Protocol error: ")
    for frame, words in frames:
        if frame.startswith(b"*"):
            assert frame.endswith(b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words))
            assert not words or frame == encode_command(*words)


def run(seed: int, deadline: float) -> int:
    return alternate(seed, deadline, CORPUS, STREAMS, check)
