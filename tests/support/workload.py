"""Clients that know what each reply has to be, and count: what they were told, the gaps, and what must hold at the end.

Why: "no client notices", or "only these errors come", is a claim about every command of every client. Unlike the
clients of tests.support.load, which account for requests that a connection takes along as it ends, these tell an error
that says the command was not executed from one that leaves it open, and check what is known either way. Unlike those of
tests.chaos.workload they write down no history: what is wrong shows at once. Called by tests/chaos and by the tests of
PROXY PAUSE.

Each client has keys of its own all over the slots, so it knows the right reply to each command, or, after an error that
leaves it open, the two that may be. All run in one thread with an event loop of its own.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import random
import secrets
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import hiredis

from proxy.embedded import EmbeddedCluster, wait_for
from tests.support.cluster import counters, slot_of
from tests.support.connection import Connection
from tests.support.loop_thread import LoopThread
from tests.support.raw import Word

KEYS = 6  # counters of one client
REST_S = 0.001  # of a client after each step
UNANSWERED_S = 40.0
MESSAGE_S = 20.0
OPEN = ("may have been executed",)  # what an error says that leaves open whether the command was executed
SCRIPT = "return redis.call('INCR', KEYS[1])"
SHA = hashlib.sha1(SCRIPT.encode()).hexdigest()
# What a client does, in its turns, each time one of these; see _Client. The last three take no errors.
MIXED = ("incr", "get", "transaction")
SPLIT = ("mget", "mset")
APART = ("incr", "get", "transaction", "pipeline", "script", "pop", "message")


@dataclass
class Known:
    """A counter: at least `sure` INCRs were executed, and at most `doubtful` more."""

    sure: int = 0
    doubtful: int = 0

    def wrong(self, value: int, added: int = 0) -> str:
        """What is wrong with a value that a reply shows after `added` more; "" = nothing, and it is known now."""
        least = self.sure + added
        known = f"{value} instead of {least}" + (f"..{least + self.doubtful}" if self.doubtful else "")
        right = least <= value <= least + self.doubtful
        self.sure, self.doubtful = value, 0
        return "" if right else known


@dataclass
class Told:
    """What all clients were told."""

    answered: int = 0
    done: Counter[str] = field(default_factory=Counter)  # turns without an error, by what was done
    errors: Counter[str] = field(default_factory=Counter)  # by "COMMAND: the first words of the error"
    wrong: list[str] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    longest_s: float = 0.0  # between two good answers to one client
    longest_at_s: float = 0.0  # time.monotonic() at its end
    slowest_s: float = 0.0  # command


class Workload:
    """The clients, as a context manager; at its end they have stopped, and check() is the test's to call.

    protocols: of RESP, given out in turn. split: with commands of several slots. also: what else all of them do. hot:
    slots that every second key and all transactions are in. apart: each client does one thing only, with one key and
    without a rest: who waits for one node keeps nobody else.
    """

    def __init__(
        self,
        address: tuple[str, int],
        clients: int = 12,
        *,
        protocols: Sequence[int] = (2,),
        split: bool = True,
        also: tuple[str, ...] = (),
        hot: range = range(16384),
        apart: bool = False,
    ) -> None:
        self.name = f"load:{secrets.token_hex(3)}"
        self.address = address
        self.told = Told()
        self.known: dict[str, Known] = {}
        self.running = True
        self.hot = hot
        self.keys, self.rest_s = (1, 0.0) if apart else (KEYS, REST_S)
        all_do = MIXED + also + (SPLIT if split else ())
        self._protocols = protocols
        self._kinds = [(APART[number % len(APART)],) if apart else all_do for number in range(clients)]
        self._done = [0] * clients
        self._thread = LoopThread("workload")

    def __enter__(self) -> Workload:
        self._thread.start()
        self._all = self._thread.submit(self._run())
        self.advance()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.running = False
        try:
            self._all.result(60)
        except TimeoutError:
            raise AssertionError("a client of the workload hangs") from error
        finally:
            self._thread.stop()
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
        held = counters(cluster, self.known)
        off = {key: (held.get(key, 0), known) for key, known in self.known.items() if known.wrong(held.get(key, 0))}
        assert not off, off

    # In its own thread

    async def _run(self) -> None:
        protocols = itertools.cycle(self._protocols)
        clients = [  # all of them first: to find keys takes time
            _Client(self, number, kinds, next(protocols)) for number, kinds in enumerate(self._kinds)
        ]
        await asyncio.gather(*(self._client(number, client) for number, client in enumerate(clients)))

    async def _client(self, number: int, client: _Client) -> None:
        try:
            await client.prepare()
            while self.running:
                await client.step()
                self._done[number] += 1
                await asyncio.sleep(self.rest_s)
        except Exception as error:
            self.told.ended.append(f"client {number}: {error!r}")
        finally:
            client.close()


class _Client:
    """One client; what it does are its methods' names."""

    def __init__(self, load: Workload, number: int, kinds: Sequence[str], protocol: int) -> None:
        self._load, self._told = load, load.told
        self._kinds = kinds
        self._protocol = protocol
        self._rng = random.Random(number)
        self._wires: list[Connection] = []
        base = f"{load.name}:{number}"
        self._keys = [_key(f"{base}:{k}", load.hot if k % 2 else range(16384)) for k in range(load.keys)]
        tag = _key(base, load.hot)
        self._pair = [f"{{{tag}}}:a", f"{{{tag}}}:b"]
        texts = [_key(f"{base}:t{k}", load.hot if k % 2 else range(16384)) for k in range(4)]
        self._texts: dict[str, set[str | None]] = {key: {None} for key in texts}
        self._pipeline = [f"{self._keys[0]}:{k}" for k in range(20)] if "pipeline" in kinds else []
        self._list = f"{base}:list"
        self._channel = f"{base}:channel"
        self._inbox: asyncio.Queue[list[Any]] = asyncio.Queue()
        self._turn = 0
        self._known = {key: Known() for key in self._keys + self._pair + self._pipeline}
        load.known.update(self._known)

    async def prepare(self) -> None:
        """Connects, and brings about what its kinds of steps take for granted."""
        self._last_s = time.monotonic()
        self._wire = await self._connect()
        if self._protocol == 3:
            await self._wire.call("HELLO", 3)
        if "get" in self._kinds:  # a value that is not what every other key has
            for key in self._keys:
                await self._incr(key)
        if "script" in self._kinds:
            await self._wire.call("SCRIPT", "LOAD", SCRIPT)
        if "pop" in self._kinds:
            self._pusher = await self._connect()
        if "message" in self._kinds:
            subscriber = await self._connect(lambda reply, _: self._inbox.put_nowait(reply))
            subscriber.write("SUBSCRIBE", self._channel)
            await self._inbox.get()

    async def _connect(self, push: Callable[[Any, float], None] | None = None) -> Connection:
        self._wires.append(await Connection.open(self._load.address, push))
        return self._wires[-1]

    def close(self) -> None:
        for wire in self._wires:
            wire.close()

    async def step(self) -> None:
        self._turn += 1
        kind = self._rng.choice(self._kinds)
        step: Callable[[], Awaitable[bool]] = getattr(self, kind)
        if await step():
            self._told.done[kind] += 1

    # What it does: True when there was no error

    async def incr(self) -> bool:
        return await self._incr(self._rng.choice(self._keys))

    async def _incr(self, key: str) -> bool:
        return self._count(key, await self._ask("INCR", key))

    async def get(self) -> bool:
        key = self._rng.choice(self._keys)
        return self._read(key, await self._ask("GET", key))

    async def transaction(self) -> bool:
        *queued, reply = await self._talk(("MULTI",), *(("INCR", key) for key in self._pair), ("EXEC",))
        if not isinstance(reply, list):
            return every([self._count(key, reply) for key in self._pair])
        self._expect("MULTI", queued, ["OK", "QUEUED", "QUEUED"])
        return every([self._count(key, value) for key, value in zip(self._pair, reply, strict=True)])

    async def mget(self) -> bool:
        reply = await self._ask("MGET", *self._keys)
        if not isinstance(reply, list):
            return False
        return every([self._read(key, value) for key, value in zip(self._keys, reply, strict=True)])

    async def mset(self) -> bool:
        """And what MGET makes of it."""
        value = str(self._turn)
        reply = await self._ask("MSET", *(word for key in self._texts for word in (key, value)))
        for key, known in self._texts.items():
            self._texts[key] = {value} if reply == "OK" else known | {value}  # a part of it may have failed
        reply = await self._ask("MGET", *self._texts)
        if not isinstance(reply, list):
            return False
        for (key, known), got in zip(self._texts.items(), reply, strict=True):
            if got not in known:
                self._told.wrong.append(f"MGET {key}: {got!r} instead of {known}")
        return True

    async def pipeline(self) -> bool:
        replies = await self._talk(*(("INCR", key) for key in self._pipeline))
        return every([self._count(key, reply) for key, reply in zip(self._pipeline, replies, strict=True)])

    async def script(self) -> bool:
        return self._count(self._keys[0], await self._ask("EVALSHA", SHA, 1, self._keys[0]))

    async def pop(self) -> bool:
        """BLPOP of what another connection pushes, a little later each time."""
        popping = asyncio.create_task(self._ask("BLPOP", self._list, 0))
        await asyncio.sleep(0.02)
        self._expect("RPUSH", await self._pusher.call("RPUSH", self._list, self._turn), 1)
        return self._expect("BLPOP", await popping, [self._list, str(self._turn)])

    async def message(self) -> bool:
        """What one connection publishes, another one gets."""
        await self._ask("PUBLISH", self._channel, self._turn)
        try:
            async with asyncio.timeout(MESSAGE_S):
                told = await self._inbox.get()
        except TimeoutError:
            raise AssertionError(f"message {self._turn} of {self._channel} is lost") from None
        return self._expect("message", told, ["message", self._channel, str(self._turn)])

    # What it is told

    async def _ask(self, *words: Word) -> Any:
        (reply,) = await self._talk(words)
        return reply

    async def _talk(self, *commands: tuple[Word, ...]) -> list[Any]:
        """The replies to these commands, sent together."""
        started_s = time.monotonic()
        futures = [self._wire.send(*words) for words in commands]
        async with asyncio.timeout(UNANSWERED_S):
            replies = [reply for reply, _ in await asyncio.gather(*futures)]
        now_s = time.monotonic()
        told = self._told
        told.slowest_s = max(told.slowest_s, now_s - started_s)
        for words, reply in zip(commands, replies, strict=True):
            if isinstance(reply, hiredis.ReplyError):
                told.errors[f"{words[0]!s}: {str(reply)[:90]}"] += 1
        if not isinstance(replies[-1], hiredis.ReplyError):
            told.answered += 1
            if now_s - self._last_s > told.longest_s:
                told.longest_s, told.longest_at_s = now_s - self._last_s, now_s
            self._last_s = now_s
        return replies

    def _expect(self, what: str, told: object, wanted: object) -> bool:
        if told != wanted:
            self._told.wrong.append(f"{what}: {told!r} instead of {wanted!r}")
        return told == wanted

    def _count(self, key: str, reply: object) -> bool:
        """What an INCR said."""
        known = self._known[key]
        if isinstance(reply, int):
            if wrong := known.wrong(reply, 1):
                self._told.wrong.append(f"INCR {key}: {wrong}")
            return True
        if any(text in str(reply) for text in OPEN):
            known.doubtful += 1
        elif not isinstance(reply, hiredis.ReplyError):
            self._told.wrong.append(f"INCR {key}: {reply!r}")
        return False

    def _read(self, key: str, reply: object) -> bool:
        """What a GET said."""
        if isinstance(reply, hiredis.ReplyError):
            return False
        value = 0 if reply is None else int(reply) if isinstance(reply, str) else -1
        if wrong := self._known[key].wrong(value):
            self._told.wrong.append(f"GET {key}: {wrong}")
        return True


def every(done: list[bool]) -> bool:
    """all(); a list, because what comes behind a reply that is wrong has to be looked at, too."""
    return all(done)


def _key(prefix: str, slots: range) -> str:
    return next(key for n in range(1 << 20) if slot_of(key := f"{prefix}:{n}") in slots)
