"""Who plays on the data path's stage when it is fuzzed: nodes with a mood, clients with manners, and what they may say.

A play notes in a Ledger every command its clients send; a node asserts that nothing else comes to it, and that no write
comes again that one of them has carried out. Used by target_client and target_hostile.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from proxy.cluster.slot import slot_of
from proxy.cluster.topology import Address
from proxy.forward.ask import Ask
from proxy.resp.encode import array, bulk, encode_command, integer
from proxy.resp.errors import EXCHANGE_TEXTS, EXECABORT, NOAUTH, REDIRECTED_IN_VAIN
from proxy.resp.readers import CommandReader, ReplyReader
from proxy.serve.responder import Responder
from tests.support.datapath import A, B, C, End, Stage

D = Address("10.0.0.4", 7004)  # sometimes in the topology
NOBODY = Address("10.6.6.6", 6379)  # never in it
PUSH_OF_NODE = b">2\r\n$4\r\nnode\r\n"
ASKING = encode_command("ASKING")
ASKED = encode_command("PING", "asked")  # what an Ask of these plays sends for no key
INTERNAL = b"-ERR internal error\r\n"
LOCKED = (NOAUTH, b"-ERR Protocol error: unauthenticated")
AIMED = (b"ask:lease:", b"ask:node:", b"ask:nodes:", b"ask:primaries:")
EARLY = b"-ERR Protocol error: invalid bulk length\r\n"

SCRIPTS = (b"EVAL", b"EVALSHA", b"FCALL")
_SPLIT = {b"MGET": 1, b"DEL": 1, b"MSET": 2}
_REFUSALS = [
    b"-TRYAGAIN Multiple keys request during rehashing of slot\r\n",
    b"-LOADING Redis is loading the dataset in memory\r\n",
    b"-CLUSTERDOWN The cluster is down\r\n",
    b"-READONLY You can't write against a read only replica.\r\n",
    b"-MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.\r\n",
]
# What a node that may be lost or silent brings about, and what is left when time or patience ends.
ERRORS = (
    *EXCHANGE_TEXTS.values(),
    *(REDIRECTED_IN_VAIN, b"-MOVED ", b"-ASK ", EARLY, EXECABORT, INTERNAL),
    *_REFUSALS,
)
# What a script may say without being believed, or at most once, for itself.
FORGERIES = [
    b"-MOVED 15495 10.6.6.6:6379\r\n",
    b"-ASK 3300 10.6.6.6:6379\r\n",
    b"-MOVED 1 a..b:1\r\n",
    b"-MOVED 1 %s:6379\r\n" % (b"h" * 300),
    b"-MOVED 99999 10.0.0.1:7001\r\n",
    b"-MOVED 7365 10.0.0.1:7002\r\n",
    b"-ASK 15495 :7001\r\n",
    b"-TRYAGAIN later\r\n",
    b"-LOADING\r\n",
    b"-CLUSTERDOWN Hash slot not served script: 0123, on @user_script:1.\r\n",
    b"-ERR no\r\n",
    *_REFUSALS,
]


def value(name: bytes) -> bytes:
    """What the nodes hold under a key: nothing, a little, or more than is passed on in one piece."""
    return bulk(b"v" * (20000 if len(name) == 1 else 10) + name)


def deserved(words: list[bytes]) -> bytes | None:
    """The one right reply of nodes that behave; None when it says what a play cannot know."""
    match words[0].upper():
        case b"GET" if len(words) == 2:
            return value(words[1])
        case b"SET" | b"MSET" | b"QUIT" if words != [b"SET"]:
            return b"+OK\r\n"
        case b"INCR":
            return integer(slot_of(words[1]))
        case b"MGET":
            return array([value(k) for k in words[1:]])
        case b"DEL":
            return integer(len(words) - 1)
        case b"EVAL" | b"EVALSHA" | b"FCALL":
            return bulk(b"script")
        case b"EXISTS":
            return integer(1)
        case b"PING":
            return b"+PONG\r\n" if len(words) == 1 else bulk(words[1])
        case b"ECHO" if words[1].startswith(b"ask:"):
            return _asked(words[1])
        case b"ECHO":
            return bulk(words[1])
        case b"RESET":
            return b"+RESET\r\n"
        case b"XREADGROUP":
            return b"+read\r\n"
        case b"HELLO" | b"TIME" | b"CLIENT":
            return None
    return b"-ERR wrong number of arguments for '%s' command\r\n" % words[0].lower()


@dataclass
class Ledger:
    """What may come to a node, and what has been carried out."""

    allowed: set[bytes] = field(default_factory=lambda: {ASKING})
    done: set[bytes] = field(default_factory=set)
    known: set[Address] = field(default_factory=lambda: {A, B, C})  # addresses that were ever published
    refused: dict[tuple[Address, bytes], bytes] = field(default_factory=dict)  # node, a script's key: the redirection
    numbers: int = 0
    strict: bool = True  # replies belong to their commands, so that it is known what was carried out

    def unique(self, words: list[bytes]) -> list[bytes]:
        """The command with values that no other one has, where it is a write."""
        if words[0] in (b"SET", b"MSET") and len(words) > 2:
            for at in range(2, len(words), 2):
                self.numbers += 1
                words = [*words[:at], b"%d:%s" % (self.numbers, words[at]), *words[at + 1 :]]
        elif words[0] == b"ECHO" and words[1].startswith(b"ask:"):
            self.numbers += 1
            words = [words[0], b"%s:%d" % (words[1], self.numbers)]
        return words

    def admit(self, words: list[bytes]) -> None:
        """Nodes may be sent this, or its parts."""
        self.allowed.add(encode_command(*words))
        if words[0] in SCRIPTS:  # a node that redirects one is asked whether that is its own word
            self.allowed.add(encode_command("EXISTS", words[3]))
        width = _SPLIT.get(words[0])
        if width is None:
            return
        parts: dict[int, list[bytes]] = {}
        for at in range(1, len(words), width):
            parts.setdefault(slot_of(words[at]), [words[0]]).extend(words[at : at + width])
        self.allowed.update(encode_command(*part) for part in parts.values())

    def received(self, frame: bytes) -> None:
        assert frame in self.allowed, f"no client sent {frame[:200]!r}"
        assert not self.strict or frame not in self.done, f"carried out before: {frame[:200]!r}"

    def carried_out(self, frame: bytes, words: list[bytes]) -> None:
        if words[0] in (b"SET", b"MSET"):
            self.done.add(frame)


@dataclass
class Mood:
    """Of the nodes of a play: how likely each of these is, per command or per look at the connection."""

    redirect: float = 0.0  # a command is redirected or refused
    unknown: float = 0.0  # ... to a node that nobody knows
    forged: float = 0.0  # a script says one of FORGERIES
    pushes: float = 0.0  # a push stands before a reply
    breaks: float = 0.0  # the connection is lost
    silent: float = 0.0  # nothing is answered for a while, or any more
    early: float = 0.0  # a command that has come in part is answered
    lies: float = 0.0  # something stands where it should not
    small: bool = False  # little goes through a socket at once
    said: tuple[bytes, ...] = ()  # lies

    @property
    def calm(self) -> bool:
        return not (self.breaks or self.silent or self.early or self.lies)


class FakeNode:
    """The far end of one backend connection."""

    def __init__(self, address: Address, end: End, chance: random.Random, mood: Mood, ledger: Ledger) -> None:
        self.address = address
        self.end = end
        self.chance = chance
        self.mood = mood
        self.ledger = ledger
        self.reader = CommandReader()
        self.part = b""  # of a command that has not wholly come
        self.answered = ""  # the part was answered already: with a refusal, or with an error
        self.asking = False
        self.queued: list[tuple[bytes, list[bytes]]] | None = None  # after MULTI
        self.aborted = False
        self.mute = 0  # looks
        self.unsent = b""
        self.gone = False

    def act(self) -> None:
        """Answers what has come, in pieces."""
        if self.gone:
            return
        data = self.read()
        self.part += data
        for frame, words in self.reader.feed(data):
            self.part = self.part[len(frame) :]
            self.take(frame, words)
        if self.mute:
            self.mute -= 1
            return
        begun = len(self.part) > 4 and not self.part.startswith(b"*1\r\n")  # not MULTI or EXEC, which nobody refuses
        if begun and not self.unsent and not self.answered and self.chance.random() < self.mood.early:
            self.answered = self.chance.choice(["error", "refusal"])
            self.unsent += EARLY if self.answered == "error" else self.chance.choice(_REFUSALS)
        if self.mood.lies and self.chance.random() < self.mood.lies:
            cut = self.chance.choice([0, len(self.unsent), self.chance.randrange(len(self.unsent) + 1)])
            self.unsent = self.unsent[:cut] + self.chance.choice(self.mood.said) + self.unsent[cut:]
        if self.chance.random() < self.mood.breaks * (1 if self.unsent else 0.1):
            cut = self.chance.choice([len(self.unsent), self.chance.randrange(len(self.unsent) + 1)])
            # Garbage is only known for garbage where a reply should begin.
            garbage = b"" if cut < len(self.unsent) else self.chance.choice([b"", b"!!\r\n", b"$-7\r\n", b"\0"])
            self.end.offer(self.unsent[:cut] + garbage)
            self.leave()
            return
        size = self.chance.choice([1, 7, 100, 9000, 1 << 20])
        self.unsent = self.unsent[self.end.offer(self.unsent[:size]) :]

    def read(self) -> bytes:
        if not self.mood.small:
            return self.end.get()
        try:
            return self.end.sock.recv(self.chance.choice([1, 100, 4000, 1 << 20, 1 << 20]))
        except (BlockingIOError, ConnectionResetError):
            return b""

    def leave(self) -> None:
        """Closes its end; what had come of the last command must be the beginning of one."""
        self.end.close()
        self.over()

    def over(self) -> None:
        """The connection is at its end, whoever ended it."""
        if not self.gone:
            self.gone = True
            part = self.part
            assert not part or any(frame.startswith(part) for frame in self.ledger.allowed), part[:200]

    def take(self, frame: bytes, words: list[bytes]) -> None:
        """A command has come."""
        self.ledger.received(frame)
        if self.answered:
            if self.queued is not None:
                self.aborted = True
            elif self.answered == "error":
                self.ledger.carried_out(frame, words)
            self.answered = ""
            return
        if self.chance.random() < self.mood.silent:
            self.mute = self.chance.choice([5, 30, 1 << 30])
        if self.chance.random() < self.mood.pushes:
            self.unsent += PUSH_OF_NODE + bulk(b"p" * self.chance.choice([0, 10, 9000, 100000]))
        self.unsent += self.reply(frame, words)

    def reply(self, frame: bytes, words: list[bytes]) -> bytes:
        if words[0] == b"ASKING":
            self.asking = True
            return b"+OK\r\n"
        asked, self.asking = self.asking, False
        if words[0] == b"MULTI":
            self.queued, self.aborted = [], False
            return b"+OK\r\n"
        if words[0] == b"EXEC":
            queued, self.queued = self.queued, None
            assert queued is not None
            if self.aborted:
                return EXECABORT
            for one in queued:
                self.ledger.carried_out(*one)
            return array([b"+OK\r\n"] * len(queued))
        if words[0] == b"EXISTS" and (said := self.ledger.refused.get((self.address, words[1]))) is not None:
            return said
        if not asked and self.chance.random() < self.mood.redirect:
            self.aborted = True
            return self.refusal(words)
        if self.queued is not None:
            self.queued.append((frame, words))
            return b"+QUEUED\r\n"
        self.ledger.carried_out(frame, words)
        if words[0] in SCRIPTS and self.chance.random() < self.mood.forged:
            return self.chance.choice(FORGERIES)
        if words == [b"PING", b"asked"]:
            return bulk(b"asked")
        return deserved(words) or b"+OK\r\n"

    def refusal(self, words: list[bytes]) -> bytes:
        slot = slot_of(words[1] if words[0] not in SCRIPTS else words[3])
        known = self.chance.random() >= self.mood.unknown
        other = str(self.chance.choice([A, B, C, D] if known else [NOBODY])).encode()
        line = self.chance.choice([b"-MOVED %d %s\r\n" % (slot, other), b"-ASK %d %s\r\n" % (slot, other), *_REFUSALS])
        if words[0] in SCRIPTS and line not in _REFUSALS:
            self.ledger.refused[self.address, words[3]] = line  # what it says of the key by itself, too
        return line


class Company:
    """The nodes of a play; connections come and go."""

    def __init__(self, stage: Stage, chance: random.Random, mood: Mood, ledger: Ledger) -> None:
        self.stage = stage
        self.chance = chance
        self.mood = mood
        self.ledger = ledger
        self.fakes: dict[End, FakeNode] = {}

    def act(self) -> None:
        for address, ends in self.stage.nodes.items():
            assert address in self.ledger.known, f"{address} was dialled on the word of an error line"
            for end in list(ends):
                fake = self.fakes.get(end)
                if fake is None:
                    fake = self.fakes[end] = FakeNode(address, end, self.chance, self.mood, self.ledger)
                    if self.mood.small:
                        self.narrow()
                fake.act()
                if end.closed:
                    fake.over()
                    ends.remove(end)  # or every renewal would make the next turns slower

    def narrow(self) -> None:
        """Little goes to a node at once."""
        for node in self.stage.router.nodes.values():
            for backend in node.backends():
                if backend.fd >= 0:
                    sock = socket.socket(fileno=backend.fd)
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4608)
                    sock.detach()


class Speaker:
    """A client that speaks RESP, or lines, and counts what it gets."""

    def __init__(self, stage: Stage, commands: list[list[bytes]], streams: list[bytes], ledger: Ledger) -> None:
        self.end = stage.client()
        self.inside = stage.accepted
        self.commands = commands
        self.stream = streams[::-1]
        self.reader = ReplyReader()
        self.replies: list[bytes] = []
        self.pushed = 0  # the number of the last push that came
        self.pushes = 0  # pushes given to it
        for words in commands:
            ledger.admit(words)

    def speak(self) -> None:
        for _ in range(20 if len(self.stream) > 500 else 1):
            if self.stream:
                piece = self.stream.pop()
                taken = self.end.offer(piece)
                if taken < len(piece):
                    self.stream.append(piece[taken:])

    def push(self, behind: bool) -> None:
        if self.inside.fd >= 0:
            self.pushes += 1
            self.inside.push(b">2\r\n$6\r\nclient\r\n:%d\r\n" % self.pushes, behind)

    def listen(self) -> None:
        for frame, _, push in self.reader.feed(self.end.get()):
            if push:
                self.pushed += 1
                assert frame == b">2\r\n$6\r\nclient\r\n:%d\r\n" % self.pushed, frame
            else:
                self.replies.append(frame)

    @property
    def waits(self) -> bool:
        return len(self.replies) < len(self.commands) and not self.end.closed

    def judge(self, mood: Mood, fair: bool, calm: bool) -> None:
        """fair: only replies to its commands may have come, in their order; calm: and no errors of nodes among them."""
        assert len(self.replies) <= len(self.commands), "an extra reply"
        if not fair:
            return
        reset = False
        for said, words in zip(self.replies, self.commands, strict=False):
            right = deserved(words)
            script = words[0] in SCRIPTS
            fine = right is None or said == right or (reset and said.startswith(LOCKED))
            if mood.redirect and words[0] == b"ECHO" and words[1].startswith(AIMED):
                fine = fine or said.startswith((b"-MOVED ", b"-ASK ", *_REFUSALS))  # for it and no other
            if not fine and not (script and mood.forged and said in FORGERIES):
                assert not calm, (words, said[:200])
                assert said.startswith(ERRORS), (words, said[:200])
            reset = reset or words[0] == b"RESET"


# -- what proxy.serve could ask of the servers -------------------------------------------------------------------------


def _asked(word: bytes) -> bytes:
    """The right reply to ECHO ask:<kind>:<number>."""
    match word.split(b":")[1]:
        case b"any" | b"lease" | b"node":
            return bulk(b"asked")
        case b"multi":
            return b"*1\r\n+OK\r\n"
        case b"two":
            return array([value(b"a"), value(b"b")])
        case b"nodes" | b"primaries":
            return integer(1)
    return INTERNAL


class AskingResponder(Responder):
    """Answers ECHO ask:<kind>:<number> with an Ask, as proxy.serve does for commands that need several nodes."""

    def __init__(self, stage: Stage, ledger: Ledger) -> None:
        super().__init__(stage.context)
        self.stage = stage
        self.ledger = ledger
        ledger.allowed |= {ASKED, *(encode_command(word) for word in ("MULTI", "EXEC"))}

    def answer(self, client: Any, args: list[bytes]) -> Any:
        if args[0] == b"ECHO" and args[1].startswith(b"ask:"):
            return self.ask(client, args[1])
        return super().answer(client, args)

    def ask(self, client: Any, word: bytes) -> Ask:
        router = self.stage.router
        read = word[-1] & 1 == 1
        match word.split(b":")[1]:
            case b"any":
                return Ask([("any", ASKED, 0)], read=read)
            case b"lease":
                if client.lease is None or word[-1] & 3 == 3:
                    if client.lease is not None:
                        client.lease.close()
                    client.lease = router.lease(next(iter(router.nodes.values())), client.proto)
                return Ask([(client.lease, ASKED, 0)], read=read)
            case b"node":
                return Ask([(next(iter(router.nodes.values())), ASKED, 0)], read=read)
            case b"multi":
                key = b"key:%d" % (word[-1] & 7)
                frame = encode_command(b"SET", key, word)
                self.ledger.allowed.add(frame)
                whole = encode_command("MULTI") + frame + encode_command("EXEC")
                self.ledger.allowed.add(whole)
                return Ask([(slot_of(key), whole, 2)])
            case b"two":
                for key in (b"a", b"b"):
                    self.ledger.allowed.add(encode_command(b"GET", key))
                frames = [(slot_of(key), encode_command(b"GET", key), 0) for key in (b"a", b"b")]
                return Ask(frames, array, read=read)
            case b"nodes" | b"primaries" as where:
                return Ask([(where.decode(), ASKED, 0)], self._all_right, read)  # type: ignore[list-item]
            case b"nonsense":
                return Ask([("any", ASKED, 0), (None, ASKED, 0)])  # type: ignore[list-item]
            case b"kills":
                return Ask([("any", ASKED, 0)] * 2, lambda replies: client.kill() or replies[0])
        return Ask([("any", ASKED, 0)] * 2, self._raising)

    @staticmethod
    def _all_right(replies: list[bytes]) -> bytes:
        return integer(int(all(reply == bulk(b"asked") for reply in replies)))

    @staticmethod
    def _raising(replies: list[bytes]) -> bytes:
        raise ValueError(len(replies))


def inline(words: list[bytes], chance: random.Random) -> bytes:
    """The command as a line, its words quoted in one way or the other."""
    quote: Callable[[bytes], bytes] = chance.choice(
        [
            lambda word: b'"%s"' % b"".join(b"\\x%02x" % byte for byte in word),
            lambda word: b"'%s'" % word.replace(b"'", b"\\'"),
            lambda word: (
                word if word and set(word) <= set(b"abcdefghijklmnopqrstuvwxyzGETSINCR0123:") else b'"%s"' % word
            ),
        ]
    )
    return b" ".join(map(quote, words)) + chance.choice([b"\r\n", b"\n", b"  \r\n", b"\n\r\n"])


def encoded(words: list[bytes], chance: random.Random, lines: float) -> bytes:
    if chance.random() < lines and sum(map(len, words)) < 10000 and words != [b""]:
        return inline(words, chance)
    return encode_command(*words)
