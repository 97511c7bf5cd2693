"""Transactions and WATCH at random, against nodes that answer rightly, wrongly or not at all: what always holds."""

from __future__ import annotations

import random

import pytest

from proxy.cluster.topology import Address
from proxy.resp.encode import array, bulk, encode_command
from proxy.resp.readers import CommandReader, ReplyReader
from tests.support.datapath import KEY_A, KEY_B, THIRDS, A, B, C, End, Play, Stage
from tests.support.dialogue import REFUSALS, ask, moved

SAID = [
    encode_command(*words.split())
    for words in (
        *["MULTI", "EXEC", f"WATCH {KEY_A.decode()}", f"SET {KEY_A.decode()} 1", f"GET {KEY_A.decode()}"] * 4,
        *("DISCARD", "UNWATCH", "RESET", "HELLO 3", "HELLO 2", "SELECT 1", "SELECT 0", "SELECT x", "PING", "TIME"),
        *("CLIENT ID", "CLIENT INFO", "CLIENT NOSUCH", "NOSUCH a", "GET", "EXEC x", "WATCH", "CLUSTER SLOTS", "INFO"),
        *(f"SET {KEY_B.decode()} 1", f"WATCH {KEY_B.decode()}", f"MGET {KEY_A.decode()} {KEY_B.decode()}"),
        *("DEBUG JMAP", "SUBSCRIBE x", "READONLY", "ECHO x", "BLPOP b 0", "AUTH x", "ASKING", "PUBLISH c m"),
    )
]
NONSENSE = [
    b":1\r\n",
    b"*0\r\n",
    b"*-1\r\n",
    b"_\r\n",
    b"$-1\r\n",
    b"*?\r\n:1\r\n.\r\n",
    b">1\r\n+x\r\n",
    b"|1\r\n+a\r\n+b\r\n:1\r\n",
]
NONSENSE += [
    *REFUSALS.values(),
    moved(B),
    ask(B),
    moved(C),
    b"-EXECABORT Transaction discarded because of: x\r\n",
    b"-\r\n",
]
NONSENSE += [
    array([moved(B), bulk("x")]),
    b"-EXECABORT Transaction discarded because of: READONLY x\r\n",
    b"-ERR x\r\n",
]


class FakeServer:
    """One connection of a node: what a server would answer, and sometimes something else."""

    def __init__(self, end: End, rng: random.Random, wrong: float) -> None:
        self.end, self.rng, self.wrong = end, rng, wrong
        self.reader = CommandReader()
        self.queued: int | None = None

    def serve(self) -> None:
        for _, words in self.reader.feed(self.end.get()):
            if self.rng.random() < self.wrong:
                match self.rng.randrange(8):
                    case 0:
                        self.end.close()
                        return
                    case 1:
                        continue
                    case _:
                        self.end.send(self.rng.choice(NONSENSE))
                        continue
            self.end.send(self.answer(words[0].upper()))

    def answer(self, name: bytes) -> bytes:
        if name == b"MULTI":
            self.queued = 0
            return b"+OK\r\n"
        if name == b"EXEC":
            n, self.queued = self.queued or 0, None
            return b"*-1\r\n" if self.rng.random() < 0.2 else array([b":7\r\n"] * n)
        if self.queued is not None:
            self.queued += 1
            return b"+QUEUED\r\n"
        return b"+OK\r\n" if name in (b"WATCH", b"UNWATCH", b"ASKING", b"SELECT", b"SET", b"HELLO") else b":7\r\n"


def storm(stage: Stage, rng: random.Random, rounds: int, wrong: float) -> None:
    stage.context.databases = 2
    stage.path.leases.most = 4
    clients: dict[End, int] = {}
    servers: dict[int, FakeServer] = {}
    readers: dict[End, ReplyReader] = {}
    shuffled: list[list[object]] = [
        THIRDS,
        [(B, [A], [(0, 10922)]), (C, [], [(10923, 16383)])],
        [(A, [B], [(0, 16383)])],
    ]
    for _ in range(rounds):
        match rng.randrange(20):
            case 0 | 1:
                if len(clients) < 8:
                    end = stage.client()
                    clients[end], readers[end] = 0, ReplyReader()
            case 2 if clients:
                end = rng.choice(list(clients))
                end.close()
                del clients[end]
            case 3 if wrong:
                stage.publish(rng.choice(shuffled))
            case 4:
                stage.router.sweep()
                stage.path.leases.sweep()
            case 5 if wrong and rng.random() < 0.1:
                stage.path.leases.renew()
                stage.router.renew()
            case _ if clients:
                end = rng.choice(list(clients))
                some = rng.choices(SAID, k=rng.randrange(1, 8))
                data = b"".join(some)
                if rng.random() < 0.2:
                    cut = rng.randrange(len(data))
                    end.send(data[:cut])
                    stage.turn(1)
                    data = data[cut:]
                end.send(data)
                clients[end] += len(some)
        stage.turn(1)
        serve(stage, servers, rng, wrong)
    give_up = 400
    while any(clients.values()) and give_up:
        give_up -= 1
        stage.turn(1)
        serve(stage, servers, rng, 0.0)
        for end in [*clients]:
            clients[end] -= sum(not push for _, _, push in readers[end].feed(end.get()))
            assert clients[end] >= 0, "more replies than commands"
            if end.closed:
                del clients[end]
    assert not wrong or stage.raised == []
    if not wrong:
        assert not any(clients.values()), "a command was not answered"
    assert stage.raised == []


def serve(stage: Stage, servers: dict[int, FakeServer], rng: random.Random, wrong: float) -> None:
    for ends in stage.nodes.values():
        for end in ends:
            if id(end) not in servers:
                servers[id(end)] = FakeServer(end, rng, wrong)
            servers[id(end)].serve()


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("wrong", [0.0, 0.05, 0.4])
def test_storm(play: Play, seed: int, wrong: float) -> None:
    stage = play(timeout_s=0.3)
    storm(stage, random.Random(seed), 300, wrong)
    assert isinstance(A, Address)
