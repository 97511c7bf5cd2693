"""Connects the data path's backends: resolve, connect, handshake, hand over; again with backoff when lost.

Why: the data path only moves bytes; whatever awaits is here. Called by proxy.worker: a backend is wanted or was lost
(the data path says so through its port), the settings are new.

Invariants: at most one task per backend; a name is resolved anew at every attempt; a descriptor belongs to the task
until `attach` took it, and is closed otherwise; a backend that drops its connection right after the handshake backs
off like one that cannot be reached.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from proxy.cluster.topology import Address
from proxy.control.node_client import UpstreamSettings, upstream_to
from proxy.control.tasks import background
from proxy.forward.backend import Backend, BackendState
from proxy.resp.decode import Decoder, ReplyError
from proxy.resp.encode import encode_command
from proxy.system.log import get, warn_limited

log = get(__name__)

# A connection that lived shorter than this counts as a failed attempt.
_SHORT_LIFE_S = 1.0


@dataclass(frozen=True)
class PoolSettings:
    """Durations in seconds; keepalive_s 0 = off; username and password as AUTH takes them, "" = none."""

    connect_timeout_s: float
    backoff_min_s: float
    backoff_max_s: float
    keepalive_s: float = 0.0
    client_name: str = ""
    username: str = ""
    password: str = field(default="", repr=False)


# What a node takes at most of one client: more ends the connection, which many clients share.
_LIMITS: list[tuple[str, ...]] = [
    ("CONFIG", "GET", "proto-max-bulk-len"),
    ("CONFIG", "GET", "client-query-buffer-limit"),
]


# The servers' own minimum for these options, and what is as good as no limit: other values are nonsense.
_LEAST, _NO_LIMIT = 1 << 20, 1 << 48


def _number(reply: object) -> int:
    """The value in a reply to CONFIG GET of one option; 0 = not told."""
    if isinstance(reply, dict):
        reply = [word for pair in reply.items() for word in pair]
    if not isinstance(reply, list) or len(reply) != 2:
        return 0
    try:
        told = int(reply[1])
    except (TypeError, ValueError):
        return 0
    return told if _LEAST <= told < _NO_LIMIT else 0


class HandshakeError(Exception):
    """The node was reached and refused the handshake; the text is its error."""


class BackendPool:
    """See the module. on_up(backend): a connection is ready; on_trouble(): the topology may have changed."""

    def __init__(
        self,
        settings: PoolSettings,
        *,
        on_up: Callable[[Backend], None],
        on_trouble: Callable[[str], None],
        rng: random.Random | None = None,
    ) -> None:
        self.settings = settings
        self._on_up = on_up
        self._on_trouble = on_trouble
        self._rng = rng or random.Random()
        self._tasks: dict[Backend, asyncio.Task[None]] = {}
        self._up_since: dict[Backend, float] = {}
        self._failures: dict[Backend, int] = {}
        self._limits: dict[Address, tuple[int, int]] = {}

    def limits(self, nodes: Collection[Address]) -> tuple[int, int]:
        """(proto-max-bulk-len, client-query-buffer-limit) that every one of these nodes takes, in bytes; 0 = unknown.

        What another node told is forgotten.
        """
        self._limits = {address: told for address, told in self._limits.items() if address in nodes}
        bulks, queries = zip(*self._limits.values(), strict=True) if self._limits else ((), ())
        return min(filter(None, bulks), default=0), min(filter(None, queries), default=0)

    async def ask_limits(self, address: Address, settings: UpstreamSettings) -> None:
        """Asks a node anew what it takes; what it does not tell now stays as it was told before."""
        try:
            async with upstream_to(address, settings) as upstream:
                told = [_number(reply) for reply in await upstream.ask(*_LIMITS)]
        except Exception as error:  # whatever a node or a library makes of it, it is no answer
            log.debug("node does not tell what it takes", node=str(address), error=str(error))
            return
        if any(told):
            self._limits[address] = told[0], told[1]

    def reconfigure(self, settings: PoolSettings) -> None:
        """New settings; what is being connected, or waits to be, begins anew with them.

        Connections that are up keep what they were made with: see Router.renew().
        """
        self.settings = settings
        self._failures.clear()
        for backend, task in list(self._tasks.items()):
            task.cancel()
            del self._tasks[backend]
            self._start(backend, 0.0)

    def connect(self, backend: Backend) -> None:
        """The backend is wanted: it is CONNECTING and requests may be waiting in it."""
        self._start(backend, 0.0)

    def lost(self, backend: Backend, reason: str) -> None:
        """Its connection is gone. Reconnects at once, unless it had only just been made."""
        lived = time.monotonic() - self._up_since.pop(backend, 0.0)
        warn_limited(
            log, f"backend-lost:{backend.node.label}", "connection to node lost", node=backend.node.label, reason=reason
        )
        self._on_trouble("lost")
        if backend.state == BackendState.CLOSED:
            return
        if lived < _SHORT_LIFE_S:
            backend.connect_failed()
            self._start(backend, self._backoff(backend))
        else:
            self._start(backend, 0.0)

    def forget(self, backend: Backend) -> None:
        """It will not be used any more."""
        self._up_since.pop(backend, None)
        self._failures.pop(backend, None)
        if (task := self._tasks.pop(backend, None)) is not None:
            task.cancel()

    async def stop(self) -> None:
        """Ends all attempts."""
        tasks = list(self._tasks.values())
        self._tasks.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _start(self, backend: Backend, delay_s: float) -> None:
        if backend in self._tasks:
            return
        for closed in [known for known in self._up_since if known.state == BackendState.CLOSED]:
            del self._up_since[closed]  # drained; nobody lost it
        self._tasks[backend] = background(self._run(backend, delay_s), name=f"connect-{backend.node.label}")

    def _backoff(self, backend: Backend) -> float:
        failures = self._failures.get(backend, 0)
        self._failures[backend] = failures + 1
        longest = min(self.settings.backoff_min_s * 2.0 ** min(failures, 30), self.settings.backoff_max_s)
        return longest * (0.5 + self._rng.random() / 2)

    async def _run(self, backend: Backend, delay_s: float) -> None:
        """Tries until it is connected or not wanted any more."""
        label = backend.node.label
        try:
            while True:
                if delay_s:
                    await asyncio.sleep(delay_s)
                if backend.state == BackendState.CLOSED or backend.node.gone:
                    return
                backend.state = BackendState.CONNECTING
                try:
                    async with asyncio.timeout(self.settings.connect_timeout_s):
                        sock = await self._open(backend)
                    try:
                        backend.attach(sock.fileno())
                    except OSError:
                        sock.close()
                        raise
                    sock.detach()
                except Exception as error:  # whatever a resolver, a node or a library makes of it, it is no connection
                    if backend.state == BackendState.CLOSED:  # while it was being connected
                        return
                    reason = str(error) or "no answer in time"
                    warn_limited(log, f"connect:{label}", "cannot connect to node", node=label, reason=reason)
                    backend.connect_failed()
                    self._on_trouble("connect")
                    delay_s = self._backoff(backend)
                    continue
                self._failures.pop(backend, None)
                self._up_since[backend] = time.monotonic()
                if not any(self._limits.get(backend.node.address, (0, 0))):
                    warn_limited(log, f"limits:{label}", "node does not tell what it takes (CONFIG GET)", node=label)
                self._on_up(backend)
                return
        finally:
            if self._tasks.get(backend) is asyncio.current_task():
                del self._tasks[backend]

    async def _open(self, backend: Backend) -> socket.socket:
        loop = asyncio.get_running_loop()
        host, port = backend.node.address.host, backend.node.address.port
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        error: OSError | None = None
        for family, kind, proto, _, where in found:
            sock = socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, proto)
            try:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                keepalive(sock, self.settings.keepalive_s)
                await loop.sock_connect(sock, where)
                await self._handshake(loop, sock, backend)
            except OSError as failed:
                sock.close()
                error = failed
            except BaseException:
                sock.close()
                raise
            else:
                return sock
        raise error or OSError(f"{host} has no address")

    async def _handshake(self, loop: asyncio.AbstractEventLoop, sock: socket.socket, backend: Backend) -> None:
        """HELLO or AUTH, CLIENT SETNAME, READONLY, in one round trip; HandshakeError with the first refusal.

        The node's limits are asked for by the way: it may refuse to tell them.
        """
        commands = self.commands(backend)
        needed = len(commands)
        commands += _LIMITS
        limits = []
        await loop.sock_sendall(sock, b"".join(encode_command(*command) for command in commands))
        decoder = Decoder()
        answered = 0
        while answered < len(commands):
            data = await loop.sock_recv(sock, 65536)
            if not data:
                raise OSError("closed by the node during the handshake")
            for value in decoder.feed(data):
                if answered >= needed:
                    limits.append(_number(value))
                elif isinstance(value, ReplyError):
                    raise HandshakeError(f"{commands[min(answered, len(commands) - 1)][0]}: {value}")
                answered += 1
        self._limits[backend.node.address] = limits[0], limits[1]

    def commands(self, backend: Backend) -> list[tuple[str, ...]]:
        """The handshake of a backend, by protocol and role; at least one command, so that the node has answered."""
        settings = self.settings
        credentials = (settings.username or "default", settings.password)
        name = settings.client_name
        commands: list[tuple[str, ...]] = []
        if backend.proto == 3:
            hello: tuple[str, ...] = ("HELLO", "3")
            if settings.password:
                hello += ("AUTH", *credentials)
            if name:
                hello += ("SETNAME", name)
            commands.append(hello)
        else:
            if settings.password:
                # Servers before 6.0 know no users, and AUTH of one word means the default user everywhere.
                commands.append(("AUTH", *credentials) if settings.username else ("AUTH", settings.password))
            if name:
                commands.append(("CLIENT", "SETNAME", name))
        if backend.readonly:
            commands.append(("READONLY",))
        return commands or [("PING",)]


def keepalive(sock: socket.socket, seconds: float) -> None:
    """Asks the kernel to probe a silent TCP peer after `seconds`; 0 = never. OSError when the socket is no good."""
    if sock.family == socket.AF_UNIX:
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1 if seconds else 0)
    if not seconds:
        return
    interval = max(1, int(seconds / 3))
    with contextlib.suppress(AttributeError):  # TCP_KEEPIDLE has another name where there is no Linux
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, max(1, int(seconds)))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, interval)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
