"""A worker pool with workers of tests.support.stand_in_worker. For test_worker_pool and test_worker_pool_faults."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import uvloop

from proxy.config.models import from_seeds
from proxy.control.control_plane import ControlPlane
from proxy.forward.counters import COUNTERS_SIZE, Counters
from proxy.ipc import settings as plain
from proxy.ipc.messages import NodeFacts, Report, Start
from proxy.ipc.settings import WorkerSettings
from proxy.supervisor import worker_pool as module
from proxy.supervisor.worker_pool import Worker, WorkerPool
from proxy.system import log as logs
from tests.support import stand_in_worker

PROGRAM = str(Path(stand_in_worker.__file__))
COMMANDS = ControlPlane(from_seeds(["127.0.0.1:1"]), lambda message: None).commands


class Stage:
    """A pool and what it told. fault: of the workers that are started from now on."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.fault = ""
        self.started = 0  # attempts
        self.changed = asyncio.Event()
        self.gone: list[tuple[int, int]] = []  # (number, clients that had left)
        self.ended: list[int] = []
        self.other_version = 0
        self.heard: list[tuple[int, str, Any]] = []  # (worker, kind of message, its fields)
        self.scripts: list[tuple[Any, Any]] = []
        self.own = {"rejected_connections": 7}
        self.pool = WorkerPool(
            loop,
            self._start,
            own_figures=lambda: self.own,
            on_change=self.changed.set,
            on_report=self._report,
            on_script=lambda message, say: self.scripts.append((message, say)),
            on_status=lambda old, new: None,
            on_gone=lambda worker: self.gone.append((worker.number, worker.counters.gone)),
            on_ended=lambda pid, cpu_s: self.ended.append(pid),
            on_other_version=self._other_version,
        )

    def command(self, number: int) -> list[str]:
        return [sys.executable, "-P", PROGRAM, str(module._CHANNEL), str(number), self.fault]

    def _start(self, number: int) -> Start:
        self.started += 1
        return Start(number, SETTINGS, "0" * 40, time.time(), os.getpid(), COMMANDS, NodeFacts(), None)

    def _report(self, report: Report) -> None:
        number, kind, text = report.signs
        self.heard.append((int(number), kind, json.loads(text)))
        self.changed.set()

    def _other_version(self) -> None:
        self.other_version += 1
        self.changed.set()

    def told(self, kind: str) -> list[tuple[int, Any]]:
        """(worker, message) of this kind that arrived at the workers."""
        return [(number, message) for number, what, message in self.heard if what == kind]

    async def until(self, condition: Callable[[], Any], timeout_s: float = 30.0) -> None:
        """Until it is so; looked at after every change, and now and then."""
        async with asyncio.timeout(timeout_s):
            while not condition():
                self.changed.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self.changed.wait(), 0.02)

    async def replaced(self, worker: Worker) -> Worker:
        """The one that takes clients in its place."""
        await self.until(lambda: any(one.number == worker.number and one is not worker for one in self.candidates))
        return next(one for one in self.candidates if one.number == worker.number)

    @property
    def candidates(self) -> list[Worker]:
        return self.pool.candidates()

    def connect(self, worker: Worker, client_id: int) -> socket.socket:
        """A client of that worker."""
        ours, theirs = socket.socketpair()
        ours.settimeout(10)
        worker.take("127.0.0.1:7617", client_id, [theirs.detach()])
        return ours


def worker_settings() -> WorkerSettings:
    def filled(kind: Any, **more: Any) -> Any:
        return kind(**dict.fromkeys(kind.__struct_fields__, 0) | more)

    text = {"username": "", "password": "", "client_name": ""}
    return WorkerSettings(
        listeners={},
        endpoint=None,
        allow=(),
        deny=(),
        clients=filled(plain.Clients, password="", admin_password=""),
        requests=filled(plain.Requests),
        backends=filled(plain.Backends, **text),
        log=plain.Log("info", "logfmt", ""),
    )


SETTINGS = worker_settings()
Act = Callable[[Stage], Coroutine[Any, Any, None]]


Play = Callable[..., Stage]


def player(monkeypatch: pytest.MonkeyPatch) -> Play:
    """play(act, workers=2): a pool of so many workers, all started, for one act; nothing may be left of it.

    A second of the pool's life takes a tenth, and no warning was shown before.
    """
    monkeypatch.setattr(module, "_TICK_S", 0.1)
    monkeypatch.setattr(module, "ABORT_S", 1.0)
    monkeypatch.setattr(module, "PARTING_S", 0.5)
    monkeypatch.setattr(logs, "_limited", {})

    def run(act: Act, workers: int = 2, fault: str = "", began: bool = True) -> Stage:
        pids: set[int] = set()

        async def body() -> Stage:
            loop = asyncio.get_running_loop()
            stage = Stage(loop)
            stage.fault = fault
            monkeypatch.setattr(module, "_command", stage.command)
            spawn = os.posix_spawn

            def noted(*args: Any, **more: Any) -> int:
                pids.add(pid := spawn(*args, **more))
                return pid

            monkeypatch.setattr(os, "posix_spawn", noted)
            try:
                if began:
                    stage.pool.begin(workers)
                    await stage.pool.first()
                await act(stage)
            finally:
                if not fault and not stage.fault:  # nobody has a reason not to end, on a busy machine it takes its time
                    monkeypatch.setattr(module, "ABORT_S", 10.0)
                await stage.pool.stop()
                monkeypatch.setattr(os, "posix_spawn", spawn)
            assert stage.pool.processes == {}
            assert stage.pool._timer is None or stage.pool._timer.cancelled()
            return stage

        uvloop.run(asyncio.sleep(0))  # the first loop of a process keeps two descriptors
        gc.collect()
        before = descriptors()
        stage = uvloop.run(body())
        gc.collect()
        assert descriptors() == before
        assert [pid for pid in pids if Path(f"/proc/{pid}").exists()] == []  # not even as a zombie
        assert set(stage.ended) <= pids
        assert len(stage.gone) == len(stage.ended) == len(set(stage.ended))
        return stage

    return run


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def counted(name: str, value: int) -> Counters:
    """Counters of which INFO's figure of this name has this value."""
    memory = bytearray(COUNTERS_SIZE)
    words, counters = memoryview(memory).cast("Q"), Counters(memory)
    for word in range(len(words)):
        words[word] = value
        if counters.totals()[name] == value:
            return counters
        words[word] = 0
    raise AssertionError(f"nothing counts {name}")


def messages_of(caplog: pytest.LogCaptureFixture, level: int = logging.WARNING) -> list[str]:
    return [record.message for record in caplog.records if record.levelno >= level]
