"""Names are looked up without one that hangs holding up anything else."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest

from proxy.system.names import Names
from tests.support.resolver import HANGS, FakeResolver, fake_resolver

TRY_AGAIN = socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
V4 = [(socket.AF_INET, ("127.0.0.1", 7))]


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeResolver]:
    monkeypatch.setattr("proxy.system.log._limited", {})
    with fake_resolver(monkeypatch) as fake:
        yield fake


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not true():
            await asyncio.sleep(0.001)


@pytest.mark.parametrize(
    ("host", "found"),
    [
        ("127.0.0.1", V4),
        ("::1", [(socket.AF_INET6, ("::1", 7, 0, 0))]),
    ],
)
def test_figures_need_no_thread_and_no_resolver(
    host: str, found: object, resolver: FakeResolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolver.answers[host] = HANGS
    monkeypatch.delattr(threading, "Thread")
    assert asyncio.run(Names().resolve(host, 7)) == found


def test_an_address_of_one_link() -> None:
    ((family, where),) = asyncio.run(Names().resolve("fe80::1%lo", 7))
    assert (family, where[1], where[3]) == (socket.AF_INET6, 7, socket.if_nametoindex("lo"))


def test_names_and_what_is_none(resolver: FakeResolver) -> None:
    resolver.answers |= {"a.test": "127.0.0.1", "two.test": ["::1", "127.0.0.1"], "no.test": OSError(5, "broken")}

    async def play() -> None:
        names = Names()
        assert await names.resolve("a.test", 7) == V4
        assert [where[:2] for _, where in await names.resolve("two.test", 7)] == [("::1", 7), ("127.0.0.1", 7)]
        for host in ("no.test", "ä" * 64, ""):
            with pytest.raises(OSError, match=r"."):
                await names.resolve(host, 7)

    asyncio.run(play())


def test_one_that_hangs_is_looked_up_once_and_holds_up_no_other(
    resolver: FakeResolver, caplog: pytest.LogCaptureFixture
) -> None:
    """For all ports and all who ask; those who have gone hear no error, and nor does the log."""
    resolver.answers |= {"hangs.test": HANGS, "a.test": "127.0.0.1"}

    async def play() -> None:
        names = Names()
        asking = [asyncio.create_task(names.resolve("hangs.test", port)) for port in range(20)]
        await until(lambda: resolver.asked == ["hangs.test"])
        for task in asking[:10]:
            task.cancel()
        async with asyncio.timeout(5):
            assert await names.resolve("a.test", 7) == V4
        resolver.over.set()
        heard = await asyncio.gather(*asking, return_exceptions=True)
        assert [type(one) for one in heard] == [asyncio.CancelledError] * 10 + [socket.gaierror] * 10
        assert resolver.asked == ["hangs.test", "a.test"]
        with pytest.raises(socket.gaierror):  # asked anew
            await names.resolve("hangs.test", 7)

    asyncio.run(play())
    gc.collect()
    assert not caplog.records


def test_the_last_known_addresses_where_it_takes_too_long(
    resolver: FakeResolver, caplog: pytest.LogCaptureFixture
) -> None:
    resolver.answers["a.test"] = "127.0.0.1"

    async def play() -> None:
        names = Names()
        assert await names.resolve("a.test", 1, 5) == [(socket.AF_INET, ("127.0.0.1", 1))]
        resolver.answers["a.test"] = HANGS
        assert not names.overdue("a.test")
        for _ in range(3):
            assert await names.resolve("a.test", 7, 0.05) == V4
        assert names.overdue("a.test")
        names._under_way["a.test"].begun -= 60
        async with asyncio.timeout(5):
            assert await names.resolve("a.test", 7, 60) == V4  # the lookup has had its time
        with pytest.raises(TimeoutError):  # who wants no old ones gets none
            async with asyncio.timeout(0.01):
                await names.resolve("a.test", 7)
        resolver.answers["a.test"] = "127.0.0.2"
        resolver.over.set()
        await until(lambda: not names._under_way)
        assert await names.resolve("a.test", 7, 5) == [(socket.AF_INET, ("127.0.0.2", 7))]
        assert not names.overdue("a.test")
        assert resolver.asked == ["a.test"] * 3

    with caplog.at_level(logging.WARNING):
        asyncio.run(play())
    (record,) = caplog.records
    assert record.message == "name cannot be resolved, its last known addresses are used"
    assert vars(record)["fields"] == {"name": "a.test", "reason": "no answer in time", "age_s": 0}


def test_how_old_the_addresses_are(
    resolver: FakeResolver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """They are used for as long as nobody tells others: an operator should see since when."""
    resolver.answers["a.test"] = "127.0.0.1"
    now_s = time.monotonic()
    clock = SimpleNamespace(monotonic=lambda: now_s)
    monkeypatch.setattr("proxy.system.names.time", clock)

    async def play() -> None:
        nonlocal now_s
        names = Names()
        await names.resolve("a.test", 7)
        now_s += 4000.7
        resolver.answers["a.test"] = TRY_AGAIN
        assert await names.resolve("a.test", 7, 5) == V4

    with caplog.at_level(logging.WARNING):
        asyncio.run(play())
    (record,) = caplog.records
    reason = "Temporary failure in name resolution"
    assert vars(record)["fields"] == {"name": "a.test", "reason": reason, "age_s": 4000}


def test_nobody_can_tell_for_now_and_there_is_none(resolver: FakeResolver) -> None:
    resolver.answers["a.test"] = "127.0.0.1"

    async def play() -> None:
        names = Names()
        await names.resolve("a.test", 7)
        resolver.answers["a.test"] = TRY_AGAIN
        assert await names.resolve("a.test", 7, 5) == V4
        resolver.answers["a.test"] = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        with pytest.raises(socket.gaierror, match="not known"):
            await names.resolve("a.test", 7, 5)

    asyncio.run(play())


def test_more_names_than_threads_wait_in_order(resolver: FakeResolver) -> None:
    resolver.answers |= {"h1.test": HANGS, "h2.test": HANGS, "a.test": "127.0.0.1", "b.test": "127.0.0.1"}

    async def play() -> None:
        names = Names(most=2)
        asking = [asyncio.create_task(names.resolve(f"{name}.test", 7)) for name in ("h1", "h2", "a", "b")]
        await until(lambda: len(names._waiting) == 2)
        assert threading.active_count() <= before + 2
        resolver.over.set()
        *_, a, b = await asyncio.gather(*asking, return_exceptions=True)
        assert (a, b, names._threads, names._under_way) == (V4, V4, 0, {})

    before = threading.active_count()
    asyncio.run(play())


def test_a_system_without_threads(resolver: FakeResolver, monkeypatch: pytest.MonkeyPatch) -> None:
    resolver.answers["a.test"] = "127.0.0.1"

    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def play() -> None:
        names = Names()
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", start)
            with pytest.raises(OSError, match="can't start new thread"):
                await names.resolve("a.test", 7)
        assert await names.resolve("a.test", 7) == V4

    asyncio.run(play())


def test_the_end_of_the_process_does_not_wait() -> None:
    program = """
import asyncio, socket, time, uvloop
from proxy.system.names import names
socket.getaddrinfo = lambda *words, **options: time.sleep(60)
async def play():
    tasks = [asyncio.create_task(names.resolve(f"n{i}.test", 7)) for i in range(8)]
    await asyncio.sleep(0.05)
    for task in tasks:
        task.cancel()
uvloop.run(play())
"""
    began_s = time.monotonic()
    done = subprocess.run([sys.executable, "-c", program], check=True, timeout=30, capture_output=True)
    assert (done.stdout, done.stderr) == (b"", b"")
    assert time.monotonic() - began_s < 20
