"""An upgrade: who is fit to take over, when none begins, and what becomes of a reload that is asked for meanwhile."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from proxy.supervisor import upgrade as module
from proxy.supervisor.reload import Reload
from proxy.supervisor.supervisor import Supervisor
from proxy.supervisor.upgrade import Upgrade
from proxy.system.successor import SuccessorError

WHOLE = SimpleNamespace(covered=16384)
EMPTY = SimpleNamespace(covered=0)


class Control:
    """Each look finds the next of `topologies`, and then always the last; `refusals` likewise."""

    def __init__(self, topologies: Sequence[Any], refusals: Sequence[str] = ("",)) -> None:
        self.refresher = SimpleNamespace(topology=None, last_error="127.0.0.1:1: Connection refused")
        self.looks = 0
        self._topologies = list(topologies)
        self._refusals = list(refusals)

    async def ready(self, timeout_s: float) -> bool:
        self.looks += 1
        self.refresher.topology = _next(self._topologies)
        return self.refresher.topology is not None

    async def refused(self) -> str:
        return _next(self._refusals)


def _next(values: list[Any]) -> Any:
    return values.pop(0) if len(values) > 1 else values[0]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CLUSTER_S", 0.05)
    monkeypatch.setattr(module, "_LOOK_S", 0.001)


def unfit(control: Control, predecessor: int | None = None, *, works: bool = True) -> str:
    supervisor: Any = SimpleNamespace(control=control)
    parent = os.getppid() if predecessor is None else predecessor
    return asyncio.run(Upgrade(supervisor, "", parent, works).unfit())


@pytest.mark.usefixtures("impatient")
def test_a_successor_needs_the_cluster_that_its_predecessor_has() -> None:
    control = Control([None, EMPTY, WHOLE])
    assert unfit(control) == ""
    assert control.looks == 3


@pytest.mark.usefixtures("impatient")
def test_one_that_does_not_find_it_says_so() -> None:
    wrong_seeds = "the seeds yield no topology within 0 s: 127.0.0.1:1: Connection refused"
    assert unfit(Control([None])) == wrong_seeds
    empty = Control([EMPTY])
    empty.refresher.last_error = ""
    assert unfit(empty) == "the seeds yield no topology within 0 s: no node has slots"


def test_one_that_the_nodes_refuse_does_not_wait() -> None:
    control = Control([None], ["WRONGPASS invalid username-password pair"])
    assert unfit(control) == "cluster.password: the nodes refuse it: WRONGPASS invalid username-password pair"
    assert control.looks == 1


def test_one_that_follows_nothing_that_works_takes_over_as_it_is() -> None:
    """The cluster was down before, or the predecessor is gone: better without a topology than nobody."""
    for control, more in ((Control([None]), {"works": False}), (Control([None]), {"predecessor": 1 << 30})):
        assert unfit(control, **more) == ""
        assert control.looks == 0


# -- the predecessor -------------------------------------------------------------------------------------------------


class Stage:
    """A main process but for its upgrade and reload; a successor is ready, or fails, when the test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.began = asyncio.Event()
        self.outcome: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.works: list[bool] = []
        self.killed: list[tuple[int, int]] = []
        self.reloads = 0
        self.paused: tuple[list[str], bool] = [], False
        self.ending = False
        self.status: Any = SimpleNamespace(paused=self._paused, works=lambda: True)
        self.notifier: Any = SimpleNamespace(manager={}, reloading=lambda: None, ready=lambda: None)
        self.sockets = list[Any]
        self.reopened = 0
        self.pool: Any = SimpleNamespace(reopen=self._reopened)
        this: Any = self
        self.upgrade = Upgrade(this, "")
        self.reload = Reload(this, None)  # which refuses: there is no file
        monkeypatch.setattr(module, "start", self._start)
        monkeypatch.setattr(os, "kill", lambda pid, number: self.killed.append((pid, number)))

    def _reopened(self) -> None:
        self.reopened += 1

    async def _paused(self) -> tuple[list[str], bool]:
        return self.paused

    async def _start(self, command: Any, sockets: Any, manager: Any, patience_s: float, works: bool) -> int:
        self.works.append(works)
        self.began.set()
        return await self.outcome

    def replaced(self, pid: int) -> None:
        self.ending = True

    async def upgraded(self) -> dict[str, Any]:
        while self.upgrade.running:
            await asyncio.sleep(0)
        await self.reload.idle()
        return self.upgrade.state()


def test_a_reload_meanwhile_is_the_successors(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        stage = Stage(monkeypatch)
        stage.upgrade.ask()
        await stage.began.wait()
        stage.reload.ask()
        stage.reload.ask()
        await asyncio.sleep(0)
        assert (stage.reload.state()["attempts"], stage.killed) == (0, [])
        stage.outcome.set_result(4711)
        assert (await stage.upgraded())["state"] == "done"
        assert stage.killed == [(4711, signal.SIGHUP)]
        assert stage.reload.state()["attempts"] == 0
        assert stage.upgrade.successor == 4711
        assert stage.works == [True]

    asyncio.run(scene())


def test_a_reload_meanwhile_is_done_when_there_is_no_successor(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        stage = Stage(monkeypatch)
        stage.upgrade.ask()
        await stage.began.wait()
        stage.reload.ask()
        stage.outcome.set_exception(SuccessorError("it has ended"))
        assert (await stage.upgraded())["state"] == "failed"
        assert stage.killed == []
        told = stage.reload.state()
        assert (told["attempts"], told["covered"], told["requests"]) == (1, 1, 1)
        assert "there is no file" in told["error"]

    asyncio.run(scene())


def test_the_log_is_reopened_by_the_successor_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """When it can hear of it: before it is ready, SIGUSR1 could end it."""

    async def scene() -> None:
        stage: Any = Stage(monkeypatch)
        Supervisor._reopen(stage)
        stage.upgrade.ask()
        await stage.began.wait()
        Supervisor._reopen(stage)
        Supervisor._reopen(stage)
        assert (stage.reopened, stage.killed) == (3, [])
        stage.outcome.set_result(4711)
        await stage.upgraded()
        assert stage.killed == [(4711, signal.SIGUSR1)]
        Supervisor._reopen(stage)
        assert stage.killed == [(4711, signal.SIGUSR1)] * 2

    asyncio.run(scene())


def test_no_reload_that_nobody_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        stage: Any = Stage(monkeypatch)
        Supervisor._reopen(stage)
        stage.upgrade.ask()
        stage.outcome.set_result(4711)
        await stage.upgraded()
        assert (stage.killed, stage.reload.state()["attempts"]) == ([], 0)

    asyncio.run(scene())


@pytest.mark.parametrize(
    ("paused", "reason"),
    [
        ((["a:1"], True), "nodes are paused: PROXY RESUME first"),
        (([], True), "clients are paused: CLIENT UNPAUSE first, or wait for the pause's end"),
    ],
)
def test_none_while_something_is_paused(
    monkeypatch: pytest.MonkeyPatch, paused: tuple[list[str], bool], reason: str
) -> None:
    async def scene() -> None:
        stage = Stage(monkeypatch)
        stage.paused = paused
        stage.upgrade.ask()
        told = await stage.upgraded()
        assert (told["state"], told["error"]) == ("failed", reason)
        assert not stage.began.is_set()

    asyncio.run(scene())


def test_a_reload_after_it_is_the_successors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has the old pid still means the proxy."""

    async def scene() -> None:
        stage: Any = Stage(monkeypatch)
        stage.upgrade.ask()
        stage.outcome.set_result(4711)
        await stage.upgraded()
        Supervisor._reload(stage)
        assert stage.killed == [(4711, signal.SIGHUP)]

    asyncio.run(scene())
