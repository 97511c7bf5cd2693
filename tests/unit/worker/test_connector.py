"""Connections to nodes, made for a data path of the test's own: handshakes, backoff, new settings."""

from __future__ import annotations

import asyncio
import random
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
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
from proxy.resp import errors
from proxy.worker.connector import BackendPool, PoolSettings, keepalive
from tests.support.fake_node import SILENCE, FakeNode
from tests.support.refresher import at, until


@pytest.fixture(autouse=True)
def every_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """None is left out because a test before had the same address."""
    monkeypatch.setattr("proxy.system.log._limited", {})


LIMITS = [[b"CONFIG", b"GET", b"proto-max-bulk-len"], [b"CONFIG", b"GET", b"client-query-buffer-limit"]]


@pytest.fixture
def node() -> Iterator[FakeNode]:
    with FakeNode() as started:
        yield started


def settings(**more: Any) -> PoolSettings:
    return PoolSettings(**({"connect_timeout_s": 5.0, "backoff_min_s": 0.01, "backoff_max_s": 0.02} | more))


class Nodes:
    """A pool, and a data path that wants connections of it."""

    def __init__(self, config: PoolSettings) -> None:
        loop = asyncio.get_running_loop()
        self.troubles: list[str] = []
        self.up: list[Backend] = []
        self.pool = BackendPool(config, on_up=self.up.append, on_trouble=self.troubles.append, rng=random.Random(1))
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
        self.path = DataPath(self.reactor, self.exchange, counters, CommandTable(ROWS, SOURCE, counters.metrics), None)
        self.reactor.start()

    def connect(self, backend: Backend) -> None:
        self.pool.connect(backend)

    def backend_lost(self, backend: Backend, reason: str) -> None:
        self.pool.lost(backend, reason)

    def node_gone(self, node: Node) -> None:
        for backend in node.backends():
            self.pool.forget(backend)

    def want(self, address: Address, proto: int = 2) -> Backend:
        """The one connection to the one node."""
        self.router.publish([(address, [], [(0, 16383)])])
        self.router.warm(proto)
        (backend,) = self.router.nodes[address].backends()
        return backend

    async def stop(self) -> None:
        await self.pool.stop()
        self.router.close()
        self.exchange.parking.stop()
        self.reactor.stop()


def run(config: PoolSettings, scene: Callable[[Nodes], Awaitable[None]]) -> None:
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
            [[b"HELLO", b"3", b"AUTH", b"u", b"p", b"SETNAME", b"me"]],
        ),
        (3, {"password": "p"}, [[b"HELLO", b"3", b"AUTH", b"default", b"p"]]),
    ],
)
def test_handshake(node: FakeNode, proto: int, config: dict[str, Any], handshake: list[list[bytes]]) -> None:
    async def scene(nodes: Nodes) -> None:
        backend = nodes.want(at(node), proto)
        await until(lambda: nodes.up == [backend])
        assert node.received == [*handshake, *LIMITS]
        assert backend.state == BackendState.UP
        assert nodes.troubles == []

    run(settings(**config), scene)


def test_a_refused_handshake_is_tried_again(node: FakeNode, caplog: pytest.LogCaptureFixture) -> None:
    node.on("AUTH", b"-WRONGPASS no\r\n")

    async def scene(nodes: Nodes) -> None:
        backend = nodes.want(at(node))
        await until(lambda: len(node.seen("AUTH")) >= 3)
        assert not nodes.up
        assert "connect" in nodes.troubles
        node.on("AUTH", b"+OK\r\n")
        await until(lambda: nodes.up == [backend])

    run(settings(password="s3cret"), scene)
    assert "cannot connect to node" in caplog.text
    assert "s3cret" not in caplog.text


def test_a_lost_connection_is_made_again(node: FakeNode) -> None:
    async def scene(nodes: Nodes) -> None:
        backend = nodes.want(at(node))
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
        backend = nodes.want(at(node))
        await until(lambda: node.seen("PING"))
        backend.close()
        node.drop_connections()
        await until(lambda: len(asyncio.all_tasks()) == 1)
        assert (len(node.seen("PING")), nodes.troubles) == (1, [])

    run(settings(), scene)
    assert caplog.records == []


class TestNewSettings:
    def test_a_long_wait_ends(self) -> None:
        port = free_port()

        async def scene(nodes: Nodes) -> None:
            backend = nodes.want(Address(HOST, port))
            await until(lambda: backend.state == BackendState.BACKOFF)
            with FakeNode(port=port):
                nodes.pool.reconfigure(settings())
                await until(lambda: nodes.up == [backend])

        run(settings(backoff_min_s=3600.0, backoff_max_s=3600.0), scene)

    def test_a_silent_handshake_ends(self, node: FakeNode) -> None:
        node.on("PING", SILENCE)

        async def scene(nodes: Nodes) -> None:
            backend = nodes.want(at(node))
            await until(lambda: node.seen("PING"))
            begun_s = time.monotonic()
            nodes.pool.reconfigure(settings(connect_timeout_s=3600.0, client_name="new"))
            await until(lambda: nodes.up == [backend])
            assert time.monotonic() - begun_s < 3.0
            assert node.received == [[b"PING"], *LIMITS, [b"CLIENT", b"SETNAME", b"new"], *LIMITS]
            await until(lambda: node.sessions[0].sock.fileno() == -1)

        run(settings(connect_timeout_s=3600.0), scene)

    def test_what_is_up_stays(self, node: FakeNode) -> None:
        async def scene(nodes: Nodes) -> None:
            backend = nodes.want(at(node))
            await until(lambda: nodes.up)
            nodes.pool.reconfigure(settings(client_name="new"))
            await asyncio.sleep(0.05)
            assert nodes.up == [backend]
            assert node.received == [[b"PING"], *LIMITS]

        run(settings(), scene)


def test_renewed_connections_leave_no_trace(node: FakeNode) -> None:
    async def scene(nodes: Nodes) -> None:
        nodes.want(at(node))
        for turn in range(20):
            await until(lambda turn=turn: len(nodes.up) == turn + 1)  # type: ignore[misc]
            nodes.router.renew()  # nobody forgets the old ones
            nodes.router.warm(2)
        await until(lambda: len(nodes.up) == 21)
        assert len(nodes.pool._up_since) <= 2

    run(settings(), scene)


def test_keepalive() -> None:
    with socket.create_server((HOST, 0)) as listener, socket.create_connection(listener.getsockname()) as sock:
        keepalive(sock, 30.0)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 30
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) == 10
        keepalive(sock, 0.0)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 0
    ours, theirs = socket.socketpair()
    with ours, theirs:
        keepalive(ours, 30.0)
