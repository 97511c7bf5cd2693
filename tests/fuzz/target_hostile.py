"""Invariants of the whole data path among the hostile: nodes that lie, fall silent or answer too early; clients that
never read, leave in every state, break off or flood; and control that acts at the worst of times:
* no crash, no read outside the buffers, no request lost, no hang: every command of a client that stays is answered;
* a client never gets an extra reply; as long as nodes answer what they were asked (late, early or not at all), each
  reply is the right one for its command, or an error;
* nothing is sent to a node that no client sent; unless nodes lie, no write is sent again that was carried out;
* what a node says with nothing asked of it ends its connection, not the process.
"""

from __future__ import annotations

import random
import socket
import time
from typing import Any

from hypothesis import strategies as st

from proxy.forward.clients import close_idle, drain
from proxy.forward.ports import PushPort
from tests.fuzz.actors import NOBODY, AskingResponder, Company, D, Ledger, Mood, Speaker, encoded
from tests.fuzz.cases import alternate, mutate, pieces
from tests.fuzz.target_client import command, disturb
from tests.fuzz.target_replies import CORPUS
from tests.support.datapath import A, B, C, Stage

LIES = (
    b"+OK\r\n",
    b"$5\r\nab",
    b"$-7\r\n",
    b"!!\r\n",
    b"*3\r\n:1\r\n",
    b"*3\r\n:1\r\n:2\r\n:3\r\n",
    b"$1000000\r\n" + b"z" * 9000,
    b"+" + b"e" * 9000,
    b"-" + b"e" * 140000,
    b"$20000\r\n" + b"y" * 20000 + b"\r\n",
    b">2\r\n+a\r\n",
    b">2\r\n+a\r\n$100000\r\n" + b"p" * 100000 + b"\r\n",
    b"|1\r\n+a\r\n:1\r\n",
    b"-ASK 15495 10.0.0.1:7002\r\n",
    b"-MOVED 15495 10.0.0.1:7001\r\n",
    b"-MOVED 3300 %s:1\r\n" % str(NOBODY).encode(),
    b"-MOVED 7365 %s:1\r\n" % (b"h" * 300),
    b"-MOVED 16384 10.0.0.1:7001\r\n",
    b"-ASK 0 ?:7003\r\n",
    b"-ASK 0 :99999\r\n",
    b"-TRYAGAIN Multiple keys request during rehashing of slot\r\n",
    b"-EXECABORT Transaction discarded because of previous errors.\r\n",
    b"-LOADING Redis is loading the dataset in memory\r\n",
    b"$?\r\n;4\r\nHell\r\n",
)
FLOODS = [b"PING", b"TIME", b"CLIENT INFO", b"ECHO x", b"GET a", b"ECHO ask:lease:0", b"ECHO ask:nodes:0"]
flood = st.tuples(st.sampled_from(FLOODS), st.integers(1, 600)).map(lambda two: [two[0].split()] * two[1])
large = st.sampled_from([b"a", b"b", b"c"]).map(lambda k: [b"SET", k, b"x" * 400000])
kills = st.just([b"ECHO", b"ask:kills:0"])
one = st.lists(st.one_of(command, command, command, large, kills), max_size=12) | flood
plays = st.lists(one, min_size=1, max_size=3)


def meddle(stage: Stage, chance: random.Random, ledger: Ledger) -> None:
    """What control does, at its worst."""
    disturb(stage, chance, ledger)
    stage.settings.update(timeout_ns=chance.choice([1, 5_000_000, 50_000_000]))
    match chance.randrange(7):
        case 0:
            stage.unreachable = set(chance.sample([A, B, C, D], chance.randint(0, 2)))
        case 1:
            close_idle(stage.path, chance.choice([0.0, 0.01]))
        case 2:
            stage.publish(chance.choice([[], [(A, [], [(0, 16383)])], [(None, [A, B], [(0, 16383)])]]))
        case 3:
            stage.settings.update(hard_output=chance.choice([1000, 1 << 30]))
        case 4:
            for node in stage.router.nodes.values():
                for backend in node.backends():
                    if backend.leased and chance.random() < 0.5:
                        backend.close()
        case 5:
            stage.path.max_memory = chance.choice([0, 1, 40_000, 400_000, 4_000_000])
        case 6:
            time.sleep(0.002)
            stage.router.sweep()


class Port:
    """Takes pushes of nodes and does with them what it must not."""

    def __init__(self, chance: random.Random, speakers: list[Speaker]) -> None:
        self.chance = chance
        self.speakers = speakers

    def __call__(self, backend: Any, frame: bytes) -> None:
        assert frame[:1] in (b">", b"|"), frame[:100]
        speaker = self.chance.choice(self.speakers)
        match self.chance.randrange(5):
            case 0 | 1:
                speaker.push(self.chance.random() < 0.5)
            case 2:
                speaker.inside.kill()
            case 3:
                if backend.leased:
                    backend.close()


class Rude(Speaker):
    """A client with bad manners. manner: what it does at some time, when it does not only speak and listen."""

    MANNERS = ("", "", "", "deaf", "leaves", "half", "deaf for a while")

    def __init__(self, *args: Any, chance: random.Random) -> None:
        super().__init__(*args)
        self.chance = chance
        self.manner = chance.choice(self.MANNERS)
        self.left = False
        self.looks = chance.choice([20, 100])
        if self.manner.startswith("deaf") or chance.random() < 0.1:
            sock = socket.socket(fileno=self.inside.fd)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4608)
            sock.detach()

    def act(self) -> None:
        if self.left:
            return
        self.speak()
        self.looks -= 1
        if self.manner.startswith("deaf") and self.looks > 0:
            pass
        elif self.manner == "deaf":
            self.left = True
        else:
            self.listen()
        if self.manner == "leaves" and self.chance.random() < 0.05:
            self.left = True
        if self.manner == "half" and not self.stream:
            self.end.sock.shutdown(socket.SHUT_WR)
            self.manner = ""
        if self.left:
            self.end.close()

    @property
    def waits(self) -> bool:
        return not self.left and super().waits


def a_mood(chance: random.Random, said: tuple[bytes, ...], lying: bool) -> Mood:
    return Mood(
        redirect=chance.choice([0.0, 0.1, 0.5]),
        unknown=chance.choice([0.0, 0.5]),
        forged=chance.choice([0.0, 0.9]),
        pushes=chance.choice([0.0, 0.2]),
        breaks=chance.choice([0.0, 0.02, 0.2]),
        silent=chance.choice([0.0, 0.05, 0.3]),
        early=chance.choice([0.0, 0.5]),
        lies=chance.choice([0.02, 0.2]) if lying else 0.0,
        small=chance.random() < 0.5,
        said=said,
    )


def play(conversations: list[list[list[bytes]]], said: tuple[bytes, ...], chance: random.Random) -> None:
    lying = said is not LIES or chance.random() < 0.5
    mood = a_mood(chance, said, lying)
    meddled = chance.choice([0.0, 0.05, 0.2])
    lines = chance.choice([0.0, 0.0, 0.9])
    ledger = Ledger(strict=not lying)
    ledger.known |= {D}
    stage = Stage(
        timeout_s=chance.choice([0.002, 0.02, 0.05]),
        stall_s=chance.choice([0.02, 0.1, 10.0]),
        failover_s=chance.choice([0.0, 0.02]),
        max_redirections=chance.choice([0, 1, 5]),
        connections=chance.choice([1, 2]),
        max_pending=chance.choice([1, 5, 1024]),
        soft_output=chance.choice([1000, 1 << 20]),
        hard_output=chance.choice([1000, 30000, 1 << 30, 1 << 30]),
        max_window=chance.choice([1, 1000, 16 << 20]),
    )
    stage.path.responder = AskingResponder(stage, ledger)
    speakers: list[Speaker] = []
    for commands in conversations:
        words = [ledger.unique(c) for c in commands]
        data = b"".join(encoded(c, chance, lines) for c in words)
        stream = pieces(chance, data) if len(data) < 2000 else [data]
        speakers.append(Rude(stage, words, stream, ledger, chance=chance))
    if chance.random() < 0.5:
        stage.router.pushes = PushPort(Port(chance, speakers))
    company = Company(stage, chance, mood, ledger)
    give_up = time.monotonic() + 60  # floods under which every command times out are slow
    patience = time.monotonic() + 2
    while any(speaker.waits for speaker in speakers):
        assert time.monotonic() < give_up, missing(stage, company, speakers)
        for speaker in speakers:
            speaker.act()  # type: ignore[attr-defined]
        stage.turn(1)
        assert sum(client.memory for client in stage.path.clients) == stage.path.client_memory
        assert 0 <= stage.path.client_memory <= (stage.path.max_memory or 1 << 40)
        if chance.random() < 0.1:
            stage.router.sweep()
        if chance.random() < meddled:
            meddle(stage, chance, ledger)
        if time.monotonic() > patience:  # an endless reply has no deadline, and need not have one: its node has
            meddled = 0.0
            stage.router.sweep()
            for fake in company.fakes.values():
                if not fake.gone:
                    fake.leave()
        if chance.random() < meddled / 4:
            drain(chance.choice(speakers).inside)
        company.act()
    for speaker in speakers:
        if not speaker.left:  # type: ignore[attr-defined]
            speaker.listen()
        speaker.judge(mood, fair=not lying, calm=False)
    stage.close()


def missing(stage: Stage, company: Company, speakers: list[Speaker]) -> str:
    """What is known of a play that does not end."""
    backends = [b for node in stage.router.nodes.values() for b in node.backends()]
    clients = [
        (s.inside, len(s.replies), len(s.commands), len(s.stream), s.inside.pending) for s in speakers if s.waits
    ]
    return f"a reply is missing: {clients}, {backends}, parked {stage.parking.waiting}, {stage.lost_for[-5:]}"


def check(case: Any, chance: random.Random) -> None:
    if isinstance(case, bytes):
        conversations = [[b"GET a", b"SET b 1", b"MGET a b c", b"EVAL x 1 a"] for _ in range(chance.randint(1, 2))]
        said = (case, *(mutate(chance, CORPUS) for _ in range(3)))
        play([[line.split() for line in lines] for lines in conversations], said, chance)
    else:
        play(case, LIES, chance)


def run(seed: int, deadline: float) -> int:
    return alternate(seed, deadline, CORPUS, plays, check)
