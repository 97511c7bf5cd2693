"""Clients that keep requests under way and account for each: sent, answered, answered wrongly, or lost as it ended.

Why: when a proxy drains, reloads or hands over, what counts is what each connection still gets before it ends, and how
it ends. Called by the tests of tests/daemon. Of what clients of a changing cluster are told, tests.support.workload
keeps account.

Each client owns a few counters in the cluster and nobody else touches them, so it knows the one right reply to each of
its requests (INCR, and now and then GET): a reply that is lost, doubled or out of order shows at once, and what the
servers hold at the end is what was executed. All clients live in one thread with an event loop of its own.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import hiredis

from proxy.embedded import EmbeddedCluster, wait_for
from tests.support.cluster import counters
from tests.support.loop_thread import LoopThread
from tests.support.raw import encode

Where = tuple[str, int] | str
KEYS = 3  # counters of one client
READ_EVERY = 4  # requests of which the last is a GET


@dataclass(frozen=True)
class Ended:
    """How a connection ended that the client itself did not close."""

    client: int
    worker: int  # pid, where it was located
    at_s: float  # time.monotonic()
    unanswered: int  # requests
    clean: bool  # the end of a stream (FIN) after a whole reply, neither a reset nor half a reply
    error: str


class LoadClient(asyncio.Protocol):
    """One connection that keeps up to `depth` requests under way. stale: GET may come from a replica."""

    def __init__(self, load: Load, number: int, depth: int) -> None:
        self.number = number
        self.depth = depth
        self.port = 0  # its own, where it came by TCP
        self.worker = 0  # pid, see Load.locate()
        self.sent = self.answered = 0
        self.counts = [0] * KEYS  # replies to INCR, by key
        self.wrong: list[str] = []
        self.gone = False
        self.closing = False
        self._load = load
        self._reader = hiredis.Reader()
        self._pending: deque[tuple[int, bool]] = deque()  # (key, whether it reads)
        self._transport: Any = None  # uvloop's is no asyncio.Transport
        self._eof = False
        keys = [load.key(number, k) for k in range(KEYS)]
        self._frames = {False: [encode("INCR", key) for key in keys], True: [encode("GET", key) for key in keys]}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        if isinstance(where := self._transport.get_extra_info("sockname"), tuple):
            self.port = where[1]
        self.refill()

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        while (reply := self._reader.gets()) is not False:
            self._check(reply)
        if not self._load.running or len(self._pending) > self.depth // 2:
            self._close_when_done()
        elif self._load.pause_s:
            if not self._pending:
                asyncio.get_running_loop().call_later(self._load.pause_s, self.refill)
        else:
            self.refill()

    def eof_received(self) -> None:
        self._eof = True

    def connection_lost(self, error: Exception | None) -> None:
        self.gone = True
        if not self.closing:
            clean = self._eof and error is None and not self._reader.has_data()
            ended = Ended(
                self.number, self.worker, time.monotonic(), len(self._pending), clean, str(error) if error else ""
            )
            self._load.ended.append(ended)

    def refill(self) -> None:
        """As many requests as may be under way."""
        if self.gone or self._eof or self._transport is None or not self._load.running:
            self._close_when_done()
            return
        out = []
        while len(self._pending) < self.depth:
            key, reads = self.sent % KEYS, self.sent % READ_EVERY == READ_EVERY - 1
            out.append(self._frames[reads][key])
            self._pending.append((key, reads))
            self.sent += 1
        self._transport.write(b"".join(out))

    def abort(self) -> None:
        """Closes at once."""
        self.closing = True
        self._transport.abort()

    def _check(self, reply: object) -> None:
        key, reads = self._pending.popleft()
        self.answered += 1
        if not reads:
            self.counts[key] += 1
            if reply != self.counts[key]:
                self.wrong.append(f"INCR gave {reply!r} instead of {self.counts[key]}")
                if isinstance(reply, int):
                    self.counts[key] = reply
            return
        value = 0 if reply is None else int(reply) if isinstance(reply, bytes) and reply.isdigit() else -1
        # A replica may be behind, or already know of an INCR that was sent after the GET.
        known = self.counts[key]
        if not (0 <= value <= known + len(self._pending) if self._load.stale else value == known):
            self.wrong.append(f"GET gave {reply!r} instead of {known}")

    def _close_when_done(self) -> None:
        if not self._load.running and not self._pending and self._transport is not None and not self._eof:
            self.closing = True
            self._transport.close()


class Load:
    """Busy clients, as a context manager; at its end each has got all its replies, and check() has been passed.

    depths: requests under way per client, dealt out in turn. pause_s: rest of a client between two batches (0: the next
    request follows as soon as half of them are answered). stale: see LoadClient. checked: False where the test
    itself judges what came out.
    """

    def __init__(
        self,
        address: Where,
        clients: int = 20,
        *,
        depths: Sequence[int] = (1, 16),
        pause_s: float = 0.002,
        stale: bool = False,
        checked: bool = True,
    ) -> None:
        self.name = f"load:{secrets.token_hex(4)}"
        self.clients: list[LoadClient] = []
        self.ended: list[Ended] = []
        self.pause_s = pause_s
        self.stale = stale
        self.running = True
        self._address = address
        self._count = clients
        self._depths = depths
        self._checked = checked
        self._thread = LoopThread("load")

    def __enter__(self) -> Load:
        self._thread.start()
        try:
            self._thread.run(self._connect())
            self.advance()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        try:
            if error is None:
                self.finish()
                if self._checked:
                    self.check()
        finally:
            self._end()

    def locate(self, served_by: dict[int, int]) -> Load:
        """Tells each client its worker; served_by: see ProxyDaemon."""
        for client in self.clients:
            client.worker = served_by[client.port]
        return self

    def key(self, client: int, place: int) -> str:
        return f"{self.name}:{client}:{place}"

    def alive(self) -> list[LoadClient]:
        """Clients whose connection is open."""
        return [client for client in self.clients if not client.gone]

    def advance(self, replies: int = 20, timeout_s: float = 20.0) -> None:
        """Waits until each client that is connected, and stays so, has got so many more replies."""
        goals = [(client, client.answered + replies) for client in self.alive()]
        try:
            wait_for(lambda: all(c.gone or c.answered >= goal for c, goal in goals), timeout_s, "every client advances")
        except Exception:
            print([(c.number, c.worker, c.sent, c.answered, goal) for c, goal in goals if c.answered < goal])
            raise

    def finish(self, timeout_s: float = 20.0) -> None:
        """No new requests; returns when the connections still open have got their replies and are closed."""
        self.running = False
        self._thread.run(self._close_idle())
        wait_for(lambda: not self.alive(), timeout_s, "every request is answered")

    def check(self) -> None:
        """Nothing wrong, nothing lost, nobody disconnected."""
        assert not self.wrong, self.wrong[:5]
        assert not self.ended, self.ended[:5]
        assert (sent := self.sent) == self.answered, f"{sent} sent, {self.answered} answered"

    @property
    def wrong(self) -> list[str]:
        """Replies that were not the right ones."""
        return [f"client {client.number}: {wrong}" for client in self.clients for wrong in client.wrong]

    @property
    def sent(self) -> int:
        """Requests of all clients."""
        return sum(client.sent for client in self.clients)

    @property
    def answered(self) -> int:
        """Replies, right or wrong."""
        return sum(client.answered for client in self.clients)

    def increments(self) -> int:
        """Replies to INCR so far."""
        return sum(sum(client.counts) for client in self.clients)

    def executed(self, cluster: EmbeddedCluster) -> dict[str, int]:
        """Key -> what the servers hold: the INCRs that were executed."""
        return counters(cluster, [self.key(client.number, place) for client in self.clients for place in range(KEYS)])

    def answered_by_key(self) -> dict[str, int]:
        """Key -> the INCRs that were answered."""
        return {self.key(c.number, k): c.counts[k] for c in self.clients for k in range(KEYS) if c.counts[k]}

    # In the load's own thread

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        for number in range(self._count):
            depth = self._depths[number % len(self._depths)]

            def make(number: int = number, depth: int = depth) -> LoadClient:
                return LoadClient(self, number, depth)

            if isinstance(self._address, str):
                _, client = await loop.create_unix_connection(make, self._address)
            else:
                _, client = await loop.create_connection(make, *self._address)
            self.clients.append(client)

    async def _close_idle(self) -> None:
        for client in self.clients:
            client.refill()

    async def _abort(self) -> None:
        for client in self.alive():
            client.abort()
        while any(not client.gone for client in self.clients):
            await asyncio.sleep(0)

    def _end(self) -> None:
        self.running = False
        self._thread.run(self._abort())
        self._thread.stop()


class Knocks:
    """Clients that connect, send one PING and leave, over and over, one in a thread per address; a context manager.

    refused: attempts that found nobody listening. unanswered: connections that ended without the whole reply.
    """

    def __init__(self, addresses: Sequence[Where], timeout_s: float = 10.0) -> None:
        self.answered = 0
        self.refused: list[str] = []
        self.unanswered: list[str] = []
        self.longest_s = 0.0
        self._timeout_s = timeout_s
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._knock, args=(address,), daemon=True) for address in addresses]

    def __enter__(self) -> Knocks:
        for thread in self._threads:
            thread.start()
        self.advance()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def advance(self, count: int = 50, timeout_s: float = 20.0) -> None:
        """Waits for so many more answers."""
        goal = self.answered + count
        wait_for(lambda: self.answered >= goal, timeout_s, f"{count} more knocks are answered: {self.trouble()}")

    def trouble(self) -> list[str]:
        """Every attempt that failed, in words."""
        return self.refused + self.unanswered

    def _knock(self, address: Where) -> None:
        while not self._stop.wait(0.0005):  # otherwise the test itself would get no CPU time
            started = time.monotonic()
            failure = knock(address, self._timeout_s)
            with self._lock:
                self.longest_s = max(self.longest_s, time.monotonic() - started)
                if not failure:
                    self.answered += 1
                else:
                    (self.refused if failure.startswith("refused") else self.unanswered).append(failure)


def knock(address: Where, timeout_s: float = 10.0) -> str:
    """Connects, sends one PING, reads the reply and leaves: "" or what went wrong."""
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    with socket.socket(family) as sock:
        sock.settimeout(timeout_s)
        try:
            sock.connect(address)
        except OSError as error:
            return f"refused {address}: {error!r}"
        try:
            sock.sendall(b"PING\r\n")
            reply = b""
            while len(reply) < 7:
                if not (more := sock.recv(64)):
                    break
                reply += more
        except OSError as error:
            return f"{address}: {error!r}"
        return "" if reply == b"+PONG\r\n" else f"{address}: {reply!r}"


def in_threads(count: int, work: Callable[[int], None]) -> None:
    """work(0..count-1) at the same time; raises the first failure."""
    failures: list[BaseException] = []

    def run(place: int) -> None:
        try:
            work(place)
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=run, args=(place,)) for place in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
