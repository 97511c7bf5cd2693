"""What a worker tells of itself: as INFO of the whole proxy, and as its Status for the main process."""

from __future__ import annotations

import time

import msgspec

from proxy.ipc.messages import FROM_WORKER
from proxy.serve.context import NodePause
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
        assert alone["proxy_commands_processed"] == "1"  # INFO itself is not answered yet
        assert (alone["run_id"], alone["process_id"]) == (RUN_ID, "4711")
        assert (alone["proxy_shards"], alone["proxy_slots_covered"], alone["proxy_topology_epoch"]) == (
            "1",
            "16384",
            "5",
        )
        assert alone["proxy_client_memory_max"] == str(1 << 20)
        worker.status.others = {
            "connected_clients": 10,
            "total_connections_received": 100,
            "total_commands_processed": 1000,
            "rejected_connections": 5,
            "proxy_commands_in_flight": 3,
            "proxy_client_memory_max": 1 << 20,
            "proxy_workers": 2,
        }
        assert await client.ask("PING") == b"PONG"  # who only repeats INFO gets what was said a moment ago
        whole = await client.info("everything")
        assert (whole["connected_clients"], whole["maxclients"]) == ("11", "123")
        assert (whole["total_connections_received"], whole["proxy_commands_processed"]) == ("101", "1003")
        assert (whole["rejected_connections"], whole["proxy_commands_in_flight"]) == ("5", "4")  # with this INFO
        assert (whole["proxy_workers"], whole["proxy_client_memory_max"]) == ("2", str(2 << 20))
        assert whole["node0"].startswith(f"addr={node.address},role=primary,state=up,connections=1,")
        client.close()

    run(configured(clients={"max_clients": 123, "max_memory": 1 << 20}), scene, node.address)


def test_status(node: FakeNode) -> None:
    async def scene(worker: Worker, port: Port) -> None:
        client = Client(worker)
        await client.ask("GET", "k")
        status = worker.status.status(7)
        assert (status.number, status.waiting, status.output_bytes) == (7, 0, 0)
        assert FROM_WORKER.decode(msgspec.msgpack.encode(status)) == status
        ((label, told),) = status.nodes.items()
        assert label == node.address
        assert (told.role, told.up, told.connections["shared", "up"]) == ("primary", True, 1)
        assert sum(told.buckets) == 1
        client.close()

    run(configured(), scene, node.address)


def test_requests_that_wait(node: FakeNode) -> None:
    node.on("GET", b"-TRYAGAIN Multiple keys request during rehashing of slot\r\n")

    async def scene(worker: Worker, port: Port) -> None:
        client = Client(worker)
        await client.send("GET", "k")
        await until(lambda: worker.status.status(0).waiting == 1)
        client.close()

    run(configured(requests={"retry_backoff_min": 60.0, "retry_backoff_max": 60.0}), scene, node.address)


def test_whether_clients_are_paused(node: FakeNode) -> None:
    """An upgrade asks: the successor would not know."""

    async def scene(worker: Worker, port: Port) -> None:
        assert not worker.status.status(0).clients_paused
        worker.pauses.set(1, time.monotonic_ns() + 60_000_000_000, "a:1")
        assert worker.status.status(0).clients_paused
        client = Client(worker)
        await client.send("SET", "k", "v")
        await until(lambda: worker.status.status(0).held == 1)
        worker.pauses.set(0, 0, "a:1")
        assert not worker.status.status(0).clients_paused
        await until(lambda: worker.status.status(0).held == 0)
        client.close()

    run(configured(), scene, node.address)


def test_how_late_the_loop_is(node: FakeNode) -> None:
    async def scene(worker: Worker, port: Port) -> None:
        time.sleep(0.3)
        await until(lambda: worker.status.status(0).event_loop_lag_s > 0.2)
        await until(lambda: worker.status.status(0).event_loop_lag_s < 0.05)

    run(configured(), scene, node.address)


def test_a_node_that_is_paused_is_not_found_down(node: FakeNode) -> None:
    """It is worked on: nobody tries to reach it, and what is for it waits and is not refused."""

    async def scene(worker: Worker, port: Port) -> None:
        def told() -> tuple[bool, bool, int]:
            ((_, seen),) = worker.status.status(0).nodes.items()
            return seen.paused, seen.down_s > 0, seen.breakers

        node.close()
        await until(lambda: told() == (False, True, 1))
        assert worker.status.status(0).nodes[node.address].trouble
        worker.node_pauses.obey(NodePause("", "", time.monotonic_ns() + 60_000_000_000, "a:1", 0))
        assert told() == (True, False, 0)
        worker.node_pauses.obey(NodePause("", "", 0, "a:1", 0))
        await until(lambda: told() == (False, True, 1))

    run(configured(backends={"backoff_min": 0.01, "backoff_max": 0.05}), scene, node.address)
