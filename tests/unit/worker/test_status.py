"""What a worker tells of itself: as INFO of the whole proxy, and as its state for the supervisor."""

from __future__ import annotations

import asyncio
import time

import pytest

from proxy.embedded import HOST, free_port
from proxy.worker.worker import Worker
from tests.support.fake_node import FakeNode
from tests.unit.worker.scene import RUN_ID, Client, Port, configured, run, until


def test_info_is_the_whole_proxys(node: FakeNode) -> None:
    async def scene(worker: Worker, port: Port) -> None:
        client = Client(worker)
        assert await client.ask("GET", "k") is None
        alone = await client.info("everything")
        assert alone["maxclients"] == "123"
        assert (alone["connected_clients"], alone["rejected_connections"]) == ("1", "0")
        assert alone["total_commands_processed"] == "1"  # INFO itself is not answered yet
        assert (alone["run_id"], alone["process_id"]) == (RUN_ID, "4711")
        worker.figures.others = {
            "connected_clients": 10,
            "total_connections_received": 100,
            "total_commands_processed": 1000,
            "rejected_connections": 5,
            "proxy_commands_in_flight": 3,
            "proxy_workers": 2,
        }
        worker.figures.max_clients = 77
        whole = await client.info("everything")
        assert (whole["connected_clients"], whole["maxclients"]) == ("11", "77")
        assert (whole["total_connections_received"], whole["total_commands_processed"]) == ("101", "1002")
        assert (whole["rejected_connections"], whole["proxy_commands_in_flight"]) == ("5", "3")
        assert whole["proxy_workers"] == "2"
        assert whole["node0"].startswith(f"addr={node.address},role=primary,state=up,connections=1,")
        client.close()

    run(configured([node.address], clients={"max_clients": 123}), scene)


def test_state(node: FakeNode) -> None:
    async def scene(worker: Worker, port: Port) -> None:
        client = Client(worker)
        await client.ask("GET", "k")
        state = worker.figures.state()
        assert (state["clients"], state["waiting"], state["output_bytes"]) == (1, 0, 0)
        topology = state["topology"]
        assert (topology["known"], topology["fresh"], topology["slots_covered"]) == (True, True, 16384)
        assert (topology["epoch"], topology["error"]) == (5, "")
        assert topology["refreshes"]["start", "changed"] == 1
        assert topology["last_success_s"] == pytest.approx(time.time(), abs=60)
        ((label, values),) = state["nodes"].items()
        assert label == node.address
        assert (values["role"], values["up"], values["connections"]["shared", "up"]) == ("primary", True, 1)
        assert sum(values["buckets"]) == 1
        client.close()

    run(configured([node.address]), scene)


def test_state_without_a_cluster() -> None:
    async def scene(worker: Worker, port: Port) -> None:
        topology = worker.figures.state()["topology"]
        assert (topology["known"], topology["fresh"], topology["slots_covered"]) == (False, False, 0)
        assert (topology["last_success_s"], topology["epoch"]) == (None, 0)
        assert "Connection refused" in topology["error"]

    run(configured([f"{HOST}:{free_port()}"]), scene)


def test_what_decides_readiness_is_told_when_it_changes(node: FakeNode) -> None:
    async def scene(worker: Worker, port: Port) -> None:
        await until(lambda: port.changes == 1)  # known, fresh, covered
        await asyncio.sleep(0.2)
        assert port.changes == 1
        node.close()  # nobody confirms it any more
        await until(lambda: port.changes == 2)
        assert not worker.figures.state()["topology"]["fresh"]

    run(configured([node.address], cluster={"refresh_interval": "500ms"}), scene)
