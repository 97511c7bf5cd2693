"""A cluster that is down by its own nodes' word: cluster_state:fail, with which they refuse every command."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from proxy.cluster.topology import Topology
from proxy.control.topology_refresh import TopologyRefresher
from tests.support.fake_node import FakeNode
from tests.support.refresher import refreshed, run, settings, tell, until


@pytest.fixture
def nodes() -> Iterator[list[FakeNode]]:
    with ExitStack() as stack:
        yield [stack.enter_context(FakeNode(name * 40)) for name in "abc"]


def all_tell(nodes: list[FakeNode], **more: str) -> None:
    for node in nodes:
        tell(node, *nodes, **more)  # type: ignore[arg-type]


def test_it_is_noticed_and_over_by_itself(nodes: list[FakeNode], caplog: pytest.LogCaptureFixture) -> None:
    all_tell(nodes)

    async def scene(refresher: TopologyRefresher, published: list[Topology]) -> None:
        assert await refresher.ready(5.0)
        assert refresher.down_s == 0
        all_tell(nodes, state="fail")
        assert await refreshed(refresher) == "unchanged"
        assert 0 < refresher.down_s < 5
        first_s = refresher.down_s
        assert await refreshed(refresher) == "unchanged"
        assert refresher.down_s > first_s  # since the first time
        all_tell(nodes)
        await until(lambda: not refresher.down_s, 3.0)  # nobody gives a sign of it

    run(settings(*nodes), scene)
    told = [record.message for record in caplog.records if "the nodes say" in record.message]
    assert told == ["the nodes say that the cluster is down", "the nodes say that the cluster works again"]


@pytest.mark.parametrize("seed", range(4))
def test_one_node_that_is_cut_off_is_not_believed(nodes: list[FakeNode], seed: int) -> None:
    all_tell(nodes)
    tell(nodes[0], *nodes, state="fail")

    async def scene(refresher: TopologyRefresher, published: list[Topology]) -> None:
        assert await refresher.ready(5.0)
        for _ in range(6):
            assert await refreshed(refresher) == "unchanged"
            assert refresher.down_s == 0
            assert not published[-1].down

    run(settings(*nodes), scene, seed=seed)


def test_the_newest_of_them_is_taken(nodes: list[FakeNode]) -> None:
    """One that is behind is no witness."""
    all_tell(nodes, state="fail")
    for n, node in enumerate(nodes):
        tell(node, *nodes, epoch=7 + n, state="fail" if n else "ok")

    async def scene(refresher: TopologyRefresher, published: list[Topology]) -> None:
        assert await refresher.ready(5.0)
        await until(lambda: refresher.topology is not None and refresher.topology.epoch == 9)
        assert await refreshed(refresher) == "unchanged"
        assert refresher.down_s > 0

    run(settings(nodes[2], nodes[1], nodes[0]), scene)
