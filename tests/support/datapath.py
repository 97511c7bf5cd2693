"""The whole data path in one thread, without a network: socket pairs for clients and nodes, a loop turned by hand.

Why: what passes between clients and nodes becomes a dialogue that a test writes down line by line (client sends, node
gets, node answers, client gets), deterministic to the byte and to the batch; the fuzzer drives the same stage.
Called by: tests/unit/forward, tests/fuzz/target_client.

Invariant: nothing happens unless turn() is called; close() leaves no descriptor and asserts that no request is left.
"""

from __future__ import annotations

import contextlib
import mmap
import socket
import sys
import time
from array import array
from collections.abc import Callable
from typing import Any

from proxy.cluster.topology import Address
from proxy.commands.lookup import CommandTable
from proxy.commands.table import ROWS, SOURCE
from proxy.forward.backend import Backend, BackendState
from proxy.forward.client import Client
from proxy.forward.clients import accept, close_all
from proxy.forward.counters import Counters
from proxy.forward.datapath import ClientSettings, DataPath
from proxy.forward.exchange import Exchange
from proxy.forward.node import Node
from proxy.forward.pipeline import BackendSettings
from proxy.forward.reactor import Reactor, put_forward
from proxy.forward.request import live
from proxy.forward.router import Router
from proxy.resp import errors
from proxy.serve.context import ServeContext
from proxy.serve.responder import Responder

TEXTS = errors.EXCHANGE_TEXTS
A, B, C = (Address("10.0.0.1", port) for port in (7001, 7002, 7003))
THIRDS: list[Any] = [(A, [], [(0, 5460)]), (B, [], [(5461, 10922)]), (C, [], [(10923, 16383)])]
# One key of each: slots 3300, 7365 and 15495. Hash tags ({b}1, {b}2 ...) make more.
KEY_A, KEY_B, KEY_C = b"b", b"c", b"a"
SLOT_A, SLOT_B, SLOT_C = 3300, 7365, 15495
STEPS = 20  # in which time passes


def published(shards: list[Any]) -> tuple[list[tuple[Address, bool]], list[tuple[int, tuple[int, ...]]], bytes]:
    """What Router.publish takes, made of [(primary or None, [replicas], [(first slot, last slot)])]."""
    places: dict[tuple[Address, bool], int] = {}
    numbered: list[tuple[int, tuple[int, ...]]] = []
    owners = array("H", [0xFFFF]) * 16384
    for primary, replicas, ranges in shards:
        index = -1 if primary is None else places.setdefault((primary, False), len(places))
        numbered.append((index, tuple(places.setdefault((replica, True), len(places)) for replica in replicas)))
        for first, last in ranges:
            owners[first : last + 1] = array("H", [len(numbered) - 1]) * (last + 1 - first)
    if sys.byteorder == "big":
        owners.byteswap()
    return list(places), numbered, owners.tobytes()


class Timer:
    """What call_later returns."""

    def __init__(self, call: Callable[[], object]) -> None:
        self.call: Callable[[], object] | None = call

    def cancel(self) -> None:
        self.call = None


class Loop:
    """As much of an event loop as the data path asks for; timers fire on every turn, whatever they were set to."""

    def __init__(self) -> None:
        self.readers: dict[int, Callable[[], object]] = {}
        self.soon: list[Callable[[], object]] = []
        self.timers: list[Timer] = []

    def add_reader(self, fd: int, call: Callable[[], object]) -> None:
        self.readers[fd] = call

    def remove_reader(self, fd: int) -> None:
        self.readers.pop(fd, None)

    def call_soon(self, call: Callable[[], object]) -> None:
        self.soon.append(call)

    def call_later(self, delay_s: float, call: Callable[[], object]) -> Timer:
        self.timers.append(Timer(call))
        return self.timers[-1]

    def run(self) -> None:
        """Everything that is due, once."""
        timers, self.timers = self.timers, []
        for timer in timers:
            if timer.call is not None:
                timer.call()
        soon, self.soon = self.soon, []
        for call in soon:
            call()
        for call in list(self.readers.values()):
            call()


class End:
    """The far end of a socket the data path holds: a client's or a node's side."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.backend: Backend | None = None  # of a node's side: the data path's
        sock.setblocking(False)

    def offer(self, data: bytes) -> int:
        """Sends what the kernel takes; how much that is (all, when nobody is there to take any)."""
        try:
            return self.sock.send(data) if data else 0
        except BlockingIOError:
            return 0
        except (BrokenPipeError, ConnectionResetError):
            return len(data)

    def send(self, data: bytes) -> None:
        """Sends all of a test's few bytes; more than the kernel takes at once would wait for ever: see Stage.pour."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.sock.setblocking(True)
            self.sock.sendall(data)
        with contextlib.suppress(OSError):
            self.sock.setblocking(False)

    def get(self) -> bytes:
        """What has arrived."""
        return b"".join(self.packets())

    def packets(self) -> list[bytes]:
        """What has arrived, one element per send(2) of the data path on a stage of packets."""
        parts: list[bytes] = []
        if self.sock.fileno() < 0:
            return parts
        with contextlib.suppress(BlockingIOError, ConnectionResetError):
            while part := self.sock.recv(1 << 20):
                parts.append(part)
        return parts

    @property
    def closed(self) -> bool:
        """Whether the data path closed its end (unread bytes aside)."""
        try:
            return self.sock.recv(1, socket.MSG_PEEK) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True

    def close(self) -> None:
        self.sock.close()


class Stage:
    """Data path, port and nodes. nodes[address]: the far ends of that node's connections, the newest last.

    shards: as `published` takes them. unreachable: addresses whose connection fails. packets: sockets keep the
    borders of what is sent, so that sends can be counted. memory: where its counters are. Keyword arguments with a unit
    in their name are what the classes of proxy.forward take; Python's share of a batch has no end unless it is given,
    since on a busy machine one answer may take the usual 5 ms and change the order of what follows.
    """

    def __init__(
        self,
        shards: list[Any] | None = None,
        *,
        timeout_s: float = 5.0,
        stall_s: float = 10.0,
        silent_s: float = 1.0,
        failover_s: float = 5.0,
        backoff_s: float = 0.000001,
        backoff_max_s: float = 0.0001,
        max_redirections: int = 5,
        connections: int = 1,
        max_window: int = 16 << 20,
        packets: bool = False,
        memory: mmap.mmap | None = None,
        python_most_ns: int = 1 << 60,
        **client: Any,
    ) -> None:
        self.kind = socket.SOCK_SEQPACKET if packets else socket.SOCK_STREAM
        self.live = live()
        self.loop = Loop()
        self.counters = Counters(memory)
        self.reactor = Reactor(self.loop, python_most_ns=python_most_ns)  # type: ignore[arg-type]
        self.backend_settings = BackendSettings(
            stall_ns=int(stall_s * 1e9), max_window=max_window, silent_ns=int(silent_s * 1e9)
        )
        self.router = Router(
            self.reactor,
            self.counters,
            self.backend_settings,
            connections=connections,
            failover_ns=int(failover_s * 1e9),
        )
        self.exchange = Exchange(
            self.reactor,
            self.router,
            self.counters,
            self.loop,  # type: ignore[arg-type]
            backoff_min_ns=int(backoff_s * 1e9),
            backoff_max_ns=int(max(backoff_s, backoff_max_s) * 1e9),
            max_redirections=max_redirections,
            texts=TEXTS,
        )
        self.router.port = self
        self.exchange.bind(self)
        self.parking = self.exchange.parking
        self.notices: list[str] = []
        self.raised: list[tuple[str, BaseException]] = []
        self.context = ServeContext(None, "7.2.4", "0", time.time(), "0" * 40)
        self.responder = Responder(
            self.context,
            on_notice=lambda event, address: self.notices.append(event),
            on_raised=lambda what, error: self.raised.append((what, error)),
        )
        self.path = DataPath(
            self.reactor,
            self.exchange,
            self.counters,
            CommandTable(ROWS, SOURCE, self.counters.metrics),
            self.responder,
        )
        self.settings = ClientSettings(timeout_ns=int(timeout_s * 1e9), **client)
        self.nodes: dict[Address, list[End]] = {}
        self.unreachable: set[Address] = set()
        self.wanted: list[Backend] = []
        self.stale_for: list[str] = []
        self.lost_for: list[str] = []
        self.unfit: list[str] = []
        self.suspects: list[Address] = []
        self.ends: list[End] = []
        self.taken = 0
        self.ahead_ns = 0
        self.reactor.start()
        if shards != []:
            self.publish(THIRDS if shards is None else shards)

    # The port, as worker.Worker is in production

    def connect(self, backend: Backend) -> None:
        self.wanted.append(backend)

    def backend_lost(self, backend: Backend, reason: str) -> None:
        self.lost_for.append(reason)
        if backend.state != BackendState.CLOSED:
            self.wanted.append(backend)

    def node_gone(self, node: Node) -> None:
        pass

    def suspected(self, node: Node) -> None:
        self.suspects.append(node.address)

    def stale(self, reason: str) -> None:
        self.stale_for.append(reason)

    def resolve(self, host: str, port: int, node: Node) -> Address | None:
        address = Address(host or node.address.host, port)
        return address if address in self.router.nodes else None

    def node_unfit(self, node: Node, reason: str) -> None:
        node.usable = False
        self.unfit.append(reason)

    # The play

    def publish(self, shards: list[Any], failing: frozenset[Address] = frozenset()) -> None:
        """Router.publish with shards as `published` takes them."""
        self.router.publish(*published(shards), failing)

    def client(self, **settings: Any) -> End:
        """A new client's side; `accepted` is the data path's."""
        return self.take(*socket.socketpair(socket.AF_UNIX, self.kind), **settings)

    def take(self, near: socket.socket, far: socket.socket, **settings: Any) -> End:
        """A new client on a pair of sockets of the test's own."""
        near.setblocking(False)
        own = ClientSettings(**settings) if settings else self.settings
        self.taken += 1
        self.accepted: Client = accept(self.path, near.fileno(), own, "10.9.9.9:1", "127.0.0.1:7617", self.taken)
        near.detach()
        end = End(far)
        self.ends.append(end)
        return end

    def pour(self, end: End, data: bytes) -> None:
        """Sends more than the kernel takes at once, turning in between; fails when it is not read."""
        left = memoryview(data)
        idle = 0
        while left:
            try:
                sent = end.sock.send(left[:65536])
            except BlockingIOError:
                sent = 0
            idle = 0 if sent else idle + 1
            assert idle < 50, f"{len(left)} of {len(data)} bytes are not read"
            left = left[sent:]
            self.turn(1)
        self.turn()

    def drink(self, end: End) -> bytes:
        """Everything that is there for this end, however long it takes to come through the kernel's buffers."""
        parts = []
        while part := end.get():
            parts.append(part)
            self.turn(1)
        return b"".join(parts)

    def until(self, condition: Callable[[], object], *, sweep: bool = False) -> None:
        """Turns (and sweeps) until something is so; for what takes time on the reactor's own clock."""
        give_up = time.monotonic() + 10
        while not condition():
            assert time.monotonic() < give_up, "it did not happen"
            if sweep:
                self.router.sweep()
            self.turn(1)

    def put_forward(self, seconds: float) -> None:
        """It is so much later, and nothing has happened meanwhile."""
        self.ahead_ns += int(seconds * 1e9)
        put_forward(int(seconds * 1e9))

    def pass_time(self, seconds: float, *, sweep: bool = False) -> None:
        """So much time passes on the data path's clock, and none on ours, in steps between which it turns (and sweeps).

        With deadlines of minutes a test needs neither wait for them nor be quicker than they are: a machine that stands
        still for a second changes nothing.
        """
        for _ in range(STEPS):
            self.put_forward(seconds / STEPS)
            if sweep:
                self.router.sweep()
            self.turn(1)

    def hear(self, end: End, size: int = 1) -> bytes:
        """Turns until so many bytes have come; what has come."""
        parts = [end.get()]

        def enough() -> bool:
            parts.append(end.get())
            return sum(map(len, parts)) >= size

        self.until(enough)
        return b"".join(parts)

    def turn(self, times: int = 3) -> None:
        """Lets everything that can happen, happen: connections are made, bytes move, timers fire."""
        for _ in range(times):
            wanted, self.wanted = self.wanted, []
            for backend in wanted:
                if backend.state == BackendState.CLOSED:
                    continue
                backend.state = BackendState.CONNECTING
                if backend.node.address in self.unreachable:
                    backend.connect_failed()
                    self.wanted.append(backend)
                    continue
                near, far = socket.socketpair(socket.AF_UNIX, self.kind)
                near.setblocking(False)
                backend.attach(near.fileno())
                near.detach()
                end = End(far)
                end.backend = backend
                self.ends.append(end)
                self.nodes.setdefault(backend.node.address, []).append(end)
            self.loop.run()

    def node(self, address: Address) -> End:
        """The newest connection of a node."""
        return self.nodes[address][-1]

    def count(self, name: str) -> Any:
        """One of the counters, as Counters.snapshot names them."""
        return self.counters.snapshot()[name]

    def close(self) -> None:
        """Ends the play; asserts that every request was given back, and that what was held was counted right."""
        assert sum(client.memory for client in self.path.clients) == self.path.client_memory
        close_all(self.path)
        assert self.path.client_memory == 0
        self.router.close()
        self.parking.stop()  # after the router: what was pending there is parked
        self.reactor.stop()
        put_forward(-self.ahead_ns)
        for end in self.ends:
            end.close()
        assert self.counters.snapshot()["inflight"] == 0
        assert live() == self.live, "a request was not given back"
        assert self.path.client_memory == 0
        assert self.reactor.open_peers == 0
        assert not self.path.clients
        assert not self.path.lingering
        assert self.path.closed == self.taken


Play = Callable[..., Stage]  # the fixture `play` of tests/unit/forward
