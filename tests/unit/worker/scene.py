"""A worker in this process, a loop around it, and clients that talk to it: for the tests of proxy.worker.

The test is the main process: it hands over settings, a command table and a topology read once from the nodes. Called
by: every test in tests/unit/worker.
"""

from __future__ import annotations

import asyncio
import gc
import socket
import time
from array import array
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, ClassVar

import msgspec
import uvloop

from proxy.cluster.topology import Address
from proxy.commands.lookup import CommandTable
from proxy.commands.table import ROWS, SOURCE
from proxy.embedded import HOST
from proxy.forward.router import Router
from proxy.ipc.messages import Commands, NodeEntry, NodeFacts, Report, Start, Topology
from proxy.ipc.settings import Backends, Clients, Log, Requests, WorkerSettings
from proxy.resp.decode import Decoder
from proxy.resp.encode import encode_command
from proxy.system.faults import Faults
from proxy.worker.worker import Worker

TCP = "127.0.0.1:7617"
UNIX = "unix:/run/proxy.sock"
RUN_ID = "0123456789abcdef0123456789abcdef01234567"
WAIT_S = 30.0
WHOLE = [(0, 16383)]


def configured(
    *,
    clients: dict[str, Any] | None = None,
    requests: dict[str, Any] | None = None,
    backends: dict[str, Any] | None = None,
    log: dict[str, Any] | None = None,
    **more: Any,
) -> WorkerSettings:
    """The defaults of the configuration, changed; two listeners unless said otherwise."""
    return WorkerSettings(
        clients=msgspec.structs.replace(
            Clients(10_000, 0, "", 0.0, 1024, 16 << 20, 1 << 20, 1 << 30, 1 << 30, 512 << 20, 1 << 20, 300.0),
            **clients or {},
        ),
        requests=msgspec.structs.replace(Requests(5.0, 3.0, 0.01, 0.5, 5), **requests or {}),
        backends=msgspec.structs.replace(
            Backends("", "", 1, 1.0, 1 << 30, 1000, 0.00005, 2.0, 0.05, 2.0, "redis-proxy", 60.0), **backends or {}
        ),
        log=msgspec.structs.replace(Log("info", "logfmt", ""), **log or {}),
        **(
            {"listeners": {TCP: "primary", UNIX: "primary"}, "endpoint": ("127.0.0.1", 7617), "allow": (), "deny": ()}
            | more
        ),
    )


def commands(rows: Sequence[Any] = ROWS, source: str = SOURCE, **more: Any) -> Commands:
    """A command table with an index for each command."""
    metrics: dict[str, int] = {}
    CommandTable(rows, source, metrics)
    servers = {"server_name": "redis", "redis_version": "7.0.0", "valkey_version": ""} | more
    return Commands(tuple(rows), source, metrics, **servers)


def topology(
    *shards: tuple[list[tuple[int, int]], Sequence[Address]],
    names: dict[str, int] | None = None,
    epoch: int = 5,
    unusable: Sequence[Address] = (),
) -> Topology:
    """(slot ranges, addresses: the primary and its replicas) each; names besides the addresses themselves."""
    nodes: list[NodeEntry] = []
    told: list[tuple[int, tuple[int, ...]]] = []
    owners = array("H", [0xFFFF]) * 16384
    for ranges, addresses in shards:
        for first, last in ranges:
            owners[first : last + 1] = array("H", [len(told)]) * (last + 1 - first)
        told.append((len(nodes), tuple(range(len(nodes) + 1, len(nodes) + len(addresses)))))
        for place, at in enumerate(addresses):
            usable = at not in unusable
            nodes.append(NodeEntry(at.host, at.port, place > 0, usable, at.port, (at.host,)))
    known = {str(Address(node.host, node.port)): place for place, node in enumerate(nodes)}
    covered = sum(owner != 0xFFFF for owner in owners)
    return Topology(nodes, told, owners.tobytes(), known | (names or {}), epoch, covered)


def topology_of(seed: str) -> Topology:
    """What a node answers to CLUSTER SHARDS."""
    at = Address.parse(seed)
    decoder = Decoder()
    with socket.create_connection((at.host, at.port)) as sock:
        sock.sendall(encode_command("CLUSTER", "SHARDS"))
        while not (values := decoder.feed(sock.recv(1 << 20))):
            pass
    shards = []
    for told in values[0]:
        shard = dict(zip(told[::2], told[1::2], strict=True))
        nodes = [dict(zip(node[::2], node[1::2], strict=True)) for node in shard[b"nodes"]]
        nodes.sort(key=lambda node: node[b"role"] != b"master")
        places = [Address(node[b"ip"].decode(), node[b"port"]) for node in nodes]
        edges = shard[b"slots"]
        shards.append((list(zip(edges[::2], edges[1::2], strict=True)), places))
    return topology(*shards)


def publish(router: Router, told: Topology) -> None:
    """As worker.worker does it."""
    nodes = [(Address(node.host, node.port), node.replica) for node in told.nodes]
    router.publish(nodes, told.shards, told.owners)


def start(settings: WorkerSettings, seed: str = "", **more: Any) -> Start:
    """The first message."""
    values: dict[str, Any] = {
        "worker": 3,
        "settings": settings,
        "run_id": RUN_ID,
        "started_s": time.time(),
        "process_id": 4711,
        "commands": commands(),
        "facts": NodeFacts(),
        "topology": topology_of(seed) if seed else None,
    }
    return Start(**(values | more))


async def until(condition: Callable[[], Any]) -> Any:
    """Waits until condition() is truthy and returns that value."""
    async with asyncio.timeout(WAIT_S):
        while not (value := condition()):
            await asyncio.sleep(0.002)
        return value


class Port:
    """What the worker told the main process, with the loop's time; and its faults."""

    def __init__(self) -> None:
        self.reports: list[tuple[float, Report]] = []
        self.faults: list[tuple[str, BaseException]] = []
        self.expected: list[type[BaseException]] = []  # faults a test brings about

    @property
    def signs(self) -> list[str]:
        return [sign for _, report in self.reports for sign in report.signs]

    @property
    def unfit(self) -> dict[str, str]:
        return {node: why for _, report in self.reports for node, why in report.unfit.items()}

    def send(self, report: Report) -> None:
        self.reports.append((asyncio.get_running_loop().time(), report))


class Client:
    """One connection to the worker; the server's side is in it already. run() closes those that are open."""

    opened: ClassVar[list[Client]] = []

    def __init__(self, worker: Worker, listener: str = TCP, client_id: int = 1) -> None:
        self.id = client_id
        self.sock, served = connected(unix=listener.startswith("unix:"))
        self._values: list[Any] = []
        self._decoder = Decoder()
        self._loop = asyncio.get_running_loop()
        self.opened.append(self)
        worker.take(listener, [served], client_id, 1)

    async def send(self, *words: str | bytes) -> None:
        await self.send_bytes(encode_command(*words))

    async def send_bytes(self, data: bytes) -> None:
        async with asyncio.timeout(WAIT_S):
            await self._loop.sock_sendall(self.sock, data)

    async def reply(self) -> Any:
        """The next one, errors as values; None of a closed connection is EOFError."""
        async with asyncio.timeout(WAIT_S):
            while not self._values:
                data = await self._loop.sock_recv(self.sock, 1 << 16)
                if not data:
                    raise EOFError
                self._values += self._decoder.feed(data)
        return self._values.pop(0)

    async def ask(self, *words: str | bytes) -> Any:
        await self.send(*words)
        return await self.reply()

    async def info(self, section: str) -> dict[str, str]:
        """INFO of one section."""
        text = (await self.ask("INFO", section)).decode()
        return dict(line.split(":", 1) for line in text.split("\r\n") if ":" in line)

    async def rest(self) -> list[Any]:
        """Every reply until the other side ends the connection, which this one then closes."""
        replies = []
        try:
            while True:
                replies.append(await self.reply())
        except (EOFError, ConnectionResetError):
            self.close()
            return replies

    def close(self) -> None:
        self.sock.close()


def connected(unix: bool = False) -> tuple[socket.socket, int]:
    """(the client's end, non-blocking; the descriptor of the server's end, blocking as accept gives it)."""
    if unix:
        ours, theirs = socket.socketpair()
    else:
        with socket.create_server((HOST, 0)) as listener:
            ours = socket.create_connection(listener.getsockname())
            theirs, _ = listener.accept()
    ours.setblocking(False)
    return ours, theirs.detach()


Scene = Callable[[Worker, Port], Awaitable[None]]


class Noted(Faults):
    """Faults that are noted besides."""

    def __init__(self, port: Port) -> None:
        super().__init__()
        self._port = port

    def show(self, what: str, error: BaseException) -> None:
        self._port.faults.append((what, error))
        super().show(what, error)


def run(settings: WorkerSettings, scene: Scene, seed: str = "", **more: Any) -> None:
    """The scene with a started worker; checks that nothing unexpected raised and that stop() leaves no task."""
    message = start(settings, seed, **more)

    async def play() -> None:
        loop = asyncio.get_running_loop()
        port = Port()
        faults = Noted(port)
        loop.set_exception_handler(lambda _, context: faults(context["message"], context["exception"]))
        worker = Worker(message, loop, port.send, faults)
        try:
            worker.start(message)
            await scene(worker, port)
        finally:
            await worker.stop()
            gc.unfreeze()
            while Client.opened:
                Client.opened.pop().close()
        assert [error for _, error in port.faults if type(error) not in port.expected] == []
        assert asyncio.all_tasks() == {asyncio.current_task()}

    uvloop.run(play())
