"""An upgrade: who is fit to take over, when none begins, and what becomes of a reload that is asked for meanwhile."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from proxy.supervisor import upgrade as module
from proxy.supervisor.reload import Reload
from proxy.supervisor.supervisor import Supervisor
from proxy.supervisor.upgrade import Upgrade
from proxy.system.handover import Handover, read, seeds_word
from proxy.system.process import start_ticks
from proxy.system.successor import SuccessorError

SEEDS = ["127.0.0.1:1"]
ID = "ab12"
WHOLE = SimpleNamespace(covered=16384, by_id={ID: None})
EMPTY = SimpleNamespace(covered=0, by_id={})
WORKS = Handover(works=True, slots=16384, nodes=("fe98", ID), seeds=seeds_word(SEEDS))
ALL: tuple[int, Mapping[str, str]] = (16384, {})


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


def unfit(
    control: Control,
    predecessor: int | None = None,
    *,
    before: Handover = WORKS,
    reached: Sequence[tuple[int, Mapping[str, str]]] = (ALL,),
    seeds: Sequence[str] = SEEDS,
) -> str:
    """reached: what the workers reach at each look, and then always the last."""
    looks = list(reached)

    async def looked() -> tuple[int, Mapping[str, str]]:
        return _next(looks)

    status = SimpleNamespace(reached=looked)
    settings = SimpleNamespace(cluster=SimpleNamespace(seeds=seeds))
    supervisor: Any = SimpleNamespace(control=control, status=status, settings=settings)
    parent = os.getppid() if predecessor is None else predecessor
    return asyncio.run(Upgrade(supervisor, "", parent, before).unfit())


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
    control = Control([None])
    assert unfit(control, before=Handover()) == ""
    assert unfit(control, 1 << 30) == ""
    assert control.looks == 0


@pytest.mark.usefixtures("impatient")
def test_a_topology_is_not_enough() -> None:
    """Each worker has to reach what the predecessor reaches: half of the nodes may refuse the password."""
    half = 5461, {"a:1": "AUTH: WRONGPASS", "a:2": ""}
    assert unfit(Control([WHOLE]), reached=[half, half, ALL]) == ""
    why = "only 5461 of 16384 slots are reached within 0 s: a:1: AUTH: WRONGPASS; a:2: no answer yet"
    assert unfit(Control([WHOLE]), reached=[half]) == why
    many = 0, {f"a:{port}": "refused" for port in range(1, 1001)}
    assert unfit(Control([WHOLE]), reached=[many]).endswith("; a:8: refused; and 992 more")
    uncovered = "only 9000 of 16384 slots are reached within 0 s: the others have no primary"
    assert unfit(Control([WHOLE]), reached=[(9000, {})]) == uncovered


def test_no_more_than_the_predecessor_reaches() -> None:
    """One that does not reach every primary itself can be replaced."""
    two_thirds = Handover(works=True, slots=10923, nodes=(ID,))
    assert unfit(Control([WHOLE]), before=two_thirds, reached=[(10923, {"a:1": "refused"})]) == ""


def test_another_cluster() -> None:
    """The name of the seeds may lead elsewhere meanwhile. To move there is for the configuration to say."""
    elsewhere = SimpleNamespace(covered=16384, by_id={"cd34": None})
    assert "the seeds lead to another cluster than the one in use" in unfit(Control([elsewhere]))
    assert unfit(Control([elsewhere]), seeds=["127.0.0.1:2"]) == ""
    assert unfit(Control([elsewhere]), before=Handover(works=True, slots=16384)) == ""  # it knows no ids


def passing(before: Handover) -> str:
    supervisor: Any = SimpleNamespace(ending=False)
    return Upgrade(supervisor, "", 1 << 30, before).passing()


def test_every_process_before_this_one_counts() -> None:
    """The one that started us may be gone, and the one before it still have clients."""
    here = os.getppid(), start_ticks(os.getppid())
    assert passing(Handover()) == ""
    ended, other = (1 << 30, 1), (here[0], here[1] + 1)  # other: it has got the number of one that has ended
    assert passing(Handover((ended, other))) == ""
    still = "an upgrade is under way: the process before this one still has clients"
    assert passing(Handover((here, ended))) == still


def test_what_a_successor_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    parent, me = (os.getppid(), start_ticks(os.getppid())), (os.getpid(), start_ticks())

    async def scene(works: bool, slots: int) -> Handover:
        stage = Stage(monkeypatch)
        stage.works, stage.slots = works, slots
        this: Any = stage
        stage.upgrade = Upgrade(this, "", 1 << 30, Handover(((1 << 30, 1), parent)))
        stage.outcome.set_result(4711)
        stage.upgrade.ask()
        await stage.upgraded()
        return stage.told[0]

    assert asyncio.run(scene(True, 10923)) == Handover((parent, me), True, 10923, (ID,), seeds_word(SEEDS))
    assert asyncio.run(scene(True, 0)) == Handover((parent, me), True, 0, (ID,), seeds_word(SEEDS))
    # All nodes hang, or are away, for a moment: what works again soon is not to be lost.
    assert asyncio.run(scene(False, 10923)) == Handover((parent, me), True, 10923, (ID,), seeds_word(SEEDS))
    assert asyncio.run(scene(False, 0)) == Handover((parent, me))


# -- the predecessor -------------------------------------------------------------------------------------------------


class Stage:
    """A main process but for its upgrade and reload; a successor is ready, or fails, when the test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.began = asyncio.Event()
        self.outcome: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.works, self.slots = True, 10923
        self.told: list[Handover] = []
        self.killed: list[tuple[int, int]] = []
        self.reloads = 0
        self.paused: tuple[list[str], bool] = [], False
        self.ending = False
        self.status: Any = SimpleNamespace(paused=self._paused, works=lambda: self.works, reached_lately=self._lately)
        owner = SimpleNamespace(primary=SimpleNamespace(id=ID), slots=((0, 10922),))
        shards = (owner, SimpleNamespace(primary=None, slots=((10923, 16383),)))
        self.control: Any = SimpleNamespace(refresher=SimpleNamespace(topology=SimpleNamespace(shards=shards)))
        self.settings: Any = SimpleNamespace(cluster=SimpleNamespace(seeds=SEEDS))
        self.notifier: Any = SimpleNamespace(manager={}, reloading=lambda: None, ready=lambda: None)
        self.sockets = list[Any]
        self.reopened = 0
        self.pool: Any = SimpleNamespace(reopen=self._reopened)
        this: Any = self
        self.upgrade = Upgrade(this, "")
        self.reload = Reload(this, None)  # which refuses: there is no file
        monkeypatch.setattr(module, "start", self._start)
        monkeypatch.setattr(os, "kill", lambda pid, number: self.killed.append((pid, number)))
        monkeypatch.setattr(os, "waitid", lambda kind, pid, options: None)  # it runs

    def _reopened(self) -> None:
        self.reopened += 1

    async def _paused(self) -> tuple[list[str], bool]:
        return self.paused

    async def _lately(self) -> int:
        return self.slots

    async def _start(self, command: Any, sockets: Any, manager: Any, patience_s: float, told: str) -> int:
        self.told.append(read(told))
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
        assert [told.works for told in stage.told] == [True]

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


@pytest.mark.parametrize("hands_over", [True, False])
def test_none_before_our_own_predecessor_has_handed_over(monkeypatch: pytest.MonkeyPatch, hands_over: bool) -> None:
    """Ended before that, it ends this process, too: the third, which nobody knows of, would be left."""
    monkeypatch.setattr(module, "_SOON_S", 0.0)
    monkeypatch.setattr(module, "_TRIAL_S", 60.0 if hands_over else 0.0)

    async def scene() -> None:
        stage = Stage(monkeypatch)
        asked = 0

        def on_trial() -> bool:
            nonlocal asked
            asked += 1
            assert not stage.began.is_set()
            return not hands_over or asked < 3

        stage.notifier.on_trial = on_trial
        this: Any = stage
        stage.upgrade = Upgrade(this, "", os.getppid())
        stage.outcome.set_result(4711)
        stage.upgrade.ask()
        told = await stage.upgraded()
        assert (told["state"], stage.began.is_set()) == (("done", True) if hands_over else ("failed", False))
        assert told["error"] == ("" if hands_over else "the process before this one has not handed over yet: try again")
        assert asked == (3 if hands_over else 1)

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


@pytest.mark.parametrize("end", [object(), ChildProcessError()])
def test_a_successor_that_has_ended_is_asked_for_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, end: object
) -> None:
    """It has handed over to a third, of which nothing is known here: whoever signals this process is told so."""

    async def scene() -> None:
        stage: Any = Stage(monkeypatch)
        stage.upgrade.ask()
        stage.outcome.set_result(4711)
        await stage.upgraded()

        def waitid(kind: int, pid: int, options: int) -> Any:
            assert (kind, pid, options) == (os.P_PID, 4711, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if isinstance(end, Exception):
                raise end
            return end

        monkeypatch.setattr(os, "waitid", waitid)
        caplog.clear()
        Supervisor._reload(stage)
        Supervisor._reopen(stage)
        assert stage.killed == []
        assert [record.getMessage() for record in caplog.records] == ["the signal is not passed on"] * 2

    asyncio.run(scene())
