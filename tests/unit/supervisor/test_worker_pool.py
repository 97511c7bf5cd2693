"""The worker pool with workers of tests.support.stand_in_worker: started, killed, silenced, resized, told, ended."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import uvloop

from proxy.commands.table import ROWS
from proxy.config.models import from_seeds
from proxy.control.control_plane import ControlPlane
from proxy.ipc import settings as plain
from proxy.ipc.messages import Commands, NodeFacts, Report, Start
from proxy.ipc.settings import WorkerSettings
from proxy.supervisor import worker_pool as module
from proxy.supervisor.worker_pool import PoolError, Worker, WorkerPool
from proxy.system import log as logs
from tests.support import stand_in_worker

PROGRAM = str(Path(stand_in_worker.__file__))
COMMANDS = ControlPlane(from_seeds(["127.0.0.1:1"]), lambda message: None).commands


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second of a pool's life takes a tenth, and no warning was shown before."""
    monkeypatch.setattr(module, "_TICK_S", 0.1)
    monkeypatch.setattr(module, "ABORT_S", 0.5)
    monkeypatch.setattr(logs, "_limited", {})


class Stage:
    """A pool and what it told. fault: of the workers that are started from now on."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.fault = ""
        self.started = 0  # attempts
        self.changed = asyncio.Event()
        self.gone: list[tuple[int, int]] = []  # (number, clients that had left)
        self.ended: list[int] = []
        self.other_version = 0
        self.heard: list[tuple[int, str, Any]] = []  # (worker, kind of message, its fields)
        self.own = {"rejected_connections": 7}
        self.pool = WorkerPool(
            loop,
            self._start,
            own_figures=lambda: self.own,
            on_change=self.changed.set,
            on_report=self._report,
            on_gone=lambda worker: self.gone.append((worker.number, worker.counters.gone)),
            on_ended=lambda pid, cpu_s: self.ended.append(pid),
            on_other_version=self._other_version,
        )

    def command(self, number: int) -> list[str]:
        return [sys.executable, "-P", PROGRAM, str(module._CHANNEL), str(number), self.fault]

    def _start(self, number: int) -> Start:
        self.started += 1
        return Start(number, SETTINGS, "0" * 40, time.time(), os.getpid(), COMMANDS, NodeFacts(), None)

    def _report(self, report: Report) -> None:
        number, kind, text = report.signs
        self.heard.append((int(number), kind, json.loads(text)))
        self.changed.set()

    def _other_version(self) -> None:
        self.other_version += 1
        self.changed.set()

    def told(self, kind: str) -> list[tuple[int, Any]]:
        """(worker, message) of this kind that arrived at the workers."""
        return [(number, message) for number, what, message in self.heard if what == kind]

    async def until(self, condition: Callable[[], Any], timeout_s: float = 10.0) -> None:
        """Until it is so; looked at after every change, and now and then."""
        async with asyncio.timeout(timeout_s):
            while not condition():
                self.changed.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self.changed.wait(), 0.02)

    async def replaced(self, worker: Worker) -> Worker:
        """The one that takes clients in its place."""
        await self.until(lambda: any(one.number == worker.number and one is not worker for one in self.candidates))
        return next(one for one in self.candidates if one.number == worker.number)

    @property
    def candidates(self) -> list[Worker]:
        return self.pool.candidates()

    def connect(self, worker: Worker, client_id: int) -> socket.socket:
        """A client of that worker."""
        ours, theirs = socket.socketpair()
        ours.settimeout(10)
        worker.take("127.0.0.1:7617", client_id, [theirs.detach()])
        return ours


def worker_settings() -> WorkerSettings:
    def filled(kind: Any, **more: Any) -> Any:
        return kind(**dict.fromkeys(kind.__struct_fields__, 0) | more)

    text = {"username": "", "password": "", "client_name": ""}
    return WorkerSettings(
        listeners={},
        endpoint=None,
        allow=(),
        clients=filled(plain.Clients, password=""),
        requests=filled(plain.Requests),
        backends=filled(plain.Backends, **text),
        log=plain.Log("info", "logfmt", ""),
    )


SETTINGS = worker_settings()
Act = Callable[[Stage], Coroutine[Any, Any, None]]


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Stage]:
    """play(act, workers=2): a pool of so many workers, all started, for one act; nothing may be left of it."""

    def run(act: Act, workers: int = 2, fault: str = "", began: bool = True) -> Stage:
        pids: set[int] = set()

        async def body() -> Stage:
            loop = asyncio.get_running_loop()
            stage = Stage(loop)
            stage.fault = fault
            monkeypatch.setattr(module, "_command", stage.command)
            spawn = os.posix_spawn

            def noted(*args: Any, **more: Any) -> int:
                pids.add(pid := spawn(*args, **more))
                return pid

            monkeypatch.setattr(os, "posix_spawn", noted)
            try:
                if began:
                    stage.pool.begin(workers)
                    await stage.pool.first()
                await act(stage)
            finally:
                await stage.pool.stop()
                monkeypatch.setattr(os, "posix_spawn", spawn)
            assert stage.pool.processes == {}
            assert stage.pool._timer is None or stage.pool._timer.cancelled()
            return stage

        uvloop.run(asyncio.sleep(0))  # the first loop of a process keeps two descriptors
        gc.collect()
        before = descriptors()
        stage = uvloop.run(body())
        gc.collect()
        assert descriptors() == before
        assert [pid for pid in pids if Path(f"/proc/{pid}").exists()] == []  # not even as a zombie
        assert set(stage.ended) <= pids
        assert len(stage.gone) == len(stage.ended) == len(set(stage.ended))
        return stage

    return run


Play = Callable[..., Stage]


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def messages_of(caplog: pytest.LogCaptureFixture, level: int = logging.WARNING) -> list[str]:
    return [record.message for record in caplog.records if record.levelno >= level]


# -- they serve ----------------------------------------------------------------------------------------------------


def test_they_take_clients_and_count_those_that_leave(play: Play, caplog: pytest.LogCaptureFixture) -> None:
    async def act(stage: Stage) -> None:
        first, second = stage.candidates
        assert (first.number, second.number) == (0, 1)
        with stage.connect(first, 70) as client, stage.connect(first, 71) as other:
            assert (client.recv(10), other.recv(10)) == (b"70", b"71")
            assert (first.clients, second.clients, stage.pool.clients) == (2, 0, 2)
            other.close()
            await stage.until(lambda: first.clients == 1)
        await stage.until(lambda: stage.pool.clients == 0)
        await stage.pool.ask(5.0)
        assert [number for number, _ in sorted(stage.told("Ask"))] == [0, 1]

    stage = play(act)
    assert stage.pool.restarts == 0
    assert messages_of(caplog) == []


def test_a_worker_has_no_descriptor_of_the_main_process(play: Play) -> None:
    async def act(stage: Stage) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            stage.pool.resize(1)
            await stage.until(lambda: stage.candidates)
            (worker,) = stage.candidates
            found = {entry.name: os.readlink(entry) for entry in Path(f"/proc/{worker.pid}/fd").iterdir()}
            assert os.readlink(f"/proc/self/fd/{listener.fileno()}") not in found.values()
        assert found["0"] == "/dev/null"
        assert found["3"].startswith("socket:")

    play(act, began=False)


def test_its_counters_go_by_the_names_of_the_command_table(play: Play) -> None:
    async def act(stage: Stage) -> None:
        (worker,) = stage.candidates
        assert worker.counters.snapshot()["commands"].keys() == COMMANDS.metrics.keys() > {"get", "set"}

    play(act, workers=1)


def test_what_the_others_count_reaches_each_worker(play: Play) -> None:
    async def act(stage: Stage) -> None:
        first, second = stage.candidates
        with stage.connect(first, 1), stage.connect(second, 2), stage.connect(second, 3):
            await stage.until(lambda: connected(stage) == {0: 2, 1: 1})
            await stage.until(lambda: stage.pool.clients == 3)
        await stage.until(lambda: stage.pool.clients == 0)
        stage.heard.clear()
        await stage.until(lambda: len(connected(stage)) == 2)
        assert connected(stage) == {0: 0, 1: 0}
        assert {figures["rejected_connections"] for _, (_, figures) in stage.told("Others")} == {7}

    play(act)


def connected(stage: Stage) -> dict[int, int]:
    """Worker -> how many clients the others have, as it was told last."""
    return {number: figures["connected_clients"] for number, (_, figures) in stage.told("Others")}


def test_a_message_to_all(play: Play) -> None:
    async def act(stage: Stage) -> None:
        stage.pool.reopen()
        stage.pool.tell(NodeFacts(usable={"a:1": False}))
        await stage.until(lambda: len(stage.told("NodeFacts")) == 2)
        assert {number for number, _ in stage.told("Reopen")} == {0, 1}

    play(act)


# -- they die ------------------------------------------------------------------------------------------------------


def test_the_killed_one_is_replaced_at_once_and_its_counters_are_kept(
    play: Play, caplog: pytest.LogCaptureFixture
) -> None:
    async def act(stage: Stage) -> None:
        first, second = stage.candidates
        with stage.connect(first, 1) as gone, stage.connect(first, 2) as lost, stage.connect(second, 3) as kept:
            assert gone.recv(10) == b"1"
            gone.close()
            await stage.until(lambda: first.clients == 1)
            asked = stage.pool._ask(first, lambda number: NodeFacts())
            killed_s = time.monotonic()
            os.kill(first.pid, signal.SIGKILL)
            new = await stage.replaced(first)
            assert time.monotonic() - killed_s < 1.0
            assert new.pid != first.pid
            assert (lost.recv(10), lost.recv(10)) == (b"2", b"")
            assert kept.recv(10) == b"3"
            assert (stage.pool.restarts, stage.pool.clients) == (1, 1)
            assert stage.gone == [(0, 1)]
            assert await asked is None

    play(act)
    assert messages_of(caplog) == ["worker lost, another is started"]


def test_a_signal_that_has_no_name(play: Play) -> None:
    async def act(stage: Stage) -> None:
        (worker,) = stage.candidates
        os.kill(worker.pid, signal.SIGRTMIN + 3)
        await stage.replaced(worker)

    play(act, workers=1)


def test_though_the_launcher_ignores_the_end_of_children(play: Play) -> None:
    async def act(stage: Stage) -> None:
        (worker,) = stage.candidates
        os.kill(worker.pid, signal.SIGKILL)
        await stage.replaced(worker)

    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        play(act, workers=1)
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_backoff_grows_and_ends(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BACKOFF_MIN_S", 0.2)
    monkeypatch.setattr(module, "BACKOFF_MAX_S", 0.8)
    pauses: list[float] = []
    failed = WorkerPool._failed

    def noted(pool: WorkerPool, place: module.Place) -> float:
        pauses.append(failed(pool, place))
        return pauses[-1]

    monkeypatch.setattr(WorkerPool, "_failed", noted)

    async def act(stage: Stage) -> None:
        for _ in range(5):
            (worker,) = stage.candidates
            killed_s = time.monotonic()
            os.kill(worker.pid, signal.SIGKILL)
            await stage.replaced(worker)
            assert time.monotonic() - killed_s >= pauses[-1]
        assert pauses == [0.0, 0.2, 0.4, 0.8, 0.8]
        monkeypatch.setattr(module, "STEADY_S", 0.0)
        (worker,) = stage.candidates
        os.kill(worker.pid, signal.SIGKILL)
        await stage.replaced(worker)
        assert pauses[-1] == 0.0

    play(act, workers=1)


def test_backoff_of_thousands_of_failures() -> None:
    """2.0 ** 1024 would be an exception, and nobody started any more: reached after 85 minutes."""

    async def body() -> None:
        pool = Stage(asyncio.get_running_loop()).pool
        place = module.Place(0)
        assert [pool._failed(place) for _ in range(2000)][-1] == module.BACKOFF_MAX_S

    asyncio.run(body())


def test_one_that_dies_again_and_again_neither_spins_nor_is_given_up(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BACKOFF_MIN_S", 0.2)
    monkeypatch.setattr(module, "BACKOFF_MAX_S", 0.2)

    async def act(stage: Stage) -> None:
        first, _ = stage.candidates
        for fault in ("dies", "bye"):
            stage.fault = fault
            os.kill(stage.candidates[-1].pid, signal.SIGKILL)
            await stage.until(lambda: len(stage.candidates) == 1)
            stage.started = 0
            await asyncio.sleep(0.65)
            assert 1 <= stage.started <= 4
            assert stage.candidates == [first]
            stage.fault = ""
            await stage.until(lambda: len(stage.candidates) == 2)

    play(act)


def test_out_of_descriptors_it_is_tried_again(
    play: Play, few_descriptors: Callable[[int | None], None], caplog: pytest.LogCaptureFixture
) -> None:
    """Wherever it fails: the pair, the memory, its mapping, the process's descriptor."""

    async def act(stage: Stage) -> None:
        (first,) = stage.candidates
        before = descriptors()
        for more in range(5):
            stage.started = 0
            few_descriptors(more)
            stage.pool.resize(2)
            await stage.until(lambda: stage.started >= 2)
            assert stage.candidates == [first]
            few_descriptors(None)
            assert descriptors() == before
            stage.pool.resize(1)
        few_descriptors(0)
        stage.pool.resize(2)
        few_descriptors(None)
        await stage.until(lambda: len(stage.candidates) == 2)

    play(act, workers=1)
    assert set(messages_of(caplog)) == {"cannot start a worker"}


def test_a_first_message_that_cannot_be_made_leaves_no_process(play: Play) -> None:
    async def act(stage: Stage) -> None:
        sound = stage.pool._start
        bad = replace_commands(sound(0), Commands(ROWS, "", {"get": 1 << 70}, "", "", ""))
        monkey: dict[str, Any] = {"start": bad}
        stage.pool._start = lambda number: monkey["start"] if number == 1 else sound(number)
        stage.pool.resize(3)
        await stage.until(lambda: {worker.number for worker in stage.candidates} == {0, 2})
        assert len(stage.pool.processes) == 2
        monkey["start"] = sound(1)
        await stage.until(lambda: len(stage.candidates) == 3)

    play(act, workers=1)


def replace_commands(start: Start, commands: Commands) -> Start:
    start.commands = commands
    return start


def test_start_up_fails_when_no_worker_lives(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BACKOFF_MIN_S", 0.01)

    async def act(stage: Stage) -> None:
        stage.pool.begin(1)
        with pytest.raises(PoolError, match="worker 0 does not start, see the log"):
            await stage.pool.first()

    stage = play(act, fault="dies", began=False)
    assert stage.started == module.STILLBORN


def test_start_up_fails_when_there_is_no_program(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BACKOFF_MIN_S", 0.01)
    monkeypatch.setattr(sys, "executable", "/nowhere/python")

    async def act(stage: Stage) -> None:
        stage.pool.begin(1)
        with pytest.raises(PoolError):
            await stage.pool.first()

    play(act, began=False)


def test_another_version_on_disk_is_told_and_does_not_spin(
    play: Play, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "BACKOFF_MIN_S", 0.3)

    async def act(stage: Stage) -> None:
        first, second = stage.candidates
        stage.fault = "version"
        os.kill(second.pid, signal.SIGKILL)
        await stage.until(lambda: stage.other_version)
        stage.started = 0
        await asyncio.sleep(0.5)
        assert stage.started <= 2
        assert stage.candidates == [first]

    play(act)
    assert "the program on disk is of another version, no worker can be started" in messages_of(caplog)


# -- they fall silent ----------------------------------------------------------------------------------------------


def test_a_silent_one_is_ended_with_its_stack(
    play: Play, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "SILENT_S", 1.0)

    async def act(stage: Stage) -> None:
        first, second = stage.candidates
        stage.fault = "silent"
        os.kill(first.pid, signal.SIGKILL)
        silent = await stage.replaced(first)
        stage.fault = ""
        assert (await stage.replaced(silent)).number == 0
        assert second in stage.candidates
        assert max(stage.pool.silences().values()) < 1.0

    play(act)
    assert "Fatal Python error: Aborted" in capfd.readouterr().err
    assert messages_of(caplog).count("worker is silent and is ended") == 1


def test_a_stopped_one_is_killed(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SILENT_S", 0.6)

    async def act(stage: Stage) -> None:
        first, second = stage.candidates
        os.kill(first.pid, signal.SIGSTOP)
        await stage.until(lambda: stage.pool.silences()[0] > 0.4)
        assert stage.pool.silences()[1] < 0.4
        assert stage.pool.clients == 0
        await stage.replaced(first)
        assert second in stage.candidates

    play(act)


def test_one_that_never_starts_is_replaced(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    async def act(stage: Stage) -> None:
        stage.fault = "never"
        stage.pool.resize(2)
        await asyncio.sleep(0.3)
        stage.fault = ""
        monkeypatch.setattr(module, "SILENT_S", 0.3)
        await stage.until(lambda: len(stage.candidates) == 2)
        monkeypatch.setattr(module, "SILENT_S", 10.0)

    play(act, workers=1)


def test_one_whose_channel_has_ended_is_killed_and_replaced(play: Play) -> None:
    async def act(stage: Stage) -> None:
        stage.fault = "cut"
        stage.pool.resize(2)
        await stage.until(lambda: stage.gone)
        assert len(stage.pool.present) == 1
        stage.fault = ""
        await stage.until(lambda: len(stage.candidates) == 2)

    assert play(act, workers=1).pool.restarts == 1


def test_a_pause_of_the_main_process_is_nobodys_silence(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SILENT_S", 1.0)

    async def act(stage: Stage) -> None:
        before = list(stage.pool.processes)
        time.sleep(2.0)  # as a machine that is suspended
        assert max(stage.pool.silences().values()) > 1.0
        await asyncio.sleep(0.5)
        assert list(stage.pool.processes) == before
        assert max(stage.pool.silences().values()) < 1.0

    assert play(act).pool.restarts == 0


# -- more, fewer, otherwise ----------------------------------------------------------------------------------------


def test_more_and_fewer(play: Play) -> None:
    async def act(stage: Stage) -> None:
        stage.pool.resize(3)
        await stage.until(lambda: len(stage.candidates) == 3)
        last = stage.candidates[2]
        with stage.connect(last, 1) as client:
            assert client.recv(10) == b"1"
            stage.pool.resize(1)
            assert ([worker.number for worker in stage.candidates], stage.pool.wanted) == ([0], 1)
            await stage.until(lambda: len(stage.pool.processes) == 2)  # the one without clients has gone
            assert last in stage.pool.present
            assert stage.pool.clients == 1
            assert stage.pool.silences().keys() == {0}
        await stage.until(lambda: len(stage.pool.processes) == 1)
        assert sorted(stage.gone) == [(1, 0), (2, 1)]

    assert play(act).pool.restarts == 0


def test_fewer_and_more_while_one_retires(play: Play) -> None:
    async def act(stage: Stage) -> None:
        _, second = stage.candidates
        with stage.connect(second, 1) as client:
            stage.pool.resize(1)
            stage.pool.resize(2)
            new = await stage.replaced(second)
            assert client.recv(10) == b"1"
            assert len(stage.pool.processes) == 3
        await stage.until(lambda: second not in stage.pool.present)
        assert new in stage.candidates

    assert play(act).pool.restarts == 0


def test_new_settings_reach_everybody(play: Play) -> None:
    async def act(stage: Stage) -> None:
        settings = worker_settings()
        assert await stage.pool.configure(settings) == []
        assert {number for number, _ in stage.told("Configure")} == {0, 1}

    play(act)


@pytest.mark.parametrize(("fault", "error"), [("refuses", "worker 1: cannot"), ("mute", "worker 1: does not answer")])
def test_one_that_does_not_take_the_settings_is_named(
    play: Play, monkeypatch: pytest.MonkeyPatch, fault: str, error: str
) -> None:
    monkeypatch.setattr(module, "SILENT_S", 2.0)

    async def act(stage: Stage) -> None:
        stage.fault = fault
        stage.pool.resize(2)
        await stage.until(lambda: len(stage.candidates) == 2)
        assert await stage.pool.configure(SETTINGS) == [error]
        if fault == "mute":
            asked_s = time.monotonic()
            await stage.pool.ask(0.1)
            assert 0.1 <= time.monotonic() - asked_s < 1.0

    play(act, workers=1)


def test_one_that_dies_over_new_settings_is_started_with_them(play: Play) -> None:
    async def act(stage: Stage) -> None:
        _, second = stage.candidates
        os.kill(second.pid, signal.SIGSTOP)
        asyncio.get_running_loop().call_later(0.1, os.kill, second.pid, signal.SIGKILL)
        assert await stage.pool.configure(SETTINGS) == []
        await stage.replaced(second)

    play(act)


# -- the end -------------------------------------------------------------------------------------------------------


def test_draining_ends_everybody(play: Play, caplog: pytest.LogCaptureFixture) -> None:
    async def act(stage: Stage) -> None:
        clients = [stage.connect(worker, n) for n, worker in enumerate(stage.candidates)]
        began_s = time.monotonic()
        await stage.pool.drain(0.3, 5.0)
        assert time.monotonic() - began_s < 4
        assert stage.pool.processes == {}
        assert [fields for _, (_, *fields) in stage.told("Drain")] == [[0.3, 5.0]] * 2
        for n, client in enumerate(clients):
            with client:
                assert (client.recv(10), client.recv(10)) == (b"%d" % n, b"")

    assert play(act).pool.restarts == 0
    assert messages_of(caplog) == []


@pytest.mark.parametrize("how", ["stopped", "deaf"])
def test_one_that_does_not_end_in_time_is_killed(how: str, play: Play, caplog: pytest.LogCaptureFixture) -> None:
    async def act(stage: Stage) -> None:
        first, _ = stage.candidates
        if how == "stopped":
            os.kill(first.pid, signal.SIGSTOP)
        began_s = time.monotonic()
        await stage.pool.drain(0.1, 0.5)
        assert 1.0 <= time.monotonic() - began_s < 3.0
        assert stage.pool.processes == {}

    play(act, fault="deaf" if how == "deaf" else "")
    assert "worker does not end and is killed" in messages_of(caplog)


def test_nobody_is_replaced_while_all_end(play: Play) -> None:
    async def act(stage: Stage) -> None:
        first, _ = stage.candidates
        draining = asyncio.create_task(stage.pool.drain(0.0, 1.0))
        await asyncio.sleep(0)
        os.kill(first.pid, signal.SIGKILL)
        await draining
        assert stage.started == 2

    assert play(act, fault="deaf").pool.restarts == 0


def test_a_drain_that_is_given_up_is_followed_by_a_stop(play: Play) -> None:
    async def act(stage: Stage) -> None:
        draining = asyncio.create_task(stage.pool.drain(0.0, 60.0))
        await asyncio.sleep(0.2)
        draining.cancel()
        await asyncio.gather(draining, return_exceptions=True)
        assert len(stage.pool.processes) == 2

    play(act, fault="deaf")


def test_ended_while_a_worker_is_still_starting(play: Play) -> None:
    async def act(stage: Stage) -> None:
        stage.pool.begin(2)
        await asyncio.sleep(0.01)

    assert play(act, began=False).candidates == []


def test_ended_before_it_began(play: Play) -> None:
    async def act(stage: Stage) -> None:
        pass

    play(act, began=False)
