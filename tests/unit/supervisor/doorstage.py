"""A stage for Doors: real sockets and uvloop, and members that keep what they are given. For test_doors."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import uvloop

from proxy.config.models import Listener
from proxy.supervisor.acceptor import Doors
from proxy.system.sockets import Listening

HOST = "127.0.0.1"


class Worker:
    """A member that holds its clients until they leave."""

    def __init__(self, crew: Workers, clients: int = 0) -> None:
        self.clients = clients
        self.backlog = 0
        self.takes: list[tuple[str, int, list[int]]] = []
        self.held: list[int] = []
        self._crew = crew

    def take(self, listener: str, first_id: int, descriptors: list[int]) -> None:
        self._crew.takes.append((self, listener, first_id, descriptors))
        self.takes.append((listener, first_id, descriptors))
        self.held += descriptors

    def left(self, count: int = 1) -> None:
        """Clients go, as Left says."""
        for _ in range(count):
            os.close(self.held.pop(0))
        self.clients -= count
        self._crew.doors.members_changed()


class Workers:
    """The crew: its members, those among them that take clients, and everything that was taken, in order."""

    def __init__(self) -> None:
        self.members: list[Worker] = []
        self.serving = True
        self.asked = 0
        self.takes: list[tuple[Worker, str, int, list[int]]] = []
        self.doors: Doors

    @property
    def clients(self) -> int:
        return sum(member.clients for member in self.members)

    @property
    def taken(self) -> int:
        return sum(len(take[3]) for take in self.takes)

    def candidates(self) -> Sequence[Worker]:
        self.asked += 1
        return self.members if self.serving else []


class Stage:
    """Doors, their crew and their clients."""

    def __init__(self, loop: asyncio.AbstractEventLoop, workers: Sequence[int], max_clients: int) -> None:
        self.crew = Workers()
        self.crew.members = [Worker(self.crew, clients) for clients in workers]
        self.doors = self.crew.doors = Doors(loop, self.crew, max_clients=max_clients)
        self.clients: list[socket.socket] = []
        self.spare: list[socket.socket] = []

    def listening(self, kind: type[socket.socket] = socket.socket, backlog: int = 511) -> Listening:
        """Bound and ready for doors.open(); clients may connect at once."""
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
        self.doors.close_all()
        for sock in self.clients + self.spare:
            sock.close()
        for member in self.crew.members:
            for descriptor in member.held:
                os.close(descriptor)


Scene = Callable[[Stage], Awaitable[None]]


def play(scene: Scene, workers: Sequence[int] = (0, 0), max_clients: int = 1000) -> None:
    """Runs the scene and cleans up."""

    async def main() -> None:
        stage = Stage(asyncio.get_running_loop(), workers, max_clients)
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
