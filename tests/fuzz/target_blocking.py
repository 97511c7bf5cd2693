"""Invariants of commands that block, several clients in front of nodes that let them wait, redirect, or are lost:
* a client gets exactly one reply per command, in order; to one that blocks: what its node has popped for it, nil, or a
  line that says why its wait is over;
* what is popped comes to one client once, and nothing is popped twice for one command: what may have been executed is
  not sent again;
* nothing that a client sends behind a command that blocks is carried out before that is answered;
* a connection on which a command waits is sent nothing else;
* clients that leave, are killed, unblocked or made room of leave nothing waiting behind, no connection and no request.
"""

from __future__ import annotations

import random
import time
from typing import Any

from hypothesis import strategies as st

from proxy.cluster.slot import slot_of
from proxy.resp.encode import array, bulk, encode_command
from proxy.resp.errors import EXCHANGE_TEXTS, NO_LEASE, UNBLOCKED, UNBLOCKED_CHANGED
from proxy.resp.readers import ReplyReader
from tests.fuzz.actors import ERRORS, Company, D, FakeNode, Ledger, Mood
from tests.fuzz.cases import alternate, pieces
from tests.fuzz.target_client import disturb
from tests.support.datapath import A, B, C, End, Stage

BLOCKING = (b"BLPOP", b"BLMOVE", b"XREAD")
WAITED = (UNBLOCKED, UNBLOCKED_CHANGED, NO_LEASE, *EXCHANGE_TEXTS.values())
PLAIN = [[b"PING"], [b"ECHO", b"e"], [b"GET", b"b"], [b"INCR", b"{t}n"], [b"MGET", b"a", b"b", b"c"]]
TAGS = [b"a", b"b", b"c", b"{t}"]
TIMEOUTS = [b"0", b"0", b"0.05", b"5"]
pop = st.tuples(st.sampled_from(BLOCKING), st.sampled_from(TAGS), st.sampled_from(TIMEOUTS)).map(list)
command = st.one_of(st.sampled_from(PLAIN), pop, pop)
plays = st.lists(st.lists(command, min_size=1, max_size=8), min_size=1, max_size=4)


def spelt(tag: bytes, name: bytes, timeout: bytes, number: int) -> list[bytes]:
    """A command that blocks, with a key that no other one has."""
    key = b"{%s}q%d" % (tag, number)
    if name == b"BLPOP":
        return [name, key, timeout]
    if name == b"BLMOVE":
        return [name, key, b"{%s}to" % tag, b"LEFT", b"RIGHT", timeout]
    return [name, b"BLOCK", b"%d" % (float(timeout) * 1000), b"STREAMS", key, b"$"]


def timeout_at(words: list[bytes]) -> int:
    return 2 if words[0] == b"XREAD" else len(words) - 1


def at_key(words: list[bytes]) -> bytes:
    return words[4 if words[0] == b"XREAD" else 1]


class Queues(Ledger):
    """What waits where, what was popped for which command, and what must not be overtaken."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: dict[bytes, list[bytes]] = {}  # by its key: a command that blocks
        self.waits: dict[bytes, WaitingNode] = {}
        self.over: dict[bytes, str] = {}  # how the last attempt ended
        self.popped: dict[bytes, bytes] = {}
        self.answered: set[bytes] = set()
        self.undisturbed = True  # nobody ends a wait but the node on which it is
        self.behind: dict[bytes, bytes] = {}  # the key of a command: that of the one before it that blocks

    def in_turn(self, words: list[bytes]) -> None:
        """Fails for what has overtaken a command that blocks."""
        before = self.behind.get(at_key(words)) if len(words) > 1 and self.undisturbed else None
        # A long reply may not have wholly come to the client when the next command is begun.
        ended = before in self.answered or self.over.get(before or b"") in ("popped", "nil", "unblocked", "lost")
        assert before is None or ended, f"{words} has overtaken the one that waits for {before!r}"


class WaitingNode(FakeNode):
    """The far end of one connection; client_id is what the node calls it."""

    ids = 0

    def __init__(self, address: Any, end: End, chance: random.Random, mood: Mood, ledger: Queues) -> None:
        super().__init__(address, end, chance, mood, ledger)
        self.queues = ledger
        self.waiting: list[bytes] = []
        self.looks = 0
        WaitingNode.ids += 1
        self.client_id = WaitingNode.ids
        assert end.backend is not None
        end.backend.client_id = self.client_id if chance.random() < 0.9 else 0

    def act(self) -> None:
        super().act()
        if self.waiting and not self.gone:
            self.looks -= 1
            if self.looks <= 0:
                self.finish(self.outcome())

    def outcome(self) -> str:
        ways = ["popped", "popped", "popped", "moved"] + ["nil"] * (b"0" not in self.waiting)
        return self.chance.choice(ways if self.mood.redirect else ways[:3] + ways[4:])

    def finish(self, how: str, mode: bytes = b"") -> None:
        words, self.waiting = self.waiting, []
        key = at_key(words)
        del self.queues.waits[key]
        self.queues.over[key] = how
        match how:
            case "popped":
                assert key not in self.queues.popped, f"{key!r} was popped twice"
                token = b"element of %s" % key
                self.queues.popped[key] = token
                self.unsent += array([bulk(key), bulk(token + b"." * self.chance.choice([0, 30000]))])
            case "nil":
                self.unsent += b"*-1\r\n"
            case "unblocked":
                self.unsent += UNBLOCKED if mode == b"ERROR" else b"*-1\r\n"
            case "moved":
                other = self.chance.choice([A, B, C, D])
                self.unsent += b"-MOVED %d %s\r\n" % (slot_of(key), str(other).encode())

    def over(self) -> None:
        if not self.gone and self.waiting:
            key = at_key(self.waiting)
            self.queues.over[key] = "lost"
            del self.queues.waits[key]
            self.waiting = []
        super().over()

    def take(self, frame: bytes, words: list[bytes]) -> None:
        self.queues.in_turn(words)
        if words[0] in BLOCKING:
            own = self.queues.sent[at_key(words)]
            at = timeout_at(own)
            assert words[:at] + words[at + 1 :] == own[:at] + own[at + 1 :]
            assert words[at] == own[at] or 0.0 < float(words[at]) <= float(own[at]), (words, own)
        elif words[:2] != [b"CLIENT", b"UNBLOCK"]:
            super().take(frame, words)
            return
        self.unsent += self.reply(frame, words)

    def reply(self, frame: bytes, words: list[bytes]) -> bytes:
        assert not self.waiting, f"{words} came to a connection on which {self.waiting} waits"
        if words[:2] == [b"CLIENT", b"UNBLOCK"]:
            for node in list(self.queues.waits.values()):
                if node.client_id == int(words[2]) and node.waiting:
                    node.finish("unblocked", words[3])
                    return b":1\r\n"
            return b":0\r\n"
        if words[0] not in BLOCKING:
            return super().reply(frame, words)
        key = at_key(words)
        asked, self.asking = self.asking, False
        how = self.queues.over.get(key, "new")
        assert how in ("new", "moved", "refused"), f"{words} was sent again after {how}"
        assert key not in self.queues.waits, f"{words} waits in two places"
        if not asked and self.chance.random() < self.mood.redirect:
            self.queues.over[key] = "refused"
            return self.refusal([words[0], key])
        self.waiting = words
        self.queues.waits[key] = self
        self.looks = self.chance.choice([1, 1, 3, 10, 40])
        return b""


class WaitingCompany(Company):
    def act(self) -> None:
        for address, ends in self.stage.nodes.items():
            for end in ends:
                if end not in self.fakes:
                    assert isinstance(self.ledger, Queues)
                    self.fakes[end] = WaitingNode(address, end, self.chance, self.mood, self.ledger)
        super().act()


class Popper:
    """A client, which may leave in one way or another."""

    def __init__(self, stage: Stage, commands: list[list[bytes]], ledger: Queues, chance: random.Random) -> None:
        self.end = stage.client()
        self.inside = stage.accepted
        self.commands: list[list[bytes]] = []
        self.left = False
        self.replies: list[bytes] = []
        self.reader = ReplyReader()
        behind = b""
        for words in commands:
            ledger.numbers += 1
            if words[0] in BLOCKING:
                words = spelt(words[1], words[0], words[2], ledger.numbers)
            elif words[0] in (b"GET", b"INCR"):
                words = [words[0], b"{%s}%d" % (words[1], ledger.numbers)]
            self.commands.append(words)
            ledger.admit(words)
            if behind and words[0] in (*BLOCKING, b"GET", b"INCR"):
                ledger.behind[at_key(words)] = behind
            if words[0] in BLOCKING:
                behind = at_key(words)
                ledger.sent[behind] = words
        self.ledger = ledger
        self.stream = pieces(chance, b"".join(encode_command(*words) for words in self.commands))[::-1]

    def speak(self) -> None:
        if self.stream and not self.left:
            piece = self.stream.pop()
            taken = self.end.offer(piece)
            if taken < len(piece):
                self.stream.append(piece[taken:])

    def listen(self) -> None:
        for frame, _, _ in self.reader.feed(self.end.get()):
            words = self.commands[len(self.replies)]
            self.replies.append(frame)
            if words[0] in BLOCKING:
                self.ledger.answered.add(at_key(words))

    @property
    def waits(self) -> bool:
        return not self.left and len(self.replies) < len(self.commands) and not self.end.closed

    def trouble(self, chance: random.Random) -> None:
        if self.left:
            return
        match chance.randrange(6):
            case 0:
                self.left = True
                self.end.close()
            case 1:
                self.left = True
                self.end.sock.shutdown(1)
            case 2:
                self.left = True
                self.inside.kill()
            case 3:
                self.inside.evict()
            case _:
                self.inside.unblock(chance.random() < 0.5, lambda hit: None)

    def judge(self) -> None:
        for said, words in zip(self.replies, self.commands, strict=False):
            if words[0] not in BLOCKING:
                continue
            key = at_key(words)
            token = self.ledger.popped.get(key)
            if token is not None and token in said:
                assert said.startswith(b"*2\r\n" + bulk(key)), said[:200]
            else:
                assert said == b"*-1\r\n" or said.startswith((*WAITED, *ERRORS)), (words, said[:200])


def play(conversations: list[list[list[bytes]]], chance: random.Random) -> None:
    mood = Mood(
        redirect=chance.choice([0.0, 0.05, 0.3]),
        unknown=0.0,
        breaks=chance.choice([0.0, 0.0, 0.05]),
    )
    troubled = chance.choice([0.0, 0.01, 0.1])
    disturbed = chance.choice([0.0, 0.02])
    ledger = Queues()
    ledger.undisturbed = not (troubled or disturbed)
    stage = Stage(timeout_s=20.0, max_redirections=100)
    poppers = [Popper(stage, one, ledger, chance) for one in conversations]
    ledger.known.add(D)
    company = WaitingCompany(stage, chance, mood, ledger)
    give_up = time.monotonic() + 30
    while any(popper.waits for popper in poppers):
        assert time.monotonic() < give_up, "a reply is missing"
        for popper in poppers:
            popper.speak()
        stage.turn(1)
        if chance.random() < disturbed:
            disturb(stage, chance, ledger, locks=False)
        if chance.random() < troubled:
            chance.choice(poppers).trouble(chance)
        for popper in poppers:
            if popper.end.sock.fileno() >= 0:
                popper.listen()
        company.act()
    for popper in poppers:
        popper.judge()
    if not (troubled or disturbed or mood.breaks):
        assert set(ledger.popped) == {
            at_key(words)
            for popper in poppers
            for words, said in zip(popper.commands, popper.replies, strict=True)
            if words[0] in BLOCKING and said[:1] == b"*" and said != b"*-1\r\n"
        }
    until = time.monotonic() + 5
    while stage.count("blocked"):  # those who left: their nodes are asked to let them go
        assert time.monotonic() < until, "somebody who has left still waits"
        stage.turn(1)
        company.act()
    stage.close()


def anything(chance: random.Random) -> list[list[list[bytes]]]:
    """Mostly longer conversations than Hypothesis likes to make."""

    def one() -> list[bytes]:
        if chance.random() < 0.4:
            return chance.choice(PLAIN)
        return [chance.choice(BLOCKING), chance.choice(TAGS), chance.choice(TIMEOUTS)]

    return [[one() for _ in range(chance.randint(1, 8))] for _ in range(chance.randint(1, 4))]


def check(case: Any, chance: random.Random) -> None:
    play(anything(chance) if isinstance(case, bytes) else case, chance)


def run(seed: int, deadline: float) -> int:
    return alternate(seed, deadline, [b"anything"], plays, check)
