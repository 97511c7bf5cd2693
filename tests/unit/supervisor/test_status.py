"""What the main process knows of its workers' pauses and of the cluster, for an upgrade."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from proxy.ipc.messages import NodeStatus, Status
from proxy.supervisor.status import StatusReport


def worker(up: bool = False, *, node_paused: bool = False, clients_paused: bool = False) -> SimpleNamespace:
    """One whose status has one node."""
    node = NodeStatus("primary", up, {}, 0, 0, [], 0.0, paused=node_paused)
    return SimpleNamespace(status=Status(0, 0, 0, 0, 0.0, 0, {"a:1": node}, clients_paused=clients_paused))


def report(workers: list[Any], covered: int | None = None, *, fresh: bool = False) -> StatusReport:
    async def ask(timeout_s: float) -> None:
        pass

    topology = None if covered is None else SimpleNamespace(covered=covered)
    control = SimpleNamespace(refresher=SimpleNamespace(topology=topology, fresh=fresh))
    supervisor: Any = SimpleNamespace(pool=SimpleNamespace(present=workers, ask=ask), control=control)
    return StatusReport(supervisor)


def test_what_any_worker_holds() -> None:
    silent = SimpleNamespace(status=None)
    assert asyncio.run(report([silent, worker()]).paused()) == ([], False)
    assert asyncio.run(report([worker(), worker(clients_paused=True)]).paused()) == ([], True)
    assert asyncio.run(report([worker(node_paused=True), worker()]).paused()) == (["a:1"], False)


def test_a_worker_that_is_slow_to_say_what_it_holds() -> None:
    """Half a second is enough for /metrics; an upgrade by an old answer would carry out what was to wait."""
    paused = worker()

    async def ask(timeout_s: float) -> None:
        if timeout_s > 3:
            paused.status.clients_paused = True

    supervisor: Any = SimpleNamespace(pool=SimpleNamespace(present=[paused], ask=ask))
    assert asyncio.run(StatusReport(supervisor).paused()) == ([], True)


@pytest.mark.parametrize(
    ("covered", "fresh", "up", "works"),
    [
        (None, False, False, False),
        (0, True, True, False),
        (16384, True, False, True),  # nobody asks for anything
        (16384, False, True, True),  # the password has been changed: the connections stay
        (16384, False, False, False),  # the cluster is gone
        (5461, True, True, True),
    ],
)
def test_whether_there_is_a_cluster(covered: int | None, fresh: bool, up: bool, works: bool) -> None:
    assert report([SimpleNamespace(status=None), worker(), worker(up)], covered, fresh=fresh).works() is works
