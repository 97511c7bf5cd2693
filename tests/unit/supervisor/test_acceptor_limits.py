"""The acceptor at its limits: who waits, who is let in, who is refused."""

from __future__ import annotations

import asyncio
import os
import time

import pytest

from proxy.resp.errors import MAX_CLIENTS
from proxy.supervisor import acceptor as module
from proxy.system import log as logs
from tests.unit.supervisor.stage import Stage, Worker, answer, names, open_descriptors, peers, play, until


@pytest.fixture(autouse=True)
def _no_warning_was_shown_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_limited", {})


def test_over_the_limit_redis_error_and_the_end_after_the_patience(caplog: pytest.LogCaptureFixture) -> None:
    async def scene(stage: Stage) -> None:
        one = stage.listening()
        stage.acceptor.open(one)
        stage.connect(one, 3)
        await until(lambda: stage.workers.taken == 3)
        before, woken, since_s = open_descriptors(), stage.wakeups, time.monotonic()
        clients = stage.connect(one, 2, says=b"PING\r\n")
        answers = await asyncio.gather(*(answer(client) for client in clients))
        assert answers == [MAX_CLIENTS] * 2
        assert time.monotonic() - since_s >= module.PATIENCE_S
        assert stage.wakeups - woken <= 2 * (module.PATIENCE_S / module._FULL_S + 2)
        assert stage.acceptor.rejected == 2
        assert stage.workers.taken == 3
        assert open_descriptors() == before + 2
        assert [record.message for record in caplog.records if record.levelname == "WARNING"] == [
            "client refused: max number of clients reached"
        ]

    play(scene, workers=(0, 0), max_clients=3)


def test_who_comes_back_at_the_limit_is_let_in_when_its_leaving_becomes_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE_S", 20.0)

    async def scene(stage: Stage) -> None:
        one, other = stage.listening(), stage.listening()
        stage.acceptor.open(one)
        stage.acceptor.open(other)
        stage.connect(one, 2)
        await until(lambda: stage.workers.taken == 2)
        before = open_descriptors()
        for count, at in enumerate((one, other, one), 3):
            again = stage.connect(at)
            woken = stage.wakeups
            await until(lambda: stage.wakeups >= woken + 5)  # noqa: B023  # it waits
            assert (stage.workers.taken, open_descriptors()) == (count - 1, before + count - 2)  # in the kernel's queue
            stage.workers.takes[-1][0].left()
            before -= 1
            await until(lambda: stage.workers.taken == count)  # noqa: B023  # though nobody is told
            before += 1
            assert peers(stage.workers.takes[-1][3]) == names(again)
        assert [take[1] for take in stage.workers.takes[-3:]] == [str(at.listener.address) for at in (one, other, one)]
        assert stage.acceptor.rejected == 0

    play(scene, max_clients=2)


def test_the_patience_of_one_is_not_charged_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE_S", 0.3)

    async def scene(stage: Stage) -> None:
        one, other = stage.listening(), stage.listening()
        stage.acceptor.open(one)
        stage.acceptor.open(other)
        stage.connect(one)
        await until(lambda: stage.wakeups)
        stage.acceptor.close(one, accept=False)
        await asyncio.sleep(module.PATIENCE_S)
        since_s = time.monotonic()
        assert await answer(stage.connect(other)[0]) == MAX_CLIENTS
        assert time.monotonic() - since_s >= module.PATIENCE_S

    play(scene, max_clients=0)


def test_who_hangs_up_while_waiting_leaves_nothing_behind() -> None:
    async def scene(stage: Stage) -> None:
        one = stage.listening()
        stage.acceptor.open(one)
        before = open_descriptors()
        for client in stage.connect(one, 10):
            client.close()
        await until(lambda: stage.acceptor.rejected == 10)
        assert open_descriptors() == before

    play(scene, max_clients=0)


def test_nobody_is_refused_for_want_of_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is room, but whoever made it was the only worker, and it has gone."""
    monkeypatch.setattr(module, "PATIENCE_S", 0.6)

    async def scene(stage: Stage) -> None:
        one = stage.listening()
        (worker,) = stage.workers.present
        stage.acceptor.open(one)
        stage.connect(one, 2)
        await until(lambda: stage.workers.taken == 1)
        stage.workers.serving = False
        worker.left()
        await asyncio.sleep(1.5 * module.PATIENCE_S)
        assert stage.acceptor.rejected == 0
        stage.workers.serving = True
        await until(lambda: stage.workers.taken == 2)  # though nobody calls workers_changed()

    play(scene, workers=(0,), max_clients=1)


def test_no_worker_gets_more_than_its_share() -> None:
    """What is too much for those that are there waits for the one that is missing."""

    async def scene(stage: Stage) -> None:
        one = stage.listening()
        stage.acceptor.open(one)
        stage.connect(one, 12)
        await until(lambda: stage.workers.taken == 7)
        assert [worker.clients for worker in stage.workers.present] == [5, 5]
        await asyncio.sleep(5 * module.PATIENCE_S)
        assert (stage.workers.taken, stage.acceptor.rejected) == (7, 0)
        stage.workers.present.append(Worker(stage.workers))
        stage.acceptor.workers_changed()
        await until(lambda: stage.workers.taken == 12)
        assert [worker.clients for worker in stage.workers.present] == [5, 5, 5]
        assert await answer(stage.connect(one)[0]) == MAX_CLIENTS

    play(scene, workers=(3, 0), max_clients=15, per_worker=5)


def test_the_limits_follow_the_settings() -> None:
    async def scene(stage: Stage) -> None:
        one = stage.listening()
        stage.acceptor.open(one)
        stage.connect(one, 2)
        await until(lambda: stage.workers.taken == 2)
        stage.acceptor.max_clients = 1
        assert await answer(stage.connect(one)[0]) == MAX_CLIENTS
        stage.acceptor.max_clients, stage.acceptor.per_worker = 3, 1
        stage.connect(one)
        await asyncio.sleep(5 * module.PATIENCE_S)
        assert (stage.workers.taken, stage.acceptor.rejected) == (2, 1)
        stage.acceptor.per_worker = 2
        await until(lambda: stage.workers.taken == 3)

    play(scene)


def test_a_worker_that_dies_as_it_is_given_a_client() -> None:
    """The channel ends inside take(), and the pool says so at once: who waits goes to another worker."""

    class Dying(Worker):
        def take(self, listener: str, first_id: int, descriptors: list[int]) -> None:
            for descriptor in descriptors:
                os.close(descriptor)
            stage_of[0].workers.present.remove(self)
            stage_of[0].acceptor.workers_changed()

    stage_of: list[Stage] = []

    async def scene(stage: Stage) -> None:
        stage_of.append(stage)
        one = stage.listening()
        (steady,) = stage.workers.present
        stage.acceptor.open(one)
        stage.connect(one, 3)
        await until(lambda: stage.acceptor.rejected == 3)
        stage.workers.present.insert(0, Dying(stage.workers))
        stage.acceptor.max_clients = 7
        stage.connect(one, 3)
        await until(lambda: stage.workers.taken)
        stage.connect(one)
        await until(lambda: stage.workers.taken == 2)
        assert steady.clients == 7
        first = [take[2] for take in stage.workers.takes]
        assert len(set(first)) == len(first)

    play(scene, workers=(5,), max_clients=5)
