"""New settings in a worker that serves: each option as a client or a node sees it."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from proxy.embedded import EmbeddedCluster
from proxy.resp.decode import ReplyError
from proxy.system import log as logs
from proxy.worker.worker import Worker
from tests.support.fake_node import SILENCE, FakeNode
from tests.support.raw import bulk
from tests.unit.worker.scene import TCP, UNIX, Client, Port, configured, run, until

ALL = [{"address": TCP}, {"address": UNIX}]


def sockopt(worker: Worker, level: int, option: int) -> int:
    """Of the one client's socket, at the worker's end."""
    (client,) = worker.path.clients
    with socket.fromfd(client.fd, socket.AF_INET, socket.SOCK_STREAM) as sock:
        return sock.getsockopt(level, option)


def calls(worker: Worker, name: str) -> int:
    return int(worker.counters.snapshot()["commands"][name]["calls"])


class TestClients:
    def test_limits_of_present_clients(self, node: FakeNode) -> None:
        async def scene(worker: Worker, port: Port) -> None:
            client, other = Client(worker), Client(worker, UNIX, 2)
            assert await client.ask("SET", "k", "x" * 100) == b"OK"
            assert worker.apply(configured(clients={"max_bulk": 64, "max_arguments": 4})) == ""
            assert await client.ask("SET", "k", "x" * 64) == b"OK"
            assert "invalid bulk length" in str(await client.ask("SET", "k", "x" * 100))
            assert "invalid multibulk length" in str(await other.ask("MGET", "a", "b", "c", "d"))
            assert await client.rest() == await other.rest() == []

        run(configured(), scene, node.address)

    def test_request_timeout(self, node: FakeNode) -> None:
        node.on("GET", SILENCE)

        async def scene(worker: Worker, port: Port) -> None:
            client = Client(worker)
            worker.apply(configured(requests={"timeout": 0.2}))
            begun_s = time.monotonic()
            assert isinstance(await client.ask("GET", "k"), ReplyError)
            assert time.monotonic() - begun_s < 5

        run(configured(requests={"timeout": 3600.0}), scene, node.address)

    def test_idle_timeout(self, node: FakeNode) -> None:
        async def scene(worker: Worker, port: Port) -> None:
            client = Client(worker)
            await client.ask("PING")
            worker.apply(configured(clients={"idle_timeout": 0.1}))
            assert await client.rest() == []

        run(configured(), scene, node.address)

    def test_max_clients_is_shown(self, node: FakeNode) -> None:
        async def scene(worker: Worker, port: Port) -> None:
            client = Client(worker)
            worker.apply(configured(clients={"max_clients": 5}))
            assert (await client.info("clients"))["maxclients"] == "5"

        run(configured(), scene, node.address)

    def test_keepalive(self, node: FakeNode) -> None:
        async def scene(worker: Worker, port: Port) -> None:
            client = Client(worker)
            assert sockopt(worker, socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 300
            worker.apply(configured(clients={"tcp_keepalive": 60.0}))
            assert sockopt(worker, socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 60
            worker.apply(configured(clients={"tcp_keepalive": 0.0}))
            assert sockopt(worker, socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 0
            assert await client.ask("SET", "k", "v") == b"OK"

        run(configured(), scene, node.address)

    def test_password(self, node: FakeNode) -> None:
        """Whoever is in stays in; who comes has to say it; without one the door is open to all."""

        async def scene(worker: Worker, port: Port) -> None:
            before = Client(worker)
            assert await before.ask("GET", "k") is None
            worker.apply(configured(clients={"password": "one"}))
            assert await before.ask("GET", "k") is None
            after = Client(worker, TCP, 2)
            assert str(await after.ask("GET", "k")).startswith("NOAUTH")
            worker.apply(configured(clients={"password": "two"}))
            assert str(await after.ask("AUTH", "one")).startswith("WRONGPASS")
            assert await after.ask("AUTH", "two") == b"OK"
            third = Client(worker, UNIX, 3)
            assert str(await third.ask("GET", "k")).startswith("NOAUTH")
            worker.apply(configured())
            assert await third.ask("GET", "k") is None

        run(configured(), scene, node.address)


class TestListeners:
    def test_reads_of_present_clients(self, node: FakeNode) -> None:
        """They follow their listener, unless they chose for themselves."""

        async def reads(client: Client) -> str:
            return (await client.info("proxy"))["proxy_reads"]

        def changed(tcp: str, unix: str) -> Any:
            return configured(listeners={TCP: tcp, UNIX: unix})

        async def scene(worker: Worker, port: Port) -> None:
            follows, chose, other = Client(worker), Client(worker, TCP, 2), Client(worker, UNIX, 3)
            assert await chose.ask("READONLY") == b"OK"
            assert await reads(chose) == "prefer_replica"
            worker.apply(changed("any", "primary"))
            assert [await reads(client) for client in (follows, chose, other)] == ["any", "prefer_replica", "primary"]
            worker.apply(changed("replica", "any"))
            assert [await reads(client) for client in (follows, chose, other)] == ["replica", "prefer_replica", "any"]

        run(changed("primary", "primary"), scene, node.address)

    def test_removed_added_and_back_again(self, node: FakeNode) -> None:
        """The clients of a removed listener stay, and follow limits; back again, they follow its reads."""
        only_unix = {UNIX: "primary"}

        async def scene(worker: Worker, port: Port) -> None:
            client = Client(worker)
            worker.apply(configured(listeners=only_unix, clients={"max_bulk": 64}))
            assert await client.ask("SET", "k", "v") == b"OK"
            late = Client(worker, TCP, 2)  # accepted before, handed over after
            assert "invalid bulk length" in str(await late.ask("SET", "k", "x" * 100))
            assert await late.rest() == []
            both = {TCP: "any", "[::1]:7618": "replica"}
            worker.apply(configured(listeners=both))
            new = Client(worker, "[::1]:7618", 3)
            assert (await new.info("proxy"))["proxy_reads"] == "replica"
            assert (await client.info("proxy"))["proxy_reads"] == "any"

        run(configured(), scene, node.address)

    def test_the_endpoint_for_unix_clients(self, node: FakeNode) -> None:
        async def scene(worker: Worker, port: Port) -> None:
            client = Client(worker, UNIX)
            for endpoint, told in ((("127.0.0.1", 7700), [b"127.0.0.1", 7700]), (None, [b"", 0])):
                worker.apply(configured(endpoint=endpoint))
                ((_, _, where),) = await client.ask("CLUSTER", "SLOTS")
                assert where[:2] == told

        run(configured(), scene, node.address)


class TestCommands:
    def test_allow(self, nodes: EmbeddedCluster) -> None:
        """The table stays the servers' own."""

        async def scene(worker: Worker, port: Port) -> None:
            client = Client(worker)
            refused = await client.ask("DEBUG", "JMAP")
            source, size = worker.path.table.source, len(worker.path.table)
            worker.apply(configured(allow=("debug",)))
            assert str(await client.ask("DEBUG", "JMAP")) != str(refused)
            assert (worker.path.table.source, len(worker.path.table)) == (source, size)
            worker.apply(configured())
            assert str(await client.ask("DEBUG", "JMAP")) == str(refused)

        run(configured(), scene, nodes.seeds[0])

    def test_deny(self, nodes: EmbeddedCluster) -> None:
        """By name, for what no server knows, and by category; COMMAND follows."""

        async def scene(worker: Worker, port: Port) -> None:
            client = Client(worker)
            count = await client.ask("COMMAND", "COUNT")
            worker.apply(configured(deny=("get", "m.unknown", "@scripting")))
            for command in (["GET", "k"], ["m.unknown"], ["EVAL", "return 1", "0"], ["SCRIPT", "LOAD", "x"]):
                assert "is not allowed through this proxy" in str(await client.ask(*command)), command
            assert await client.ask("SET", "k", "v") == b"OK"
            assert await client.ask("COMMAND", "INFO", "get", "eval") == [None, None]
            assert await client.ask("COMMAND", "COUNT") < count - 5
            worker.apply(configured())
            assert await client.ask("GET", "k") == b"v"
            assert await client.ask("COMMAND", "COUNT") == count

        run(configured(), scene, nodes.seeds[0])


class TestRequests:
    def test_failover_timeout(self, node: FakeNode) -> None:
        patient = {"timeout": 3600.0, "failover_timeout": 3600.0}

        async def scene(worker: Worker, port: Port) -> None:
            client = Client(worker)
            assert await client.ask("SET", "k", "v") == b"OK"
            node.close()
            (known,) = worker.router.nodes.values()
            await until(lambda: known.down)
            worker.apply(configured(requests={"timeout": 3600.0, "failover_timeout": 0.0}))
            begun_s = time.monotonic()
            assert isinstance(await client.ask("GET", "k"), ReplyError)
            assert time.monotonic() - begun_s < 5

        run(configured(requests=patient), scene, node.address)

    def test_how_much_is_held(self, node: FakeNode) -> None:
        patient = {"timeout": 3600.0, "failover_timeout": 3600.0}

        async def scene(worker: Worker, port: Port) -> None:
            first, second = Client(worker), Client(worker)
            assert await first.ask("SET", "k", "v") == b"OK"
            node.close()
            (known,) = worker.router.nodes.values()
            await until(lambda: known.down)
            await first.send("GET", "k")
            await until(lambda: worker.exchange.parking.waiting == 1)
            for limits in ({"max_held": 2}, {"max_held_bytes": 30}):
                worker.apply(configured(requests=patient | limits))
                answer = await second.ask("GET", "k")
                assert isinstance(answer, ReplyError)
                assert "too many commands wait" in str(answer)
            worker.apply(configured(requests=patient))
            await second.send("GET", "k")
            await until(lambda: worker.exchange.parking.waiting == 2)
            (told,) = worker.status.status(0).nodes.values()
            assert (told.held, told.breakers, told.owner) == (2, 1, True)
            assert told.down_s > 0

        run(configured(requests=patient), scene, node.address)

    def test_retry_backoff(self, node: FakeNode) -> None:
        node.on("GET", b"-TRYAGAIN Multiple keys request during rehashing of slot\r\n")
        slow = {"timeout": 3600.0, "retry_backoff_min": 1800.0, "retry_backoff_max": 1800.0}

        async def scene(worker: Worker, port: Port) -> None:
            client = Client(worker)
            worker.apply(configured(requests={"retry_backoff_min": 0.001, "retry_backoff_max": 0.002}))
            await client.send("GET", "k")
            await until(lambda: len(node.seen("GET")) > 10)

        run(configured(requests=slow), scene, node.address)

    def test_max_redirections(self, node: FakeNode) -> None:
        """As many are followed at once; then it waits, until the time is over."""
        node.on("GET", f"-MOVED 12182 {node.address}\r\n".encode())
        slow = {"timeout": 1.0, "retry_backoff_min": 1800.0, "retry_backoff_max": 1800.0}

        async def scene(worker: Worker, port: Port) -> None:
            client = Client(worker)
            for allowed in (0, 2):
                seen, rounds = len(node.seen("GET")), worker.counters.snapshot()["retries"]["moved", "retried"]
                worker.apply(configured(requests={"max_redirections": allowed, **slow}))
                begun_s = time.monotonic()
                answer = await client.ask("GET", "foo")
                assert isinstance(answer, ReplyError)
                assert str(answer).startswith("CLUSTERDOWN The redirections")
                assert 0.2 < time.monotonic() - begun_s < 5
                # a refresh begins another round, whatever the backoff; the deadline may come in the middle of one
                rounds = worker.counters.snapshot()["retries"]["moved", "retried"] - rounds
                assert 1 <= rounds < 20
                assert rounds * (1 + allowed) <= len(node.seen("GET")) - seen <= (rounds + 1) * (1 + allowed)

        run(configured(), scene, node.address)


class TestBackends:
    def test_a_stall(self, node: FakeNode) -> None:
        node.on("GET", SILENCE)
        patient = {"timeout": 3600.0}

        async def scene(worker: Worker, port: Port) -> None:
            client = Client(worker)
            await client.send("GET", "k")
            await until(lambda: node.seen("GET"))
            node.on("GET", bulk(b"v"))
            worker.apply(configured(requests=patient, backends={"stall_timeout": 0.1}))
            assert await client.reply() == b"v"  # from another connection

        run(configured(requests=patient, backends={"stall_timeout": 3600.0}), scene, node.address)

    @pytest.mark.parametrize(
        ("change", "handshake"),
        [
            ({"username": "bob", "password": "new"}, [b"AUTH", b"bob", b"new"]),
            ({"password": "new"}, [b"AUTH", b"new"]),
            ({"client_name": "other"}, [b"CLIENT", b"SETNAME", b"other"]),
            ({"keepalive": 0.0}, [b"CLIENT", b"SETNAME", b"redis-proxy"]),
        ],
    )
    def test_connections_are_renewed(self, node: FakeNode, change: dict[str, Any], handshake: list[bytes]) -> None:
        """The old one is closed when a new one can be had, and what comes then comes by another."""

        async def scene(worker: Worker, port: Port) -> None:
            client = Client(worker)
            assert await client.ask("SET", "k", "v") == b"OK"
            (old,) = [session for session in node.sessions if [b"SET", b"k", b"v"] in session.commands]
            worker.apply(configured(backends=change))
            await until(lambda: old.sock.fileno() == -1)
            assert await client.ask("GET", "k") == b"v"
            (new,) = [session for session in node.sessions if [b"GET", b"k"] in session.commands]
            assert handshake in new.commands[:2]

        run(configured(), scene, node.address)

    def test_more_and_fewer_connections(self, node: FakeNode) -> None:
        async def scene(worker: Worker, port: Port) -> None:
            ((_, values),) = worker.status.status(0).nodes.items()
            assert sum(values.connections.values()) == 1
            for wanted in (3, 2):
                worker.apply(configured(backends={"connections": wanted}))
                await until(
                    lambda wanted=wanted: (  # type: ignore[misc]
                        worker.status.status(0).nodes[node.address].connections["shared", "up"] == wanted
                    )
                )

        run(configured(), scene, node.address)

    def test_nothing_is_lost_while_connections_are_renewed(self, nodes: EmbeddedCluster) -> None:
        """Pipelining clients, counters that would show a command lost or carried out twice."""
        names = ["one", "two", "three", "four", "five", "six"]

        async def scene(worker: Worker, port: Port) -> None:
            done = asyncio.Event()

            async def busy(number: int) -> int:
                client = Client(worker, TCP, number)
                asked = 0
                while not done.is_set():
                    for _ in range(20):
                        await client.send("INCR", f"renew:{number}")
                    for _ in range(20):
                        asked += 1
                        assert await client.reply() == asked
                return asked

            work = asyncio.gather(*(busy(number) for number in range(1, 9)))
            for turn, name in enumerate(names):
                worker.apply(configured(backends={"client_name": name, "connections": 1 + turn % 3}))
                await asyncio.sleep(0.1)
            done.set()
            assert min(await work) > 0
            assert worker.counters.snapshot()["retries"]["connection_lost", "unsafe"] == 0
            for node in nodes.nodes:
                node.command("FLUSHALL")

        run(configured(), scene, nodes.seeds[0])

    def test_an_attempt_begins_anew_with_the_new_settings(self, node: FakeNode) -> None:
        """Also one that hangs in the handshake, or waits for an hour."""
        node.on("CLIENT SETNAME", SILENCE)
        patient = {"backends": {"connect_timeout": 3600.0}, "requests": {"timeout": 3600.0, "failover_timeout": 3600.0}}

        async def scene(worker: Worker, port: Port) -> None:
            client = Client(worker)
            await client.send("GET", "k")
            await until(lambda: node.seen("CLIENT"))
            begun_s = time.monotonic()
            node.on("CLIENT SETNAME", b"+OK\r\n")
            worker.apply(configured(requests=patient["requests"]))
            assert await client.reply() is None
            assert time.monotonic() - begun_s < 5

        run(configured(**patient), scene, node.address)


class TestLog:
    def test_level_format_and_file(self, node: FakeNode, tmp_path: Path) -> None:
        first, second = tmp_path / "first", tmp_path / "second"

        async def scene(worker: Worker, port: Port) -> None:
            worker.apply(configured(log={"file": str(first), "level": "warning"}))
            logs.get("x").info("hidden")
            logs.get("x").warning("shown")
            worker.apply(configured(log={"file": str(second), "format": "json"}))
            logs.get("x").info("shown")

        run(configured(), scene, node.address)
        logs.flush()
        (line,) = first.read_text().splitlines()
        assert line.endswith("level=warning logger=x worker=3 msg=shown")
        event = json.loads(second.read_text().splitlines()[0])
        assert (event["worker"], event["msg"]) == (3, "shown")

    def test_a_file_that_cannot_be_opened(self, node: FakeNode, tmp_path: Path) -> None:
        file = tmp_path / "log"
        missing = tmp_path / "none" / "log"

        async def scene(worker: Worker, port: Port) -> None:
            assert worker.apply(configured(log={"file": str(file)})) == ""
            trouble = worker.apply(configured(log={"file": str(missing)}, clients={"max_clients": 5}))
            assert trouble == f"cannot write the log {missing}: No such file or directory"
            assert worker.status.limits.max_clients == 5

        run(configured(), scene, node.address)
        logs.flush()
        assert "cannot write the log, it goes where it went before" in file.read_text()


def test_the_same_settings_change_nothing(node: FakeNode) -> None:
    async def scene(worker: Worker, port: Port) -> None:
        client = Client(worker)
        assert await client.ask("SET", "k", "v") == b"OK"
        connections = len(node.sessions)
        assert worker.apply(configured()) == ""
        assert await client.ask("GET", "k") == b"v"
        await asyncio.sleep(0.1)
        assert len(node.sessions) == connections
        assert calls(worker, "get") == 1

    run(configured(), scene, node.address)
