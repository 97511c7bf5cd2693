"""Busy clients that go on through errors, and account for them: kinds, gaps, and what must hold all the same.

Why: while a cluster is changed, "no client notices" or "only these errors come" is a claim about every command of every
client. Unlike tests.support.load, whose clients have no errors to expect, these tell an error that says the command was
not executed from one that leaves it open, and check what is known either way. Called by tests/chaos.

Each client has keys of its own all over the slots (INCR, GET, MGET), texts (MSET, MGET) and two counters in one slot
(MULTI .. EXEC), so it knows the right reply to each command, or, after an error that leaves it open, the two that may
be. All run in one thread with an event loop of its own.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import hiredis
import uvloop

from proxy.embedded import EmbeddedCluster, wait_for
from tests.support.cluster import slot_of
from tests.support.raw import Word, encode

KEYS = 6  # counters of one client
REST_S = 0.001  # of a client after each step
OPEN = ("may have been executed",)  # what an error says that leaves open whether the command was executed


@dataclass
class Known:
    """A counter: at least `sure` INCRs were executed, and at most `doubtful` more."""

    sure: int = 0
    doubtful: int = 0

    def wrong(self, value: int, added: int = 0) -> str:
        """What is wrong with a value that a reply shows after `added` more; "" = nothing, and it is known now."""
        least = self.sure + added
        if least <= value <= least + self.doubtful:
            self.sure, self.doubtful = value, 0
            return ""
        known = f"{value} instead of {least}" + (f"..{least + self.doubtful}" if self.doubtful else "")
        self.sure, self.doubtful = value, 0
        return known


@dataclass
class Told:
    """What all clients were told."""

    answered: int = 0
    errors: Counter[str] = field(default_factory=Counter)  # by "COMMAND: the first words of the error"
    wrong: list[str] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    longest_s: float = 0.0  # between two good answers to one client
    longest_at_s: float = 0.0  # time.monotonic() at its end
    slowest_s: float = 0.0  # command


class Workload:
    """The clients, as a context manager; at its end they have stopped, and check() is the test's to call.

    split: with commands of several slots. hot: slots that every second key and all transactions are in.
    """

    def __init__(
        self,
        address: tuple[str, int],
        clients: int = 12,
        *,
        protocol: int = 2,
        split: bool = True,
        hot: range = range(16384),
    ) -> None:
        self.name = f"load:{secrets.token_hex(3)}"
        self.told = Told()
        self._address = address
        self._count = clients
        self._protocol = protocol
        self._split = split
        self.hot = hot
        self._running = True
        self._counters: dict[str, Known] = {}
        self._done = [0] * clients
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="workload", daemon=True)

    def __enter__(self) -> Workload:
        self._thread.start()
        self.advance()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._running = False
        self._thread.join(60)
        assert not self._thread.is_alive(), "a client of the workload hangs"
        print(f"workload: {self.summary()}")

    def advance(self, steps: int = 10, timeout_s: float = 30.0) -> None:
        """Waits until each client has done so many more steps, whatever came of them."""
        goals = [done + steps for done in self._done]
        wait_for(
            lambda: all(done >= goal for done, goal in zip(self._done, goals, strict=True)) or self.told.ended,
            timeout_s,
            f"every client advances: {self.told}",
        )

    def summary(self) -> str:
        """For the report."""
        told = self.told
        return (
            f"{told.answered} answered, errors {dict(told.errors)}, longest gap {told.longest_s:.2f} s, "
            f"slowest command {told.slowest_s:.2f} s, wrong {told.wrong[:3]}, ended {told.ended[:3]}"
        )

    def check(self, cluster: EmbeddedCluster, allowed: tuple[str, ...] = ()) -> None:
        """Nothing wrong, nobody disconnected, no errors but those that begin so; the servers hold what was told."""
        assert not self.told.wrong, self.told.wrong[:5]
        assert not self.told.ended, self.told.ended[:5]
        others = [error for error in self.told.errors if not error.partition(": ")[2].startswith(allowed or ("\0",))]
        assert not others, self.told.errors
        held = self.held(cluster)
        off = {key: (held.get(key, 0), known) for key, known in self._counters.items() if known.wrong(held.get(key, 0))}
        assert not off, off

    def held(self, cluster: EmbeddedCluster) -> dict[str, int]:
        """Counter -> what the servers hold."""
        found: dict[str, int] = {}
        for node in cluster.primaries():
            owned = set(cluster.slots_of(node))
            here = [key for key in self._counters if slot_of(key) in owned]
            with node.client.pipeline(transaction=False) as pipe:
                for key in here:
                    pipe.get(key)
                found.update({key: int(value or 0) for key, value in zip(here, pipe.execute(), strict=True)})
        return found

    # In its own thread

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._all())
        self._loop.close()

    async def _all(self) -> None:
        await asyncio.gather(*(self._client(number) for number in range(self._count)))

    async def _client(self, number: int) -> None:
        try:
            reader, writer = await asyncio.open_connection(*self._address)
            client = _Client(self, number, reader, writer)
            if self._protocol == 3:
                await client.ask("HELLO", 3)
            while self._running:
                await client.step()
                self._done[number] += 1
                await asyncio.sleep(REST_S)
            writer.close()
        except Exception as error:
            self.told.ended.append(f"client {number}: {error!r}")


class _Client:
    def __init__(self, load: Workload, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._load, self._told = load, load.told
        self._reader, self._writer = reader, writer
        self._rng = random.Random(number)
        self._parser = hiredis.Reader()
        self._last_s = time.monotonic()
        base = f"{load.name}:{number}"
        self._keys = [_key(f"{base}:{k}", load.hot if k % 2 else range(16384)) for k in range(KEYS)]
        tag = _key(base, load.hot)
        self._pair = [f"{{{tag}}}:a", f"{{{tag}}}:b"]
        texts = [_key(f"{base}:t{k}", load.hot if k % 2 else range(16384)) for k in range(4)]
        self._texts: dict[str, set[bytes | None]] = {key: {None} for key in texts}
        self._turn = 0
        self._known = {key: Known() for key in self._keys + self._pair}
        load._counters.update(self._known)

    async def step(self) -> None:
        self._turn += 1
        match self._rng.randrange(5 if self._load._split else 3):
            case 0:
                key = self._rng.choice(self._keys)
                self._count(key, await self.ask("INCR", key), 1)
            case 1:
                key = self._rng.choice(self._keys)
                self._read(key, await self.ask("GET", key))
            case 2:
                await self._transaction()
            case 3:
                reply = await self.ask("MGET", *self._keys)
                if isinstance(reply, list):
                    for key, value in zip(self._keys, reply, strict=True):
                        self._read(key, value)
            case 4:
                await self._write_texts()

    async def ask(self, *words: Word) -> Any:
        (reply,) = await self._talk([words])
        return reply

    async def _transaction(self) -> None:
        words: list[tuple[Word, ...]] = [("MULTI",), *(("INCR", key) for key in self._pair), ("EXEC",)]
        *_, reply = await self._talk(words)
        if isinstance(reply, list):
            for key, value in zip(self._pair, reply, strict=True):
                self._count(key, value, 1)
        else:
            for key in self._pair:
                self._count(key, reply, 1)

    async def _write_texts(self) -> None:
        value = b"%d" % self._turn
        reply = await self.ask("MSET", *(word for key in self._texts for word in (key, value)))
        for key, known in self._texts.items():
            self._texts[key] = {value} if reply == b"OK" else known | {value}  # a part of it may have failed
        reply = await self.ask("MGET", *self._texts)
        if isinstance(reply, list):
            for (key, known), got in zip(self._texts.items(), reply, strict=True):
                if got not in known:
                    self._told.wrong.append(f"MGET {key}: {got!r} instead of {known}")

    async def _talk(self, commands: list[tuple[Word, ...]]) -> list[Any]:
        started_s = time.monotonic()
        self._writer.write(b"".join(encode(*words) for words in commands))
        replies: list[Any] = []
        while len(replies) < len(commands):
            if not (data := await asyncio.wait_for(self._reader.read(65536), 40)):
                raise ConnectionError(f"closed after {commands[0][0]!r}")
            self._parser.feed(data)
            while (reply := self._parser.gets()) is not False:
                replies.append(reply)
        now_s = time.monotonic()
        told = self._told
        told.slowest_s = max(told.slowest_s, now_s - started_s)
        if isinstance(replies[-1], hiredis.ReplyError):
            told.errors[f"{commands[-1][0]!s}: {str(replies[-1])[:90]}"] += 1
        else:
            told.answered += 1
            if now_s - self._last_s > told.longest_s:
                told.longest_s, told.longest_at_s = now_s - self._last_s, now_s
            self._last_s = now_s
        return replies

    def _count(self, key: str, reply: object, added: int) -> None:
        known = self._known[key]
        if isinstance(reply, int):
            if wrong := known.wrong(reply, added):
                self._told.wrong.append(f"INCR {key}: {wrong}")
        elif any(text in str(reply) for text in OPEN):
            known.doubtful += added
        elif not isinstance(reply, hiredis.ReplyError):
            self._told.wrong.append(f"INCR {key}: {reply!r}")

    def _read(self, key: str, reply: object) -> None:
        if isinstance(reply, hiredis.ReplyError):
            return
        value = 0 if reply is None else int(reply) if isinstance(reply, bytes) else -1
        if wrong := self._known[key].wrong(value):
            self._told.wrong.append(f"GET {key}: {wrong}")


def _key(prefix: str, slots: range) -> str:
    return next(key for n in range(1 << 20) if slot_of(key := f"{prefix}:{n}") in slots)
