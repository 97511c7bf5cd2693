"""A task nobody awaits: its fault is logged, counted and followed by another attempt, its cancellation is silent."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from itertools import pairwise
from typing import Any

import pytest

from proxy.control import tasks
from proxy.control.tasks import failures, keep

KIND = "some-work"
Work = Callable[[], Coroutine[Any, Any, None]]


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "PAUSE_MIN_S", 0.02)
    monkeypatch.setattr(tasks, "PAUSE_MAX_S", 0.1)
    failures.pop(KIND, None)


def play(work: Work, scene: Callable[[asyncio.Task[None]], Awaitable[None]]) -> list[Any]:
    """The scene with the task; what reached the loop's exception handler."""

    async def body() -> list[Any]:
        seen: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: seen.append(context))
        task = keep(work, KIND)
        assert task.get_name() == KIND
        assert failures[KIND] == 0
        assert KIND in failures  # the metric is there from the start
        try:
            async with asyncio.timeout(10):
                await scene(task)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        return seen

    return asyncio.run(body())


def test_what_fails_is_logged_counted_and_begun_again(caplog: pytest.LogCaptureFixture) -> None:
    begun: list[float] = []
    enough = asyncio.Event()

    async def work() -> None:
        begun.append(asyncio.get_running_loop().time())
        if len(begun) == 6:
            enough.set()
            await asyncio.sleep(60)
        raise RuntimeError("boom")

    async def scene(task: asyncio.Task[None]) -> None:
        await enough.wait()
        assert failures[KIND] == 5

    assert play(work, scene) == []
    pauses = [after - before for before, after in pairwise(begun)]
    assert all(pause >= wanted for pause, wanted in zip(pauses, (0.02, 0.04, 0.08, 0.1, 0.1), strict=True))
    assert [record.message for record in caplog.records] == ["a background task failed and is begun again"] * 5
    assert "RuntimeError: boom" in caplog.text
    assert caplog.records[0].fields == {"task": KIND, "after_s": 0.02}  # type: ignore[attr-defined]


def test_what_went_well_for_long_begins_with_the_shortest_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "STEADY_S", 0.05)
    pauses: list[float] = []
    sleep = asyncio.sleep

    async def work() -> None:
        await sleep(0.06 if len(pauses) >= 3 else 0)
        raise RuntimeError("boom")

    async def counted(pause_s: float) -> None:
        pauses.append(pause_s)
        await sleep(0)

    async def scene(task: asyncio.Task[None]) -> None:
        while len(pauses) < 5:
            await sleep(0.01)

    monkeypatch.setattr(asyncio, "sleep", counted)
    play(work, scene)
    assert pauses[:5] == [0.02, 0.04, 0.08, 0.02, 0.02]


def test_a_cancellation_is_silent(caplog: pytest.LogCaptureFixture) -> None:
    async def work() -> None:
        await asyncio.sleep(60)

    async def scene(task: asyncio.Task[None]) -> None:
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()

    assert play(work, scene) == []
    assert (failures[KIND], caplog.records) == (0, [])


def test_so_is_one_during_the_pause(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(tasks, "PAUSE_MIN_S", 60.0)

    async def work() -> None:
        raise RuntimeError("boom")

    async def scene(task: asyncio.Task[None]) -> None:
        while not failures[KIND]:
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()

    assert play(work, scene) == []
    assert len(caplog.records) == 1


def test_an_end_is_an_end() -> None:
    async def work() -> None:
        await asyncio.sleep(0)

    async def scene(task: asyncio.Task[None]) -> None:
        await task

    assert play(work, scene) == []
    assert failures[KIND] == 0
