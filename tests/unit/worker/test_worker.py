"""A worker alone: clients taken, served, counted; start and stop."""

from __future__ import annotations

import asyncio
import mmap
import os
import socket
import time
from collections.abc import Callable

import pytest

from proxy.cluster.topology import Address
from proxy.embedded import HOST, EmbeddedCluster, free_port
from proxy.forward.counters import COUNTERS_SIZE, Counters
from proxy.system.log import FIELDS
from proxy.worker.worker import Worker
from tests.support.fake_node import FakeNode, Shard, shards_reply
from tests.support.raw import array, bulk
from tests.unit.worker.scene import RUN_ID, TCP, UNIX, Client, Port, configured, connected, run, until


class TestTake:
    def test_serves_them_with_their_ids_and_addresses(self, nodes: EmbeddedCluster) -> None:
        async def scene(worker: Worker, port: Port) -> None:
            pairs = [connected() for _ in range(3)]
            worker.take(TCP, [descriptor for _, descriptor in pairs], 41)
            ids = []
            for ours, descriptor in pairs:
                assert not os.get_blocking(descriptor)
                with socket.socket(fileno=os.dup(descriptor)) as served:
                    assert served.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
                    assert served.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
                    assert served.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 300
                loop = asyncio.get_running_loop()
                await loop.sock_sendall(ours, b"CLIENT INFO\r\n")
                text = (await loop.sock_recv(ours, 4096)).decode()
                fields = dict(field.split("=", 1) for field in text.split("\r\n")[1].split(" "))
                ids.append(int(fields["id"]))
                assert fields["addr"] == "{}:{}".format(*ours.getsockname())
                assert fields["laddr"] == "{}:{}".format(*ours.getpeername())
                ours.close()
            assert ids == [41, 42, 43]
            await until(lambda: port.gone == 3)

        run(configured(nodes.seeds), scene)

    def test_real_commands(self, nodes: EmbeddedCluster) -> None:
        async def scene(worker: Worker, port: Port) -> None:
            client = Client(worker)
            for n in range(20):
                assert await client.ask("SET", f"loop:{n}", str(n)) == b"OK"
            assert await client.ask("MGET", *[f"loop:{n}" for n in range(20)]) == [b"%d" % n for n in range(20)]
            client.close()

        run(configured(nodes.seeds), scene)

    def test_clients_of_a_unix_socket(self, node: FakeNode) -> None:
        async def scene(worker: Worker, port: Port) -> None:
            client = Client(worker, UNIX)
            info = (await client.ask("CLIENT", "INFO")).decode()
            assert " addr=/run/proxy.sock:0 laddr=/run/proxy.sock:0 " in info
            ((_, _, where),) = await client.ask("CLUSTER", "SLOTS")
            assert where[:2] == [b"127.0.0.1", 7617]
            client.close()

        run(configured([node.address]), scene)

    def test_one_that_is_gone_already_has_left(self, node: FakeNode, caplog: pytest.LogCaptureFixture) -> None:
        """A reset connection has no peer; the others of its message are served."""

        async def scene(worker: Worker, port: Port) -> None:
            gone, first = connected()
            here, second = connected()
            gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            gone.close()
            worker.take(TCP, [first, second], 7)
            await until(lambda: port.gone == 1)
            assert [client.id for client in worker.path.clients] == [8]
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(first)
            here.close()
            await until(lambda: port.gone == 2)
            assert worker.counters.snapshot()["accepted"] == 2

        run(configured([node.address]), scene)
        assert "cannot serve a connection" not in caplog.text

    def test_a_listener_nobody_knows(self, node: FakeNode) -> None:
        """It was removed by a reload before this worker was born; its last client is served from the primary."""

        async def scene(worker: Worker, port: Port) -> None:
            client = Client(worker, "127.0.0.1:9999")
            assert await client.ask("SET", "k", "v") == b"OK"
            assert (await client.info("proxy"))["proxy_reads"] == "primary"
            client.close()

        run(configured([node.address], listeners=[{"address": TCP, "reads": "any"}]), scene)

    def test_the_listener_decides_the_reads(self, node: FakeNode) -> None:
        async def scene(worker: Worker, port: Port) -> None:
            for listener, reads in ((TCP, "any"), (UNIX, "replica")):
                client = Client(worker, listener)
                assert (await client.info("proxy"))["proxy_reads"] == reads
                client.close()

        listeners = [{"address": TCP, "reads": "any"}, {"address": UNIX, "reads": "replica"}]
        run(configured([node.address], listeners=listeners), scene)


class TestResolve:
    def test_by_every_name(self, node: FakeNode, start_node: Callable[[str], FakeNode]) -> None:
        """The ports of the topology are mapped; a redirection has the announced one, with whatever host."""
        other = start_node("b")
        halves = [[(0, 8191)], [(8192, 16383)]]
        node.shards = shards_reply(
            [Shard(halves[n], [((one.id, HOST, 7001 + n), "master")]) for n, one in enumerate((node, other))]
        )
        address_map = {f"{HOST}:7001": node.address, f"{HOST}:7002": other.address}

        async def scene(worker: Worker, port: Port) -> None:
            asked = worker.router.nodes[Address(HOST, node.port)]
            for host, number in ((HOST, 7002), (HOST, other.port), ("", 7002)):
                assert worker.resolve(host, number, asked) == Address(HOST, other.port)
            assert worker.resolve("", 7003, asked) is None

        run(configured([node.address], cluster={"address_map": address_map}), scene)

    def test_what_names_no_node_is_logged_once(self, node: FakeNode, caplog: pytest.LogCaptureFixture) -> None:
        async def scene(worker: Worker, port: Port) -> None:
            asked = worker.router.nodes[Address(HOST, node.port)]
            for n in range(100):
                assert worker.resolve(f"\u00e9{n}" + "x" * 250, 1, asked) is None

        run(configured([node.address]), scene)
        (record,) = [record for record in caplog.records if "redirection" in record.msg]
        assert record.msg == "a redirection names a node that is not in the topology"
        assert getattr(record, FIELDS) == {"named": "?0" + "x" * 98, "node": node.address}


class TestCounters:
    def test_names_come_before_their_use(self, node: FakeNode) -> None:
        row = array(bulk(b"foo.bar"), b":2\r\n", array(b"+readonly\r\n"), b":1\r\n", b":1\r\n", b":1\r\n")
        node.on("COMMAND", array(row)).on("FOO.BAR", b":7\r\n")

        async def scene(worker: Worker, port: Port) -> None:
            assert port.metrics["get"] == worker.counters.metrics["get"]
            await until(lambda: "foo.bar" in port.metrics)
            client = Client(worker)
            assert await client.ask("FOO.BAR", "k") == 7
            assert port.metrics == worker.counters.metrics
            assert worker.counters.snapshot()["commands"]["foo.bar"]["calls"] == 1
            client.close()

        run(configured([node.address]), scene)

    def test_counts_in_the_memory_it_is_given(self, node: FakeNode) -> None:
        memory = mmap.mmap(-1, COUNTERS_SIZE)

        async def scene() -> None:
            port = Port()
            worker = Worker(
                configured([node.address]),
                asyncio.get_running_loop(),
                port,
                number=0,
                run_id=RUN_ID,
                started_s=0.0,
                memory=memory,
            )
            await worker.start()
            client = Client(worker)
            await client.ask("GET", "k")
            client.close()
            await worker.stop()
            reader = Counters(memory)
            reader.metrics = port.metrics
            values = reader.snapshot()
            assert (values["accepted"], values["commands"]["get"]["calls"]) == (1, 1)

        asyncio.run(scene())


class TestLife:
    def test_starts_without_a_cluster_and_says_why(self, caplog: pytest.LogCaptureFixture) -> None:
        seed = f"{HOST}:{free_port()}"

        async def scene(worker: Worker, port: Port) -> None:
            assert 0.9 < time.monotonic() - begun_s < 3

        begun_s = time.monotonic()
        run(configured([seed]), scene)
        (record,) = [record for record in caplog.records if "serving without a topology" in record.msg]
        assert record.msg == "the seeds yield no node yet, serving without a topology"
        assert getattr(record, FIELDS) == {"error": f"{seed}: Connection refused"}

    def test_starts_fast_with_one(self, node: FakeNode) -> None:
        async def scene(worker: Worker, port: Port) -> None:
            assert time.monotonic() - begun_s < 0.9

        begun_s = time.monotonic()
        run(configured([node.address]), scene)

    def test_stop_leaves_nothing(self, nodes: EmbeddedCluster) -> None:
        async def scene(worker: Worker, port: Port) -> None:
            clients = [Client(worker, client_id=n) for n in range(5)]
            for n, client in enumerate(clients):
                await client.ask("SET", f"loop:{n}", "v")
            await worker.stop()
            for client in clients:
                assert await client.rest() == []
            assert worker.reactor.open_peers == 0

        run(configured(nodes.seeds), scene)
        before = os.listdir("/proc/self/fd")
        run(configured(nodes.seeds), scene)
        assert len(os.listdir("/proc/self/fd")) == len(before)

    def test_stop_without_a_start(self) -> None:
        async def scene() -> None:
            worker = Worker(
                configured(["127.0.0.1:1"]),
                asyncio.get_running_loop(),
                Port(),
                number=0,
                run_id=RUN_ID,
                started_s=0.0,
            )
            await worker.stop()

        asyncio.run(scene())

    def test_idle_clients_are_closed(self, node: FakeNode) -> None:
        async def scene(worker: Worker, port: Port) -> None:
            assert await Client(worker).rest() == []
            assert worker.counters.snapshot()["closed"]["idle"] == 1

        run(configured([node.address], clients={"idle_timeout": "100ms"}), scene)
