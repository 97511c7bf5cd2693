"""Fixtures shared by the black-box tests: real clusters and the real daemon in front of them.

One cluster and one daemon per kind of server for the whole session; the integration tests run once per kind. Tests that
break things start their own.
"""

from __future__ import annotations

import gc
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import redis

from proxy.embedded import EmbeddedCluster
from tests.support.cluster import Standalone, servers
from tests.support.proxyd import ProxyDaemon
from tests.support.raw import RawClient


def pytest_configure() -> None:
    """Shells start what goes to the background with SIGINT ignored; what tests start would inherit that.

    Tests are collected with the collection of garbage off: ten thousand of them are none (see below).
    """
    gc.disable()
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """What was collected stays: each gc.collect() would look at it for a third of a second."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", params=["valkey", "redis"])
def server(request: pytest.FixtureRequest) -> str:
    """Path of a server binary; skips Redis where redis-server is not on PATH."""
    found = servers()
    if request.param not in found:
        pytest.skip("redis-server is not on PATH")
    return found[request.param]


@pytest.fixture(scope="session")
def cluster(server: str) -> Iterator[EmbeddedCluster]:
    """3 primaries and 3 replicas nobody breaks. A long node timeout: a busy machine must not cause a failover."""
    with EmbeddedCluster(server, node_timeout_ms=15000) as started:
        yield started


@pytest.fixture(scope="session")
def small_cluster() -> Iterator[EmbeddedCluster]:
    """3 Valkey primaries without replicas, which nobody breaks: for tests of the daemon rather than of the cluster."""
    with EmbeddedCluster(replicas=0, node_timeout_ms=15000) as started:
        yield started


@pytest.fixture(scope="session")
def shared_proxy(cluster: EmbeddedCluster) -> Iterator[ProxyDaemon]:
    """The daemon with default settings, checked for a clean end after the last test."""
    with ProxyDaemon(cluster.seeds[:1]) as daemon:
        yield daemon


@pytest.fixture
def empty(cluster: EmbeddedCluster) -> None:
    """No keys in the cluster."""
    for node in cluster.primaries():
        node.command("FLUSHALL")


@pytest.fixture
def proxy(shared_proxy: ProxyDaemon, empty: None, request: pytest.FixtureRequest) -> Iterator[ProxyDaemon]:
    """The shared daemon in front of an empty cluster; must be alive afterwards, and its log is shown on failure."""
    start = len(shared_proxy.log)
    yield shared_proxy
    if failed(request):
        print(f"--- proxy log of this test ---\n{shared_proxy.log[start:][-6000:]}")
    assert shared_proxy.alive, "the proxy died"


@pytest.fixture
def start_proxy(request: pytest.FixtureRequest) -> Iterator[Callable[..., ProxyDaemon]]:
    """Starts daemons with their own config: start_proxy(seeds, config, wait=..., unix=...); checks their clean end."""
    started: list[ProxyDaemon] = []
    with ExitStack() as stack:

        def start(seeds: list[str], config: dict[str, Any] | None = None, **options: Any) -> ProxyDaemon:
            started.append(stack.enter_context(ProxyDaemon(seeds, config, **options)))
            return started[-1]

        yield start
        if failed(request):
            for daemon in started:
                daemon.show_log()


def failed(request: pytest.FixtureRequest) -> bool:
    """Whether the test itself has failed; for its fixtures' teardown."""
    report = getattr(request.node, "report_call", None)
    return report is not None and bool(report.failed)


@pytest.fixture
def raw(proxy: ProxyDaemon) -> Iterator[RawClient]:
    """A byte-exact connection to the shared daemon."""
    with proxy.raw() as client:
        yield client


@pytest.fixture(params=[2, 3], ids=["resp2", "resp3"])
def client(request: pytest.FixtureRequest, proxy: ProxyDaemon) -> Iterator[redis.Redis]:
    """redis-py's plain client, once per protocol."""
    with proxy.client(protocol=request.param) as connected:
        yield connected


@pytest.fixture(scope="session")
def standalone(server: str) -> Iterator[Standalone]:
    """A server of the same kind without cluster mode: what one big Redis would answer."""
    with Standalone(server) as started:
        yield started


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    report = yield
    setattr(item, f"report_{report.when}", report)
    return report
