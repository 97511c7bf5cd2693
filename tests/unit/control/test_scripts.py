"""The scripts of the whole proxy: told, asked for, forgotten."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from proxy.commands.script_memory import sha1_of
from proxy.control import scripts as module
from proxy.control.scripts import Scripts
from proxy.ipc.messages import FlushScripts, ScriptBody, ScriptSeen, ScriptsFlushed, ScriptWanted

BODY = b"return 1"
SHA = sha1_of(BODY)


def in_a_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(*args: Any, **fixtures: Any) -> None:
        asyncio.run(test(*args, **fixtures))

    return run


class Workers:
    """All of them: what they were told to forget, and until when they take to do so."""

    def __init__(self) -> None:
        self.told: list[int] = []
        self.forgotten = asyncio.Event()
        self.forgotten.set()

    async def forget(self, generation: int) -> None:
        self.told.append(generation)
        await self.forgotten.wait()


def told(scripts: Scripts, message: Any) -> list[Any]:
    """What is said at once."""
    said: list[Any] = []
    scripts.heard(message, said.append)
    return said


@in_a_loop
async def test_told_by_one_and_asked_for_by_another() -> None:
    scripts = Scripts(1 << 20, Workers().forget)
    assert told(scripts, ScriptWanted(SHA)) == [ScriptBody(SHA, None)]
    assert told(scripts, ScriptSeen(1, SHA, BODY, False)) == []
    assert told(scripts, ScriptWanted(SHA)) == [ScriptBody(SHA, BODY)]
    await scripts.stop()


@in_a_loop
async def test_nothing_is_known_after_a_flush() -> None:
    """Answered when all have forgotten; what a worker saw before it did so does not count."""
    workers = Workers()
    workers.forgotten.clear()
    scripts = Scripts(1 << 20, workers.forget)
    told(scripts, ScriptSeen(1, SHA, BODY, True))
    said = told(scripts, FlushScripts(7))
    assert told(scripts, ScriptWanted(SHA)) == [ScriptBody(SHA, None)]
    told(scripts, ScriptSeen(1, SHA, BODY, True))
    assert told(scripts, ScriptWanted(SHA)) == [ScriptBody(SHA, None)]
    await asyncio.sleep(0)
    assert (workers.told, said) == ([2], [])
    workers.forgotten.set()
    while not said:
        await asyncio.sleep(0)
    assert said == [ScriptsFlushed(7)]
    told(scripts, ScriptSeen(scripts.generation, SHA, BODY, True))
    assert told(scripts, ScriptWanted(SHA)) == [ScriptBody(SHA, BODY)]
    await scripts.stop()


@in_a_loop
async def test_the_workers_are_told_when_something_had_to_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not for each script, and not when there was room."""
    monkeypatch.setattr(module, "TELL_S", 0.01)
    workers = Workers()
    scripts = Scripts(20_000, workers.forget)
    for n in range(5):
        body = b"return %d" % n + b" " * 3000
        told(scripts, ScriptSeen(1, sha1_of(body), body, False))
    await asyncio.sleep(0.05)
    assert workers.told == []
    for n in range(5, 50):
        body = b"return %d" % n + b" " * 3000
        told(scripts, ScriptSeen(1, sha1_of(body), body, False))
        assert scripts.memory.size <= 20_000
    while not workers.told:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    assert workers.told == [0]
    await scripts.stop()


@in_a_loop
async def test_another_limit() -> None:
    scripts = Scripts(1 << 20, Workers().forget)
    told(scripts, ScriptSeen(1, SHA, BODY, True))
    scripts.resize(1 << 20)
    assert told(scripts, ScriptWanted(SHA)) == [ScriptBody(SHA, BODY)]
    scripts.resize(100)
    assert told(scripts, ScriptWanted(SHA)) == [ScriptBody(SHA, None)]
    await scripts.stop()


@in_a_loop
async def test_stopped_in_the_middle_of_a_flush() -> None:
    workers = Workers()
    workers.forgotten.clear()
    scripts = Scripts(1 << 20, workers.forget)
    told(scripts, FlushScripts(1))
    await asyncio.sleep(0)
    await scripts.stop()
