"""A worker as a process of its own, and the test as its supervisor."""

from __future__ import annotations

import asyncio
import json
import mmap
import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest

from proxy.admin.snapshot import WorkerState
from proxy.config.models import Settings
from proxy.embedded import EmbeddedCluster, die_with_parent
from proxy.forward.counters import COUNTERS_SIZE, Counters
from proxy.ipc.channel import Channel, pair
from proxy.ipc.messages import (
    TO_SUPERVISOR,
    Applied,
    Apply,
    Ask,
    Bye,
    Drain,
    Left,
    Names,
    Others,
    Reopen,
    Retire,
    Start,
    Started,
    State,
    Stop,
    Take,
)
from tests.support.fake_node import SILENCE, FakeNode
from tests.support.raw import Closed, RawClient
from tests.unit.worker.scene import RUN_ID, TCP, UNIX, configured, connected, until

PROGRAM = """
import resource, socket, sys
from proxy.worker.main import main
descriptor, limit, before = sys.argv[1:]
if int(limit):
    resource.setrlimit(resource.RLIMIT_NOFILE, (int(limit), int(limit)))
exec(before)
sys.exit(main(socket.socket(fileno=int(descriptor))))
"""
M = TypeVar("M", bound=msgspec.Struct)


class Boss:
    """The supervisor's end of one worker."""

    def __init__(
        self, settings: Settings | None, log: Path, *, limit: int = 0, before: str = "", number: int = 2
    ) -> None:
        ours, theirs = pair()
        self.log_file = log
        with log.open("ab") as stderr, theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM, str(theirs.fileno()), str(limit), before],
                pass_fds=[theirs.fileno()],
                stderr=stderr,
                preexec_fn=die_with_parent(),
            )
        self.heard: list[tuple[float, Any]] = []
        self.ended: list[str] = []
        self.channel = Channel(ours, TO_SUPERVISOR, self._heard, self.ended.append)
        self.channel.start(asyncio.get_running_loop())
        self.memory = mmap.mmap(-1, COUNTERS_SIZE)
        if settings is not None:
            descriptor = os.memfd_create("counters")
            os.ftruncate(descriptor, COUNTERS_SIZE)
            self.memory = mmap.mmap(descriptor, COUNTERS_SIZE)
            self.channel.send(Start(number, pickle.dumps(settings), RUN_ID, 1000.0), [descriptor])

    def _heard(self, message: Any, descriptors: list[int]) -> None:
        assert descriptors == []
        self.heard.append((time.monotonic(), message))

    def all(self, kind: type[M]) -> list[M]:
        """The messages of this kind so far."""
        return [message for _, message in self.heard if isinstance(message, kind)]

    async def first(self, kind: type[M]) -> M:
        found: list[M] = await until(lambda: self.all(kind))
        return found[0]

    async def state(self, number: int) -> WorkerState:
        """Asks, and waits for the answer."""
        self.channel.send(Ask(number))
        answers = await until(lambda: [state for state in self.all(State) if state.number == number])
        return answers[0].state  # type: ignore[no-any-return]

    def client(self, listener: str = TCP, client_id: int = 1) -> RawClient:
        """A client handed over; its calls block this loop, which has nothing to do meanwhile."""
        client = RawClient.__new__(RawClient)
        ours, theirs = connected(unix=listener.startswith("unix:"))
        ours.settimeout(10)
        client.sock, client._buffer, client._taken = ours, bytearray(), 0
        self.channel.send(Take(listener, client_id), [theirs])
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
        counters.metrics = self.all(Names)[-1].metrics
        return counters.snapshot()

    def close(self) -> None:
        self.channel.close()
        self.process.kill()
        self.process.wait()


Scene = Callable[[Boss], Awaitable[None]]


def run(settings: Settings | None, scene: Scene, folder: Path, **options: Any) -> str:
    """The scene with a worker process; its log."""

    async def play() -> str:
        boss = Boss(settings, folder / "stderr", **options)
        try:
            if settings is not None:
                await boss.first(Started)
            await scene(boss)
        finally:
            boss.close()
        return boss.log

    return asyncio.run(play())


def test_a_life(nodes: EmbeddedCluster, tmp_path: Path) -> None:
    """Started, clients served, told to stop."""

    async def scene(boss: Boss) -> None:
        kinds = [type(message) for _, message in boss.heard]
        assert kinds.index(Names) < kinds.index(State) < kinds.index(Started)
        told = boss.all(State)[-1]
        assert told.number == 0
        assert (told.state["topology"]["known"], told.state["topology"]["slots_covered"]) == (True, 16384)
        with boss.client(client_id=77) as client, boss.client(UNIX, 78) as other:
            assert client.command("CLIENT", "ID") == b":77\r\n"
            assert other.command("CLIENT", "ID") == b":78\r\n"
            for n in range(10):
                assert client.command("SET", f"process:{n}", n) == b"+OK\r\n"
            info = client.command("INFO", "server").decode()
            assert f"run_id:{RUN_ID}\r\n" in info
            assert f"process_id:{os.getpid()}\r\n" in info  # the supervisor's
            boss.channel.send(Others({"connected_clients": 5}, 4321))
            await boss.state(9)
            info = client.command("INFO", "clients").decode()
            assert "connected_clients:7\r\n" in info
            assert "maxclients:4321\r\n" in info
            assert boss.counters["commands"]["set"]["calls"] == 10
        left = await until(lambda: sum(message.clients for message in boss.all(Left)) == 2)
        assert left
        assert (await boss.state(10))["clients"] == 0
        assert Path(f"/proc/{boss.process.pid}/comm").read_text() == "redis-proxy:2\n"
        with boss.client() as client:
            assert client.command("PING") == b"+PONG\r\n"
            boss.channel.send(Stop())
            assert await boss.code() == 0
            assert client.rest() == b""
        assert boss.all(Bye) == []
        assert boss.counters["accepted"] == 3

    log = run(configured(nodes.seeds), scene, tmp_path)
    assert log
    assert all(re.search(r" logger=\S+ worker=2 msg=", line) for line in log.splitlines())


def test_state_every_second_and_when_asked(node: FakeNode, tmp_path: Path) -> None:
    async def scene(boss: Boss) -> None:
        begun_s = time.monotonic()
        await until(lambda: len(boss.all(State)) >= 4)
        assert time.monotonic() - begun_s > 1.5
        asked_s = time.monotonic()
        state = await boss.state(41)
        assert time.monotonic() - asked_s < 0.5
        ((label, values),) = state["nodes"].items()
        assert (label, values["role"], values["connections"]["shared", "up"]) == (node.address, "primary", 1)
        assert state["topology"]["refreshes"]["start", "changed"] == 1
        unasked = len(boss.all(State))
        node.close()
        await until(lambda: not boss.all(State)[-1].state["topology"]["fresh"])
        assert len(boss.all(State)) > unasked

    run(configured([node.address], cluster={"refresh_interval": "100ms", "refresh_min_gap": "0"}), scene, tmp_path)


def test_retire(node: FakeNode, tmp_path: Path) -> None:
    async def scene(boss: Boss) -> None:
        with boss.client() as client:
            boss.channel.send(Retire())
            assert (await boss.state(1))["clients"] == 1
            assert client.command("SET", "k", "v") == b"+OK\r\n"
            assert boss.process.poll() is None
        assert await boss.code() == 0
        assert [type(message) for _, message in boss.heard][-2:] == [Left, Bye]
        assert boss.ended == ["closed by the other side"]

    run(configured([node.address]), scene, tmp_path)


def test_drain(node: FakeNode, tmp_path: Path) -> None:
    async def scene(boss: Boss) -> None:
        with boss.client(client_id=1) as idle, boss.client(client_id=2) as busy:
            assert busy.command("SET", "k", "v") == b"+OK\r\n"
            boss.channel.send(Drain(0.1, 5.0))
            assert idle.rest() == busy.rest() == b""
        assert await boss.code() == 0
        assert boss.all(Bye) == [Bye()]
        assert sum(message.clients for message in boss.all(Left)) == 2

    run(configured([node.address]), scene, tmp_path)


def test_drain_after_retire_and_stop_during_drain(node: FakeNode, tmp_path: Path) -> None:
    node.on("GET", SILENCE)

    async def scene(boss: Boss) -> None:
        with boss.client() as client:
            client.send(b"GET k\r\n")
            await until(lambda: node.seen("GET"))
            boss.channel.send(Retire())
            boss.channel.send(Drain(0.0, 60.0))
            assert (await boss.state(1))["clients"] == 1
            boss.channel.send(Stop())
            assert await boss.code() == 0
            with pytest.raises(Closed):
                client.frame()

    run(configured([node.address]), scene, tmp_path)


def test_apply(node: FakeNode, tmp_path: Path) -> None:
    file = tmp_path / "log"

    async def scene(boss: Boss) -> None:
        with boss.client() as client:
            settings = configured([node.address], clients={"password": "x"}, log={"file": str(file), "format": "json"})
            boss.channel.send(Apply(5, pickle.dumps(settings)))
            assert await boss.first(Applied) == Applied(5, "")
            assert client.command("GET", "k") == b"$-1\r\n"
            with boss.client(client_id=2) as new:
                assert new.command("GET", "k").startswith(b"-NOAUTH")
            boss.channel.send(Apply(6, b"no pickle"))
            await until(lambda: len(boss.all(Applied)) == 2)
            answer = boss.all(Applied)[1]
            assert (answer.number, "UnpicklingError" in answer.error) == (6, True)
            assert client.command("GET", "k") == b"$-1\r\n"
            file.rename(tmp_path / "log.1")
            boss.channel.send(Reopen())
            await boss.state(1)
            assert file.exists()

    run(configured([node.address]), scene, tmp_path)
    event = json.loads((tmp_path / "log.1").read_text().splitlines()[-1])
    assert (event["msg"], event["worker"]) == ("the new settings could not be applied", 2)


def test_signals_are_the_supervisors(node: FakeNode, tmp_path: Path) -> None:
    async def scene(boss: Boss) -> None:
        with boss.client() as client:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
                boss.process.send_signal(number)
            assert client.command("SET", "k", "v") == b"+OK\r\n"
            await boss.state(1)
            boss.process.send_signal(signal.SIGABRT)
            assert await boss.code() == -signal.SIGABRT

    log = run(configured([node.address]), scene, tmp_path)
    assert "Fatal Python error: Aborted" in log


def test_a_worker_outlives_no_supervisor(node: FakeNode, tmp_path: Path) -> None:
    async def scene(boss: Boss) -> None:
        with boss.client() as client:
            assert client.command("PING") == b"+PONG\r\n"
            boss.channel.close()
            assert client.rest() == b""
            assert await boss.code() == 1

    log = run(configured([node.address]), scene, tmp_path)
    # The kernel calls it a reset when there was something the supervisor had not read.
    reason = '"(closed by the other side|Connection reset by peer)"'
    assert re.search(f'msg="the supervisor cannot be heard any more, ending" reason={reason}', log)


def test_out_of_descriptors(node: FakeNode, tmp_path: Path) -> None:
    """Clients the kernel could not hand over are lost; the log says why, and another worker begins with none."""

    async def scene(boss: Boss) -> None:
        pairs = [socket.socketpair() for _ in range(100)]
        boss.channel.send(Take(UNIX, 1), [theirs.detach() for _, theirs in pairs])
        assert await boss.code() == 1
        for ours, _ in pairs:
            ours.close()

    log = run(configured([node.address]), scene, tmp_path, limit=64)
    (line,) = [line for line in log.splitlines() if "cannot be heard" in line]
    assert "level=error" in line
    assert 'reason="descriptors were lost on the way"' in line
    assert "limit=64" in line


@pytest.mark.parametrize(
    ("fault", "where"),
    [
        ("Worker._sweep = lambda self, *due: 1 / 0", "worker failed|uncaught exception"),
        ("Worker.take = lambda self, *clients: 1 / 0", "a message could not be obeyed"),
        ("Worker._publish = property(lambda self: 1 / 0)", "a message could not be obeyed"),
        ("TopologyRefresher._refresh = lambda self: 1 / 0", "uncaught exception"),
    ],
)
def test_a_fault_of_ours(node: FakeNode, tmp_path: Path, fault: str, where: str) -> None:
    """Is in the log with its trace, as one line, and ends the process."""
    imports = "from proxy.worker.worker import Worker; from proxy.control.topology_refresh import TopologyRefresher; "

    async def play() -> str:
        boss = Boss(configured([node.address]), tmp_path / "stderr", before=imports + fault)
        try:
            await until(lambda: boss.all(Started) or boss.ended)
            if not boss.ended:
                with socket.socket() as client:
                    boss.channel.send(Take(TCP, 1), [client.detach()])
            assert await boss.code() == 1
        finally:
            boss.close()
        return boss.log

    log = asyncio.run(play())
    (line,) = [line for line in log.splitlines() if "ZeroDivisionError" in line]
    assert re.search(where, line)
    assert "level=error" in line
    assert " trace=" in line


def test_nothing_comes_before_start(tmp_path: Path) -> None:
    async def scene(boss: Boss) -> None:
        boss.channel.send(Ask(1))
        assert await boss.code() == 1

    assert "nothing comes before Start" in run(None, scene, tmp_path)


def test_stop_before_start(tmp_path: Path) -> None:
    async def scene(boss: Boss) -> None:
        boss.channel.send(Stop())
        assert await boss.code() == 0

    run(None, scene, tmp_path)


def test_a_log_that_cannot_be_written(node: FakeNode, tmp_path: Path) -> None:
    """The supervisor could: serving is worth more than the file."""

    async def scene(boss: Boss) -> None:
        with boss.client() as client:
            assert client.command("PING") == b"+PONG\r\n"

    log = run(configured([node.address], log={"file": str(tmp_path / "none" / "log")}), scene, tmp_path)
    assert "cannot write the log, it goes to stderr" in log
