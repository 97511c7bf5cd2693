"""PROXY PAUSE and RESUME: a node is restarted, or fails over, and nobody notices."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator

import pytest
import redis

from proxy.embedded import EmbeddedCluster, EmbeddedNode, wait_for
from tests.support.busy import Busy
from tests.support.cluster import key_in
from tests.support.proxyd import ProxyDaemon
from tests.support.raw import RawClient

StartProxy = Callable[..., ProxyDaemon]
ADMIN = {"clients": {"admin_password": "s3cret"}}


@pytest.fixture
def solid(server: str) -> Iterator[EmbeddedCluster]:
    """A cluster whose nodes may be away for a while without a failover."""
    with EmbeddedCluster(server, node_timeout_ms=15000) as started:
        yield started


def admin(daemon: ProxyDaemon) -> RawClient:
    raw = daemon.raw(timeout_s=30)
    assert raw.command("AUTH", "admin", "s3cret") == b"+OK\r\n"
    return raw


def key_of(cluster: EmbeddedCluster, node: EmbeddedNode, prefix: str = "k") -> str:
    slots = cluster.slots_of(node)
    return key_in(slots[0], slots[-1], prefix)


def shut_down(node: EmbeddedNode) -> None:
    with pytest.raises(redis.ConnectionError):
        node.command("SHUTDOWN", "SAVE")
    assert node.process is not None
    node.process.wait(10)


def test_a_primary_is_restarted_under_busy_clients(solid: EmbeddedCluster, start_proxy: StartProxy) -> None:
    daemon = start_proxy(solid.seeds, ADMIN)
    victim = solid.owner_of(0)  # where messages come from, too
    with admin(daemon) as operator, Busy(daemon.address) as busy:
        wait_for(lambda: busy.done["incr"] > 200, 20, "busy")
        assert operator.command("PROXY", "PAUSE", "NODE", victim.address, 30000) == b"+OK\r\n"
        assert all(int(n) == 0 for n in [daemon.metric("redis_proxy_backend_pending", node=victim.address)])
        shut_down(victim)
        begun = busy.done.copy()
        time.sleep(1.0)  # what others do meanwhile
        others = busy.done - begun
        solid.restart(victim)
        assert operator.command("PROXY", "RESUME", "NODE", victim.address) == b"+OK\r\n"
        before = busy.done.copy()
        wait_for(lambda: busy.done["incr"] > before["incr"] + 2000, 20, "all go on")
        busy.stop()
        assert busy.wrong == []
        assert others["incr"] > 100 and others["get"] > 100
        assert set(busy.done) == {"incr", "get", "transaction", "pipeline", "script", "blpop", "message"}
        with daemon.client() as client:
            held = {key: int(client.get(key) or 0) for key, n in busy.counts.items() if not key.startswith("busy:_list")}
        assert held == {key: n for key, n in busy.counts.items() if key in held}
        assert daemon.metric("redis_proxy_backend_connect_failures_total", node=victim.address) == 0
        assert re.search(r"node paused.*node=" + re.escape(victim.address), daemon.log)
