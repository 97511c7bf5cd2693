"""For longer programs in Python: keys on every shard, waiting, a worker's process, checks that cannot hang the rest.

Why: a client's blocking call that is never answered must cost that one check and not the program.
Called by the programs of clients and frameworks in Python; it imports nothing but the standard library and checks.

Invariants: every check prints exactly one line, whatever it raises and however long it hangs; a process started here
ends with its block.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any

from checks import check, report

SHARDS = 3
CHECK_S = 20.0
RUN = secrets.token_hex(4)  # in every key and channel: two runs against one server do not see each other


def slot_of(key: str) -> int:
    """The key's slot: CRC16 XMODEM of the hash tag or of the whole key."""
    raw = key.encode()
    start = raw.find(b"{")
    if start >= 0 and (end := raw.find(b"}", start + 1)) > start + 1:
        raw = raw[start + 1 : end]
    crc = 0
    for byte in raw:
        crc ^= byte << 8
        for _ in range(8):
            crc = (crc << 1 ^ 0x1021 if crc & 0x8000 else crc << 1) & 0xFFFF
    return crc % 16384


def spread(prefix: str, number: int = 2 * SHARDS) -> list[str]:
    """That many keys, the same number in each third of the slots, so on every shard of a fresh cluster."""
    found: list[list[str]] = [[] for _ in range(SHARDS)]
    each = -(-number // SHARDS)
    candidate = 0
    while any(len(keys) < each for keys in found):
        key = f"{RUN}:{prefix}:{candidate}"
        candidate += 1
        shard = slot_of(key) * SHARDS // 16384
        if len(found[shard]) < each:
            found[shard].append(key)
    return [key for keys in zip(*found, strict=True) for key in keys][:number]


def tags(prefix: str) -> list[str]:
    """One `{hash tag}` for each third of the slots: keys that carry the same one are in one slot."""
    return ["{" + key + "}" for key in spread(prefix, SHARDS)]


def until(condition: Callable[[], Any], what: str, timeout_s: float = 10.0) -> Any:
    """Polls until condition() is truthy and returns that; fails after timeout_s."""
    deadline = time.monotonic() + timeout_s
    while True:
        if value := condition():
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s:g} s: {what}")
        time.sleep(0.02)


async def until_async(condition: Callable[[], Any], what: str, timeout_s: float = 10.0) -> Any:
    """As until; condition may be a coroutine function."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if inspect.isawaitable(value):
            value = await value
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s:g} s: {what}")
        await asyncio.sleep(0.02)


@contextlib.contextmanager
def raises(*kinds: type[BaseException], text: str = "") -> Iterator[None]:
    """Fails unless the block raises one of these, with this text in it."""
    try:
        yield
    except kinds as error:
        if text not in str(error):
            raise AssertionError(f"{error!r} does not say {text!r}") from error
        return
    raise AssertionError(f"nothing raised, wanted {'/'.join(kind.__name__ for kind in kinds)}")


@contextlib.contextmanager
def worker(*arguments: str, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process of this Python with these arguments, ended with the block; the end of its output is shown then."""
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            yield process
        finally:
            end(process)
            output.seek(0)
            print(output.read()[-8000:].decode(errors="replace"), file=sys.stderr)


def end(process: subprocess.Popen[bytes], wait_s: float = 8.0) -> None:
    """SIGTERM, and SIGKILL when that does not help."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(wait_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Hangs(BaseException):
    """A check's time is over. Not an Exception: clients catch those and try again."""


class Stages:
    """The checks of one program, run in the order they were added; `python main.py WORD` runs those named with it."""

    def __init__(self) -> None:
        self._checks: list[tuple[str, Callable[[], Any], float]] = []

    def add(self, name: str, timeout_s: float = CHECK_S) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
        """Decorates a function or coroutine function without arguments."""

        def remember(function: Callable[[], Any]) -> Callable[[], Any]:
            self._checks.append((name, function, timeout_s))
            return function

        return remember

    def run(self, client: str, package: str = "") -> None:
        """Reports the client with its package's version and runs every check."""
        only = sys.argv[1] if len(sys.argv) > 1 else ""
        report(client, version(package or client))
        for name, function, timeout_s in self._checks:
            if only in name:
                with check(name):
                    _within(function, timeout_s)


def _within(function: Callable[[], Any], timeout_s: float) -> None:
    def ring(*_: object) -> None:
        raise Hangs

    previous = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, timeout_s)
    try:
        if inspect.iscoroutinefunction(function):
            asyncio.run(function())
        else:
            function()
    except Hangs:
        raise TimeoutError(f"still running after {timeout_s:g} s") from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
