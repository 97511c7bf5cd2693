"""Connections to nodes that are known by name, where names hang in the resolver."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from proxy.cluster.topology import Address
from proxy.embedded import HOST
from proxy.forward.backend import BackendState
from tests.support.fake_node import FakeNode
from tests.support.resolver import HANGS, FakeResolver, fake_resolver
from tests.unit.worker.scene import WHOLE, publish, topology, until
from tests.unit.worker.test_connector import Nodes, run, settings


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeResolver]:
    with fake_resolver(monkeypatch) as fake:
        yield fake


def test_names_that_hang_hold_up_no_other(node: FakeNode, resolver: FakeResolver) -> None:
    resolver.answers |= {f"c{i}.test": HANGS for i in range(8)} | {"healthy.test": HOST}

    async def scene(nodes: Nodes) -> None:
        hanging = [Address(f"c{i}.test", 1) for i in range(8)]
        publish(nodes.router, topology((WHOLE, [Address("healthy.test", node.port), *hanging])))
        for known in sorted(nodes.router.nodes.values(), key=lambda known: known.label == f"healthy.test:{node.port}"):
            backend = nodes.router.lease(known, 2)
            backend.state = BackendState.CONNECTING
            nodes.connector.connect(backend)
        await until(lambda: backend in nodes.up)
        assert sorted(set(resolver.asked)) == sorted(resolver.asked)

    run(settings(), scene)


def test_a_name_that_hangs_has_its_last_address(node: FakeNode, resolver: FakeResolver) -> None:
    resolver.answers["kept.test"] = HOST

    async def scene(nodes: Nodes) -> None:
        nodes.want(Address("kept.test", node.port))
        await until(lambda: len(nodes.up) == 1)
        resolver.answers["kept.test"] = HANGS
        node.drop_connections()
        await until(lambda: len(nodes.up) == 2)

    run(settings(connect_timeout=0.5), scene)
