from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from pydantic import SecretStr

from proxy.cluster.topology import Address
from proxy.config.models import from_seeds
from proxy.control import credentials as module
from proxy.control.control_plane import ControlPlane
from proxy.control.credentials import Tried, tried
from proxy.control.node_client import NodeClientSettings
from proxy.embedded import HOST, free_port, wait_for
from tests.support.fake_node import SILENCE, FakeNode
from tests.support.refresher import at, closed

WRONGPASS = b"-WRONGPASS invalid username-password pair or user is disabled.\r\n"
NOPERM = b"-NOPERM this user has no permissions to run the 'cluster' command\r\n"


@pytest.fixture
def start_node() -> Iterator[Callable[[], FakeNode]]:
    with ExitStack() as stack:
        yield lambda: stack.enter_context(FakeNode())


@pytest.fixture
def nodes(start_node: Callable[[], FakeNode]) -> list[FakeNode]:
    return [start_node() for _ in range(12)]


def asked(*nodes: FakeNode | Address, password: str = "new", name: str = "") -> Tried:
    """The answer; checks that no task is left."""

    async def body() -> Tried:
        addresses = [node if isinstance(node, Address) else at(node) for node in nodes]
        told = await tried(addresses, NodeClientSettings("", password, 5.0), name)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return told

    return asyncio.run(body())


def test_taken(nodes: list[FakeNode]) -> None:
    assert asked(*nodes) == ({}, True, {})


def test_refused_by_all(nodes: list[FakeNode]) -> None:
    for node in nodes:
        node.on("AUTH", WRONGPASS)
    assert asked(*nodes) == ({str(at(node)): WRONGPASS[1:-2].decode() for node in nodes}, False, {})
    assert all(node.seen("AUTH") for node in nodes)
    wait_for(lambda: all(closed(node) for node in nodes), 5, "the connections are closed")


def test_those_in_force(nodes: list[FakeNode]) -> None:
    """Asked by a successor whose seeds do not let it in; a reload with the same ones goes on, and knows of it."""
    settings = from_seeds([nodes[0].address])
    settings = settings.model_copy(
        update={"cluster": settings.cluster.model_copy(update={"password": SecretStr("old")})}
    )

    async def body() -> tuple[str, Tried]:
        plane = ControlPlane(settings, lambda message: None)
        return await plane.refused(), await plane.try_login(settings)

    nodes[0].on("AUTH", WRONGPASS)
    line = WRONGPASS[1:-2].decode()
    assert asyncio.run(body()) == (line, Tried({str(at(nodes[0])): line}, True))
    nodes[0].on("AUTH", b"+OK\r\n")
    assert asyncio.run(body()) == ("", Tried({}, True))
    nodes[0].on("AUTH", b"-ERR max number of clients reached\r\n")
    assert asyncio.run(body()) == ("", Tried({}, True))


def test_a_rotation_under_way(nodes: list[FakeNode]) -> None:
    """Node by node: whoever takes the new password does not hide those that do not."""
    for node in nodes[1:-1]:
        node.on("AUTH", WRONGPASS)
    told = asked(*nodes)
    assert told.taken
    assert list(told.refused) == [str(at(node)) for node in nodes[1:-1]]


def test_none_is_told_where_one_is_wanted(nodes: list[FakeNode]) -> None:
    nodes[0].on("PING", b"-NOAUTH Authentication required.\r\n")
    assert asked(nodes[0], password="").refused == {str(at(nodes[0])): "NOAUTH Authentication required."}
    assert not nodes[0].seen("AUTH")


def test_a_user_that_may_not_learn_the_topology(nodes: list[FakeNode]) -> None:
    nodes[0].on("CLUSTER SHARDS", NOPERM)
    assert asked(nodes[0]).taken
    nodes[0].on("CLUSTER SLOTS", NOPERM)
    ((_, line),) = asked(nodes[0]).refused.items()
    assert line.startswith("NOPERM this user")


def test_what_the_data_path_says(nodes: list[FakeNode]) -> None:
    """A name that the nodes do not take would be the end of every connection; one that may not be given is missed."""
    nodes[0].on("CLIENT SETNAME", b"-NOPERM this user has no permissions to run the 'client|setname' command\r\n")
    nodes[1].on("CLIENT SETNAME", b"-ERR Client names cannot contain spaces\r\n")
    nodes[2].on("CLIENT SETNAME", b"-BUSY Redis is busy running a script.\r\n")
    assert asked(*nodes[:3], name="me") == ({str(at(nodes[1])): "ERR Client names cannot contain spaces"}, True, {})
    assert nodes[0].seen("CLIENT") == [[b"CLIENT", b"SETNAME", b"me"]]
    assert asked(*nodes[:3]).refused == {}


@pytest.mark.parametrize("kind", ["", " + cluster connections"])
def test_a_node_that_takes_no_more_clients_says_nothing(nodes: list[FakeNode], kind: str) -> None:
    line = f"ERR max number of clients{kind} reached"
    nodes[0].on("AUTH", b"-%b\r\n" % line.encode())
    assert asked(nodes[0]) == ({}, False, {str(at(nodes[0])): line})


def test_no_answer_says_nothing(nodes: list[FakeNode], monkeypatch: pytest.MonkeyPatch) -> None:
    """But those that do answer are believed, and no number of silent ones makes it last longer."""
    monkeypatch.setattr(module, "WITHIN_S", 1.0)
    nobody = Address(HOST, free_port())
    nodes[0].on("AUTH", WRONGPASS)
    nodes[1].on("AUTH", b"HTTP/1.1 400 Bad Request\r\n")
    for node in nodes[2:]:
        node.on("AUTH", SILENCE)
    started = time.monotonic()
    assert asked() == ({}, False, {})
    assert asked(nobody) == ({}, False, {str(nobody): "Connection refused"})
    told = asked(nobody, *nodes[1:])
    assert (told.refused, told.taken) == ({}, False)
    assert list(told.unsaid) == [str(nobody), *(str(at(node)) for node in nodes[1:])]
    assert told.unsaid[str(at(nodes[-1]))] == "no answer in time"
    told = asked(nobody, *nodes)
    assert (told.refused, told.taken) == ({str(at(nodes[0])): WRONGPASS[1:-2].decode()}, False)
    assert time.monotonic() - started < 8
    wait_for(lambda: all(closed(node) for node in nodes), 5, "the connections are closed")
