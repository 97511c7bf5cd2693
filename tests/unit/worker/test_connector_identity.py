"""Servers that are not the node whose address they have."""

from __future__ import annotations

import pytest

from proxy.cluster.topology import Address
from proxy.embedded import HOST
from proxy.forward.backend import BackendState
from tests.support.fake_node import FakeNode
from tests.support.raw import array, bulk
from tests.unit.worker.scene import until
from tests.unit.worker.test_connector import Nodes, run, settings


@pytest.mark.parametrize(
    ("reply", "taken"),
    [
        (bulk(b"a" * 40), True),
        (bulk(b"b" * 40), False),
        (b"-ERR This instance has cluster support disabled\r\n", False),
        (b"-NOPERM no\r\n", True),
        (b"-ERR Unknown subcommand or wrong number of arguments for 'MYID'\r\n", True),
    ],
)
def test_another_server_at_a_nodes_address(
    node: FakeNode, reply: bytes, taken: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Its acknowledged writes would be lost. A new id is known when the topology is."""
    node.on("CLUSTER MYID", reply)
    address = Address(HOST, node.port)

    async def scene(nodes: Nodes) -> None:
        nodes.connector.ids = {str(address): "a" * 40}
        backend = nodes.want(address)
        if not taken:
            await until(lambda: len(node.seen("CLUSTER")) >= 2)
            assert (nodes.up, backend.node.up) == ([], False)
            assert "connect" in nodes.troubles
            nodes.connector.ids = {str(address): ""}
        await until(lambda: nodes.up == [backend])
        lease = nodes.router.lease(backend.node, 2)
        lease.state = BackendState.CONNECTING
        node.on("CLIENT", b":77\r\n")
        nodes.connector.ids = {str(address): "a" * 40}
        node.on("CLUSTER MYID", bulk(b"a" * 40))
        nodes.connector.connect(lease)
        await until(lambda: lease in nodes.up)
        assert lease.client_id == 77

    run(settings(), scene)
    assert ("another server has its address" in str([vars(one).get("fields") for one in caplog.records])) is not taken


@pytest.mark.parametrize(
    ("command", "wrong", "proto"),
    [
        ("AUTH", b"+OK\r\n" * 3, 2),  # all answers behind it come too late by two
        ("CONFIG", array(b":1\r\n") * 2, 2),
        ("CLUSTER MYID", array(bulk(b"a" * 40)), 2),
        ("CLUSTER MYID", b":1\r\n", 2),
        ("CLUSTER MYID", bulk(b"a" * 40) + b"+OK\r\n", 2),
        ("CLUSTER MYID", bulk(b"a" * 40) + b"$5\r\nxx", 2),
        ("CLUSTER MYID", bulk(b"a" * 40) + b"nonsense\r\n", 2),
        ("CLUSTER MYID", bulk(b"a" * 40) + b">2\r\n+in", 3),  # it was not asked to push
    ],
)
def test_answers_beside_the_question(node: FakeNode, command: str, wrong: bytes, proto: int) -> None:
    """What a node says beyond the handshake would be taken for the answer to a client's command."""
    right = {"AUTH": b"+OK\r\n", "CONFIG": array(), "CLUSTER MYID": bulk(b"a" * 40)}
    for name, reply in (right | {command: wrong}).items():
        node.on(name, reply)
    address = Address(HOST, node.port)

    async def scene(nodes: Nodes) -> None:
        nodes.connector.ids = {str(address): "a" * 40}
        backend = nodes.want(address, proto)
        await until(lambda: nodes.troubles or nodes.up)
        assert (nodes.up, backend.node.up) == ([], False)
        node.on(command, right[command])
        await until(lambda: nodes.up == [backend])

    run(settings(password="p"), scene)


def test_a_lease_whose_number_is_none(node: FakeNode) -> None:
    async def scene(nodes: Nodes) -> None:
        shared = nodes.want(Address(HOST, node.port))
        await until(lambda: nodes.up == [shared])
        node.on("CLIENT", b"+OK\r\n")
        (known,) = nodes.router.nodes.values()
        lease = nodes.router.lease(known, 2)
        lease.state = BackendState.CONNECTING
        nodes.connector.connect(lease)
        await until(lambda: nodes.connector.troubles or lease in nodes.up)
        assert nodes.connector.troubles == {node.address: "CLIENT ID: answered as something else"}

    run(settings(), scene)
