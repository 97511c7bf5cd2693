"""Work off the loop that may never end."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from typing import NoReturn

import pytest

from proxy.system.threads import in_thread


def test_results_and_errors() -> None:
    def fail() -> NoReturn:
        raise OSError(5, "broken")

    async def play() -> None:
        assert await in_thread(lambda: threading.current_thread().name, "reader") == "reader"
        with pytest.raises(OSError, match="broken"):
            await in_thread(fail, "reader")

    asyncio.run(play())


def test_a_result_nobody_waits_for_is_given_away() -> None:
    go, unwanted = threading.Event(), []

    async def play() -> None:
        task = asyncio.create_task(in_thread(lambda: go.wait(10), "reader", unwanted.append))
        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert task.cancelled()
        go.set()
        async with asyncio.timeout(5):
            while not unwanted:
                await asyncio.sleep(0.005)

    asyncio.run(play())
    assert unwanted == [True]


def test_the_end_of_the_process_does_not_wait() -> None:
    program = """
import asyncio, time
from proxy.system.threads import in_thread
async def play():
    task = asyncio.create_task(in_thread(lambda: time.sleep(60), "hangs"))
    await asyncio.sleep(0.05)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
asyncio.run(play())
"""
    began_s = time.monotonic()
    subprocess.run([sys.executable, "-c", program], check=True, timeout=30)
    assert time.monotonic() - began_s < 20
