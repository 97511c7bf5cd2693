"""The kinds of clients of the recording workload (tests.chaos.workload), each one use that applications make of Redis.

What the checker is told of an operation is in its kind:

    push     its token was appended to a list (RPUSH, in a transaction, by a script)
    add      its token was added to a stream
    set      a register that one client alone writes was set to its number
    get      that register was read: reply = the number, 0 for none
    incr     reply = the value of the counter
    pop      reply = the token that was popped, or None
    deliver  reply = the tokens of a consumer group's entries that were delivered for the first time
    echo     reply must be the token
    pair     two keys that are only ever changed together: reply = both values
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from typing import Any

import hiredis

from tests.chaos.history import ADD, DELIVER, ECHO, GET, INCR, OTHER, PAIR, POP, PUSH, SET, Message, Op
from tests.chaos.workload import UNANSWERED_S, Client, Workload
from tests.support.connection import Connection, Lost

SCRIPT = "redis.call('RPUSH', KEYS[1], ARGV[1]) redis.call('INCR', KEYS[2]) return redis.call('INCR', KEYS[3])"
SHA = hashlib.sha1(SCRIPT.encode()).hexdigest()
DEPTH = 6
GROUP = "workers"


class Appender(Client):
    """Pipelines RPUSH to one list and ECHO in between; the list must hold what was answered, once, in that order."""

    pace_s = 0.03

    async def step(self, wire: Connection) -> None:
        for key in self.own("log"):
            futures = []
            for place in range(DEPTH):
                op = self.op(PUSH, key)
                futures.append(self.begin(wire, op, "RPUSH", key, op.token))
                if place % 3 == 2:
                    echo = self.op(ECHO, "")
                    futures.append(self.begin(wire, echo, "ECHO", echo.token))
            await settled(futures)


class Register(Client):
    """Sets registers of its own to 1, 2, 3 ... and reads them in the same pipeline."""

    async def step(self, wire: Connection) -> None:
        for key in self.own("reg"):
            write = self.op(SET, key)
            # The token stands beside the number, so that an append-only file tells of this very write.
            futures = [self.begin(wire, write, "SET", key, f"{write.number}{write.token}")]
            await settled(futures)
            read = self.op(GET, key)
            read.reply = number(await self.do(wire, read, "GET", key))


class Reader(Client):
    """Reads other clients' registers: one by one, and many with MGET."""

    async def step(self, wire: Connection) -> None:
        writers = [client for client in self.workload.clients if isinstance(client, Register)]
        keys = [key for writer in writers for key in writer.own("reg")]
        for key in keys[self.connections % 2 :: 2]:
            read = self.op(GET, key)
            read.reply = number(await self.do(wire, read, "GET", key))
        ops = [self.op(GET, key) for key in keys]
        future = wire.send("MGET", *keys)
        for place, op in enumerate(ops):
            future.add_done_callback(lambda done, op=op, place=place: self._note_part(op, done, place))
        await settled([future])

    def _note_part(self, op: Op, done: Any, place: int) -> None:
        self._note(op, done, False)
        if op.outcome == "ok":
            op.reply = number(op.reply[place])


class Counter(Client):
    """INCR of counters that all of its kind share."""

    async def step(self, wire: Connection) -> None:
        for key in self.keys("count"):
            await self.do(wire, self.op(INCR, key), "INCR", key)


class Transactor(Client):
    """MULTI/EXEC: two counters and a list, changed together; and reads of both counters at once."""

    async def step(self, wire: Connection) -> None:
        for first, second, log in zip(self.keys("t1"), self.keys("t2"), self.keys("tlog"), strict=True):
            op = self.op(PUSH, log)
            wire.send("MULTI").add_done_callback(quiet)
            for words in (("INCR", first), ("RPUSH", log, op.token), ("INCR", second)):
                wire.send(*words).add_done_callback(quiet)
            reply = await self.do(wire, op, "EXEC")
            if op.outcome == "ok" and not (isinstance(reply, list) and all(isinstance(part, int) for part in reply)):
                op.fail(f"ERR transaction gave {reply!r}", op.answered)
            pair = self.op(PAIR, first)
            if self.number % 2:
                pair.reply = pair_of(await self.do(wire, pair, "MGET", first, second))
            else:
                for words in (("MULTI",), ("GET", first), ("GET", second)):
                    wire.send(*words).add_done_callback(quiet)
                pair.reply = pair_of(await self.do(wire, pair, "EXEC"))


class Watcher(Client):
    """WATCH, GET, MULTI, SET, EXEC: a counter that is correct only if nobody comes between."""

    pace_s = 0.05
    _turn = 0

    async def step(self, wire: Connection) -> None:
        self._turn = (self._turn + 1) % len(self.workload.tags)
        key, log = self.keys("watched")[self._turn], self.keys("wlog")[self._turn]
        try:
            await wire.call("WATCH", key)
            value = int(await wire.call("GET", key) or 0)
        except hiredis.ReplyError as refused:
            self.op(OTHER, key).fail(str(refused), time.monotonic())
            await settled([wire.send("UNWATCH")])
            return
        op = self.op(PUSH, log)
        for words in (("MULTI",), ("SET", key, value + 1), ("RPUSH", log, op.token)):
            wire.send(*words).add_done_callback(quiet)
        reply = await self.do(wire, op, "EXEC")
        if op.outcome == "ok" and reply is None:
            op.fail("", op.answered)
            op.outcome = "error"  # somebody came between: nothing was carried out


class Scripter(Client):
    """EVALSHA of a script that changes a list and two counters. The proxy knows its body from SCRIPT LOAD."""

    async def prepare(self, wire: Connection) -> None:
        await wire.call("SCRIPT", "LOAD", SCRIPT)

    async def step(self, wire: Connection) -> None:
        for log, first, second in zip(self.keys("slog"), self.keys("s1"), self.keys("s2"), strict=True):
            op = self.op(PUSH, log)
            await self.do(wire, op, "EVALSHA", SHA, 3, log, first, second, op.token)


class Setter(Client):
    """MSET of one register in each shard, and of a pair in one slot, which must never be seen half done."""

    async def step(self, wire: Connection) -> None:
        ops = [self.op(SET, key) for key in self.own("mreg")]
        words = [word for op in ops for word in (op.key, f"{op.number}{op.token}")]
        future = wire.send("MSET", *words)
        for op in ops:
            future.add_done_callback(lambda done, op=op: self._note(op, done, True))
        await settled([future])
        for op in ops:
            read = self.op(GET, op.key)
            read.reply = number(await self.do(wire, read, "GET", op.key))
        for first, second in zip(self.own("p1"), self.own("p2"), strict=True):
            op = self.op(OTHER, first)
            await self.do(wire, op, "MSET", first, op.number, second, op.number)
            pair = self.op(PAIR, first)
            pair.reply = pair_of(await self.do(wire, pair, "MGET", first, second))


class Producer(Client):
    """Appends unique elements to queues."""

    async def step(self, wire: Connection) -> None:
        for key in self.keys("queue"):
            op = self.op(PUSH, key)
            await self.do(wire, op, "RPUSH", key, op.token)


class Consumer(Client):
    """BLPOP of one queue after the other."""

    pace_s = 0.0

    async def step(self, wire: Connection) -> None:
        for key in self.keys("queue"):
            if not self.workload.running:
                return
            op = self.op(POP, key, limit_s=1.0)
            reply = await self.do(wire, op, "BLPOP", key, 1)
            if op.outcome == "ok":
                op.reply = reply[1] if reply else None


class Streamer(Client):
    """XADD of unique entries."""

    async def step(self, wire: Connection) -> None:
        for key in self.keys("stream"):
            op = self.op(ADD, key)
            await self.do(wire, op, "XADD", key, "*", "token", op.token)


class GroupReader(Client):
    """XREADGROUP, blocking, as one consumer of a group of two, and XACK."""

    async def prepare(self, wire: Connection) -> None:
        for key in self.keys("stream"):
            try:
                await wire.call("XGROUP", "CREATE", key, GROUP, "0", "MKSTREAM")
            except hiredis.ReplyError as refused:
                if not str(refused).startswith("BUSYGROUP"):
                    raise

    async def step(self, wire: Connection) -> None:
        for key in self.keys("stream"):
            if not self.workload.running:
                return
            op = self.op(DELIVER, key, limit_s=0.5)
            words = ("XREADGROUP", "GROUP", GROUP, self.name, "COUNT", 10, "BLOCK", 500, "STREAMS", key, ">")
            reply = await self.do(wire, op, *words)
            if op.outcome == "error" and op.error.startswith("NOGROUP"):
                raise Lost("the group was lost by the cluster")
            if op.outcome != "ok":
                continue
            entries = reply[0][1] if reply else []
            op.reply = [fields[1] for _, fields in entries]
            if entries:
                acked = self.op(OTHER, key)
                await self.do(wire, acked, "XACK", key, GROUP, *(entry for entry, _ in entries))


class Publisher(Client):
    """Numbered messages to a channel of its own."""

    async def step(self, wire: Connection) -> None:
        channel = f"{self.workload.run}:channel:{self.number}"
        op = self.op(OTHER, channel)
        await self.do(wire, op, "PUBLISH", channel, op.number)
        if op.outcome == "ok":
            self.workload.history.published.setdefault(channel, set()).add(op.number)


class Subscriber(Client):
    """Subscribed to all publishers' channels by a pattern; messages come in order and at most once."""

    pace_s = 0.2

    async def prepare(self, wire: Connection) -> None:
        wire.write("PSUBSCRIBE", f"{self.workload.run}:channel:*")

    async def step(self, wire: Connection) -> None:
        if wire.gone:
            raise Lost(wire.ended_as)

    def push(self) -> Any:
        connection = self.connections + 1
        history = self.workload.history
        messages = history.seen_by_nodes if self.control else history.messages

        def take(reply: list[Any], at: float) -> None:
            if reply[0] == "pmessage":
                messages.append(Message(self.name, connection, reply[2], int(reply[3]), at))

        return take


class NodeSubscriber(Subscriber):
    """Subscribed at one node, past proxy and links: what comes twice or late there is the cluster's own doing."""

    control = True


def number(value: Any) -> int | None:
    """The number that a register holds: what stands before the token; 0 when it was never set; None: an error."""
    if value is None:
        return 0
    return int(str(value).partition("<")[0]) if isinstance(value, str | int) else None


def pair_of(reply: Any) -> tuple[Any, Any] | None:
    return (reply[0], reply[1]) if isinstance(reply, list) and len(reply) == 2 else None


def quiet(done: Any) -> None:
    """Takes an exception that its operation's last command has, too."""
    if not done.cancelled():
        done.exception()


async def settled(futures: list[Any]) -> None:
    """Waits for all of them; Lost when the connection has gone."""
    done, waiting = await asyncio.wait(futures, timeout=UNANSWERED_S)
    for future in done:
        if (failure := future.exception()) is not None:
            raise failure
    if waiting:
        raise Lost("no answer")


KINDS = (
    (Appender, 3), (Register, 3), (Reader, 2), (Counter, 3), (Transactor, 2), (Watcher, 2), (Scripter, 2), (Setter, 2),
    (Producer, 1), (Consumer, 2), (Streamer, 1), (GroupReader, 2), (Publisher, 2), (Subscriber, 2),
)  # fmt: skip
RELAXED_READERS = 2


def crew(workload: Workload) -> list[Client]:
    """The clients of one run."""
    made: list[Client] = []
    for kind, count in KINDS:
        made += [kind(workload, number, workload.address) for number in range(count)]
    made += [Reader(workload, 100 + number, workload.relaxed) for number in range(RELAXED_READERS)]
    made += [NodeSubscriber(workload, number, address) for number, address in enumerate(workload.nodes)]
    return made
