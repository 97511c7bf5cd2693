"""The faulty network of the chaos bench, as a program: TCP links that pass, hold, delay, cut or refuse what they carry.

    python -m tests.chaos.link          (obeys JSON lines on stdin, answers each on stdout, ends when stdin does)

Why a program of its own: the bench is busy with recording, and a link that were late by itself would be a fault nobody
asked for. tests.chaos.links speaks to it; test_link has an example of each mode.

Each node has two links, one in front of its port and one in front of its bus, and announces theirs. A node connects
to others from a loopback address of its own (bind-source-addr), so that a link knows who is connecting: a rule may
concern one source and one node, and a partition may lie anywhere. Whoever comes from 127.0.0.1 is the proxy.

Rules are given as a whole; for each connection and direction ("up": to the node) the last one that matches decides:

    pass     at once
    drop     nothing arrives, and connections stay open; what was sent arrives when the rule ends, as with TCP. A
             connection that is made meanwhile is accepted and silent (a host that hangs, or a partition behind a NAT)
    delay    delay_s, and up to jitter_s more; order is kept
    stall    now and then (`chance` per piece) nothing arrives for 0.2 to stall_s: a lost packet and its timeout
    cut      after a random number of bytes out of `after`, wherever that is in a frame, both sides are reset or closed
    refuse   connections are reset; while it concerns every source, the port is closed, too

An end of stream takes the same way as bytes do: who is cut off does not learn that the other side has closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
import struct
import sys
import time
from collections import deque
from typing import Any

import uvloop

HOST = "127.0.0.1"
QUEUE_MAX = 4 << 20  # bytes that wait in one direction before its sender is read no further
SOURCE_PREFIX = "127.0.1."
END, RESET = object(), object()
PASS: dict[str, Any] = {"mode": "pass"}
Item = Any  # bytes, END or RESET


def source_of(address: str) -> str:
    """Who connects: the number of a node, or `proxy` for everybody else."""
    return address.removeprefix(SOURCE_PREFIX) if address.startswith(SOURCE_PREFIX) else "proxy"


class Pipe:
    """One direction of one connection. Items leave in the order in which they came, each not before it is due."""

    def __init__(self, pair: Pair, direction: str) -> None:
        self.pair = pair
        self.direction = direction
        self.rule = PASS
        self.to: asyncio.Transport | None = None
        self.came_from: asyncio.Transport | None = None
        self._queue: deque[tuple[float, Item]] = deque()
        self._waiting = 0
        self._last_due = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._left: int | None = None

    def obey(self, rule: dict[str, Any]) -> None:
        if rule == self.rule:
            return
        self.rule = rule
        self._left = random.randint(*rule["after"]) if rule["mode"] == "cut" else None
        if rule["mode"] in ("pass", "cut"):
            self._queue = deque((0.0, item) for _, item in self._queue)
            self._last_due = 0.0
        self.pump()

    def feed(self, item: Item) -> None:
        if not self._queue and self.rule["mode"] in ("pass", "cut") and self.to is not None:
            self._forward(item)
            return
        self._queue.append((self._due(), item))
        if isinstance(item, bytes):
            self._waiting += len(item)
            if self._waiting > QUEUE_MAX and self.came_from is not None:
                with contextlib.suppress(RuntimeError):
                    self.came_from.pause_reading()
        self.pump()

    def pump(self) -> None:
        """Sends what is due, and comes back when the next is."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.rule["mode"] == "drop" or self.to is None:
            return
        now = time.monotonic()
        while self._queue and not self.pair.over:
            due, item = self._queue[0]
            if due > now:
                self._timer = asyncio.get_running_loop().call_later(due - now, self.pump)
                break
            self._queue.popleft()
            if isinstance(item, bytes):
                self._waiting -= len(item)
            self._forward(item)
        if self._waiting < QUEUE_MAX // 2 and self.came_from is not None and not self.came_from.is_closing():
            with contextlib.suppress(RuntimeError):
                self.came_from.resume_reading()

    def _due(self) -> float:
        rule, now = self.rule, time.monotonic()
        if rule["mode"] == "delay":
            now += rule["delay_s"] + random.random() * rule.get("jitter_s", 0.0)
        elif rule["mode"] == "stall" and random.random() < rule["chance"]:
            now += random.uniform(0.2, rule["stall_s"])
        self._last_due = max(self._last_due, now)
        return self._last_due

    def _forward(self, item: Item) -> None:
        if self.to is None or self.pair.over:
            return
        if item is RESET or self.to.is_closing():
            self.pair.reset()
        elif item is END:
            self.pair.ended(self)
        elif self._left is not None and len(item) >= self._left:
            self.to.write(item[: self._left])
            self.pair.network.cuts += 1
            if random.random() < 0.5:
                self.pair.reset()
            else:
                self.pair.close()
        else:
            if self._left is not None:
                self._left -= len(item)
            self.to.write(item)


class Half(asyncio.Protocol):
    """One socket of a pair: what it hears goes into `out`, `inbound` is written to it."""

    def __init__(self, out: Pipe, inbound: Pipe) -> None:
        self.out, self.inbound = out, inbound

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "write")
        self.out.came_from = transport  # type: ignore[assignment]
        self.inbound.to = transport  # type: ignore[assignment]
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.inbound.pump()

    def data_received(self, data: bytes) -> None:
        self.out.feed(data)

    def eof_received(self) -> bool:
        self.out.feed(END)
        return True

    def connection_lost(self, error: Exception | None) -> None:
        if not self.out.pair.over:
            self.out.feed(RESET)


class Accepted(Half):
    """The side of whoever connected."""

    def __init__(self, link: Link) -> None:
        self.pair = Pair(link)
        super().__init__(self.pair.up, self.pair.down)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.pair.begin(transport.get_extra_info("peername")[0])


class Pair:
    """A connection to a link and the one that it has made to the node."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.network = link.network
        self.source = "?"
        self.over = False
        self.up, self.down = Pipe(self, "up"), Pipe(self, "down")
        self._reaching: asyncio.Task[None] | None = None
        self._ended = 0

    def begin(self, address: str) -> None:
        self.source = source_of(address)
        self.link.pairs.add(self)
        self.obey()

    def obey(self) -> None:
        """Takes the rules as they are now."""
        for pipe in (self.up, self.down):
            rule = self.network.rule(self.source, self.link, pipe.direction)
            if rule["mode"] == "refuse":
                self.reset()
                return
            pipe.obey(rule)
        if self._reaching is None and self.up.rule["mode"] != "drop":
            self._reaching = asyncio.get_running_loop().create_task(self._reach())

    async def _reach(self) -> None:
        try:
            await asyncio.get_running_loop().create_connection(lambda: Half(self.down, self.up), HOST, self.link.target)
        except OSError:
            self.reset()
            return
        if self.over:
            self.reset()

    def ended(self, pipe: Pipe) -> None:
        """One side has said all it has to say."""
        self._ended += 1
        if self._ended == 2:
            self.close()
        elif pipe.to is not None and not pipe.to.is_closing():
            with contextlib.suppress(OSError, RuntimeError):
                pipe.to.write_eof()

    def close(self) -> None:
        self._leave()
        for transport in (self.up.to, self.down.to):
            if transport is not None:
                transport.close()

    def reset(self) -> None:
        """RST to both sides."""
        self._leave()
        for transport in (self.up.to, self.down.to):
            if transport is not None and not transport.is_closing():
                with contextlib.suppress(OSError, AttributeError):
                    sock = transport.get_extra_info("socket")
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                transport.abort()

    def _leave(self) -> None:
        self.over = True
        self.link.pairs.discard(self)


class Link:
    """One listening port in front of one port of a node. channel: client or bus."""

    def __init__(self, network: Network, node: str, channel: str, port: int, target: int) -> None:
        self.network, self.node, self.channel, self.port, self.target = network, node, channel, port, target
        self.pairs: set[Pair] = set()
        self.server: asyncio.Server | None = None
        self.gone = False  # nobody listens behind it

    async def listen(self) -> None:
        """Or not, as its node does, and as the rules say."""
        wanted = not self.gone and self.network.rule("*", self, "up")["mode"] != "refuse"
        if wanted and self.server is None:
            self.server = await asyncio.get_running_loop().create_server(
                lambda: Accepted(self), HOST, self.port, reuse_address=True, backlog=512
            )
        elif not wanted and self.server is not None:
            self.server.close()
            self.server = None


class Network:
    """All links and the rules in force."""

    def __init__(self) -> None:
        self.links: dict[tuple[str, str], Link] = {}
        self.rules: list[dict[str, Any]] = []
        self.cuts = 0

    def rule(self, source: str, link: Link, direction: str) -> dict[str, Any]:
        for rule in reversed(self.rules):
            wanted = (("source", source), ("node", link.node), ("channel", link.channel), ("direction", direction))
            if all(rule.get(name, "*") in ("*", value) for name, value in wanted):
                return rule
        return PASS

    async def obey(self, order: dict[str, Any]) -> dict[str, Any]:
        """One order; the answer."""
        match order["op"]:
            case "open":
                key = (order["node"], order["channel"])
                link = self.links.get(key)
                if link is None:
                    link = self.links[key] = Link(self, *key, order["port"], order["target"])
                link.target, link.gone = order["target"], False
                await link.listen()
            case "gone":
                for link in self.links.values():
                    if link.node == order["node"]:
                        link.gone = True
                        await link.listen()
            case "rules":
                self.rules = order["rules"]
                for link in self.links.values():
                    await link.listen()
                    for pair in list(link.pairs):
                        pair.obey()
            case "close":
                for pair in self._chosen(order):
                    pair.reset() if order["how"] == "reset" else pair.close()
            case "count":
                return {"connections": len(self._chosen(order)), "cuts": self.cuts}
        return {}

    def _chosen(self, order: dict[str, Any]) -> list[Pair]:
        wanted = {name: order.get(name, "*") for name in ("source", "node", "channel")}
        return [
            pair
            for link in self.links.values()
            for pair in list(link.pairs)
            if wanted["source"] in ("*", pair.source)
            and wanted["node"] in ("*", link.node)
            and wanted["channel"] in ("*", link.channel)
        ]


async def serve() -> None:
    """Until stdin ends."""
    network = Network()
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        try:
            answer = await network.obey(json.loads(line))
        except OSError as error:
            answer = {"error": error.strerror or str(error)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    uvloop.run(serve())
