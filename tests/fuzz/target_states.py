"""Invariants of a client that has brought itself into a state (in MULTI, watching, with REPLY OFF or SKIP, paused,
speaking RESP3, or several of these) and then sends anything, in front of nodes that behave:
* the process never crashes and reads nothing outside its buffers;
* what the client gets are whole replies, never more of them than it sent commands;
* a client that sent nothing malformed gets out again: RESET and what follows it are answered in every state;
* a node is sent no command twice, MULTI and EXEC as pairs, and nothing that is for the proxy;
* a client that leaves in any state leaves nothing behind.
"""

from __future__ import annotations

import random
import time
from typing import Any

from hypothesis import strategies as st

from proxy.resp.encode import array, encode_command
from proxy.resp.errors import ProtocolFault
from proxy.resp.readers import CommandReader, ReplyReader
from tests.fuzz.actors import deserved
from tests.fuzz.cases import alternate, pieces
from tests.fuzz.target_commands import CORPUS
from tests.support.datapath import End, Stage

STATES = [
    b"MULTI",
    b"MULTI|SET a 1",
    b"MULTI|GET b|GET c",
    b"MULTI|nosuch",
    b"MULTI|GET",
    b"MULTI|CLIENT REPLY OFF|EXEC",
    b"WATCH a",
    b"WATCH a a a|GET a|MULTI|SET a 2",
    b"WATCH a|WATCH b",
    b"CLIENT REPLY OFF",
    b"CLIENT REPLY SKIP",
    b"CLIENT REPLY OFF|MULTI|GET a",
    b"CLIENT PAUSE 5 WRITE|MULTI|SET a 1",
    b"CLIENT PAUSE 5 ALL",
    b"HELLO 3|MULTI",
    b"HELLO 3|CLIENT REPLY OFF|WATCH a",
    b"READONLY|MULTI",
    b"SELECT 0|WATCH a",
]
BAD = [
    b"*1\r\n$-1\r\n",
    b"*2\r\n$3\r\nGET\r\n$-5\r\n",
    b"*1\r\n:1\r\n",
    b"*x\r\n",
    b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$999999999999\r\n",
    b"EXEC 'x\r\n",
    b"POST / HTTP/1.1\r\n",
    b"*2\r\n$4\r\nEXEC\r\n",
    b"*1\r\n$4\r\nEXE",
]
LINES = [
    *b"MULTI|EXEC|EXEC x|DISCARD|UNWATCH|WATCH|WATCH a|WATCH b c|PING|ECHO e|nosuch|GET|GET a|GET b|SET a 1".split(
        b"|"
    ),
    *b"SET c 3|INCR a|MGET a b|DEL a|MSET a 1 b 2|EVAL return 1 a|HELLO 2|HELLO 3|HELLO 9|RESET|SELECT 0".split(b"|"),
    *b"SELECT 1|CLIENT REPLY ON|CLIENT REPLY OFF|CLIENT REPLY SKIP|CLIENT REPLY x|CLIENT ID|CLIENT GETNAME".split(b"|"),
    *b"CLIENT PAUSE 5|CLIENT PAUSE x|CLIENT UNPAUSE|SUBSCRIBE x|MONITOR|QUIT|ASKING|SHUTDOWN".split(b"|"),
    *b"SCAN 0|SCAN x|SCAN 12345 COUNT 5|KEYS *|DBSIZE|RANDOMKEY|FLUSHALL|INFO|CONFIG GET x|SLOWLOG GET".split(b"|"),
    *b"SCRIPT LOAD x|SCRIPT EXISTS x|SCRIPT FLUSH|FUNCTION LIST|EVALSHA x 1 a|EVAL x 0|ROLE|COMMAND COUNT".split(b"|"),
    *b"CLIENT LIST|CLIENT KILL ID 1|CLIENT NO-TOUCH ON|ACL WHOAMI|PUBLISH c m|MOVE a 1".split(b"|"),
    *b"XREADGROUP GROUP g c STREAMS a >|XREAD COUNT 1 STREAMS a 0".split(b"|"),
]
FOR_THE_PROXY = {
    *(
        b"CLIENT",
        b"HELLO",
        b"RESET",
        b"QUIT",
        b"SELECT",
        b"READONLY",
        b"DISCARD",
        b"SUBSCRIBE",
        b"MONITOR",
        b"SHUTDOWN",
    ),
    *(b"ASKING", b"AUTH"),
}
END = b"the end"

line = st.sampled_from(LINES).map(lambda text: encode_command(*text.split()))
well = st.tuples(st.sampled_from(STATES), st.lists(line, max_size=15))
cases = well.map(lambda two: (framed(two[0]) + b"".join(two[1]), True))


def framed(lines: bytes) -> bytes:
    return b"".join(encode_command(*text.split()) for text in lines.split(b"|"))


class Node:
    """The far end of a backend connection: answers every command as it deserves, and a transaction as a whole."""

    def __init__(self, end: End) -> None:
        self.end = end
        self.reader = CommandReader()
        self.queued: list[bytes] | None = None

    def act(self) -> None:
        for _, words in self.reader.feed(self.end.get()):
            assert words[0].upper() not in FOR_THE_PROXY, words
            self.end.offer(self.reply(words))

    def reply(self, words: list[bytes]) -> bytes:
        name = words[0].upper()
        if name == b"MULTI":
            assert self.queued is None, "MULTI in MULTI"
            self.queued = []
            return b"+OK\r\n"
        if name == b"EXEC":
            assert self.queued is not None, "EXEC without MULTI"
            queued, self.queued = self.queued, None
            return array(queued)
        said = deserved(words) or b"+OK\r\n"
        if self.queued is None:
            return said
        self.queued.append(said)
        return b"+QUEUED\r\n"


def serve(stage: Stage, nodes: dict[End, Node]) -> None:
    stage.turn(1)
    for ends in stage.nodes.values():
        for end in ends:
            nodes.setdefault(end, Node(end)).act()


def check(case: Any, chance: random.Random) -> None:
    """case: what a client sends, and whether it is well-formed; or any bytes, which follow a state."""
    data, sound = case if isinstance(case, tuple) else (framed(chance.choice(STATES)) + damaged(case, chance), False)
    stage = Stage(max_bulk=chance.choice([1000, 1 << 20]), max_query=1 << 20)
    client = stage.client()
    nodes: dict[End, Node] = {}
    stream = pieces(chance, data + framed(b"RESET") + encode_command("ECHO", END))[::-1]
    said = b""
    leaves = 0.01 if chance.random() < 0.2 else 0.0
    give_up = time.monotonic() + 30
    while not client.closed and (stream or (sound and END not in said)):
        assert time.monotonic() < give_up, f"no way out of this state: {data!r} answered {said!r}"
        if stream:
            piece = stream.pop()
            taken = client.offer(piece)
            if taken < len(piece):
                stream.append(piece[taken:])
        serve(stage, nodes)
        said += client.get()
        if chance.random() < leaves:
            break
    for _ in range(3):
        serve(stage, nodes)
    said += client.get()
    replies = [frame for frame, _, push in ReplyReader().feed(said) if not push]
    if sound:
        assert len(replies) <= count(data) + 2, "an extra reply"
    client.close()
    for _ in range(3):
        serve(stage, nodes)
    assert not stage.path.clients
    stage.close()


def damaged(data: bytes, chance: random.Random) -> bytes:
    """The bytes among sound commands, or with what is bad in a way that is known."""
    words = [encode_command(*chance.choice(LINES).split()) for _ in range(chance.randrange(6))]
    words.insert(chance.randrange(len(words) + 1), chance.choice([data, data, chance.choice(BAD)]))
    return b"".join(words)


def count(data: bytes) -> int:
    """Commands in a stream; it is sound."""
    try:
        return len(CommandReader().feed(data))
    except ProtocolFault:
        raise AssertionError(f"not sound: {data!r}") from None


def run(seed: int, deadline: float) -> int:
    return alternate(seed, deadline, CORPUS, cases, check)
