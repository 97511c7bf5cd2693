"""MONITOR in one worker: what is written down, for whom, and what is dropped."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.ipc.messages import Monitoring, Shown
from proxy.worker import monitors as module
from proxy.worker.worker import Worker
from tests.support.fake_node import FakeNode
from tests.unit.worker.scene import Client, Port, configured, run, until


def sent(monkeypatch: pytest.MonkeyPatch, worker: Worker) -> list[Any]:
    said: list[Any] = []
    monkeypatch.setattr(worker.monitors, "_send", said.append)
    return said


def test_nothing_is_looked_at_while_nobody_monitors(node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(worker: Worker, port: Port) -> None:
        said = sent(monkeypatch, worker)
        client = Client(worker)
        assert await client.ask("ECHO", "before") == b"before"
        assert not worker.monitors._monitor.active
        worker.monitors.wanted_elsewhere(True)
        assert await client.ask("ECHO", "now") == b"now"
        await until(lambda: said)
        assert [part.count for part in said] == [1]
        assert b'"ECHO" "now"\r\n' in said[0].lines
        worker.monitors.wanted_elsewhere(False)
        assert not worker.monitors._monitor.active
        assert await client.ask("ECHO", "later") == b"later"
        await until(lambda: worker.monitors._turn is None)
        assert len(said) == 1
        client.close()

    run(configured(), scene, node.address)


def test_a_monitor_that_leaves_before_it_begins(node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(worker: Worker, port: Port) -> None:
        said = sent(monkeypatch, worker)
        client = Client(worker)
        assert await client.ask("ECHO", "x") == b"x"
        (served,) = worker.path.clients
        worker.monitors.add(served)
        client.close()
        await until(lambda: not worker.path.clients)
        worker.monitors.begin(served)
        assert said == [Monitoring(1), Monitoring(0)]
        assert not worker.monitors._monitor.active

    run(configured(), scene, node.address)


def test_lines_that_the_main_process_does_not_take_are_counted(node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(worker: Worker, port: Port) -> None:
        said = sent(monkeypatch, worker)
        monkeypatch.setattr(worker.monitors, "_backlog", lambda: module.BEHIND + 1)
        worker.monitors.wanted_elsewhere(True)
        client = Client(worker)
        assert await client.ask("ECHO", "x") == b"x"
        await until(lambda: worker.counters.snapshot()["monitor_dropped"] == 1)
        worker.monitors.shown(Shown(b"", 0, 5))
        assert worker.counters.snapshot()["monitor_dropped"] == 6
        assert said == []
        client.close()

    run(configured(), scene, node.address)


def test_what_is_longer_than_a_line_may_be_is_dropped(node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(worker: Worker, port: Port) -> None:
        said = sent(monkeypatch, worker)
        worker.monitors.wanted_elsewhere(True)
        client = Client(worker)
        assert len(await client.ask("ECHO", "x" * 2_000_000)) == 2_000_000
        await client.send("ECHO", "y")
        await until(lambda: said)
        assert b"xx" not in b"".join(part.lines for part in said)
        await until(lambda: worker.counters.snapshot()["monitor_dropped"] == 1)
        client.close()

    run(configured(), scene, node.address)
