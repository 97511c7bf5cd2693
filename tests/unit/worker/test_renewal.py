"""Connections that work are not given up before new ones can be made."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from proxy.serve.context import NodePause
from proxy.worker.worker import Worker
from tests.support.fake_node import SILENCE, FakeNode, Session
from tests.unit.worker.scene import Client, Port, configured, run, until

FULL = b"-ERR max number of clients reached\r\n"
QUICK = {"backoff_min": 0.01, "backoff_max": 0.02}


@pytest.fixture
def node() -> Iterator[FakeNode]:
    with FakeNode() as started:
        yield started


def changed(**more: Any) -> Any:
    return configured(backends=QUICK | more)


def of(node: FakeNode, *words: bytes) -> list[Session]:
    """The connections by which the command came."""
    return [session for session in node.sessions if list(words) in session.commands]


def outdated(worker: Worker) -> list[str]:
    """What is told of them."""
    return [name for name, told in worker.status.status(0).nodes.items() if told.outdated]


@pytest.mark.parametrize("line", [FULL, b"-WRONGPASS invalid\r\n", SILENCE])
@pytest.mark.parametrize("change", [{"connections": 2}, {"client_name": "other"}, {"password": "new"}])
def test_no_new_connection_can_be_made(node: FakeNode, change: dict[str, Any], line: Any) -> None:
    """The old one goes on until one can."""
    trial = "AUTH" if "password" in change else "CLIENT SETNAME"
    change = {"connect_timeout": 0.2 if line is SILENCE else 60.0} | change

    async def scene(worker: Worker, port: Port) -> None:
        client = Client(worker)
        assert await client.ask("SET", "k", "1") == b"OK"
        (old,) = of(node, b"SET", b"k", b"1")
        node.on(trial, line)
        worker.apply(changed(**change))
        tried = len(node.sessions)
        await until(lambda: len(node.sessions) > tried + 2)  # again and again
        assert await client.ask("SET", "k", "2") == b"OK"
        assert of(node, b"SET", b"k", b"2") == [old]
        ((_, values),) = worker.status.status(0).nodes.items()
        assert (values.up, values.down_s, values.connections["shared", "up"]) == (True, 0, 1)
        assert outdated(worker) == [node.address]
        node.on(trial, b"+OK\r\n")
        await until(lambda: old.sock.fileno() == -1)
        assert await client.ask("SET", "k", "3") == b"OK"
        assert old not in of(node, b"SET", b"k", b"3")
        await until(lambda: sum(session.sock.fileno() != -1 for session in node.sessions) == worker.router.connections)

    run(configured(backends=QUICK), scene, node.address)


def test_a_connection_that_is_lost_meanwhile_is_made_with_the_new_settings(node: FakeNode) -> None:
    async def scene(worker: Worker, port: Port) -> None:
        client = Client(worker)
        assert await client.ask("SET", "k", "1") == b"OK"
        node.on("CLIENT SETNAME", FULL)
        worker.apply(changed(client_name="other"))
        node.drop_connections()
        await until(lambda: "lost" in port.signs)  # before that a write would be lost with it
        node.on("CLIENT SETNAME", b"+OK\r\n")
        assert await client.ask("SET", "k", "2") == b"OK"
        (new,) = of(node, b"SET", b"k", b"2")
        assert [b"CLIENT", b"SETNAME", b"other"] in new.commands

    run(configured(backends=QUICK), scene, node.address)


def test_other_settings_meanwhile_are_what_counts(node: FakeNode) -> None:
    async def scene(worker: Worker, port: Port) -> None:
        client = Client(worker)
        assert await client.ask("SET", "k", "1") == b"OK"
        (old,) = of(node, b"SET", b"k", b"1")
        node.on("CLIENT SETNAME", SILENCE)
        worker.apply(changed(client_name="first", connect_timeout=60.0))
        await until(lambda: of(node, b"CLIENT", b"SETNAME", b"first"))
        node.on("CLIENT SETNAME", b"+OK\r\n")
        worker.apply(changed(client_name="second", connect_timeout=60.0))
        await until(lambda: old.sock.fileno() == -1)
        assert await client.ask("SET", "k", "2") == b"OK"
        (new,) = of(node, b"SET", b"k", b"2")
        assert [b"CLIENT", b"SETNAME", b"second"] in new.commands
        await until(lambda: all(session.sock.fileno() == -1 for session in of(node, b"CLIENT", b"SETNAME", b"first")))

    run(configured(backends=QUICK), scene, node.address)


def test_nodes_to_be_left_as_they_are(node: FakeNode) -> None:
    async def scene(worker: Worker, port: Port) -> None:
        client = Client(worker)
        assert await client.ask("SET", "k", "1") == b"OK"
        sessions = len(node.sessions)
        worker.apply(changed(client_name="other"), [node.address])
        assert await client.ask("SET", "k", "2") == b"OK"
        assert len(node.sessions) == sessions
        assert outdated(worker) == [node.address]
        worker.apply(changed(client_name="other"), [node.address])  # the next reload finds the same
        assert outdated(worker) == [node.address]
        assert len(node.sessions) == sessions
        worker.apply(changed(client_name="other"))  # and then it takes them
        await until(lambda: not outdated(worker))
        assert await client.ask("SET", "k", "3") == b"OK"
        (new,) = of(node, b"SET", b"k", b"3")
        assert [b"CLIENT", b"SETNAME", b"other"] in new.commands

    run(configured(backends=QUICK), scene, node.address)


def test_a_node_left_as_it_is_that_is_connected_to_anew(node: FakeNode) -> None:
    async def scene(worker: Worker, port: Port) -> None:
        client = Client(worker)
        assert await client.ask("SET", "k", "1") == b"OK"
        worker.apply(changed(client_name="other"), [node.address])
        assert outdated(worker) == [node.address]
        node.drop_connections()
        await until(lambda: "lost" in port.signs)
        assert await client.ask("SET", "k", "2") == b"OK"
        assert outdated(worker) == []

    run(configured(backends=QUICK), scene, node.address)


@pytest.mark.parametrize("first", [True, False], ids=["paused-first", "renewed-first"])
def test_a_paused_node_keeps_its_connections_too(node: FakeNode, first: bool) -> None:
    """Nobody has restarted it: when it is resumed, they are all that it can be reached by."""

    async def scene(worker: Worker, port: Port) -> None:
        client = Client(worker)
        assert await client.ask("SET", "k", "1") == b"OK"
        (old,) = of(node, b"SET", b"k", b"1")
        node.on("CLIENT SETNAME", FULL)
        for paused in (True, False) if first else (False, True):
            if paused:
                worker.node_pauses.obey(NodePause("", "", time.monotonic_ns() + 60_000_000_000, "a:1", 0))
            else:
                worker.apply(changed(client_name="other"))
        for _ in range(3):
            worker._renewal.look()
        assert outdated(worker) == [node.address]
        worker.node_pauses.obey(NodePause("", "", 0, "a:1", 0))
        assert await client.ask("SET", "k", "2") == b"OK"
        assert of(node, b"SET", b"k", b"2") == [old]
        node.on("CLIENT SETNAME", b"+OK\r\n")
        await until(lambda: old.sock.fileno() == -1)
        assert await client.ask("SET", "k", "3") == b"OK"
        assert outdated(worker) == []

    run(configured(backends=QUICK), scene, node.address)
