"""An acceptor on real sockets and uvloop, and workers that keep what they are given. For test_acceptor."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import uvloop

from proxy.config.models import Listener
from proxy.supervisor.acceptor import Acceptor
from proxy.system.sockets import Listening

HOST = "127.0.0.1"


class Worker:
    """Holds its clients until they leave."""

    def __init__(self, workers: Workers, clients: int = 0) -> None:
        self.clients = clients
        self.backlog = 0
        self.missed: list[str] = []
        self.silence_s = 0.0
        self.takes: list[tuple[str, int, list[int]]] = []
        self.held: list[int] = []
        self._workers = workers

    def take(self, listener: str, first_id: int, descriptors: list[int]) -> None:
        self._workers.takes.append((self, listener, first_id, descriptors))
        self.takes.append((listener, first_id, descriptors))
        self.held += descriptors
        self.clients += len(descriptors)

    def silent_s(self) -> float:
        return self.silence_s

    def left(self, count: int = 1) -> None:
        """Clients go; the counters say so, and nobody is told."""
        for _ in range(count):
            os.close(self.held.pop(0))
        self.clients -= count


class Workers:
    """All workers, those among them that take clients, and everything that was taken, in order."""

    def __init__(self) -> None:
        self.present: list[Worker] = []
        self.serving = True
        self.takes: list[tuple[Worker, str, int, list[int]]] = []

    def clients(self) -> int:
        return sum(worker.clients for worker in self.present)

    @property
    def taken(self) -> int:
        return sum(len(take[3]) for take in self.takes)

    def candidates(self) -> Sequence[Worker]:
        return self.present if self.serving else []


class Stage:
    """An acceptor, its workers and its clients. wakeups: how often it was told of a connection."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, workers: Sequence[int], max_clients: int, per_worker: int
    ) -> None:
        self.workers = Workers()
        self.workers.present = [Worker(self.workers, clients) for clients in workers]
        self.acceptor = Acceptor(
            loop,
            self.workers.candidates,
            self.workers.clients,
            max_clients=max_clients,
            per_worker=per_worker,
        )
        self.wakeups = 0
        readable = self.acceptor._readable
        setattr(self.acceptor, "_readable", lambda one: self._woken(readable, one))  # noqa: B010
        self.clients: list[socket.socket] = []
        self.spare: list[socket.socket] = []

    def _woken(self, readable: Callable[[Listening], None], one: Listening) -> None:
        self.wakeups += 1
        readable(one)

    def listening(self, kind: type[socket.socket] = socket.socket, backlog: int = 511) -> Listening:
        """Bound and ready for acceptor.open(); clients may connect at once."""
        sock = kind()
        sock.bind((HOST, 0))
        sock.listen(511)
        sock.setblocking(False)
        self.spare.append(sock)
        address = f"{HOST}:{sock.getsockname()[1]}"
        return Listening(sock, Listener.model_validate({"address": address, "backlog": backlog}))

    def connect(self, one: Listening, count: int = 1, says: bytes = b"") -> list[socket.socket]:
        """Clients in the listener's queue."""
        found = [socket.create_connection(one.sock.getsockname()) for _ in range(count)]
        for sock in found:
            sock.settimeout(10)
            if says:
                sock.sendall(says)
        self.clients += found
        return found

    def close(self) -> None:
        self.acceptor.close_all(accept=False)
        for sock in self.clients + self.spare:
            sock.close()
        for worker in self.workers.present:
            for descriptor in worker.held:
                os.close(descriptor)


Scene = Callable[[Stage], Awaitable[None]]


def play(scene: Scene, workers: Sequence[int] = (0, 0), max_clients: int = 1000, per_worker: int = 1000) -> None:
    """Runs the scene and cleans up."""

    async def main() -> None:
        stage = Stage(asyncio.get_running_loop(), workers, max_clients, per_worker)
        try:
            async with asyncio.timeout(30):
                await scene(stage)
        finally:
            stage.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


async def until(condition: Callable[[], Any]) -> None:
    """Lets the loop run until it is so; the scene has a time limit."""
    while not condition():
        await asyncio.sleep(0.001)


def peers(descriptors: Sequence[int]) -> list[Any]:
    """Whose connections these are."""
    found = []
    for descriptor in descriptors:
        sock = socket.socket(fileno=descriptor)
        found.append(sock.getpeername())
        sock.detach()
    return found


def names(clients: Sequence[socket.socket]) -> list[Any]:
    return [client.getsockname() for client in clients]


async def answer(client: socket.socket) -> bytes:
    """Everything until the other side closes."""

    def read() -> bytes:
        whole = b""
        while part := client.recv(1000):
            whole += part
        return whole

    return await asyncio.to_thread(read)


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))
