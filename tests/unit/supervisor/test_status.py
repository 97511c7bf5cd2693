"""What the main process knows of its workers' pauses and of the cluster, for an upgrade."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from proxy.cluster.topology import Address, Node, Shard, Topology
from proxy.ipc.messages import NodeStatus, Status
from proxy.supervisor.status import LATELY_S, StatusReport


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


A, B, C = (Address("127.0.0.1", port) for port in (1, 2, 3))
ROWS = ((A, ((0, 99), (200, 299))), (B, ((100, 199),)), (C, ()))


def cluster(*told: dict[Address, str] | None, suspected: Address | None = None) -> Any:
    """told: of each worker, the nodes it knows and its trouble with them, "" = it is connected; None = it told nothing.

    A owns 200 slots, B 100, C none; 16,084 slots have no primary.
    """
    shards = [Shard(str(one), Node(str(one), one, "primary"), (), slots) for one, slots in ROWS]
    topology = Topology((*shards, Shard("x", None, (), ((300, 16383),))), 1, A)
    workers = [SimpleNamespace(status=None if one is None else status(one)) for one in told]

    async def ask(timeout_s: float) -> None:
        pass

    control = SimpleNamespace(
        refresher=SimpleNamespace(topology=topology),
        suspects=SimpleNamespace(ages={one: 1.0 if one == suspected else 0.0 for one in (A, B)}),
    )
    return SimpleNamespace(pool=SimpleNamespace(present=workers, ask=ask), control=control)


def reached(*told: dict[Address, str] | None, suspected: Address | None = None) -> Any:
    return asyncio.run(StatusReport(cluster(*told, suspected=suspected)).reached())


def status(nodes: dict[Address, str]) -> Status:
    told = {
        str(address): NodeStatus("primary", not trouble, {}, 0, 0, [], 0.0, trouble=trouble)
        for address, trouble in nodes.items()
    }
    return Status(0, 0, 0, 0, 0.0, 0, told)


def test_how_many_slots_are_reached() -> None:
    """For an upgrade: by every worker of the one that is to come."""
    both, first = {A: "", B: "", C: "refused"}, {A: "", B: "AUTH: WRONGPASS"}
    assert reached(both, both) == (300, {})
    assert reached(both, first) == (200, {str(B): "AUTH: WRONGPASS"})
    assert reached(both, None) == (0, {str(A): "", str(B): ""})
    assert reached() == (0, {str(A): "", str(B): ""})


def test_one_that_is_connected_and_silent_is_not_reached() -> None:
    both = {A: "", B: ""}
    assert reached(both, suspected=B) == (200, {str(B): ""})


def test_how_many_slots_an_upgrade_must_not_lose() -> None:
    """By any worker of the one that is to go, and lately: who hangs, or is away, at this moment may soon be back."""
    now_s = 1000.0
    this = cluster(None, {A: "", B: "refused"}, {A: "refused", B: "refused"})
    report = StatusReport(this, clock=lambda: now_s)

    def lately() -> int:
        return asyncio.run(report.reached_lately())

    assert lately() == 200
    report.heard(status({B: "", C: ""}))
    assert lately() == 300
    this.control.suspects.ages[A] = 1.0  # connected, but it does not answer
    this.pool.present[1:] = [SimpleNamespace(status=status({A: "", B: "refused"}))]
    now_s += LATELY_S - 1
    assert lately() == 300
    now_s += 2
    assert lately() == 0  # for good, then
    this.control.suspects.ages[A] = 0.0
    assert lately() == 200
    this.control.refresher.topology = None
    assert lately() == 0


def test_what_was_reached_is_not_kept_for_ever() -> None:
    """As pods come and go, each with an address of its own."""
    now_s = 1000.0
    report = StatusReport(cluster(), clock=lambda: now_s)
    for number in range(1000):
        report.heard(status({Address("127.0.0.1", number): ""}))
        now_s += 1
    assert len(report._reached) < 200
