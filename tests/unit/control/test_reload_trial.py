"""What a reload is told of new addresses and of new seeds before they are put in force."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from pydantic import SecretStr

from proxy.config.models import Settings, from_seeds
from proxy.control.control_plane import ControlPlane
from proxy.control.credentials import Tried
from proxy.embedded import HOST, free_port
from tests.support.fake_node import SILENCE, FakeNode, Shard, shards_reply

WRONGPASS = b"-WRONGPASS invalid username-password pair or user is disabled.\r\n"
LINE = WRONGPASS[1:-2].decode()


@pytest.fixture
def start_node() -> Iterator[Callable[[str], FakeNode]]:
    with ExitStack() as stack:
        yield lambda letter: stack.enter_context(FakeNode(letter * 40))


@pytest.fixture
def nodes(start_node: Callable[[str], FakeNode]) -> list[FakeNode]:
    """Two primaries of one cluster."""
    first, second = start_node("a"), start_node("b")
    shards = [Shard([(0, 99)], [(first, "master")]), Shard([(100, 16383)], [(second, "master")])]
    first.shards = second.shards = shards_reply(shards)
    return [first, second]


def settings(*seeds: FakeNode, **cluster: Any) -> Settings:
    made = from_seeds([seed.address for seed in seeds])
    return made.model_copy(update={"cluster": made.cluster.model_copy(update=cluster)})


def tried(first: Settings, ask: Callable[[ControlPlane], Awaitable[Tried]]) -> Tried:
    """By a control plane that knows the cluster."""

    async def body() -> Tried:
        plane = ControlPlane(first, lambda message: None)
        await plane.start()
        try:
            assert await plane.ready(30.0)
            return await ask(plane)
        finally:
            await plane.stop()

    return asyncio.run(body())


def nowhere() -> str:
    return f"{HOST}:{free_port()}"


def test_addresses(nodes: list[FakeNode]) -> None:
    """As they will be dialled, those that the map does not name, too."""
    first, second = nodes
    lost, other = nowhere(), nowhere()
    before = settings(first)

    def moved(**cluster: Any) -> Tried:
        return tried(before, lambda plane: plane.try_addresses(settings(first, **cluster)))

    assert moved(address_map={first.address: lost}) == (Tried({}, True, {lost: "Connection refused"}))
    both = moved(address_map={first.address: lost, second.address: other})
    assert both == Tried({}, False, dict.fromkeys((lost, other), "Connection refused"))
    assert moved(address_map={first.address: second.address}) == Tried({}, True)
    assert moved() == Tried({}, False)  # nothing is changed: nobody is asked
    second.on("PING", WRONGPASS)
    assert moved(address_map={first.address: lost}).refused  # it can be reached


def test_addresses_that_nobody_can_tell(nodes: list[FakeNode]) -> None:
    first, _ = nodes

    async def ask(plane: ControlPlane) -> Tried:
        for node in nodes:
            node.on("CLUSTER", SILENCE)
        return await plane.try_addresses(settings(first, address_map={first.address: nowhere()}))

    assert tried(settings(first), ask) == Tried({}, False)


def test_what_the_cluster_that_is_left_says(nodes: list[FakeNode], start_node: Callable[[str], FakeNode]) -> None:
    """It does not matter: neither its refusal, nor that nobody would reach it any more."""
    first, second = nodes
    other = start_node("c")
    for node in nodes:
        node.on("AUTH", lambda session, words: WRONGPASS if words[-1] == b"new" else b"+OK\r\n")
    old = settings(first, password=SecretStr("old"))
    new = {"password": SecretStr("new"), "address_map": {first.address: nowhere(), second.address: nowhere()}}
    assert tried(old, lambda plane: plane.try_login(settings(other, **new))) == Tried({}, True)
    assert tried(old, lambda plane: plane.try_addresses(settings(other, **new))) == Tried({}, False)
    stays = tried(old, lambda plane: plane.try_login(settings(second, **new)))
    assert stays == Tried({first.address: LINE, second.address: LINE}, False)
    # One that says nothing may be of either.
    other.on("CLUSTER MYID", b"-ERR unknown subcommand 'MYID'.\r\n")
    assert tried(old, lambda plane: plane.try_login(settings(other, **new))).refused
