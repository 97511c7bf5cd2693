"""Nodes that come back at other addresses, as in Kubernetes: one after another, or all of them at once."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from proxy.embedded import wait_for
from tests.support.changing import ChangingCluster, Hosts
from tests.support.cluster import spread_keys
from tests.support.proxyd import ProxyDaemon
from tests.support.workload import Workload

StartProxy = Callable[..., ProxyDaemon]
SEED = "seed.test"
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="a mount namespace for the names needs root")


def test_a_rolling_restart_with_new_addresses(server: str, start_proxy: StartProxy, tmp_path: Path) -> None:
    """Each node is drained by a failover, ended, and back elsewhere: no client sees an error, and the
    addresses of before are forgotten."""
    hosts = Hosts(tmp_path, {SEED: ["127.0.0.1"]})
    with ChangingCluster(server, node_timeout_ms=1000) as cluster:
        daemon = start_proxy([f"{SEED}:{cluster.nodes[0].port}"], prefix=hosts.prefix)
        old = {node.address for node in cluster.nodes}
        with Workload(daemon.address) as load:
            for number, node in enumerate(cluster.nodes):
                if cluster.role(node) == "primary":
                    cluster.failover(cluster.replicas_of(node)[0])
                load.advance(20)
                cluster.move(node, f"127.0.0.{number + 2}")
                cluster.wait_ok()
                load.advance(20)
        load.check(cluster)
        assert load.told.longest_s < 3.0
        wait_for(lambda: not any(f'"{gone}"' in name for gone in old for name in daemon.metrics()), 10, "forgotten")


@pytest.mark.long
def test_a_restart_that_nobody_planned(server: str, start_proxy: StartProxy) -> None:
    """Primaries are killed and back elsewhere before anybody takes over. The only errors are those of commands that
    were under way; the gap is the cluster's own (a primary that was restarted takes nothing for 2 s)."""
    with ChangingCluster(server, node_timeout_ms=5000) as cluster:
        daemon = start_proxy(cluster.seeds)
        with Workload(daemon.address) as load:
            for number, node in enumerate(cluster.primaries()):
                cluster.move(node, f"127.0.0.{number + 2}")
                cluster.wait_ok()
                load.advance(20)
        texts = {error.partition(": ")[2] for error in load.told.errors}
        assert all("may have been executed" in text for text in texts), texts
        assert not load.told.ended
        assert load.told.longest_s < 5.0


@pytest.mark.long
def test_two_nodes_change_places(server: str, start_proxy: StartProxy) -> None:
    """Addresses are given to other nodes: a primary and another's replica come back where the other was."""
    with ChangingCluster(server, node_timeout_ms=5000) as cluster:
        daemon = start_proxy(cluster.seeds)
        one, other = cluster.primaries()[0], cluster.replicas_of(cluster.primaries()[1])[0]
        with daemon.raw(timeout_s=30) as raw:
            for key in spread_keys():
                assert raw.command("SET", key, "v") == b"+OK\r\n"
            for node in (one, other):
                cluster.save(node)
            for node in (one, other):
                cluster.kill(node)
            one.port, other.port = other.port, one.port
            cluster.begin([one, other])
            cluster.await_nodes([one, other])
            cluster.introduce(one, [node for node in cluster.nodes if node is not one])
            cluster.introduce(other, [node for node in cluster.nodes if node is not other])
            cluster.wait_ok()
            for key in spread_keys():
                assert raw.command("INCR", f"{{{key}}}n") == b":1\r\n"
                assert raw.command("GET", key) == b"$1\r\nv\r\n"


@pytest.mark.parametrize(
    "endpoint", ["hostname", *(pytest.param(less, marks=pytest.mark.long) for less in ("ip", "unknown-endpoint"))]
)
def test_all_nodes_move_at_once(endpoint: str, server: str, start_proxy: StartProxy, tmp_path: Path) -> None:
    """Every address the proxy knows is dead; the seed's name, resolved again, leads to the cluster."""
    names = [f"node-{n}.test" for n in range(6)]

    def addresses(before: bool) -> dict[str, list[str]]:
        # Nodes that do not say where they are, are where the one asked is: on one host, told apart by their ports.
        places = ["127.0.0.1" if before else f"127.0.0.{2 if endpoint[0] == 'u' else n + 2}" for n in range(6)]
        return {SEED: places[:1]} | {name: [place] for name, place in zip(names, places, strict=True)}

    hosts = Hosts(tmp_path, addresses(before=True))
    options = {"cluster-preferred-endpoint-type": endpoint}
    with ChangingCluster(server, node_timeout_ms=1000, options=options) as cluster:
        for name, node in zip(names, cluster.nodes, strict=True):
            if endpoint == "hostname":
                node.options["cluster-announce-hostname"] = name
                node.command("CONFIG", "SET", "cluster-announce-hostname", name)
        wait_for(lambda: all(cluster.announces(node, endpoint) for node in cluster.nodes), 20, "announced")
        patience = {"requests": {"timeout": "1s"}}
        daemon = start_proxy([f"{SEED}:{cluster.nodes[0].port}"], patience, prefix=hosts.prefix)
        if endpoint == "hostname":
            assert daemon.metric("redis_proxy_node_up", node=f"{names[0]}:{cluster.nodes[0].port}") == 1
        with daemon.raw(timeout_s=30) as raw:
            for key in spread_keys():
                assert raw.command("SET", key, "v") == b"+OK\r\n"
            assert raw.command("WAIT", 1, 5000) == b":1\r\n"  # who wrote it asks: for others it may not be there yet
            for node in cluster.nodes:
                cluster.save(node)
            for node in cluster.nodes:
                cluster.kill(node)
            assert raw.command("GET", spread_keys()[0]).startswith(b"-")
            moved = addresses(before=False)
            hosts.set(moved)
            for number, node in enumerate(cluster.nodes):
                cluster.move(node, moved[names[number]][0], same_port=number == 0 or endpoint == "hostname")
            for number, node in enumerate(cluster.nodes):
                cluster.introduce(node, cluster.nodes[:number])
            wait_for(lambda: all("state:ok" in n.command("CLUSTER", "INFO") for n in cluster.nodes), 20, "ok")
            served_s = time.monotonic()
            for key in spread_keys():
                wait_for(lambda key=key: raw.command("GET", key) == b"$1\r\nv\r\n", 20, f"{key} is served")
            print(f"served {time.monotonic() - served_s:.2f} s after the cluster")
            assert time.monotonic() - served_s < 4.0
