"""A worker as a process of its own, and the test as its main process. Called by test_main and test_conversation."""

from __future__ import annotations

import asyncio
import mmap
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from proxy import __version__
from proxy.embedded import die_with_parent
from proxy.forward.counters import COUNTERS_SIZE, Counters
from proxy.ipc.channel import Channel, pair
from proxy.ipc.messages import FROM_WORKER, Ask, Start, Started, Status, Take
from tests.support.raw import RawClient
from tests.unit.worker.scene import TCP, connected, until

M = TypeVar("M", bound=msgspec.Struct)
WITH_A_FAULT = """
import sys
from proxy.worker.conversation import Conversation
from proxy.worker.worker import Worker
from proxy.worker.main import main
exec(sys.argv.pop(1))
sys.exit(main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]))
"""


class Parent:
    """The main process's end of one worker. first: the message to begin with, None = not yet."""

    def __init__(
        self,
        first: Start | None,
        log: Path,
        *,
        version: str = __version__,
        limit: int = 0,
        fault: str = "",
        blocked: tuple[signal.Signals, ...] = (),
        environment: dict[str, str] | None = None,
    ) -> None:
        ours, theirs = pair()
        self.log_file = log
        dies = die_with_parent()

        def before_exec() -> None:
            if dies is not None:
                dies()
            if limit:
                resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
            signal.pthread_sigmask(signal.SIG_BLOCK, blocked)

        program = ["-c", WITH_A_FAULT, fault] if fault else ["-m", "proxy.worker.main"]
        self.begun_s = time.monotonic()
        with log.open("ab") as stderr, theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-P", *program, str(theirs.fileno()), "2", version],
                pass_fds=[theirs.fileno()],
                stderr=stderr,
                preexec_fn=before_exec,
                env=environment,
            )
        self.heard: list[tuple[float, Any]] = []
        self.ended: list[str] = []
        self.channel = Channel(ours, FROM_WORKER, self._heard, self.ended.append)
        self.channel.start(asyncio.get_running_loop())
        self.memory = mmap.mmap(-1, COUNTERS_SIZE)
        self._metrics: dict[str, int] = {}
        if first is not None:
            descriptor = os.memfd_create("counters")
            os.ftruncate(descriptor, COUNTERS_SIZE)
            self.memory = mmap.mmap(descriptor, COUNTERS_SIZE)
            self._metrics = first.commands.metrics
            self.channel.send(first, [descriptor])

    def _heard(self, message: Any, descriptors: list[int]) -> None:
        assert descriptors == []
        self.heard.append((time.monotonic(), message))

    def all(self, kind: type[M]) -> list[M]:
        """The messages of this kind so far."""
        return [message for _, message in self.heard if isinstance(message, kind)]

    async def first(self, kind: type[M]) -> M:
        found: list[M] = await until(lambda: self.all(kind))
        return found[0]

    async def status(self, number: int) -> Status:
        """Asks, and waits for the answer."""
        self.channel.send(Ask(number))
        answers: list[Status] = await until(lambda: [told for told in self.all(Status) if told.number == number])
        return answers[0]

    def client(self, listener: str = TCP, client_id: int = 1) -> RawClient:
        """A client handed over; its calls block this loop, which has nothing to do meanwhile."""
        client = RawClient.__new__(RawClient)
        ours, theirs = connected(unix=listener.startswith("unix:"))
        ours.settimeout(10)
        client.sock, client._buffer, client._taken = ours, bytearray(), 0
        self.channel.send(Take(listener, client_id, 1), [theirs])
        return client

    async def code(self) -> int:
        """Waits for the exit code."""
        await until(lambda: self.process.poll() is not None)
        return self.process.returncode

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    @property
    def counters(self) -> Any:
        counters = Counters(self.memory)
        counters.metrics = self._metrics
        return counters.snapshot()

    def close(self) -> None:
        self.channel.close()
        self.process.kill()
        self.process.wait()


Scene = Callable[[Parent], Awaitable[None]]


def run(first: Start | None, scene: Scene, folder: Path, *, started: bool = True, **options: Any) -> str:
    """The scene with a worker process, which has started if it was to; its log."""

    async def play() -> str:
        parent = Parent(first, folder / "stderr", **options)
        try:
            if first is not None and started:
                await parent.first(Started)
            await scene(parent)
        finally:
            parent.close()
        return parent.log

    return asyncio.run(play())
