"""Reports: what is told together, how often, and what becomes of it while the main process takes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from proxy.ipc.messages import Report
from proxy.worker import report as module
from proxy.worker.report import Reports
from tests.unit.worker.scene import until


def play(scene: Callable[[Reports, list[Report], list[int]], Awaitable[None]]) -> None:
    async def body() -> None:
        sent: list[Report] = []
        backlog = [0]
        reports = Reports(asyncio.get_running_loop(), sent.append, lambda: backlog[0])
        await scene(reports, sent, backlog)
        assert reports.timer is None

    asyncio.run(body())


def test_each_sign_once() -> None:
    async def scene(reports: Reports, sent: list[Report], backlog: list[int]) -> None:
        for _ in range(3):
            for sign in ("moved", "lost"):
                reports.add(sign)
            reports.add(unfit="a:1", why="it is loading")
            reports.add(silent="b:1")
            reports.add(unreached="c:1")
        await until(lambda: sent)
        reports.add("moved")
        await until(lambda: len(sent) == 2)
        assert sent == [Report(["moved", "lost"], {"a:1": "it is loading"}, ["b:1"], ["c:1"]), Report(["moved"])]

    play(scene)


def test_a_main_process_that_takes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be stopped, and a hung node is told of four times a second."""
    monkeypatch.setattr(module, "BEHIND_S", 0.01)

    async def scene(reports: Reports, sent: list[Report], backlog: list[int]) -> None:
        backlog[0] = module.BEHIND + 1
        for sign in ("moved", "lost", "moved"):
            reports.add(sign)
            await asyncio.sleep(0.03)
        assert sent == []
        backlog[0] = module.BEHIND
        await until(lambda: sent)
        assert sent == [Report(["moved", "lost"])]

    play(scene)
