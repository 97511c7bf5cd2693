"""A scripted node: what a real server will not do on demand (garbage, half replies, silence, redirections for ever).

Called by: tests/integration/test_nodes.py and others, tests/daemon. A real server is preferred wherever one can do it.

Each connection has a thread; a reply is a value: bytes are sent as they are, SILENCE sends nothing, Cut(bytes) sends
those and closes. `received` holds every command of every connection in order of arrival.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType

from proxy.embedded import HOST, wait_for
from tests.support.raw import array, bulk

OK = b"+OK\r\n"


@dataclass(frozen=True)
class Cut:
    """Send these bytes, then close the connection."""

    data: bytes = b""


@dataclass(frozen=True)
class Silence:
    """Answer nothing, keep the connection."""


SILENCE = Silence()
Reply = bytes | Cut | Silence
Script = Reply | Callable[["Session", list[bytes]], Reply]


@dataclass(eq=False)
class Session:
    """One connection: its protocol, and what it was sent."""

    sock: socket.socket
    protocol: int = 2
    commands: list[list[bytes]] = field(default_factory=list)


class FakeNode:
    """Listens on a free loopback port. `on` scripts a command; what is not scripted answers as a small cluster node."""

    def __init__(self, node_id: str = "f" * 40, port: int = 0) -> None:
        self.id = node_id
        self.received: list[list[bytes]] = []
        self.sessions: list[Session] = []
        self.store: dict[bytes, bytes] = {}
        self._scripts: dict[bytes, Script] = {}
        self._lock = threading.Lock()
        self._listener = socket.create_server((HOST, port))
        self.port: int = self._listener.getsockname()[1]
        self.shards: Callable[[], bytes] | bytes = lambda: shards_reply([Shard([(0, 16383)], [(self, "master")])])
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> FakeNode:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    @property
    def address(self) -> str:
        return f"{HOST}:{self.port}"

    def on(self, name: str, script: Script) -> FakeNode:
        """Answers every `name` with the reply, or with what the function makes of (session, words)."""
        self._scripts[name.upper().encode()] = script
        return self

    def forget(self) -> None:
        """Scripts, keys and what was received; connections stay."""
        with self._lock:
            self._scripts.clear()
            self.received.clear()
            self.store.clear()
            for session in self.sessions:
                session.commands.clear()

    def seen(self, name: str) -> list[list[bytes]]:
        """The received commands of this name."""
        with self._lock:
            return [words for words in self.received if words[0].upper() == name.upper().encode()]

    def await_seen(self, name: str, count: int = 1, timeout_s: float = 10.0) -> list[list[bytes]]:
        """The same, once there are at least count."""
        wait_for(lambda: len(self.seen(name)) >= count, timeout_s, f"{count} x {name} at the fake node")
        return self.seen(name)

    def drop_connections(self) -> None:
        """Closes all connections, keeps listening."""
        with self._lock:
            sessions, self.sessions = self.sessions, []
        for session in sessions:
            with contextlib.suppress(OSError):
                session.sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.drop_connections()

    # Inside

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            session = Session(sock)
            with self._lock:
                self.sessions.append(session)
            threading.Thread(target=self._serve, args=(session,), daemon=True).start()

    def _serve(self, session: Session) -> None:
        with session.sock, session.sock.makefile("rb") as stream, contextlib.suppress(OSError, ValueError):
            while head := stream.readline():
                words = []
                for _ in range(int(head[1:])):
                    size = int(stream.readline()[1:])
                    words.append(stream.read(size + 2)[:-2])
                with self._lock:
                    self.received.append(words)
                    session.commands.append(words)
                reply = self._reply(session, words)
                if isinstance(reply, Cut):
                    session.sock.sendall(reply.data)
                    session.sock.shutdown(socket.SHUT_RDWR)
                    return
                if isinstance(reply, bytes):
                    session.sock.sendall(reply)

    def _reply(self, session: Session, words: list[bytes]) -> Reply:
        name = words[0].upper()
        sub = words[1].upper() if len(words) > 1 else b""
        script = self._scripts.get(name + b" " + sub, self._scripts.get(name))
        if script is not None:
            return script(session, words) if callable(script) else script
        return self._default(session, name, sub, words)

    def _default(self, session: Session, name: bytes, sub: bytes, words: list[bytes]) -> bytes:
        match name:
            case b"HELLO":
                session.protocol = int(words[1]) if len(words) > 1 else session.protocol
                texts = {b"server": b"redis", b"version": b"7.0.0", b"mode": b"cluster", b"role": b"master"}
                fields = b"".join(bulk(name) + bulk(value) for name, value in texts.items())
                fields += bulk(b"proto") + b":%d\r\n" % session.protocol + bulk(b"id") + b":1\r\n"
                return (b"%6\r\n" if session.protocol == 3 else b"*12\r\n") + fields
            case b"PING":
                return b"+PONG\r\n"
            case b"CLIENT" if sub == b"ID":
                return b":1\r\n"
            case b"AUTH" | b"SELECT" | b"READONLY" | b"READWRITE" | b"ASKING" | b"CLIENT":
                return OK
            case b"CLUSTER" if sub == b"SHARDS":
                return self.shards() if callable(self.shards) else self.shards
            case b"CLUSTER" if sub == b"MYID":
                return bulk(self.id.encode())
            case b"CLUSTER" if sub == b"INFO":
                return bulk(b"cluster_state:ok\r\ncluster_slots_assigned:16384\r\ncluster_current_epoch:1\r\n")
            case b"INFO":
                return bulk(b"redis_version:7.0.0\r\nredis_mode:cluster\r\nrole:master\r\nloading:0\r\n")
            case b"EXISTS":
                return b":%d\r\n" % sum(key in self.store for key in words[1:])
            case b"SET":
                self.store[words[1]] = words[2]
                return OK
            case b"GET":
                return bulk(self.store[words[1]]) if words[1] in self.store else b"$-1\r\n"
        return b"-ERR unknown command '%s', with args beginning with: \r\n" % words[0]


@dataclass
class Shard:
    """One element of CLUSTER SHARDS: slot ranges and (node, role) pairs; a node may also be (id, host, port).

    failed: the place of one that is voted failed, -1 = none.
    """

    ranges: list[tuple[int, int]]
    nodes: list[tuple[FakeNode | tuple[str, str, int], str]]
    health: str = "online"
    failed: int = -1


def shards_reply(shards: list[Shard]) -> bytes:
    """CLUSTER SHARDS as RESP2 sends it (flat maps)."""
    return array(*(_shard(shard) for shard in shards))


def _shard(shard: Shard) -> bytes:
    slots = [b":%d\r\n" % edge for pair in shard.ranges for edge in pair]
    nodes = []
    for place, (node, role) in enumerate(shard.nodes):
        node_id, host, port = (node.id, HOST, node.port) if isinstance(node, FakeNode) else node
        pairs: list[bytes] = [bulk(b"id"), bulk(node_id.encode()), bulk(b"port"), b":%d\r\n" % port]
        pairs += [bulk(b"ip"), bulk(host.encode()), bulk(b"endpoint"), bulk(host.encode())]
        pairs += [bulk(b"role"), bulk(role.encode()), bulk(b"replication-offset"), b":1\r\n"]
        pairs += [bulk(b"health"), bulk(b"fail" if place == shard.failed else shard.health.encode())]
        nodes.append(array(*pairs))
    return array(bulk(b"slots"), array(*slots), bulk(b"nodes"), array(*nodes))


def in_turn(*replies: Reply) -> Callable[[Session, list[bytes]], Reply]:
    """These replies one after another, the last one for ever."""
    left = list(replies)
    return lambda session, words: left.pop(0) if len(left) > 1 else left[0]
