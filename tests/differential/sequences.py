"""Sequences of commands of one or two clients, by a seed and a number.

Called by: play and test_differential. A sequence is made of sections (data of a few types, a transaction, scripts, the
connection itself ...); GROUPS says how often each begins.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random

from tests.differential import words as lexicon
from tests.differential.differences import excluded
from tests.differential.grammar import Caller, Command
from tests.support.raw import encode

DATA = ["string", "bitmap", "hyperloglog", "list", "set", "sorted-set", "hash", "stream", "geo", "generic"]
# Section -> how often it comes, in parts of all.
GROUPS = {
    **{"data": 60, "transaction": 14, "scripts": 8, "connection": 8},
    **{"whole": 5, "unknown": 3, "databases": 3, "end": 2},
}
WHOLE = ["dbsize", "keys", "flushall", "flushdb", "randomkey", "scan"]
UNKNOWN = [b"nosuch", b"", b"GETT", b"foo\r\nbar", b"x" * 200, b"\x00", b"client", b"object", b"xgroup", b"config"]
# Inside MULTI, with {} for a hash tag.
INSIDE = b"PING|TIME|MULTI|UNWATCH|nosuch|GET|ECHO in|WATCH {}s1|CLIENT ID|SELECT 0|CLIENT GETNAME|HELLO|HELLO 9"
# Without GET 'a'b: Valkey 9.1 takes it for one word, Redis for unbalanced quotes.
RAW_ENDS = [
    b"*1\r\n$-5\r\n",
    b"*1\r\n:1\r\n",
    b"*-5\r\n*1\r\n$4\r\nPING\r\n*x\r\n",
    b"*1\r\n$536870913\r\n",
    b'SET "unbalanced\r\n',
    b"QUIT\r\n",
    b"*1\r\n$4\r\nQUIT\r\n*1\r\n$4\r\nPING\r\n",
    b"\r\n\r\nPING\r\nQUIT now\r\n",
    b"*1\r\n$4\r\nquit\r\n",
]


@dataclass(frozen=True)
class Step:
    """One command of a client as it is sent. replies: 0 where none comes; wait: all before is answered first.

    raw: what is sent, where that is no RESP command of the words; closes: the server closes, it is the last.
    """

    words: tuple[bytes, ...]
    client: int = 0
    replies: int = 1
    wait: bool = False
    raw: bytes = b""
    closes: bool = False

    @property
    def sent(self) -> bytes:
        return self.raw or encode(*self.words)

    def __str__(self) -> str:
        said = self.raw.decode("latin-1").encode("unicode_escape").decode() if not self.words else shown(self.words)
        inline = "  (inline)" if self.raw and self.words else ""
        return f"{'AB'[self.client]}{'|' if self.wait else ''}> {said}{inline}"


def shown(words: tuple[bytes, ...]) -> str:
    """Words as redis-cli reads them."""

    def one(word: bytes) -> str:
        if word and word.isalnum():
            return word.decode()
        inner = "".join(chr(c) if 32 <= c < 127 and c not in b'"\\' else f"\\x{c:02x}" for c in word)
        return f'"{inner}"' if len(word) < 400 else f'"{inner[:40]}..({len(word)} bytes)"'

    return " ".join(map(one, words))


@dataclass(frozen=True)
class Sequence:
    """steps in order; cuts: the seed of where the byte streams are cut."""

    name: str
    steps: tuple[Step, ...]
    cuts: str


class Maker:
    """Makes sequences of the given commands, but for those that are excluded."""

    def __init__(self, commands: dict[str, Command], dumps: list[bytes]) -> None:
        self.dumps = dumps
        self.commands = {name: command for name, command in commands.items() if not excluded(name)}
        self.by_group: dict[str, list[Command]] = {}
        for command in sorted(self.commands.values(), key=lambda one: one.name):
            if command.name not in WHOLE:
                self.by_group.setdefault(command.group, []).append(command)

    def make(self, seed: int, number: int) -> Sequence:
        name = f"{seed}:{number}"
        return _Making(self, Random(name), name).sequence()


class _Making:
    """One sequence while it is made."""

    def __init__(self, maker: Maker, chance: Random, name: str) -> None:
        self.maker = maker
        self.chance = chance
        self.name = name
        self.steps: list[Step] = []
        tags = chance.sample([b"a", b"b", b"c", b"d", b"tag"], chance.choice([1, 2, 3, 3]))
        self.caller = Caller(chance, tags, maker.dumps, across=chance.choice([0.0, 0.0, 0.02]))
        self.client = 0
        self.odd = chance.choice([0.0, 0.02, 0.05, 0.15])
        self.theme = chance.sample(DATA, chance.choice([1, 2, 2, 3]))
        self.closed = False

    def sequence(self) -> Sequence:
        chance = self.chance
        if chance.random() < 0.5:
            self.add([b"HELLO", b"3"])
        length = chance.choice([5, 20, 40, 80])
        while len(self.steps) < length and not self.closed:
            section = chance.choices(list(GROUPS), list(GROUPS.values()))[0]
            getattr(self, f"_{section}")()
            if chance.random() < 0.1 and not self.closed:
                self.client = 1 - self.client
        return Sequence(self.name, tuple(self.steps), self.name)

    def add(self, words: list[bytes], replies: int = 1, wait: bool = False) -> None:
        chance = self.chance
        if not words:
            return
        turned = bool(self.steps) and self.steps[-1].client != self.client
        raw = _inline(words) if chance.random() < 0.03 else b""
        waits = wait or turned or chance.random() < 0.1
        self.steps.append(Step(tuple(words), self.client, replies, waits, raw))

    # Sections

    def _data(self, tag: bytes | None = None, times: int = 0) -> None:
        for _ in range(times or self.chance.randint(1, 12)):
            theme = self.chance.choice(self.theme) if self.chance.random() < 0.9 else self.chance.choice(DATA)
            command = self.chance.choice(self.maker.by_group[theme])
            self.add(self.caller.call(command, tag, self.odd))

    def _scripts(self, tag: bytes | None = None, times: int = 0) -> None:
        for _ in range(times or self.chance.randint(1, 6)):
            self.add(self.caller.call(self.chance.choice(self.maker.by_group["scripting"]), tag, self.odd))

    def _connection(self) -> None:
        chance = self.chance
        for _ in range(chance.randint(1, 5)):
            group = chance.choice(["connection", "connection", "server"])
            command = chance.choice(self.maker.by_group[group])
            if command.name == "client|reply":
                self._reply()
            elif command.name not in ("quit", "select"):
                self.add(self.caller.call(command, None, self.odd))

    def _reply(self) -> None:
        chance = self.chance
        if chance.random() < 0.3:
            self.add([b"CLIENT", b"REPLY", chance.choice([b"ON", b"nosuch"])])
            return
        if chance.random() < 0.5:
            self.add([b"CLIENT", b"REPLY", b"skip"], 0)
            self.add([b"PING"], 0)
            return
        self.add([b"CLIENT", b"REPLY", b"OFF"], 0)
        for _ in range(chance.randint(0, 4)):
            command = chance.choice(self.maker.by_group[chance.choice(self.theme)])
            self.add(self.caller.call(command, None, self.odd), 0)
        self.add([b"CLIENT", b"REPLY", b"ON"])

    def _transaction(self) -> None:
        chance = self.chance
        tag = chance.choice(self.caller.tags)
        if chance.random() < 0.4:
            self._watch(tag)
        self.add([b"MULTI"])
        for _ in range(chance.choice([0, 1, 2, 4, 8])):
            match chance.randrange(20):
                case 0 | 1 | 2:
                    self.add(chance.choice(INSIDE.split(b"|")).replace(b"{}", b"{%s}" % tag).split())
                case 3:
                    self._scripts(tag, 1)
                case _:
                    self._data(tag, 1)
        if chance.random() < 0.1:  # at the end: the servers' replies to what follows it are as EXEC was asked
            self.add([b"HELLO", chance.choice([b"2", b"3"])])
        self.add([chance.choice([b"EXEC"] * 8 + [b"DISCARD", b"RESET"])])
        if chance.random() < 0.1:
            self.add([chance.choice([b"EXEC", b"DISCARD", b"UNWATCH"])])

    def _watch(self, tag: bytes) -> None:
        chance = self.chance
        kinds = chance.choices(b"s p l t z h x".split(), k=chance.randint(1, 3))
        keys = [b"{%s}%s%d" % (tag, kind, chance.choice([1, 2])) for kind in kinds]
        self.add([b"WATCH", *keys])
        self._data(tag, chance.choice([1, 1, 2, 3]))
        if chance.random() < 0.5:  # somebody else may change what is watched
            own = self.client
            self.client = 1 - own
            self._data(tag, chance.choice([1, 2]))
            if chance.random() < 0.5:
                self.add([b"DEL", chance.choice(keys)])
            self.client = own

    def _whole(self) -> None:
        """Commands about all keys. What is on its way to other nodes is waited for: there is no order between them."""
        command = self.maker.commands[self.chance.choice(WHOLE)]
        if command.name.startswith("flush") and self.chance.random() < 0.7:
            return
        self.add(self.caller.call(command, None, self.odd), wait=True)
        self._data(times=1)
        self.steps[-1] = replace(self.steps[-1], wait=True)

    def _unknown(self) -> None:
        chance = self.chance
        name = chance.choice(UNKNOWN)
        for _ in range(chance.randint(1, 3)):
            self.add([name, *(chance.choice([*lexicon.ODD, *lexicon.VALUES]) for _ in range(chance.randrange(4)))])

    def _databases(self) -> None:
        for _ in range(self.chance.randint(1, 3)):
            self.add(self.caller.call(self.maker.commands["select"], None, self.odd))
            self._data(times=2)
        self.add([b"SELECT", b"0"])

    def _end(self) -> None:
        raw = self.chance.choice(RAW_ENDS)
        self.steps.append(Step((), self.client, 0, True, raw, closes=True))
        self.closed = True


def _inline(words: list[bytes]) -> bytes:
    """The command as a line."""
    parts = []
    for word in words:
        if word.isalnum():
            parts.append(word)
        else:
            safe = (bytes([c]) if 32 < c < 127 and c not in b'"\\' else b"\\x%02x" % c for c in word)
            parts.append(b'"' + b"".join(safe) + b'"')
    line = b" ".join(parts)
    return line + b"\r\n" if 0 < len(line) < 30000 and words[0] else b""
