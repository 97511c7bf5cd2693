"""What the main process says and a worker does, and the other way round, over a real channel to a real process."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from proxy.embedded import EmbeddedCluster
from proxy.ipc.messages import (
    Applied,
    Ask,
    Bye,
    Configure,
    Drain,
    NodeFacts,
    Others,
    Reopen,
    Report,
    Retire,
    Started,
    Status,
    Stop,
    Take,
    Topology,
)
from tests.support.fake_node import SILENCE, FakeNode
from tests.support.raw import Closed
from tests.unit.worker.parent import Parent, run
from tests.unit.worker.scene import RUN_ID, TCP, UNIX, commands, configured, connected, start, topology_of, until


def test_a_life(nodes: EmbeddedCluster, tmp_path: Path) -> None:
    """Started, clients served, told to stop."""

    async def scene(parent: Parent) -> None:
        assert next(type(message) for _, message in parent.heard) is Started
        with parent.client(client_id=77) as client, parent.client(UNIX, 78) as other:
            assert client.command("CLIENT", "ID") == b":77\r\n"
            assert other.command("CLIENT", "ID") == b":78\r\n"
            for n in range(10):
                assert client.command("SET", f"process:{n}", n) == b"+OK\r\n"
            info = client.command("INFO", "server").decode()
            assert f"run_id:{RUN_ID}\r\n" in info
            assert "process_id:4711\r\n" in info  # the main process's
            parent.channel.send(Others({"connected_clients": 5}))
            await parent.status(9)
            assert "connected_clients:7\r\n" in client.command("INFO", "clients").decode()
            assert parent.counters["commands"]["set"]["calls"] == 10
        await until(lambda: parent.counters["closed"]["client"] == 2)
        with parent.client() as client:
            assert client.command("PING") == b"+PONG\r\n"
            parent.channel.send(Stop())
            assert await parent.code() == 0
            assert client.rest() == b""
        assert parent.all(Bye) == []
        assert parent.counters["accepted"] == 3

    log = run(start(configured(log={"level": "debug"}), nodes.seeds[0]), scene, tmp_path)
    assert log
    assert all(re.search(r" logger=\S+ worker=3 msg=", line) for line in log.splitlines())


def test_what_is_published_is_used(node: FakeNode, tmp_path: Path) -> None:
    async def scene(parent: Parent) -> None:
        with parent.client() as client:
            assert client.command("GET", "k").startswith(b"-CLUSTERDOWN")
            assert await parent.first(Report) == Report(["unknown"])
            parent.channel.send(told)
            parent.channel.send(NodeFacts({}, {node.address: (1 << 20, 1 << 20)}))
            await parent.status(1)
            assert client.command("GET", "k") == b"$-1\r\n"
            parent.channel.send(msgspec.structs.replace(commands(), redis_version="7.9.9"))
            await parent.status(2)
            assert "redis_version:7.9.9" in client.command("INFO", "server").decode()

    told = topology_of(node.address)
    assert isinstance(told, Topology)
    first = start(configured())
    run(first, scene, tmp_path)


def test_status_every_second_and_when_asked(node: FakeNode, tmp_path: Path) -> None:
    async def scene(parent: Parent) -> None:
        await until(lambda: len(parent.all(Status)) >= 4)
        assert time.monotonic() - parent.begun_s > 2.5  # from before the first: this process may have stood still
        assert {status.number for status in parent.all(Status)} == {0}
        took_s = []
        for number in (39, 40, 41):  # one of them is not held up by others of the machine
            asked_s = time.monotonic()
            status = await parent.status(number)
            took_s.append(time.monotonic() - asked_s)
        assert min(took_s) < 0.5
        ((label, told),) = status.nodes.items()
        assert (label, told.role, told.connections["shared", "up"]) == (node.address, "primary", 1)

    run(start(configured(), node.address), scene, tmp_path)


def test_retire(node: FakeNode, tmp_path: Path) -> None:
    async def scene(parent: Parent) -> None:
        with parent.client() as client:
            parent.channel.send(Retire())
            await parent.status(1)
            assert parent.process.poll() is None
            parent.heard.clear()
            assert client.command("SET", "k", "v") == b"+OK\r\n"
        assert await parent.code() == 0
        last = parent.all(Status)[-1].nodes[node.address]
        assert sum(last.buckets) == 1  # counted, though the worker ends before it tells its status the next time
        assert parent.all(Bye) == [Bye()]
        assert parent.ended == ["closed by the other side"]

    run(start(configured(), node.address), scene, tmp_path)


def test_drain(node: FakeNode, tmp_path: Path) -> None:
    async def scene(parent: Parent) -> None:
        with parent.client(client_id=1) as idle, parent.client(client_id=2) as busy:
            assert busy.command("SET", "k", "v") == b"+OK\r\n"
            parent.channel.send(Drain(0.1, 5.0))
            assert idle.rest() == busy.rest() == b""
        assert await parent.code() == 0
        assert parent.all(Bye) == [Bye()]
        assert parent.counters["closed"]["shutdown"] == 2

    run(start(configured(), node.address), scene, tmp_path)


def test_drain_after_retire_and_stop_during_drain(node: FakeNode, tmp_path: Path) -> None:
    node.on("GET", SILENCE)

    async def scene(parent: Parent) -> None:
        with parent.client() as client:
            client.send(b"GET k\r\n")
            await until(lambda: node.seen("GET"))
            parent.channel.send(Retire())
            parent.channel.send(Drain(0.0, 60.0))
            await parent.status(1)
            assert parent.process.poll() is None
            parent.channel.send(Stop())
            assert await parent.code() == 0
            with pytest.raises(Closed):
                client.frame()

    run(start(configured(), node.address), scene, tmp_path)


def test_configure_and_reopen(node: FakeNode, tmp_path: Path) -> None:
    file = tmp_path / "log"

    async def scene(parent: Parent) -> None:
        with parent.client() as client:
            settings = configured(clients={"password": "x"}, log={"file": str(file), "format": "json"})
            parent.channel.send(Configure(5, settings))
            assert await parent.first(Applied) == Applied(5, "")
            assert client.command("GET", "k") == b"$-1\r\n"
            with parent.client(client_id=2) as new:
                assert new.command("GET", "k").startswith(b"-NOAUTH")
            parent.channel.send(Configure(6, configured(listeners={TCP: "no such policy"}, log={"file": str(file)})))
            await until(lambda: len(parent.all(Applied)) == 2)
            answer = parent.all(Applied)[1]
            assert (answer.number, "ValueError" in answer.error) == (6, True)
            assert client.command("GET", "k") == b"$-1\r\n"
            file.rename(tmp_path / "log.1")
            parent.channel.send(Reopen())
            await parent.status(1)
            await until(file.exists)  # by the thread that writes

    run(start(configured(), node.address), scene, tmp_path)
    (line,) = [line for line in (tmp_path / "log.1").read_text().splitlines() if "ValueError" in line]
    assert "applying new settings" in line


def test_a_log_that_cannot_be_written(node: FakeNode, tmp_path: Path) -> None:
    """The main process could: serving is worth more than the file."""

    async def scene(parent: Parent) -> None:
        with parent.client() as client:
            assert client.command("PING") == b"+PONG\r\n"

    log = run(start(configured(log={"file": str(tmp_path / "none" / "log")}), node.address), scene, tmp_path)
    assert "cannot write the log, it goes where it went before" in log


def test_a_worker_outlives_no_main_process(node: FakeNode, tmp_path: Path) -> None:
    async def scene(parent: Parent) -> None:
        with parent.client() as client:
            assert client.command("PING") == b"+PONG\r\n"
            parent.channel.close()
            assert client.rest() == b""
            assert await parent.code() == 1

    log = run(start(configured(), node.address), scene, tmp_path)
    # The kernel calls it a reset when there was something the main process had not read.
    reason = '"(closed by the other side|Connection reset by peer)"'
    assert len(re.findall(f'msg="the main process cannot be heard any more, ending" reason={reason}', log)) == 1


def test_out_of_descriptors(node: FakeNode, tmp_path: Path) -> None:
    """Clients that find no room are closed and counted as turned away; those that are there stay, and more may come."""

    async def scene(parent: Parent) -> None:
        with parent.client() as before:
            assert before.command("SET", "k", "v") == b"+OK\r\n"
            for crowd in range(2):
                pairs = [connected() for _ in range(100)]
                parent.channel.send(Take(TCP, 10 + 100 * crowd, 100), [theirs for _, theirs in pairs])
                await until(lambda crowd=crowd: parent.counters["rejected"] == 100 * (crowd + 1))  # type: ignore[misc]
                for ours, _ in pairs:
                    ours.settimeout(10)
                    assert ours.recv(1) == b""
                    ours.close()
            assert before.command("GET", "k") == b"$1\r\nv\r\n"
            with parent.client(client_id=2) as after:
                assert after.command("GET", "k") == b"$1\r\nv\r\n"
            await parent.status(1)
            assert (parent.counters["accepted"], parent.counters["rejected"]) == (2, 200)

    log = run(start(configured(), node.address), scene, tmp_path, limit=64)
    (line,) = [line for line in log.splitlines() if "turned away" in line]
    assert 'msg="clients turned away: out of file descriptors" clients=100' in line


@pytest.mark.parametrize(
    ("fault", "where", "message"),
    [
        ("Worker._serve = lambda self, *client: 1 / 0 if client[3] == 7 else serve(self, *client)", "serving", None),
        (
            "Worker.learn = lambda self, facts: 1 / 0 if facts.limits else None",
            "NodeFacts",
            NodeFacts({}, {"a:1": (1, 1)}),
        ),
        (
            "import proxy.worker.rounds as r; r.Rounds._trim = lambda self: self._loop.call_later(0.01, lambda: 1 / 0)",
            "Exception in callback",
            None,
        ),
        ("Conversation._leave = lambda self, leaving: fail(leaving)", "leaving", Retire()),
    ],
)
def test_a_fault_of_ours_is_survived(node: FakeNode, tmp_path: Path, fault: str, where: str, message: Any) -> None:
    """One line with its trace, counted; clients are served as before."""
    fault = f"serve = Worker._serve\nasync def fail(leaving):\n    leaving.close()\n    1 / 0\n{fault}\n"

    async def scene(parent: Parent) -> None:
        with parent.client() as client, parent.client(client_id=7):
            if message is not None:
                parent.channel.send(message)
            await until(lambda: parent.counters["internal_errors"])
            await parent.status(1)
            assert client.command("SET", "k", "v") == b"+OK\r\n"
            values = parent.counters
            assert values["accepted"] + values["rejected"] == 2

    log = run(start(configured(), node.address), scene, tmp_path, fault=fault)
    (line,) = [line for line in log.splitlines() if "ZeroDivisionError" in line]
    assert where in line
    assert " trace=" in line


def test_a_fault_while_starting_ends_it(node: FakeNode, tmp_path: Path) -> None:
    async def scene(parent: Parent) -> None:
        assert await parent.code() == 1
        assert parent.heard == []

    log = run(
        start(configured(), node.address),
        scene,
        tmp_path,
        started=False,
        fault="Worker.publish = lambda self, topology: 1 / 0",
    )
    (line,) = [line for line in log.splitlines() if "ZeroDivisionError" in line]
    assert 'level=error logger=worker worker=3 msg="cannot start"' in line


def test_nothing_comes_before_start(tmp_path: Path) -> None:
    async def scene(parent: Parent) -> None:
        parent.channel.send(Ask(1))
        assert await parent.code() == 1

    assert "nothing comes before Start" in run(None, scene, tmp_path)


def test_stop_before_start(tmp_path: Path) -> None:
    async def scene(parent: Parent) -> None:
        parent.channel.send(Stop())
        assert await parent.code() == 0

    assert run(None, scene, tmp_path) == ""


def test_lines_of_json(node: FakeNode, tmp_path: Path) -> None:
    async def scene(parent: Parent) -> None:
        parent.channel.close()
        assert await parent.code() == 1

    log = run(start(configured(log={"format": "json"}), node.address), scene, tmp_path)
    assert json.loads(log.splitlines()[-1])["worker"] == 3
