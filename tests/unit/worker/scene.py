"""A worker in this process, a loop around it, and clients that talk to it: for the tests of proxy.worker.

Called by: tests/unit/worker/test_loop.py, test_leaving.py, test_apply.py and its like.
"""

from __future__ import annotations

import asyncio
import gc
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar

import uvloop

from proxy.config.models import Settings
from proxy.embedded import HOST
from proxy.resp.decode import Decoder
from proxy.resp.encode import encode_command
from proxy.worker.worker import Worker

TCP = "127.0.0.1:7617"
UNIX = "unix:/run/proxy.sock"
RUN_ID = "0123456789abcdef0123456789abcdef01234567"
WAIT_S = 10.0


def configured(seeds: list[str], **sections: Any) -> Settings:
    """Settings as the file would give them; two listeners unless said otherwise."""
    cluster = {"seeds": seeds} | sections.pop("cluster", {})
    listeners = sections.pop("listeners", [{"address": TCP}, {"address": UNIX}])
    return Settings.model_validate({"cluster": cluster, "listeners": listeners, **sections})


async def until(condition: Callable[[], Any]) -> Any:
    """Waits until condition() is truthy and returns that value."""
    async with asyncio.timeout(WAIT_S):
        while not (value := condition()):
            await asyncio.sleep(0.002)
        return value


class Port:
    """What the worker told its supervisor, with the loop's time."""

    def __init__(self) -> None:
        self.told: list[tuple[float, int]] = []
        self.metrics: dict[str, int] = {}
        self.changes = 0

    @property
    def gone(self) -> int:
        return sum(clients for _, clients in self.told)

    def names(self, metrics: dict[str, int]) -> None:
        assert self.metrics.items() <= metrics.items()
        self.metrics = metrics

    def left(self, clients: int) -> None:
        assert clients > 0
        self.told.append((asyncio.get_running_loop().time(), clients))

    def ready_changed(self) -> None:
        self.changes += 1


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
        worker.take(listener, [served], client_id)

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


def run(settings: Settings, scene: Scene) -> None:
    """The scene with a started worker; checks that nothing raised and that stop() leaves no task."""

    async def play() -> None:
        loop = asyncio.get_running_loop()
        faults: list[dict[str, Any]] = []
        loop.set_exception_handler(lambda _, context: faults.append(context))
        port = Port()
        worker = Worker(settings, loop, port, number=3, run_id=RUN_ID, started_s=time.time(), process_id=4711)
        try:
            await worker.start()
            await scene(worker, port)
        finally:
            await worker.stop()
            gc.unfreeze()
            while Client.opened:
                Client.opened.pop().close()
        assert faults == []
        assert asyncio.all_tasks() == {asyncio.current_task()}

    uvloop.run(play())
