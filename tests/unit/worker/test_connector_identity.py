"""Servers that are not the node whose address they have."""

from __future__ import annotations

import pytest

from proxy.cluster.topology import Address
from proxy.embedded import HOST
from proxy.forward.backend import BackendState
from tests.support.fake_node import FakeNode
from tests.support.raw import bulk
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
