"""Connections to nodes, made for a data path of the test's own: handshakes, backoff, new settings."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from proxy.cluster.topology import Address
from proxy.commands.lookup import CommandTable
from proxy.commands.table import ROWS, SOURCE
from proxy.embedded import HOST, free_port
from proxy.forward.backend import Backend, BackendState
from proxy.forward.counters import Counters
from proxy.forward.datapath import DataPath
from proxy.forward.exchange import Exchange
from proxy.forward.node import Node
from proxy.forward.pipeline import BackendSettings
from proxy.forward.reactor import Reactor
from proxy.forward.router import Router
from proxy.ipc.settings import Backends
from proxy.resp import errors
from proxy.worker import connector as module
from proxy.worker.connector import Connector
from tests.support.fake_node import SILENCE, Cut, FakeNode, Session
from tests.support.raw import array, bulk
from tests.unit.worker.scene import WHOLE, configured, publish, topology, until


@pytest.fixture(autouse=True)
def every_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """None is left out because a test before had the same address."""
    monkeypatch.setattr("proxy.system.log._limited", {})


LIMITS = [[b"CONFIG", b"GET", b"proto-max-bulk-len"], [b"CONFIG", b"GET", b"client-query-buffer-limit"]]


@pytest.fixture
def node() -> Iterator[FakeNode]:
    with FakeNode() as started:
        yield started


def settings(**more: Any) -> Backends:
    quick = {"connect_timeout": 5.0, "backoff_min": 0.01, "backoff_max": 0.02, "client_name": "", "keepalive": 0.0}
    return configured(backends=quick | more).backends


class Nodes:
    """A connector, and a data path that wants connections of it."""

    def __init__(self, config: Backends) -> None:
        loop = asyncio.get_running_loop()
        self.troubles: list[str] = []
        self.up: list[Backend] = []
        self.faults: list[BaseException] = []
        self.connector = Connector(
            config,
            on_up=lambda backend: self.on_up(backend),
            on_refused=lambda backend, line: self.router.refuse(backend, line),
            on_trouble=self.troubles.append,
            on_fault=lambda what, error: self.faults.append(error),
        )
        self.reactor = Reactor(loop)
        counters = Counters()
        self.router = Router(
            self.reactor, counters, BackendSettings(stall_ns=10**10), connections=1, failover_ns=10**10
        )
        self.router.port = self
        self.exchange = Exchange(
            self.reactor,
            self.router,
            counters,
            loop,
            backoff_min_ns=10**6,
            backoff_max_ns=10**7,
            max_redirections=5,
            texts=errors.EXCHANGE_TEXTS,
        )
        responder = SimpleNamespace(closed=lambda client, reason: None)
        commands = CommandTable(ROWS, SOURCE, counters.metrics)
        self.path = DataPath(self.reactor, self.exchange, counters, commands, responder)
        self.reactor.start()

    def on_up(self, backend: Backend) -> None:
        self.up.append(backend)

    def connect(self, backend: Backend) -> None:
        self.connector.connect(backend)

    def backend_lost(self, backend: Backend, reason: str) -> None:
        self.connector.lost(backend, reason)

    def node_gone(self, node: Node) -> None:
        for backend in node.backends():
            self.connector.forget(backend)

    def want(self, address: Address, proto: int = 2) -> Backend:
        """The one connection to the one node."""
        publish(self.router, topology((WHOLE, [address])))
        self.router.warm(proto)
        (backend,) = self.router.nodes[address].backends()
        return backend

    async def stop(self) -> None:
        await self.connector.stop()
        self.router.close()
        self.exchange.parking.stop()
        self.reactor.stop()


def run(config: Backends, scene: Callable[[Nodes], Awaitable[None]]) -> None:
    """The scene; checks that stop() leaves no task."""

    async def play() -> None:
        nodes = Nodes(config)
        try:
            await scene(nodes)
        finally:
            await nodes.stop()
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(play())


@pytest.mark.parametrize(
    ("proto", "config", "handshake"),
    [
        (2, {}, [[b"PING"]]),
        (2, {"client_name": "me"}, [[b"CLIENT", b"SETNAME", b"me"]]),
        (2, {"password": "p"}, [[b"AUTH", b"p"]]),
        (2, {"username": "u", "password": "p"}, [[b"AUTH", b"u", b"p"]]),
        (3, {}, [[b"HELLO", b"3"]]),
        (
            3,
            {"username": "u", "password": "p", "client_name": "me"},
            [[b"HELLO", b"3", b"AUTH", b"u", b"p"], [b"CLIENT", b"SETNAME", b"me"]],
        ),
        (3, {"password": "p"}, [[b"HELLO", b"3", b"AUTH", b"default", b"p"]]),
    ],
)
def test_handshake(node: FakeNode, proto: int, config: dict[str, Any], handshake: list[list[bytes]]) -> None:
    async def scene(nodes: Nodes) -> None:
        backend = nodes.want(Address(HOST, node.port), proto)
        await until(lambda: nodes.up == [backend])
        assert node.received == [*handshake, *LIMITS]
        assert backend.state == BackendState.UP
        assert nodes.troubles == []

    run(settings(**config), scene)


@pytest.mark.parametrize("proto", [2, 3])
@pytest.mark.parametrize(
    ("name", "command", "line"),
    [
        ("me", "CLIENT SETNAME", b"-NOPERM User u has no permissions to run the 'client|setname' command\r\n"),
        ("me", "CLIENT SETNAME", b"-ERR unknown command 'CLIENT', with args beginning with:\r\n"),
        ("", "PING", b"-NOPERM User default has no permissions to run the 'ping' command\r\n"),
    ],
)
def test_what_can_be_done_without(node: FakeNode, proto: int, name: str, command: str, line: bytes) -> None:
    """A user that may not name itself serves."""
    node.on(command, line)

    async def scene(nodes: Nodes) -> None:
        backend = nodes.want(Address(HOST, node.port), proto)
        await until(lambda: nodes.up == [backend])
        assert nodes.troubles == []

    run(settings(client_name=name), scene)


@pytest.mark.parametrize(("reply", "number"), [(b":77\r\n", 77), (b"-NOPERM no\r\n", 0)])
def test_a_lease_is_told_who_it_is_at_the_node(node: FakeNode, reply: bytes, number: int) -> None:
    node.on("CLIENT", reply)

    async def scene(nodes: Nodes) -> None:
        nodes.want(Address(HOST, node.port))
        (known,) = nodes.router.nodes.values()
        lease = nodes.router.lease(known, 2)
        lease.state = BackendState.CONNECTING
        nodes.connector.connect(lease)
        await until(lambda: lease in nodes.up)
        assert node.seen("CLIENT") == [[b"CLIENT", b"ID"]]  # no shared connection asks
        assert lease.client_id == number

    run(settings(), scene)


def test_a_refused_handshake_is_tried_again(node: FakeNode, caplog: pytest.LogCaptureFixture) -> None:
    node.on("AUTH", b"-WRONGPASS no\r\n")

    async def scene(nodes: Nodes) -> None:
        backend = nodes.want(Address(HOST, node.port))
        await until(lambda: len(node.seen("AUTH")) >= 3)
        assert not nodes.up
        assert "connect" in nodes.troubles
        assert nodes.connector.troubles == {f"{HOST}:{node.port}": "AUTH: WRONGPASS no"}
        node.on("AUTH", b"+OK\r\n")
        await until(lambda: nodes.up == [backend])
        assert nodes.connector.troubles == {}

    run(settings(password="s3cret"), scene)
    assert "cannot connect to node" in caplog.text
    assert "s3cret" not in caplog.text


@pytest.mark.parametrize("more", [b"", b" + cluster connections"])
def test_a_node_that_takes_no_more_clients(node: FakeNode, more: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """The shared connection is tried again; who leases one is told at once."""
    node.on("CLIENT SETNAME", b"-ERR max number of clients%b reached\r\n" % more)

    async def scene(nodes: Nodes) -> None:
        backend = nodes.want(Address(HOST, node.port))
        await until(lambda: len(node.seen("CLIENT")) >= 3)
        failures = backend.node.connect_failures
        lease = nodes.router.lease(backend.node, 2)
        lease.state = BackendState.CONNECTING
        nodes.connector.connect(lease)
        await until(lambda: lease.state == BackendState.CLOSED)
        assert backend.node.connect_failures > failures
        node.on("CLIENT SETNAME", b"+OK\r\n")
        await until(lambda: nodes.up == [backend])

    run(configured(backends={"client_name": "me", "backoff_min": 0.01, "backoff_max": 0.02}).backends, scene)
    reasons = {vars(record)["fields"]["reason"] for record in caplog.records if "cannot connect" in record.message}
    assert reasons == {f"ERR max number of clients{more.decode()} reached"}


@pytest.mark.parametrize("answer", [b"$1000000\r\n" + b"x" * 100_000, b"*1000000000\r\n:1\r\n" + b"$-1\r\n" * 20_000])
def test_a_handshake_has_a_bound(answer: bytes, node: FakeNode, caplog: pytest.LogCaptureFixture) -> None:
    """It is read on the data path's loop: a broken node must not hold up the clients of all the others."""
    node.on("CLIENT SETNAME", answer)

    async def scene(nodes: Nodes) -> None:
        backend = nodes.want(Address(HOST, node.port))
        await until(lambda: "connect" in nodes.troubles)
        node.on("CLIENT SETNAME", b"+OK\r\n")
        await until(lambda: backend in nodes.up)

    run(configured(backends={"client_name": "me"}).backends, scene)
    failures = [vars(record)["fields"] for record in caplog.records if "cannot connect" in record.message]
    assert [one["reason"] for one in failures] == ["its answers to the handshake are too long"]


def test_a_lost_connection_is_made_again(node: FakeNode) -> None:
    async def scene(nodes: Nodes) -> None:
        backend = nodes.want(Address(HOST, node.port))
        await until(lambda: len(nodes.up) == 1)
        node.drop_connections()
        await until(lambda: len(nodes.up) == 2)
        assert backend.state == BackendState.UP
        assert nodes.troubles == ["lost"]

    run(settings(), scene)


def test_one_that_is_closed_while_it_is_made(node: FakeNode, caplog: pytest.LogCaptureFixture) -> None:
    """Nobody wants it any more: no attempt, no word about it."""
    node.on("PING", SILENCE).on("CONFIG", SILENCE)

    async def scene(nodes: Nodes) -> None:
        backend = nodes.want(Address(HOST, node.port))
        await until(lambda: node.seen("PING"))
        backend.close()
        node.drop_connections()
        await until(lambda: len(asyncio.all_tasks()) == 1)
        assert (len(node.seen("PING")), nodes.troubles) == (1, [])

    run(settings(), scene)
    assert caplog.records == []


class TestBreaker:
    """One attempt at a time at a node that cannot be reached, for all connections to it."""

    def test_one_probe_at_a_time_and_the_first_success_is_for_all(self, node: FakeNode) -> None:
        node.on("PING", SILENCE).on("HELLO", SILENCE).on("CONFIG", SILENCE)

        async def scene(nodes: Nodes) -> None:
            address = Address(HOST, node.port)
            one = nodes.want(address)
            nodes.router.warm(3)
            await until(lambda: "connect" in nodes.troubles)
            known = nodes.router.nodes[address]
            two = next(backend for backend in known.backends() if backend is not one)
            await until(lambda: two.state == BackendState.BACKOFF)
            assert known.down
            assert known.figures()["down_since_ns"] > 0
            opened = nodes.connector._breakers.open(known.label)
            assert opened is not None
            most = 0
            while opened.failures < 5:
                dialled = [backend.state for backend in known.backends()].count(BackendState.CONNECTING)
                most = max(most, dialled)
                await asyncio.sleep(0.002)
            assert most == 1
            lease = nodes.router.lease(known, 2)  # nobody dials for it
            lease.state = BackendState.CONNECTING
            failures = known.connect_failures
            nodes.connector.connect(lease)
            await until(lambda: lease.state == BackendState.CLOSED)
            assert known.connect_failures - failures <= 1
            node.on("PING", b"+PONG\r\n").on("HELLO", b"%0\r\n").on("CONFIG", b"-ERR no\r\n")
            await until(lambda: len(nodes.up) == 2)
            assert not known.down
            assert nodes.connector._breakers.open(known.label) is None

        run(settings(connect_timeout=0.03), scene)

    def test_a_node_that_lets_go_of_every_connection(self, node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
        """The pauses grow although each attempt succeeds, and start over when a connection has lived."""
        monkeypatch.setattr(module, "_SHORT_LIFE_S", 60.0)  # no connection of a machine that stands still has lived

        async def scene(nodes: Nodes) -> None:
            backend = nodes.want(Address(HOST, node.port))
            for lost in range(4):
                await until(lambda lost=lost: len(nodes.up) == lost + 1)
                node.drop_connections()
                await until(lambda lost=lost: nodes.troubles.count("lost") == lost + 1)
                opened = nodes.connector._breakers.open(backend.node.label)
                assert opened is not None
                assert opened.failures == lost + 1
                assert backend.node.down
            await until(lambda: len(nodes.up) == 5)
            nodes.connector._up_since[backend] -= 100.0
            node.drop_connections()
            await until(lambda: len(nodes.up) == 6)
            assert opened.failures == 4
            assert nodes.connector._breakers._of == {}

        run(settings(), scene)

    def test_a_refused_handshake_holds_up_no_other_protocol(self, node: FakeNode) -> None:
        node.on("HELLO", b"-NOPROTO sorry, this protocol version is not supported.\r\n")

        async def scene(nodes: Nodes) -> None:
            address = Address(HOST, node.port)
            one = nodes.want(address, 3)
            await until(lambda: len(node.seen("HELLO")) >= 3)
            assert nodes.connector._breakers.open(one.node.label) is None
            nodes.router.warm(2)
            await until(lambda: [backend.proto for backend in nodes.up] == [2])
            assert one.state != BackendState.UP

        run(settings(), scene)

    def test_a_connection_that_breaks_holds_up_no_other(self, node: FakeNode) -> None:
        """Whoever can make a node close a connection must not keep others from having theirs."""

        async def scene(nodes: Nodes) -> None:
            one = nodes.want(Address(HOST, node.port))
            await until(lambda: nodes.up == [one])
            node.on("HELLO", Cut())
            nodes.router.warm(3)
            await until(lambda: len(node.seen("HELLO")) >= 4)
            assert nodes.connector._breakers.open(one.node.label) is None
            assert not one.node.down
            lease = nodes.router.lease(one.node, 2)
            lease.state = BackendState.CONNECTING
            nodes.connector.connect(lease)
            await until(lambda: lease in nodes.up)
            node.on("HELLO", b"%0\r\n")
            await until(lambda: len(nodes.up) == 3)

        run(settings(), scene)

    def test_nothing_is_kept_of_a_node_that_nobody_wants(self, node: FakeNode) -> None:
        port = free_port()

        async def scene(nodes: Nodes) -> None:
            nodes.want(Address(HOST, port))
            await until(lambda: nodes.connector._breakers.open(f"{HOST}:{port}"))
            nodes.want(Address(HOST, node.port))
            await until(lambda: len(nodes.up) == 1)
            await until(lambda: nodes.connector._breakers._of == {})
            assert nodes.connector._tasks == {}
            assert nodes.connector._failures == {}
            assert nodes.connector.troubles == {}

        run(settings(), scene)


class TestNewSettings:
    def test_a_long_wait_ends(self) -> None:
        port = free_port()

        async def scene(nodes: Nodes) -> None:
            backend = nodes.want(Address(HOST, port))
            await until(lambda: backend.state == BackendState.BACKOFF)
            with FakeNode(port=port):
                nodes.connector.reconfigure(settings())
                await until(lambda: nodes.up == [backend])

        run(settings(backoff_min=3600.0, backoff_max=3600.0), scene)

    def test_a_silent_handshake_ends(self, node: FakeNode) -> None:
        node.on("PING", SILENCE)

        async def scene(nodes: Nodes) -> None:
            backend = nodes.want(Address(HOST, node.port))
            await until(lambda: node.seen("PING"))
            begun_s = time.monotonic()
            nodes.connector.reconfigure(settings(connect_timeout=3600.0, client_name="new"))
            await until(lambda: nodes.up == [backend])
            assert time.monotonic() - begun_s < 3.0
            first, second = node.sessions  # (the rest of the first handshake may be read later, or not at all)
            assert (first.commands[0], second.commands) == ([b"PING"], [[b"CLIENT", b"SETNAME", b"new"], *LIMITS])
            await until(lambda: first.sock.fileno() == -1)

        run(settings(connect_timeout=3600.0), scene)

    def test_what_is_up_stays(self, node: FakeNode) -> None:
        async def scene(nodes: Nodes) -> None:
            backend = nodes.want(Address(HOST, node.port))
            await until(lambda: nodes.up)
            nodes.connector.reconfigure(settings(client_name="new"))
            await asyncio.sleep(0.05)
            assert nodes.up == [backend]
            assert node.received == [[b"PING"], *LIMITS]

        run(settings(), scene)


def test_renewed_connections_leave_no_trace(node: FakeNode) -> None:
    async def scene(nodes: Nodes) -> None:
        nodes.want(Address(HOST, node.port))
        for turn in range(20):
            await until(lambda turn=turn: len(nodes.up) == turn + 1)  # type: ignore[misc]
            nodes.router.renew()  # nobody forgets the old ones
            nodes.router.warm(2)
        await until(lambda: len(nodes.up) == 21)
        assert len(nodes.connector._up_since) <= 2

    run(settings(), scene)


class TestFaults:
    """An exception of our own code in a task ends neither the worker nor the wish for the connection."""

    def test_an_attempt_that_raises_is_made_again(self, node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
        broken = iter([True, True, False])
        commands = Connector.commands

        def now_and_then(self: Connector, backend: Backend) -> list[tuple[str, ...]]:
            if next(broken):
                raise ZeroDivisionError
            return commands(self, backend)

        monkeypatch.setattr(Connector, "commands", now_and_then)

        async def scene(nodes: Nodes) -> None:
            backend = nodes.want(Address(HOST, node.port))
            await until(lambda: nodes.faults)
            assert backend.state == BackendState.BACKOFF
            await until(lambda: nodes.up == [backend])
            assert [type(error) for error in nodes.faults] == [ZeroDivisionError] * 2
            assert nodes.connector._tasks == {}

        run(settings(), scene)

    def test_what_is_done_with_a_connection_raises(self, node: FakeNode) -> None:
        async def scene(nodes: Nodes) -> None:
            nodes.on_up = lambda backend: 1 / 0  # type: ignore[assignment, method-assign]
            backend = nodes.want(Address(HOST, node.port))
            await until(lambda: nodes.faults)
            assert backend.state == BackendState.UP
            await asyncio.sleep(0.05)
            assert (len(nodes.faults), len(node.sessions)) == (1, 1)

        run(settings(), scene)


class TestLimits:
    """The smallest of all the nodes that count; what one does not tell counts for nothing."""

    def test_of_a_handshake(self, node: FakeNode) -> None:
        def told(session: Session, words: list[bytes]) -> bytes:
            return array(bulk(words[2]), bulk(b"%d" % (2 << 20 if words[2] == b"proto-max-bulk-len" else 5 << 20)))

        node.on("CONFIG", told)

        async def scene(nodes: Nodes) -> None:
            nodes.want(Address(HOST, node.port))
            await until(lambda: nodes.up)
            assert nodes.connector.limits([node.address]) == (2 << 20, 5 << 20)
            nodes.connector.learn_limits({node.address: (0, 0), "other:1": (3 << 20, 4 << 20)})
            assert nodes.connector.limits([node.address, "other:1"]) == (2 << 20, 4 << 20)
            nodes.connector.learn_limits({node.address: (8 << 20, 8 << 20)})
            assert nodes.connector.limits([node.address]) == (8 << 20, 8 << 20)
            assert nodes.connector.limits(["other:1"]) == (0, 0)  # was forgotten

        run(settings(), scene)
