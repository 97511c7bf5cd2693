"""The worker pool when workers die, do not start, or fall silent."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from proxy.commands.table import ROWS
from proxy.ipc.messages import Ask, Commands, NodeFacts, Start, Stop
from proxy.supervisor import worker_pool as module
from proxy.supervisor.worker_pool import PoolError, WorkerPool
from tests.unit.supervisor.pool_stage import (
    Play,
    Stage,
    descriptors,
    messages_of,
)

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
            assert time.monotonic() - killed_s < 5  # a machine may take long to start a process
            assert new.pid != first.pid
            assert (lost.recv(10), lost.recv(10)) == (b"2", b"")
            assert kept.recv(10) == b"3"
            assert (stage.pool.restarts, stage.pool.clients) == (1, 1)
            assert stage.gone == [(0, 1)]
            assert await asked is None

    play(act)
    assert messages_of(caplog) == ["worker lost, another is started"]


def test_the_last_words_of_one_that_has_ended(play: Play) -> None:
    """Its end can be noticed before they are read."""

    async def act(stage: Stage) -> None:
        (worker,) = stage.candidates
        await stage.until(lambda: worker.status is not None)
        worker.status = None
        worker.channel.send(Ask(0))
        worker.channel.send(Stop())
        select.select([worker.pidfd], [], [], 10)  # nothing is read meanwhile
        stage.pool._ended(worker)
        assert stage.told("Stop")
        assert worker.status is not None
        assert worker.cut == "exit code 0"
        assert stage.gone == [(0, 0)]
        await stage.replaced(worker)

    play(act, workers=1)


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
    monkeypatch.setattr(module, "BACKOFF_MIN_S", 0.6)
    monkeypatch.setattr(module, "BACKOFF_MAX_S", 0.6)

    async def act(stage: Stage) -> None:
        first, _ = stage.candidates
        for fault in ("dies", "bye"):
            stage.fault = fault
            os.kill(stage.candidates[-1].pid, signal.SIGKILL)
            await stage.until(lambda: len(stage.candidates) == 1)
            stage.started = 0
            begun_s = time.monotonic()
            await asyncio.sleep(1.3)
            assert stage.started <= (time.monotonic() - begun_s) / 0.6 + 1
            assert stage.candidates == [first]
            await stage.until(lambda: stage.started)
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
        begun_s = time.monotonic()
        await asyncio.sleep(0.5)
        assert stage.started <= (time.monotonic() - begun_s) / 0.3 + 1
        assert stage.candidates == [first]

    play(act)
    assert "the program on disk is of another version, no worker can be started" in messages_of(caplog)


# -- they fall silent ----------------------------------------------------------------------------------------------


def for_long(worker: module.Worker) -> None:
    """It has been silent for so long that it is ended, and no other one: those of a slow machine pause for a second."""
    worker.heard_s = min(worker.heard_s, time.monotonic() - module.SILENT_S)


def test_a_silent_one_is_ended_with_its_stack(
    play: Play, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    async def act(stage: Stage) -> None:
        first, second = stage.candidates
        stage.fault = "silent"
        os.kill(first.pid, signal.SIGKILL)
        silent = await stage.replaced(first)
        stage.fault = ""
        await stage.until(lambda: for_long(silent) or silent not in stage.candidates)
        assert (await stage.replaced(silent)).number == 0
        assert second in stage.candidates
        await stage.until(lambda: max(stage.pool.silences().values()) < 1.0)

    play(act)
    assert "Fatal Python error: Aborted" in capfd.readouterr().err
    assert messages_of(caplog).count("worker is silent and is ended") == 1


def test_a_stopped_one_is_killed(play: Play, caplog: pytest.LogCaptureFixture) -> None:
    async def act(stage: Stage) -> None:
        first, second = stage.candidates
        os.kill(first.pid, signal.SIGSTOP)
        await stage.until(lambda: stage.pool.silences()[0] > 0.4 > stage.pool.silences()[1])
        assert stage.pool.clients == 0
        await stage.until(lambda: for_long(first) or first not in stage.candidates)
        await stage.replaced(first)
        assert second in stage.candidates

    play(act)
    assert messages_of(caplog).count("worker is silent and is ended") == 1


def test_one_that_never_starts_is_replaced(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    async def act(stage: Stage) -> None:
        stage.fault = "never"
        stage.pool.resize(2)
        await asyncio.sleep(0.3)
        stage.fault = ""
        monkeypatch.setattr(module, "SILENT_S", 0.3)
        await stage.until(lambda: stage.gone)
        monkeypatch.setattr(module, "SILENT_S", 10.0)
        await stage.until(lambda: len(stage.candidates) == 2)

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


def test_a_pause_of_the_main_process_is_nobodys_silence(play: Play, caplog: pytest.LogCaptureFixture) -> None:
    async def act(stage: Stage) -> None:
        before = list(stage.pool.processes)
        for pid in before:  # as a machine that is suspended
            os.kill(pid, signal.SIGSTOP)
        await asyncio.sleep(0.1)  # all that they have said is read
        for worker in stage.pool.processes.values():
            worker.heard_s -= 2 * module.SILENT_S
            worker.place.heard_s -= 2 * module.SILENT_S
        stage.pool._ticked_s -= 2 * module.SILENT_S
        assert max(stage.pool.silences().values()) > module.SILENT_S
        ticked_s = stage.pool._ticked_s
        await stage.until(lambda: stage.pool._ticked_s > ticked_s)
        for pid in before:
            os.kill(pid, signal.SIGCONT)
        await stage.until(lambda: max(stage.pool.silences().values()) < 1.0)
        await asyncio.sleep(1.1)  # another look at them
        assert list(stage.pool.processes) == before

    assert play(act).pool.restarts == 0
    assert messages_of(caplog) == []
