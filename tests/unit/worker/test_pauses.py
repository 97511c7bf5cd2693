"""CLIENT PAUSE in one worker: the log's lines, and the end of it when the worker is to end."""

from __future__ import annotations

import time

import pytest

from proxy.system import log as logs
from proxy.worker.worker import Worker
from tests.support.fake_node import FakeNode
from tests.unit.worker.scene import Client, Port, configured, run, until

LONG_NS = 3600 * 10**9


@pytest.fixture(autouse=True)
def nothing_shown_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_limited", {})


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.message.startswith("clients ")]


def test_a_pause_that_ends_by_itself(node: FakeNode, caplog: pytest.LogCaptureFixture) -> None:
    async def scene(worker: Worker, port: Port) -> None:
        worker.pauses.set(2, time.monotonic_ns() + 30_000_000, "a:1")
        assert lines(caplog) == ["clients paused"]
        await until(lambda: lines(caplog) == ["clients paused", "clients go on"])

    run(configured(), scene, node.address, worker=0)


def test_each_change_is_told_once(node: FakeNode, caplog: pytest.LogCaptureFixture) -> None:
    async def scene(worker: Worker, port: Port) -> None:
        until_ns = time.monotonic_ns() + LONG_NS
        worker.pauses.set(0, 0, "a:1")
        assert lines(caplog) == []
        worker.pauses.set(1, until_ns, "a:1")
        worker.pauses.set(1, until_ns, "a:2")
        worker.pauses.set(2, until_ns, "a:2")
        worker.pauses.set(0, 0, "a:1")
        worker.pauses.set(0, 0, "a:1")
        for _ in range(100):  # it does not fill the log
            worker.pauses.set(2, until_ns, "a:2")
            worker.pauses.set(0, 0, "a:2")
        assert lines(caplog) == ["clients paused", "clients paused", "clients go on"]

    run(configured(), scene, node.address, worker=0)


def test_a_drain_lifts_it(node: FakeNode) -> None:
    node.on("SET", b"+OK\r\n")

    async def scene(worker: Worker, port: Port) -> None:
        clients = [Client(worker, client_id=n) for n in range(1, 301)]
        worker.pauses.set(2, time.monotonic_ns() + LONG_NS, "a:1")
        for client in clients:
            await client.send("SET", "k", "v")
        await until(lambda: sum(client.held_back for client in worker.path.clients) == 300)
        await clients[0].send("SET", "k", "w")  # in the kernel
        await worker.leaving.drain(0.0, 5.0)
        assert await clients[0].rest() == [b"OK", b"OK"]
        for client in clients[1:]:
            assert await client.rest() == [b"OK"]
        worker.pauses.set(2, time.monotonic_ns() + LONG_NS, "a:1")
        assert worker.pauses.now() == (0, 0)

    run(configured(), scene, node.address)
