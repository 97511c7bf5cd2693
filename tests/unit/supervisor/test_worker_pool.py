"""The worker pool: its workers serve, are told, become more and fewer, end."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from pathlib import Path

import pytest

from proxy.ipc.messages import NodeFacts, ScriptBody, ScriptWanted, Status
from proxy.supervisor import worker_pool as module
from tests.unit.admin.snapshots import node
from tests.unit.supervisor.pool_stage import (
    COMMANDS,
    SETTINGS,
    Play,
    Stage,
    counted,
    messages_of,
    worker_settings,
)

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
        await stage.until(lambda: connected(stage) == {0: 0, 1: 0})
        assert {figures["rejected_connections"] for _, (_, figures) in stage.told("Others")} == {7}

    play(act)


def test_what_a_worker_counted_outlives_it(play: Play) -> None:
    """Nobody is told less, neither while it ends nor later; and the one that takes its place knows before it serves."""

    async def act(stage: Stage) -> None:
        first, second = stage.candidates
        first.counters = counted("total_connections_received", 5)
        await stage.until(lambda: 5 in received(stage, second.number))
        stage.heard.clear()
        meanwhile: list[int] = []

        def ended(pid: int, cpu_s: float) -> None:
            stage.ended.append(pid)
            meanwhile.extend(received(stage, second.number))
            stage.heard.clear()  # what the first was told: the new one has its number

        stage.pool._on_ended = ended
        os.kill(first.pid, signal.SIGKILL)
        new = await stage.replaced(first)
        with stage.connect(new, 1):
            await stage.until(lambda: [number for number, _ in stage.told("Take")])
        kinds = [kind for number, kind, _ in stage.heard if number == new.number]
        assert kinds.index("Others") < kinds.index("Take")
        await stage.until(lambda: received(stage, second.number))
        assert set(meanwhile) <= {5}
        assert set(received(stage, second.number)) == set(received(stage, new.number)) == {5}

    play(act)


def received(stage: Stage, number: int) -> list[int]:
    """How many connections the others have received, each time that this worker was told."""
    return [figures["total_connections_received"] for to, (_, figures) in stage.told("Others") if to == number]


def connected(stage: Stage) -> dict[int, int]:
    """Worker -> how many clients the others have, as it was told last."""
    return {number: figures["connected_clients"] for number, (_, figures) in stage.told("Others")}


def test_a_worker_that_reaches_no_primary_is_known(play: Play) -> None:
    async def act(stage: Stage) -> None:
        first, second = stage.candidates
        assert first.reaches  # nothing has been told
        for down_s in (1.0, 0.0):
            stage.pool._heard(first, Status(0, 0, 0, 0, 0.0, 0, {"a:1": node(up=0, down_s=down_s)}), [])
            assert (first.reaches, second.reaches) == (not down_s, True)

    play(act)


def test_a_worker_that_misses_a_primary_is_known(play: Play) -> None:
    async def act(stage: Stage) -> None:
        first, second = stage.candidates

        def tells(worker: module.Worker, down_s: float) -> None:
            stage.pool._heard(worker, Status(0, 0, 0, 0, 0.0, 0, {"a:1": node(up=0, down_s=down_s)}), [])

        tells(first, 1000.0)
        assert (first.missed, second.missed) == ([], [])  # the other one may have lost it, too
        tells(second, 0.0)
        assert (first.missed, second.missed) == (["a:1"], [])
        tells(second, 1000.0)
        assert (first.missed, second.missed) == ([], [])

    play(act)


def test_a_message_to_all(play: Play) -> None:
    async def act(stage: Stage) -> None:
        stage.pool.reopen()
        stage.pool.tell(NodeFacts(usable={"a:1": False}))
        await stage.until(lambda: len(stage.told("NodeFacts")) == 2)
        assert {number for number, _ in stage.told("Reopen")} == {0, 1}

    play(act)


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
    async def act(stage: Stage) -> None:
        stage.fault = fault
        stage.pool.resize(2)
        await stage.until(lambda: len(stage.candidates) == 2)
        monkeypatch.setattr(module, "SILENT_S", 2.0)  # and not before: a process may take its time to start
        assert await stage.pool.configure(SETTINGS) == [error]
        if fault == "mute":
            asked_s = time.monotonic()
            await stage.pool.ask(0.1)
            assert 0.09 <= time.monotonic() - asked_s < 5

    play(act, workers=1)


def test_one_that_dies_over_new_settings_is_started_with_them(play: Play) -> None:
    async def act(stage: Stage) -> None:
        _, second = stage.candidates
        os.kill(second.pid, signal.SIGSTOP)
        asyncio.get_running_loop().call_later(0.1, os.kill, second.pid, signal.SIGKILL)
        assert await stage.pool.configure(SETTINGS) == []
        await stage.replaced(second)

    play(act)


def test_all_have_forgotten_their_scripts(play: Play) -> None:
    """And what one says about scripts is handed on, with the way to answer it."""

    async def act(stage: Stage) -> None:
        await stage.pool.forget_scripts(7)
        assert [fields[-1] for _, fields in stage.told("ForgetScripts")] == [7, 7]
        assert [message for message, _ in stage.scripts] == [ScriptWanted(b"7")] * 2
        _, say = stage.scripts[0]
        say(ScriptBody(b"7", None))
        await stage.until(lambda: len(stage.told("ScriptBody")) == 1)

    play(act)


def test_one_that_does_not_forget_is_not_waited_for_long(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FORGET_S", 0.1)

    async def act(stage: Stage) -> None:
        stage.fault = "mute"
        stage.pool.resize(2)
        await stage.until(lambda: len(stage.candidates) == 2)
        asked_s = time.monotonic()
        await stage.pool.forget_scripts(7)
        assert 0.09 <= time.monotonic() - asked_s < 5

    play(act, workers=1)


# -- the end -------------------------------------------------------------------------------------------------------


def test_draining_ends_everybody(play: Play, caplog: pytest.LogCaptureFixture) -> None:
    async def act(stage: Stage) -> None:
        clients = [stage.connect(worker, n) for n, worker in enumerate(stage.candidates)]
        began_s = time.monotonic()
        await stage.pool.drain(0.3, 5.0)
        assert time.monotonic() - began_s < 4
        assert stage.pool.processes == {}
        # Of who ends, the end may be heard of before what it has said.
        assert {tuple(fields) for _, (_, *fields) in stage.told("Drain")} <= {(0.3, 5.0)}
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
        assert 0.9 <= time.monotonic() - began_s < 8
        assert stage.pool.processes == {}

    play(act, fault="deaf" if how == "deaf" else "")
    assert "worker does not end and is killed" in messages_of(caplog)


def test_one_that_is_late_may_finish(
    play: Play, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thousands of blocked clients are unblocked at the end of a drain; killed, they would get no answer."""

    async def act(stage: Stage) -> None:
        monkeypatch.setattr(module, "PARTING_S", 5.0)
        first, _ = stage.candidates
        os.kill(first.pid, signal.SIGSTOP)
        draining = asyncio.create_task(stage.pool.drain(0.0, 0.1))
        await asyncio.sleep(0.1 + module.ABORT_S + 0.3)
        os.kill(first.pid, signal.SIGCONT)
        await draining

    play(act)
    assert messages_of(caplog) == []


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
