"""Connects the data path's backends: resolve, connect, hand shake, hand over; again with backoff when lost.

Why: the data path only moves bytes; whatever awaits is here. Called by worker.worker: a backend is wanted or was lost
(the data path says so through its port), the settings are new.

Invariants: at most one task per backend; one attempt at a time at a node that was not reached (worker.breaker); a name
is resolved anew at every attempt, off the loop; a descriptor belongs to the task until `attach` took it, and is closed
otherwise; a backend that drops its connection right after the handshake backs off like one that cannot be reached; so
does one whose task died of a fault of ours. What ends a connection that was in use may be a client's command: that is
no reason to hold up the others (a node that is gone refuses the next attempt).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Final

from proxy.cluster import handshake, node_limits
from proxy.forward.backend import Backend, BackendState
from proxy.forward.node import Node
from proxy.ipc.settings import Backends
from proxy.resp import errors
from proxy.resp.decode import ReplyError, decode
from proxy.resp.encode import encode_command
from proxy.resp.errors import ProtocolFault
from proxy.resp.readers import ReplyReader
from proxy.system.log import get, warn_limited
from proxy.system.names import names
from proxy.system.tcp import keepalive
from proxy.worker.breaker import Breakers, backoff

log = get("worker.connector")

# A connection that lived shorter than this, and was not used, counts as a failed attempt.
_SHORT_LIFE_S: Final = 1.0
# Between two first attempts: those of a topology of hundreds of nodes must not all be made in one turn of the loop.
_SPACING_S: Final = 0.0002
# Of the time for an attempt: a resolver that takes longer is not waited for where addresses of the name are known.
_FOR_THE_NAME: Final = 0.5
_FULL: Final = "ERR max number of clients"  # said to whoever connects; Valkey goes on differently than Redis
_MYID: Final[tuple[str | bytes, ...]] = ("CLUSTER", "MYID")
# What is asked by the way is answered so, or with an error: where the others are OK, it shows that they are shifted.
_KINDS: Final[dict[str | bytes, tuple[type, ...]]] = {"CONFIG": (list, dict), "CLUSTER": (bytes,), "CLIENT": (int,)}
_NO_CLUSTER: Final = "ERR This instance has cluster support disabled"  # cluster.c, clusterCommand
_REASON: Final = 200  # characters that are kept of what a node says
_MOST_BYTES: Final = 1 << 16  # of the answers to a handshake, which have some hundreds: they are read on the loop


class HandshakeError(Exception):
    """The node was reached and refused the handshake; the text is its error."""


class Refused(HandshakeError):
    """... for good: its error is `line`."""

    def __init__(self, text: str, line: bytes) -> None:
        super().__init__(text)
        self.line = line


class Stranger(HandshakeError):
    """... because it is not the node that was meant."""


class Connector:
    """See the module.

    on_up(backend): a connection is ready; on_refused(backend, error line): one for one client alone will not be had;
    on_trouble(reason): the topology may have changed; on_fault(what, error): a fault of ours.
    """

    def __init__(
        self,
        settings: Backends,
        *,
        on_up: Callable[[Backend], None],
        on_refused: Callable[[Backend, bytes], None],
        on_trouble: Callable[[str], None],
        on_fault: Callable[[str, BaseException], None],
    ) -> None:
        self.settings = settings
        self.ids: Mapping[str, str] = {}  # of the nodes, by their labels, "" = unknown: see _handshake
        self.troubles: dict[str, str] = {}  # by the nodes' labels: why the last attempt failed
        self._on_up = on_up
        self._on_refused = on_refused
        self._on_trouble = on_trouble
        self._on_fault = on_fault
        self._tasks: dict[Backend, asyncio.Task[None]] = {}
        self._up_since: dict[Backend, float] = {}
        self._breakers = Breakers()
        self._failures: dict[Backend, int] = {}  # in a row, of it alone
        self._limits: dict[str, tuple[int, int]] = {}  # by the node's label
        self._next_s = 0.0  # when the next first attempt may be made, in loop.time()

    def limits(self, nodes: Collection[str]) -> tuple[int, int]:
        """(proto-max-bulk-len, client-query-buffer-limit) that every one of these nodes takes, in bytes; 0 = unknown.

        nodes: their labels. What another node told is forgotten.
        """
        self._limits = {node: told for node, told in self._limits.items() if node in nodes}
        bulks, queries = zip(*self._limits.values(), strict=True) if self._limits else ((), ())
        return min(filter(None, bulks), default=0), min(filter(None, queries), default=0)

    def learn_limits(self, told: Mapping[str, tuple[int, int]]) -> None:
        """What nodes take, asked by the main process; what they do not tell now stays as it was told before."""
        self._limits |= {node: limits for node, limits in told.items() if any(limits)}

    def reconfigure(self, settings: Backends) -> None:
        """New settings; what is being connected, or waits to be, begins anew with them.

        Connections that are up keep what they were made with: see Router.renew().
        """
        self.settings = settings
        self._failures.clear()
        self._breakers.clear()
        for backend in list(self._tasks):
            self._tasks.pop(backend).cancel()
            self.connect(backend)

    def connect(self, backend: Backend) -> None:
        """The backend is wanted: it is CONNECTING and requests may be waiting in it."""
        self._start(backend)

    def lost(self, backend: Backend, reason: str) -> None:
        """Its connection is gone. Reconnects at once, unless it had only just been made."""
        lived = time.monotonic() - self._up_since.pop(backend, 0.0)
        label = backend.node.label
        if backend.node.paused:  # it is being restarted: made again when the pause is over
            log.debug("connection to a paused node closed", node=label, reason=reason)
            return
        warn_limited(log, f"lost:{label}", "connection to node lost", node=label, reason=reason)
        self._on_trouble("lost")
        short = lived < _SHORT_LIFE_S and not backend.asked
        if not short:
            self._breakers.proved(label)
            self._failures.pop(backend, None)
        if backend.state == BackendState.CLOSED:
            return
        if short and not backend.node.up:
            self._breakers.failed(label)
            backend.connect_failed()
            self._start(backend)
        else:
            self._start(backend, again=short)

    def forget(self, backend: Backend) -> None:
        """It will not be used any more."""
        self._up_since.pop(backend, None)
        self._failures.pop(backend, None)
        if (task := self._tasks.pop(backend, None)) is not None:
            task.cancel()
        self._look(backend.node)

    async def stop(self) -> None:
        """Ends all attempts."""
        tasks, self._tasks = self._tasks, {}
        for task in tasks.values():
            task.cancel()
        await asyncio.gather(*tasks.values(), return_exceptions=True)

    def _start(self, backend: Backend, *, again: bool = False) -> None:
        """again: after trouble of this connection alone, or a fault of ours, so not at once."""
        if again:
            backend.connect_failed()
        if (known := self._tasks.get(backend)) is not None and not known.done():
            return
        for kept in (self._up_since, self._failures):
            for closed in [known for known in kept if known.state == BackendState.CLOSED]:
                del kept[closed]  # drained; nobody lost it
        loop = asyncio.get_running_loop()
        now_s = loop.time()
        self._next_s = max(self._next_s + _SPACING_S, now_s)
        task = loop.create_task(self._run(backend, self._backoff(backend) if again else self._next_s - now_s))
        self._tasks[backend] = task
        task.add_done_callback(partial(self._ended, backend))

    def _ended(self, backend: Backend, task: asyncio.Task[None]) -> None:
        ours = self._tasks.get(backend) is task
        if ours:
            del self._tasks[backend]
            self._look(backend.node)
        if task.cancelled() or (error := task.exception()) is None:
            return
        self._on_fault("connecting to a node", error)
        if ours and backend.state != BackendState.CLOSED:
            self._start(backend, again=True)

    def _look(self, node: Node) -> None:
        """A task has ended, or a connection is not wanted: the last one takes the node's breaker with it."""
        if node.gone:
            self.troubles.pop(node.label, None)
        if node.gone or (
            self._breakers.open(node.label) and not any(other.node.label == node.label for other in self._tasks)
        ):
            self._breakers.forget(node.label)

    def _backoff(self, backend: Backend) -> float:
        failures = self._failures[backend] = self._failures.get(backend, 0) + 1
        return backoff(failures, self.settings.backoff_min, self.settings.backoff_max)

    async def _run(self, backend: Backend, delay_s: float) -> None:
        """Tries until it is connected or not wanted any more."""
        label, up = backend.node.label, False
        while not up:
            if delay_s:
                await asyncio.sleep(delay_s)
                delay_s = 0.0
            if (breaker := self._breakers.open(label)) is None:
                if not self._wanted(backend):
                    return
                up, delay_s = await self._try(backend)
                continue
            if backend.state == BackendState.CONNECTING:  # what waits for it is held until a probe has succeeded
                backend.connect_failed(False)
            if not self._wanted(backend):
                return
            async with breaker.turn:
                if breaker.open and self._wanted(backend):
                    failures, settings = breaker.failures, self.settings
                    await asyncio.sleep(backoff(failures, settings.backoff_min, settings.backoff_max))
                    if self._wanted(backend):
                        up, delay_s = await self._try(backend, probe=True)

    def _wanted(self, backend: Backend) -> bool:
        wanted = not (backend.state == BackendState.CLOSED or backend.node.gone)
        if not wanted:
            self._failures.pop(backend, None)
        return wanted

    async def _try(self, backend: Backend, *, probe: bool = False) -> tuple[bool, float]:
        """One attempt: whether it is up, and how long to wait before the next one, besides for a turn."""
        label = backend.node.label
        backend.state = BackendState.CONNECTING
        try:
            async with asyncio.timeout(self.settings.connect_timeout):
                sock, rest = await self._open(backend)
            with sock:
                backend.attach(sock.fileno(), rest)
                sock.detach()
        except (OSError, HandshakeError, ProtocolFault) as error:
            refused = isinstance(error, HandshakeError)
            alone = refused or backend.node.up  # it is this connection's trouble
            paused = backend.node.paused  # it is being restarted
            if alone:
                self._breakers.reached(label)
            elif not paused:
                self._breakers.failed(label, probe=probe)
            if backend.state == BackendState.CLOSED:  # while it was being connected
                return False, 0.0
            reason = getattr(error, "strerror", None) or str(error) or "no answer in time"
            if not paused:
                self.troubles[label] = " ".join(reason[:_REASON].split())
                kind = "stranger" if isinstance(error, Stranger) else "connect"  # not hidden by "connection refused"
                warn_limited(log, f"{kind}:{label}", "cannot connect to node", node=label, reason=reason)
            if isinstance(error, Refused):
                self._on_refused(backend, error.line)  # it is CLOSED now
                return False, 0.0
            backend.connect_failed()
            if not paused:
                self._on_trouble("connect")
            return False, self._backoff(backend) if alone or paused else 0.0
        self._breakers.reached(label)
        self.troubles.pop(label, None)
        self._tasks.pop(backend, None)  # before on_up: what it brings about may lose the connection again
        self._up_since[backend] = time.monotonic()
        if not backend.greeting and not any(self._limits.get(label, (0, 0))):
            warn_limited(log, f"limits:{label}", "node does not tell what it takes (CONFIG GET)", node=label)
        self._on_up(backend)
        return True, 0.0

    async def _open(self, backend: Backend) -> tuple[socket.socket, bytes]:
        """A connection whose handshake is done, and what came behind it."""
        loop = asyncio.get_running_loop()
        host, port = backend.node.address.host, backend.node.address.port
        error: OSError | None = None
        for family, where in await names.resolve(host, port, self.settings.connect_timeout * _FOR_THE_NAME):
            sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
            try:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                keepalive(sock, self.settings.keepalive)
                await loop.sock_connect(sock, where)
                return sock, await self._handshake(loop, sock, backend)
            except BaseException as failed:
                sock.close()
                if not isinstance(failed, OSError):
                    raise
                error = failed
        raise error or OSError(f"{host} has no address")

    async def _handshake(self, loop: asyncio.AbstractEventLoop, sock: socket.socket, backend: Backend) -> bytes:
        """HELLO or AUTH, CLIENT SETNAME, READONLY, in one round trip; HandshakeError with the first refusal that
        matters.

        Where the topology knows the node's id, the server is asked for its own: another one at the address of a node
        that died would take writes, and acknowledge them, until the failover. One that may not tell is believed.
        The node's limits are asked for by the way, and of a lease its CLIENT ID: it may refuse to tell them. A
        client's own connection (greeting) asks for that alone, and is told last what to track: the shared ones have the
        limits. What the node pushes from then on comes behind the last reply; whole pushes that came with it are
        left out, for such a client is told at first that it may have missed something, or has read nothing yet.
        Returns the beginning of one that is not whole. Anything else that is too much, and an answer of another kind
        than its command has, is a refusal: what the node says next would be taken for the answer to something else.
        """
        needed = self.commands(backend)
        identity: list[tuple[str | bytes, ...]] = [("CLIENT", "ID")] if backend.leased or backend.greeting else []
        known = self.ids.get(backend.node.label)
        named = [_MYID] if known else []
        asked = [*named, *identity] if backend.greeting else [*node_limits.COMMANDS, *named, *identity]
        last = len(needed) - bool(backend.greeting)
        commands = [*needed[:last], *asked, *needed[last:]]
        with contextlib.suppress(ConnectionError):  # then it may have said why, before it closed
            await loop.sock_sendall(sock, b"".join(encode_command(*command) for command in commands))
        reader, size = ReplyReader(), 0
        replies: list[object] = []
        while len(replies) < len(commands):
            if not (data := await loop.sock_recv(sock, 65536)):
                raise OSError("closed by the node during the handshake")
            if (size := size + len(data)) > _MOST_BYTES:
                raise OSError("its answers to the handshake are too long")
            replies += [decode(frame) for frame, _, push in reader.feed(data) if not push]
            for command, reply in zip(commands, replies, strict=False):
                if isinstance(reply, ReplyError) and command not in asked and handshake.fatal(command, str(reply)):
                    if str(reply).startswith(_FULL):  # no answer to our command
                        raise Refused(str(reply), errors.NODE_FULL) if backend.leased else HandshakeError(str(reply))
                    text = f"{command[0]!s}: {reply}"
                    if backend.greeting and (command == backend.greeting or str(reply).startswith("NOPERM ")):
                        raise Refused(text, errors.line(str(reply).encode("utf-8", "replace")[:500]))
                    raise HandshakeError(text)
        rest = reader.rest()
        if len(replies) > len(commands) or (rest and not (backend.greeting and rest.startswith(b">"))):
            raise HandshakeError("says more than it was asked")
        for (name, what, *_), reply in zip(asked, replies[last : last + len(asked)], strict=True):
            if not isinstance(reply, (ReplyError, *_KINDS[name])):
                raise HandshakeError(f"{name!s} {what!s}: answered as something else")
        if known and (trouble := _stranger(replies[commands.index(_MYID)], known)):
            raise Stranger(trouble)
        if identity and isinstance(own := replies[last + len(asked) - 1], int):
            backend.client_id = own
        if backend.greeting:
            return rest
        bulk, query = map(node_limits.limit, replies[last : last + 2])
        self._limits[backend.node.label] = bulk, query
        return b""

    def commands(self, backend: Backend) -> list[tuple[str | bytes, ...]]:
        """The handshake of a backend, by protocol and role; at least one command, so that the node has answered."""
        settings = self.settings
        commands: list[tuple[str | bytes, ...]] = [
            *handshake.words(backend.proto, settings.username, settings.password, settings.client_name)
        ]
        if backend.db:
            commands.append(("SELECT", str(backend.db)))
        if backend.readonly:
            commands.append(("READONLY",))
        if backend.greeting:
            commands.append(backend.greeting)
        return commands or [handshake.PING]


def _stranger(reply: object, known: str) -> str:
    """Why the server that answers CLUSTER MYID so is not the node with this id; "" = it may be."""
    if isinstance(reply, ReplyError):
        return "another server has its address, which is in no cluster" if str(reply).startswith(_NO_CLUSTER) else ""
    if reply != known.encode():
        return "another server has its address, or it has a new id"
    return ""
