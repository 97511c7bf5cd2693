"""A worker alone: clients taken, served, counted; start and stop."""

from __future__ import annotations

import asyncio
import gc
import itertools
import mmap
import os
import socket
import time
from array import array
from collections.abc import Callable

import msgspec
import pytest

from proxy.cluster.topology import Address
from proxy.commands.rows import Row
from proxy.commands.table import ROWS
from proxy.embedded import HOST, EmbeddedCluster
from proxy.forward.counters import COUNTERS_SIZE, Counters
from proxy.ipc.channel import encode
from proxy.ipc.messages import TO_WORKER, NodeFacts
from proxy.system.faults import Faults
from proxy.system.log import FIELDS
from proxy.worker.report import GAP_S
from proxy.worker.worker import Worker
from tests.support.fake_node import SILENCE, FakeNode
from tests.support.raw import bulk
from tests.unit.worker.scene import (
    TCP,
    UNIX,
    WHOLE,
    Client,
    Port,
    commands,
    configured,
    connected,
    run,
    start,
    topology,
    topology_of,
    until,
)


class TestTake:
    def test_serves_them_with_their_ids_and_addresses(self, nodes: EmbeddedCluster) -> None:
        async def scene(worker: Worker, port: Port) -> None:
            pairs = [connected() for _ in range(3)]
            worker.take(TCP, [descriptor for _, descriptor in pairs], 41, 3)
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
            await until(lambda: worker.path.closed == 3)

        run(configured(), scene, nodes.seeds[0])

    def test_real_commands(self, nodes: EmbeddedCluster) -> None:
        async def scene(worker: Worker, port: Port) -> None:
            client = Client(worker)
            for n in range(20):
                assert await client.ask("SET", f"loop:{n}", str(n)) == b"OK"
            assert await client.ask("MGET", *[f"loop:{n}" for n in range(20)]) == [b"%d" % n for n in range(20)]
            client.close()

        run(configured(), scene, nodes.seeds[0])

    def test_clients_of_a_unix_socket(self, node: FakeNode) -> None:
        async def scene(worker: Worker, port: Port) -> None:
            client = Client(worker, UNIX)
            info = (await client.ask("CLIENT", "INFO")).decode()
            assert " addr=/run/proxy.sock:0 laddr=/run/proxy.sock:0 " in info
            ((_, _, where),) = await client.ask("CLUSTER", "SLOTS")
            assert where[:2] == [b"127.0.0.1", 7617]
            client.close()

        run(configured(), scene, node.address)

    def test_one_that_is_gone_already_has_left(self, node: FakeNode, caplog: pytest.LogCaptureFixture) -> None:
        """A reset connection has no peer; the others of its message are served."""

        async def scene(worker: Worker, port: Port) -> None:
            gone, first = connected()
            here, second = connected()
            gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            gone.close()
            worker.take(TCP, [first, second], 7, 2)
            await until(lambda: worker.path.closed == 1)
            assert [client.id for client in worker.path.clients] == [8]
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(first)
            here.close()
            await until(lambda: worker.path.closed == 2)
            assert worker.counters.snapshot()["accepted"] == 2

        run(configured(), scene, node.address)
        assert "cannot serve a connection" not in caplog.text

    def test_some_were_lost_on_the_way(self, node: FakeNode, caplog: pytest.LogCaptureFixture) -> None:
        """Whose descriptors these are cannot be told: all are closed, and counted as turned away."""

        async def scene(worker: Worker, port: Port) -> None:
            pairs = [connected() for _ in range(3)]
            worker.take(TCP, [descriptor for _, descriptor in pairs[:2]], 1, 3)
            for ours, descriptor in pairs[:2]:
                with pytest.raises(OSError, match="Bad file descriptor"):
                    os.fstat(descriptor)
                ours.close()
            pairs[2][0].close()
            os.close(pairs[2][1])
            values = worker.counters.snapshot()
            assert (values["accepted"], values["rejected"]) == (0, 3)

        run(configured(), scene, node.address)
        assert "out of file descriptors" in caplog.text

    def test_a_listener_nobody_knows(self, node: FakeNode) -> None:
        """It was removed by a reload before this worker was born; its last client is served from the primary."""

        async def scene(worker: Worker, port: Port) -> None:
            client = Client(worker, "127.0.0.1:9999")
            assert await client.ask("SET", "k", "v") == b"OK"
            assert (await client.info("proxy"))["proxy_reads"] == "primary"
            client.close()

        run(configured(listeners={TCP: "any"}), scene, node.address)

    def test_the_listener_decides_the_reads(self, node: FakeNode) -> None:
        async def scene(worker: Worker, port: Port) -> None:
            for listener, reads in ((TCP, "any"), (UNIX, "replica")):
                client = Client(worker, listener)
                assert (await client.info("proxy"))["proxy_reads"] == reads
                client.close()

        run(configured(listeners={TCP: "any", UNIX: "replica"}), scene, node.address)


class TestPublish:
    def test_replicas_and_who_may_be_read_from(self, start_node: Callable[[str], FakeNode]) -> None:
        primary, fit, unfit = (start_node(name) for name in "abc")
        fit.on("GET", bulk(b"fit"))
        places = [Address(HOST, node.port) for node in (primary, fit, unfit)]

        async def scene(worker: Worker, port: Port) -> None:
            client = Client(worker)
            for _ in range(10):
                assert await client.ask("GET", "k") == b"fit"
            assert not unfit.sessions
            worker.learn(NodeFacts({unfit.address: True, fit.address: False, "who:1": True, primary.address: False}))
            assert await client.ask("GET", "k") is None
            assert unfit.seen("GET")
            assert worker.router.nodes[places[0]].usable
            worker.publish(topology((WHOLE, places), unusable=places[2:]))
            assert await client.ask("GET", "k") == b"fit"
            client.close()

        facts = NodeFacts({unfit.address: False})
        run(configured(listeners={TCP: "replica"}), scene, topology=topology((WHOLE, places)), facts=facts)

    def test_who_failed_and_who_is_stale(self, start_node: Callable[[str], FakeNode]) -> None:
        places = [Address(HOST, start_node(name).port) for name in "abc"]

        async def scene(worker: Worker, port: Port) -> None:
            nodes = [worker.router.nodes[place] for place in places]
            told = topology((WHOLE, places), unusable=places[1:])
            told.nodes[0].failing = told.nodes[1].stale = True
            told.nodes[0].id = "a" * 40
            worker.publish(told)
            assert worker.connector.ids == {str(place): told.nodes[n].id for n, place in enumerate(places)}
            assert [node.failing for node in nodes] == [True, False, False]
            assert [node.stale for node in nodes] == [False, True, False]
            worker.learn(NodeFacts({str(places[1]): True, str(places[2]): False}, stale={str(places[2]): True}))
            assert [(node.usable, node.stale) for node in nodes[1:]] == [(True, False), (False, True)]
            worker.publish(topology((WHOLE, places)))
            assert not any(node.failing or node.stale for node in nodes)

        run(configured(), scene, topology=topology((WHOLE, places)))

    def test_a_node_that_says_nothing_is_told(self, node: FakeNode) -> None:
        node.on("SET", SILENCE)

        async def scene(worker: Worker, port: Port) -> None:
            client = Client(worker)
            await client.send("SET", "k", "v")
            await until(lambda: any(report.silent == [node.address] for _, report in port.reports))
            assert worker.router.nodes[Address(HOST, node.port)].silent
            client.close()

        run(configured(backends={"suspect_timeout": 0.05}), scene, node.address)

    def test_moved_slots_and_nodes_that_are_gone(self, start_node: Callable[[str], FakeNode]) -> None:
        """Connections to what left are ended, what came is connected to at once."""
        old, new = start_node("a"), start_node("b")
        at_old, at_new = Address(HOST, old.port), Address(HOST, new.port)

        async def scene(worker: Worker, port: Port) -> None:
            client = Client(worker)
            assert await client.ask("SET", "foo", "v") == b"OK"  # slot 12182
            worker.publish(topology(([(0, 8191)], [at_old]), epoch=6))
            assert "CLUSTERDOWN" in str(await client.ask("SET", "foo", "w"))
            await until(lambda: "uncovered" in port.signs)
            info = await Client(worker, client_id=2).info("proxy")
            assert (info["proxy_slots_covered"], info["proxy_topology_epoch"]) == ("8192", "6")
            worker.publish(topology((WHOLE, [at_new]), epoch=7))
            assert await client.ask("SET", "foo", "x") == b"OK"
            assert new.store == {b"foo": b"x"}
            await until(lambda: not old.sessions or old.sessions[0].sock.fileno() == -1)
            client.close()

        run(configured(), scene, old.address)

    def test_none_yet(self, node: FakeNode) -> None:

        async def scene(worker: Worker, port: Port) -> None:
            client = Client(worker)
            assert "proxy_shards" not in await client.info("proxy")
            assert "CLUSTERDOWN" in str(await client.ask("SET", "k", "v"))
            await until(lambda: port.signs == ["unknown"])
            worker.publish(topology_of(node.address))
            assert await client.ask("SET", "k", "v") == b"OK"
            client.close()

        run(configured(), scene)

    def test_primaries_are_connected_to_at_once(self, node: FakeNode) -> None:
        async def scene(worker: Worker, port: Port) -> None:
            await until(lambda: node.sessions)

        run(configured(), scene, node.address)


@pytest.mark.alone
def test_a_topology_change_does_not_hold_the_loop() -> None:
    """300 nodes, every slot next to one of another shard: what every client has to wait for, at best of some."""
    shards = [[Address(f"10.1.{n}.{k}", 7000) for k in range(3)] for n in range(100)]
    whole = topology(*[([], addresses) for addresses in shards])

    def encoded(turn: int) -> bytes:
        owners = array("H", [(slot * 7 + turn) % 100 for slot in range(16384)]).tobytes()
        names = {f"host-{n}.example.com:{port}": n for n in range(300) for port in (7000, 7001)} | whole.names
        return encode(msgspec.structs.replace(whole, owners=owners, names=names))

    async def scene(worker: Worker, port: Port) -> None:
        held_s = []
        for body in map(encoded, range(20)):
            begun_s = time.perf_counter()
            worker.publish(TO_WORKER.decode(body))
            held_s.append(time.perf_counter() - begun_s)
            await asyncio.sleep(0)
        print(f"held for {min(held_s) * 1000:.2f} to {max(held_s) * 1000:.2f} ms")
        assert min(held_s) < 0.003  # 0.8 ms on a quiet machine; 0.1.0 took 6 to 74 ms

    run(configured(), scene)


class TestReports:
    def test_a_crowd_of_signs_is_told_in_few_words(self, node: FakeNode) -> None:
        async def scene(worker: Worker, port: Port) -> None:
            begun_s = asyncio.get_running_loop().time()
            for n in range(30):
                for reason in ("moved", "lost", "moved"):
                    worker.stale(reason)
                worker.node_unfit(worker.router.nodes[Address(HOST, node.port)], f"reason {n}")
                await asyncio.sleep(0.001)
            took_s = asyncio.get_running_loop().time() - begun_s
            await asyncio.sleep(0.05)
            assert 3 <= len(port.reports) <= took_s / (GAP_S - 0.0015) + 2
            assert all(sorted(report.signs) == ["lost", "moved"] for _, report in port.reports)
            times = [at_s for at_s, _ in port.reports]
            # The loop's clock has steps of 1 ms, and so have its timers.
            assert min(b - a for a, b in itertools.pairwise(times)) >= GAP_S - 0.0015

        run(configured(), scene, node.address)

    def test_a_primary_that_is_loading(self, node: FakeNode) -> None:
        """It is spared reads for a moment, and nobody need be told."""

        async def scene(worker: Worker, port: Port) -> None:
            primary = worker.router.nodes[Address(HOST, node.port)]
            worker.node_unfit(primary, "loading")
            assert not primary.usable
            await until(lambda: primary.usable)
            assert port.unfit == {}

        run(configured(), scene, node.address)

    def test_a_lost_node(self, node: FakeNode) -> None:
        async def scene(worker: Worker, port: Port) -> None:
            await until(lambda: worker.status.status(0).nodes[node.address].up)
            node.close()
            await until(lambda: {"lost", "connect"} <= set(port.signs))

        run(configured(backends={"backoff_min": 0.01}), scene, node.address)

    def test_an_unfit_replica_is_left_alone_from_then_on(self, start_node: Callable[[str], FakeNode]) -> None:
        primary, replica = start_node("a"), start_node("b")
        primary.on("GET", bulk(b"primary"))
        replica.on("GET", b"-LOADING Redis is loading the dataset in memory\r\n")
        places = [Address(HOST, node.port) for node in (primary, replica)]

        async def scene(worker: Worker, port: Port) -> None:
            client = Client(worker)
            for _ in range(5):
                assert await client.ask("GET", "k") == b"primary"
            assert len(replica.seen("GET")) == 1
            await until(lambda: port.unfit == {replica.address: "loading"})
            replica.on("GET", bulk(b"replica"))
            worker.learn(NodeFacts({replica.address: True}))
            assert await client.ask("GET", "k") == b"replica"
            client.close()

        run(configured(listeners={TCP: "prefer_replica"}), scene, topology=topology((WHOLE, places)))


class TestRedirections:
    def test_moved_re_points_the_slot_at_once(self, start_node: Callable[[str], FakeNode]) -> None:
        """No topology comes: the word of the node is enough, for this slot."""
        before, after = start_node("a"), start_node("b")
        before.on("GET", f"-MOVED 12182 {after.address}\r\n".encode())
        places = [Address(HOST, node.port) for node in (before, after)]

        async def scene(worker: Worker, port: Port) -> None:
            client = Client(worker)
            for _ in range(3):
                assert await client.ask("GET", "foo") is None
            assert (len(before.seen("GET")), len(after.seen("GET"))) == (1, 3)
            await until(lambda: port.signs == ["moved"])
            client.close()

        run(configured(), scene, topology=topology((WHOLE, places[:1]), ([], places[1:])))

    def test_what_names_no_node_is_logged_once(self, node: FakeNode, caplog: pytest.LogCaptureFixture) -> None:
        async def scene(worker: Worker, port: Port) -> None:
            asked = worker.router.nodes[Address(HOST, node.port)]
            for n in range(100):
                assert worker.resolve(f"\u00e9{n}" + "x" * 250, 1, asked) is None

        run(configured(), scene, node.address)
        (record,) = [record for record in caplog.records if "redirection" in record.msg]
        assert record.msg == "a redirection names a node that is not in the topology"
        assert getattr(record, FIELDS) == {"named": "?0" + "x" * 98, "node": node.address}


class TestCommands:
    def test_a_table_and_what_is_said_of_the_servers(self, node: FakeNode) -> None:
        """Also the indexes of the counters: they are the main process's."""
        node.on("FOO.BAR", b":7\r\n")
        more = commands([*ROWS, Row("foo.bar", 2, ("readonly",), 1, 1, 1)], "test", redis_version="7.2.9")
        memory = mmap.mmap(-1, COUNTERS_SIZE)
        message = start(configured(), node.address)

        async def scene() -> None:
            worker = Worker(message, asyncio.get_running_loop(), Port().send, Faults(), memory)
            worker.start(message)
            client = Client(worker)
            assert (await client.info("server"))["redis_version"] == "7.0.0"
            worker.use_commands(msgspec.structs.replace(more, server_name="valkey", valkey_version="9.0.1"))
            assert await client.ask("FOO.BAR", "k") == 7
            info = await client.info("server")
            assert (info["redis_version"], info["valkey_version"]) == ("7.2.9", "9.0.1")
            client.close()
            await worker.stop()

        asyncio.run(scene())
        reader = Counters(memory)
        reader.metrics = more.metrics
        values = reader.snapshot()
        assert (values["accepted"], values["commands"]["foo.bar"]["calls"]) == (1, 1)


class TestLimits:
    def test_what_the_nodes_take_is_in_force(self, node: FakeNode, caplog: pytest.LogCaptureFixture) -> None:
        async def scene(worker: Worker, port: Port) -> None:
            client = Client(worker)
            assert await client.ask("SET", "k", "x" * (1 << 20)) == b"OK"
            worker.learn(NodeFacts({}, {node.address: (1 << 20, 2 << 20), "who:1": (1, 1)}))
            assert worker.backend_settings.max_window == 1 << 20
            assert "invalid bulk length" in str(await client.ask("SET", "k", "x" * ((1 << 20) + 1)))
            assert await client.rest() == []

        run(configured(), scene, node.address, worker=0)
        assert "the nodes take less than clients.max_bulk" in caplog.text


class TestFaults:
    def test_what_a_timer_raises_is_survived(self, node: FakeNode, caplog: pytest.LogCaptureFixture) -> None:
        """Logged once with its trace, counted each time; the timer goes on."""

        async def scene(worker: Worker, port: Port) -> None:
            port.expected = [AttributeError]
            rounds = worker._rounds
            router, rounds._router = rounds._router, None  # type: ignore[assignment]
            await until(lambda: len(port.faults) > 2)
            rounds._router = router
            client = Client(worker)
            assert await client.ask("SET", "k", "v") == b"OK"
            assert worker.counters.snapshot()["internal_errors"] == len(port.faults)
            client.close()

        run(configured(), scene, node.address)
        (record,) = [record for record in caplog.records if "fault of the proxy" in record.msg]
        assert "AttributeError" in getattr(record, FIELDS)["trace"]


class TestLife:
    def test_stop_leaves_nothing(self, nodes: EmbeddedCluster) -> None:
        async def scene(worker: Worker, port: Port) -> None:
            clients = [Client(worker, client_id=n) for n in range(5)]
            for n, client in enumerate(clients):
                await client.ask("SET", f"loop:{n}", "v")
            await worker.stop()
            for client in clients:
                assert await client.rest() == []
            assert worker.reactor.open_peers == 0

        run(configured(), scene, nodes.seeds[0])
        gc.collect()  # what has stopped is closed when nobody refers to it any more
        before = os.listdir("/proc/self/fd")
        run(configured(), scene, nodes.seeds[0])
        gc.collect()
        assert len(os.listdir("/proc/self/fd")) <= len(before)  # fewer when garbage of other tests goes

    def test_stop_without_a_start(self) -> None:
        async def scene() -> None:
            worker = Worker(start(configured()), asyncio.get_running_loop(), Port().send, Faults())
            await worker.stop()

        asyncio.run(scene())

    def test_idle_clients_are_closed(self, node: FakeNode) -> None:
        async def scene(worker: Worker, port: Port) -> None:
            assert await Client(worker).rest() == []
            assert worker.counters.snapshot()["closed"]["idle"] == 1

        run(configured(clients={"idle_timeout": 0.1}), scene, node.address)
