"""The crew with real workers in front of real nodes: started, killed, silenced, resized, ended."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop

from proxy.admin.snapshot import CounterValues, WorkerState
from proxy.config.models import Settings, from_seeds
from proxy.embedded import HOST, EmbeddedCluster
from proxy.supervisor import crew as crew_module
from proxy.supervisor.crew import Crew, CrewError, Member
from proxy.supervisor.forks import ForkError, Forks


@pytest.fixture(scope="module")
def seeds() -> Iterator[list[str]]:
    with EmbeddedCluster(primaries=1, replicas=0, node_timeout_ms=15000) as cluster:
        yield cluster.seeds


class Scene:
    """A crew and what it told."""

    def __init__(self, loop: asyncio.AbstractEventLoop, forks: Forks, settings: Settings) -> None:
        self.forks = forks
        self.changed = asyncio.Event()
        self.dead: list[tuple[CounterValues, WorkerState | None]] = []
        self.ended: list[int] = []
        self.crew = Crew(
            loop,
            forks,
            settings,
            run_id="0" * 40,
            started_s=time.time(),
            on_change=self.changed.set,
            on_state=lambda old, new: None,
            on_dead=lambda counters, state: self.dead.append((counters, state)),
            on_ended=lambda pid, cpu_s: self.ended.append(pid),
        )

    async def until(self, condition: Callable[[], Any], timeout_s: float = 10.0) -> None:
        async with asyncio.timeout(timeout_s):
            while not condition():
                self.changed.clear()
                await self.changed.wait()

    def connect(self, member: Member, client_id: int) -> socket.socket:
        """A client of that worker."""
        ours, theirs = socket.socketpair()
        ours.settimeout(10)
        member.clients += 1
        member.take("127.0.0.1:7617", client_id, [theirs.detach()])
        return ours


def play(seeds: list[str], act: Callable[[Scene], Coroutine[Any, Any, None]], workers: int = 2) -> None:
    """A crew of so many workers, all started, for one act; nothing may be left of it."""

    async def body() -> None:
        forks = Forks()
        scene = Scene(asyncio.get_running_loop(), forks, from_seeds(seeds))
        pids = set()
        try:
            scene.crew.begin(workers)
            await scene.crew.first()
            pids |= set(scene.crew.pids)
            await act(scene)
            pids |= set(scene.crew.pids)
        finally:
            await scene.crew.stop()
            forks.close()
        assert not any(running(pid) for pid in pids)

    uvloop.run(asyncio.sleep(0))
    gc.collect()  # what other tests have left
    before = len(os.listdir("/proc/self/fd"))
    uvloop.run(body())
    assert len(os.listdir("/proc/self/fd")) == before


def running(pid: int) -> bool:
    """Whether the process exists and is more than an entry that its parent has not read yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def ask(client: socket.socket, *words: str) -> bytes:
    client.sendall(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(w), w.encode()) for w in words))
    return client.recv(65536)


def test_they_serve(seeds: list[str]) -> None:
    async def act(scene: Scene) -> None:
        first, second = scene.crew.candidates()
        for n, member in enumerate((first, second)):
            with scene.connect(member, 70 + n) as client:
                assert ask(client, "SET", "a", str(n)) == b"+OK\r\n"
                assert ask(client, "CLIENT", "ID") == b":%d\r\n" % (70 + n)
                assert scene.crew.clients == 1
            await scene.until(lambda: scene.crew.clients == 0)
        await scene.crew.ask(5.0)
        for member in (first, second):
            assert member.state is not None
            assert member.state["topology"]["slots_covered"] == 16384
            assert member.counters.snapshot()["commands"]["set"]["calls"] == 1

    play(seeds, act)


def test_the_killed_one_is_replaced_and_its_counters_are_kept(seeds: list[str]) -> None:
    async def act(scene: Scene) -> None:
        first, second = scene.crew.candidates()
        with scene.connect(first, 1) as lost, scene.connect(second, 2) as kept:
            assert ask(lost, "SET", "a", "1") == b"+OK\r\n"
            killed_s = time.monotonic()
            os.kill(first.pid, signal.SIGKILL)
            await scene.until(lambda: len(scene.crew.candidates()) == 2 and first not in scene.crew.candidates())
            assert time.monotonic() - killed_s < 1.0
            assert lost.recv(10) == b""
            assert ask(kept, "GET", "a") == b"$1\r\n1\r\n"
            assert scene.crew.restarts == 1
            assert scene.crew.clients == 1
        assert scene.dead[0][0]["commands"]["set"]["calls"] == 1

    play(seeds, act)


def test_the_fork_server_is_replaced_when_it_is_needed(seeds: list[str]) -> None:
    async def act(scene: Scene) -> None:
        (member,) = scene.crew.candidates()
        assert scene.forks.pid is not None
        before = scene.forks.pid
        os.kill(before, signal.SIGKILL)
        with scene.connect(member, 1) as client:
            assert ask(client, "PING") == b"+PONG\r\n"
        os.kill(member.pid, signal.SIGKILL)
        await scene.until(lambda: scene.crew.candidates() not in ([], [member]))
        assert scene.forks.pid not in (None, before)

    play(seeds, act, workers=1)


def test_backoff_grows_and_ends(seeds: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew_module, "BACKOFF_MIN_S", 0.05)

    async def act(scene: Scene) -> None:
        lives = []
        for _ in range(4):
            (member,) = scene.crew.candidates()
            killed_s = time.monotonic()
            os.kill(member.pid, signal.SIGKILL)
            await scene.until(lambda member=member: scene.crew.candidates() not in ([], [member]))
            lives.append(time.monotonic() - killed_s)
        assert lives[3] >= 0.2  # 0, 0.05, 0.1, 0.2
        assert scene.crew.restarts == 4
        monkeypatch.setattr(crew_module, "STEADY_S", 0.0)
        (member,) = scene.crew.candidates()
        killed_s = time.monotonic()
        os.kill(member.pid, signal.SIGKILL)
        await scene.until(lambda: scene.crew.candidates() not in ([], [member]))
        assert time.monotonic() - killed_s < lives[3]

    play(seeds, act, workers=1)


def test_one_that_hangs_is_ended_with_its_stack(
    seeds: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(crew_module, "SILENT_S", 1.5)

    async def act(scene: Scene) -> None:
        first, second = scene.crew.candidates()
        os.kill(first.pid, signal.SIGSTOP)
        with scene.connect(second, 2) as client:
            assert ask(client, "PING") == b"+PONG\r\n"
            await scene.until(lambda: len(scene.crew.candidates()) == 2 and first not in scene.crew.candidates())
            assert ask(client, "PING") == b"+PONG\r\n"
        assert scene.crew.silences().keys() == {0, 1}

    play(seeds, act)


def test_a_pause_of_its_own_is_nobody_elses_silence(seeds: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew_module, "SILENT_S", 1.5)

    async def act(scene: Scene) -> None:
        before = scene.crew.pids
        time.sleep(3.0)  # as a machine that is suspended
        with pytest.raises(TimeoutError):
            await scene.until(lambda: scene.crew.pids != before, 2.0)
        assert scene.crew.restarts == 0
        assert max(scene.crew.silences().values()) < 1.5

    play(seeds, act)


def test_more_and_fewer(seeds: list[str]) -> None:
    async def act(scene: Scene) -> None:
        scene.crew.resize(3)
        await scene.until(lambda: len(scene.crew.candidates()) == 3)
        last = scene.crew.members[2]
        with scene.connect(last, 1) as client:
            scene.crew.resize(1)
            assert [member.number for member in scene.crew.candidates()] == [0]
            await scene.until(lambda: len(scene.crew.pids) == 2)  # the one without clients has gone
            assert ask(client, "SET", "a", "2") == b"+OK\r\n"
        await scene.until(lambda: len(scene.crew.pids) == 1)
        assert scene.crew.restarts == 0
        assert sum(counters["commands"]["set"]["calls"] for counters, _ in scene.dead) == 1

    play(seeds, act, workers=2)


def test_new_settings_reach_everybody(seeds: list[str]) -> None:
    async def act(scene: Scene) -> None:
        settings = scene.crew.settings.model_copy(
            update={"clients": scene.crew.settings.clients.model_copy(update={"max_query": 2000})}
        )
        assert await scene.crew.apply(settings) == []
        for n, member in enumerate(scene.crew.candidates()):
            with scene.connect(member, n) as client:
                client.sendall(b"*2\r\n$3\r\nGET\r\n$9000\r\n" + b"x" * 4000)
                assert client.recv(100) == b""

    play(seeds, act)


def test_draining_ends_everybody_in_time(seeds: list[str]) -> None:
    async def act(scene: Scene) -> None:
        clients = [scene.connect(member, n) for n, member in enumerate(scene.crew.candidates() * 3)]
        started_s = time.monotonic()
        await scene.crew.drain(0.3, 5.0)
        assert 0.1 < time.monotonic() - started_s < 4
        assert scene.crew.pids == []
        for client in clients:
            with client:
                assert client.recv(10) == b""
        assert scene.crew.restarts == 0

    play(seeds, act)


def test_start_up_fails_when_no_worker_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fork(self: Forks, channel: socket.socket) -> Any:
        channel.close()
        raise ForkError("no more processes")

    monkeypatch.setattr(Forks, "fork", fork)

    async def body() -> None:
        scene = Scene(asyncio.get_running_loop(), Forks(), from_seeds([f"{HOST}:1"]))
        scene.crew.begin(1)
        with pytest.raises(CrewError, match="worker 0 does not start"):
            await scene.crew.first()
        await scene.crew.stop()

    uvloop.run(body())
