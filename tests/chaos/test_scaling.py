"""Shards come and go by redis-cli --cluster under load: no client sees an error, and what left is forgotten."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from proxy.embedded import EmbeddedNode, wait_for
from tests.support.changing import REDIS_CLI, ChangingCluster
from tests.support.proxyd import ProxyDaemon
from tests.support.workload import Workload

MOVED = 60  # slots, from 0
StartProxy = Callable[..., ProxyDaemon]
pytestmark = pytest.mark.skipif(REDIS_CLI is None, reason="redis-cli is not on PATH")


def reshard(cluster: ChangingCluster, source: EmbeddedNode, target: EmbeddedNode, slots: int) -> None:
    whose = ("--cluster-from", source.id, "--cluster-to", target.id, "--cluster-slots", str(slots))
    cluster.redis_cli("reshard", cluster.nodes[0].address, *whose, "--cluster-yes", "--cluster-pipeline", "5")


def rebalance(cluster: ChangingCluster, node: EmbeddedNode, weight: float) -> None:
    wait_for(lambda: cluster.settled(), 30, "redis-cli may begin")
    words = ("--cluster-weight", f"{node.id}={weight}", "--cluster-threshold", "1", "--cluster-pipeline", "5")
    cluster.redis_cli("rebalance", cluster.nodes[0].address, *words)


@pytest.mark.parametrize("protocol", [2, pytest.param(3, marks=pytest.mark.long)])
def test_scale_out_and_in(protocol: int, server: str, start_proxy: StartProxy) -> None:
    with ChangingCluster(server, replicas=0, node_timeout_ms=1500) as cluster:
        daemon = start_proxy(cluster.seeds, {"cluster": {"refresh_interval": "1s"}})
        first = cluster.nodes[0]
        with Workload(daemon.address, protocols=(protocol,), hot=range(MOVED)) as load:
            primary = cluster.add()
            replica = cluster.add(replica_of=primary)
            load.advance(20)
            reshard(cluster, first, primary, MOVED)
            wait_for(lambda: daemon.metric("redis_proxy_node_up", node=primary.address), 10, "the newcomer is used")
            load.advance(20)
            rebalance(cluster, primary, 0.02)  # another 40 or so
            assert len(cluster.slots_of(primary)) > MOVED
            load.advance(20)
            cluster.remove(replica)  # first: else it goes over to another primary, in the middle of the last move
            load.advance(20)
            rebalance(cluster, primary, 0)
            assert cluster.slots_of(primary) == []
            load.advance(20)
            cluster.remove(primary)
            load.advance(20)
            gone = (f'"{primary.address}"', f'"{replica.address}"')
            wait_for(lambda: not any(name in sample for name in gone for sample in daemon.metrics()), 10, "forgotten")
            assert daemon.http("/api/state")[1].count(primary.address) == 0
            for node in (primary, replica):
                ours = [line for line in node.command("CLIENT", "LIST").splitlines() if "name=redis-proxy" in line]
                assert ours == []
            load.advance(20)
        load.check(cluster)
        assert load.told.longest_s < 3.0
        assert daemon.metric("redis_proxy_redirections_total", kind="moved") > 0
        cluster.wait_ok()
