"""A task nobody awaits: its fault is not silent, its cancellation is."""

from __future__ import annotations

import asyncio
from typing import Any

from proxy.control.tasks import background


def faults_of(cancel: bool, fault: Exception | None) -> list[Any]:
    async def work() -> None:
        await asyncio.sleep(0)
        if fault is not None:
            raise fault

    async def play() -> list[Any]:
        seen: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: seen.append(context))
        task = background(work(), name="some-work")
        assert task.get_name() == "some-work"
        if cancel:
            task.cancel()
        await asyncio.wait([task])
        await asyncio.sleep(0)
        return seen

    return asyncio.run(play())


def test_a_fault_is_the_loops_to_handle() -> None:
    fault = RuntimeError("boom")
    (context,) = faults_of(False, fault)
    assert context["exception"] is fault
    assert "handle" in context  # a callback's, and no library's


def test_an_end_is_not() -> None:
    assert faults_of(False, None) == []
    assert faults_of(True, RuntimeError("never raised")) == []
