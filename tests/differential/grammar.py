"""Commands of a server by its own account (COMMAND, COMMAND DOCS), and calls of them made from that grammar.

Called by: sequences. The same chance gives the same words.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

from tests.differential import words as lexicon
from tests.differential.frames import parse, plain
from tests.support.raw import RawClient

SPLIT = {"mget", "mset", "del", "unlink", "exists", "touch"}
# Options that are not tried: an id of the server's own is the time.
SKIPPED_OPTIONS = {b"*"}
COUNTS = {"numkeys", "numfields"}  # arguments that count the ones behind them


@dataclass(frozen=True)
class Argument:
    """One node of a command's grammar, as in COMMAND DOCS."""

    name: str
    kind: str
    token: bytes
    flags: frozenset[str]
    parts: tuple[Argument, ...]


@dataclass(frozen=True)
class Command:
    """name: `set`, or `client|reply` for a subcommand; flags and arity as COMMAND says."""

    name: str
    group: str
    flags: frozenset[str]
    arity: int
    arguments: tuple[Argument, ...]

    @property
    def words(self) -> list[bytes]:
        return [word.upper().encode() for word in self.name.split("|")]

    @property
    def reads(self) -> bool:
        return "readonly" in self.flags


def read_commands(server: RawClient) -> dict[str, Command]:
    """All commands and subcommands of a server."""
    server.command("HELLO", 3)
    docs = plain(parse(server.command("COMMAND", "DOCS")))
    rows = dict(_rows(plain(parse(server.command("COMMAND")))))
    return {command.name: command for command in _commands(docs, rows, "")}


def _rows(listed: list[Any]) -> Iterator[tuple[str, tuple[int, frozenset[str]]]]:
    for row in listed:
        yield row[0].decode().lower(), (row[1], frozenset(flag.decode() for flag in row[2]))
        yield from _rows(row[9] if len(row) > 9 else [])


def _commands(docs: dict[bytes, Any], rows: dict[str, Any], group: str) -> Iterator[Command]:
    for raw, doc in docs.items():
        name = raw.decode().lower()
        own = doc[b"group"].decode() if b"group" in doc else group
        if subcommands := doc.get(b"subcommands"):
            yield from _commands(subcommands, rows, own)
        elif name in rows:
            arity, flags = rows[name]
            yield Command(name, own, flags, arity, _arguments(doc))


def _arguments(doc: dict[bytes, Any]) -> tuple[Argument, ...]:
    return tuple(
        Argument(
            name=argument[b"name"].decode(),
            kind=argument[b"type"].decode(),
            token=argument.get(b"token", b""),
            flags=frozenset(flag.decode() for flag in argument.get(b"flags") or []),
            parts=_arguments(argument),
        )
        for argument in doc.get(b"arguments") or []
    )


class Caller:
    """Makes calls of commands; keys are of a few hash tags, one tag for all keys of a call unless it is split."""

    def __init__(self, chance: Random, tags: list[bytes], dumps: list[bytes], across: float = 0.0) -> None:
        self.chance = chance
        self.tags = tags
        self.dumps = dumps  # payloads for RESTORE
        self.across = across  # how often keys of a call that is not split are of any tag
        self._out: list[bytes] = []
        self._count_at = -1
        self._tag = b""
        self._only: bytes | None = None
        self._spread = False
        self._command: Command

    def call(self, command: Command, tag: bytes | None = None, odd: float = 0.05) -> list[bytes]:
        """One call. tag: of all its keys; odd: how likely each word is an odd one, and the call is damaged."""
        chance = self.chance
        self._command = command
        self._tag = tag if tag is not None else chance.choice(self.tags)
        self._spread = tag is None and (command.name in SPLIT or chance.random() < self.across)
        self._only = chance.choice(lexicon.WEIRD_KEYS) if tag is None and chance.random() < 0.03 else None
        self._odd = odd
        self._out = command.words
        self._count_at = -1
        for argument in command.arguments:
            self._put(argument)
        if self._count_at >= 0:
            self._out[self._count_at] = b"0"
        if chance.random() < odd * 1.5:
            self._damage(len(command.words))
        return lexicon.tamed(self._out)

    def key(self) -> bytes:
        chance = self.chance
        if self._only is not None:
            return self._only
        hint = lexicon.KINDS.get(self._command.group, "")
        if not hint or chance.random() < 0.1:
            hint = chance.choice(lexicon.ALL_KINDS)
        tag = chance.choice(self.tags) if self._spread else self._tag
        return b"{%s}%s%d" % (tag, hint.encode(), chance.choice([1, 1, 1, 2, 2, 3]))

    def _put(self, argument: Argument) -> None:
        chance = self.chance
        if argument.token in SKIPPED_OPTIONS:
            return
        if "optional" in argument.flags and chance.random() < 0.6:
            return
        if "multiple" not in argument.flags:
            if argument.token and argument.kind != "pure-token":
                self._out.append(argument.token)
            self._one(argument)
            return
        times = chance.choice([1, 1, 2, 3, 4])
        if self._count_at >= 0 and argument.kind != "pure-token":
            self._out[self._count_at] = b"%d" % times if chance.random() < 0.95 else chance.choice(lexicon.INTEGERS)
            self._count_at = -1
        for turn in range(times):
            if argument.token and (turn == 0 or "multiple_token" in argument.flags):
                self._out.append(argument.token)
            self._one(argument)

    def _one(self, argument: Argument) -> None:
        chance = self.chance
        match argument.kind:
            case "pure-token":
                token = argument.token if chance.random() < 0.8 else argument.token.lower()
                if token:
                    self._out.append(token)
            case "oneof":
                chosen = [part for part in argument.parts if part.token not in SKIPPED_OPTIONS]
                if chosen:
                    self._required(chance.choice(chosen))
            case "block":
                for part in argument.parts:
                    self._put(part)
            case "key":
                self._out.append(self.key())
            case _ if argument.name in COUNTS:
                self._count_at = len(self._out)
                self._out.append(b"1")
            case _:
                self._out.append(self._word(argument))

    def _required(self, argument: Argument) -> None:
        self._put(Argument(argument.name, argument.kind, argument.token, argument.flags - {"optional"}, argument.parts))

    def _word(self, argument: Argument) -> bytes:
        chance = self.chance
        if chance.random() < self._odd * 0.6:
            return chance.choice(lexicon.ODD)
        if argument.name == "serialized-value" and chance.random() < 0.9:
            return chance.choice(self.dumps)
        return lexicon.word(chance, self._command.name, self._command.group, argument.kind, argument.name)

    def _damage(self, fixed: int) -> None:
        chance, out = self.chance, self._out
        at = chance.randrange(fixed, len(out)) if len(out) > fixed else -1
        match chance.randrange(6):
            case 0:
                del out[-1:]
            case 1 if at >= 0:
                del out[at]
            case 2:
                out.append(chance.choice([*lexicon.ODD, *lexicon.VALUES]))
            case 3 if at >= 0:
                out.insert(at, out[at])
            case 4 if at >= 0:
                out[at] = chance.choice(lexicon.ODD)
            case _:
                del out[chance.randint(1, len(out)) :]
