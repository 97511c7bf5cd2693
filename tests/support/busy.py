"""Clients of every kind that keep a proxy busy, and know what each reply has to be.

Why: "a node was restarted and nobody noticed" is a claim about transactions, scripts, blocking commands and messages as
much as about GET. Called by the tests of PROXY PAUSE. All clients live in one thread with an event loop of its own;
each owns its keys, so that it knows every reply beforehand, and what the servers hold at the end.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any

import hiredis
import uvloop

from tests.support.raw import encode

SCRIPT = "redis.call('INCR', KEYS[1]) return redis.call('GET', KEYS[1])"


class Connection:
    """One connection, a command or a pipeline at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer, self._parser = reader, writer, hiredis.Reader()

    async def ask(self, *commands: tuple[str | int, ...]) -> list[Any]:
        """The replies to these commands, sent together."""
        self._writer.write(b"".join(encode(*command) for command in commands))
        return [await self.reply() for _ in commands]

    async def reply(self) -> Any:
        while (found := self._parser.gets()) is False:
            if not (data := await self._reader.read(65536)):
                raise EOFError("closed by the proxy")
            self._parser.feed(data)
        if isinstance(found, hiredis.ReplyError):
            return f"-{found}"
        return found

    def close(self) -> None:
        self._writer.close()


class Busy:
    """About `clients` clients of all kinds, from the context's beginning to stop().

    wrong: replies that were not what they had to be, and connections that ended. done: rounds by kind. longest_s: the
    longest that any round took, by kind. counts: key -> what it must hold at the end.
    """

    def __init__(self, address: tuple[str, int], clients: int = 100) -> None:
        self.address = address
        self.wrong: list[str] = []
        self.done: Counter[str] = Counter()
        self.longest_s: dict[str, float] = {}
        self.counts: dict[str, int] = {}
        self._clients = clients
        self._stop = False
        self._sha = ""
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: uvloop.run(self._run()))

    def __enter__(self) -> Busy:
        self._thread.start()
        assert self._ready.wait(20)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    def stop(self) -> None:
        """Lets every client finish what it does; returns when all have."""
        self._stop = True
        self._thread.join(60)
        assert not self._thread.is_alive()

    async def _run(self) -> None:
        loader = await self._connect()
        (sha,) = await loader.ask(("SCRIPT", "LOAD", SCRIPT))
        self._sha = sha.decode()
        loader.close()
        kinds: list[Callable[[Connection, str], Awaitable[None]]] = [
            self._incr, self._get, self._transaction, self._pipeline, self._script, self._list, self._messages,
        ]  # fmt: skip
        tasks = [asyncio.create_task(self._client(kinds[n % len(kinds)], n)) for n in range(self._clients)]
        self._ready.set()
        await asyncio.gather(*tasks)

    async def _connect(self) -> Connection:
        return Connection(*await asyncio.open_connection(*self.address))

    async def _client(self, kind: Callable[[Connection, str], Awaitable[None]], number: int) -> None:
        try:
            connection = await self._connect()
            await kind(connection, f"busy:{kind.__name__}:{number}")
            connection.close()
        except Exception as error:
            self.wrong.append(f"{kind.__name__} {number}: {error!r}")

    async def _round(self, kind: str, connection: Connection, *commands: tuple[str | int, ...]) -> list[Any]:
        loop = asyncio.get_running_loop()
        begun_s = loop.time()
        replies = await connection.ask(*commands)
        self.longest_s[kind] = max(self.longest_s.get(kind, 0.0), loop.time() - begun_s)
        self.done[kind] += 1
        return replies

    def _expect(self, kind: str, told: object, wanted: object) -> None:
        if told != wanted:
            self.wrong.append(f"{kind}: {told!r} instead of {wanted!r}")

    async def _incr(self, connection: Connection, key: str) -> None:
        n = 0
        while not self._stop:
            n += 1
            self._expect("incr", await self._round("incr", connection, ("INCR", key)), [n])
        self.counts[key] = n

    async def _get(self, connection: Connection, key: str) -> None:
        await connection.ask(("SET", key, 7))
        while not self._stop:
            self._expect("get", await self._round("get", connection, ("GET", key)), [b"7"])
        self.counts[key] = 7

    async def _transaction(self, connection: Connection, key: str) -> None:
        n = 0
        while not self._stop:
            n += 2
            words = (("MULTI",), ("INCR", key), ("INCR", key), ("EXEC",))
            told = await self._round("transaction", connection, *words)
            self._expect("transaction", told, [b"OK", b"QUEUED", b"QUEUED", [n - 1, n]])
        self.counts[key] = n

    async def _pipeline(self, connection: Connection, key: str) -> None:
        n = 0
        while not self._stop:
            n += 1
            keys = [f"{key}:{k}" for k in range(20)]
            told = await self._round("pipeline", connection, *[("INCR", one) for one in keys])
            self._expect("pipeline", told, [n] * 20)
        self.counts |= {f"{key}:{k}": n for k in range(20)}

    async def _script(self, connection: Connection, key: str) -> None:
        n = 0
        while not self._stop:
            n += 1
            told = await self._round("script", connection, ("EVALSHA", self._sha, 1, key))
            self._expect("script", told, [b"%d" % n])
        self.counts[key] = n

    async def _list(self, connection: Connection, key: str) -> None:
        """BLPOP of what another connection pushes, a little later each time."""
        pusher = await self._connect()
        n = 0
        while not self._stop:
            n += 1
            popping = asyncio.create_task(self._round("blpop", connection, ("BLPOP", key, 0)))
            await asyncio.sleep(0.02)
            (pushed,) = await pusher.ask(("RPUSH", key, n))
            self._expect("rpush", pushed, 1)
            self._expect("blpop", await popping, [[key.encode(), b"%d" % n]])
        pusher.close()
        self.counts[key] = 0

    async def _messages(self, connection: Connection, key: str) -> None:
        """What one connection publishes, another one gets."""
        publisher = await self._connect()
        await connection.ask(("SUBSCRIBE", key))
        n = 0
        while not self._stop:
            n += 1
            await publisher.ask(("PUBLISH", key, n))
            try:
                async with asyncio.timeout(20):
                    told = await connection.reply()
            except TimeoutError:
                self.wrong.append(f"message {n} of {key} is lost")
                break
            self.done["message"] += 1
            self._expect("message", told, [b"message", key.encode(), b"%d" % n])
        publisher.close()
