"""Which node answers a read: the listener's policy, READONLY and READWRITE; a write always goes to the primary."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest

from proxy.embedded import EmbeddedCluster, wait_for
from tests.support.cluster import slot_of
from tests.support.proxyd import ProxyDaemon
from tests.support.raw import RawClient, encode

NAMES = [f"k{n}" for n in range(30)]


def calls(cluster: EmbeddedCluster, command: str) -> tuple[int, int]:
    """How often primaries and replicas have executed a command since reset()."""

    def count(nodes: list) -> int:  # type: ignore[type-arg]
        return sum(node.info("commandstats").get(f"cmdstat_{command}", {}).get("calls", 0) for node in nodes)

    return count(cluster.primaries()), count(cluster.replicas())


@pytest.fixture
def filled(cluster: EmbeddedCluster, empty: None) -> EmbeddedCluster:
    """Every name holds `v` on its primary and its replica; the nodes' statistics start at 0."""
    for node in cluster.primaries():
        slots = set(cluster.slots_of(node))
        for name in NAMES:
            if slot_of(name) in slots:
                node.command("SET", name, "v")
        assert node.command("WAIT", 1, 5000) == 1
    for node in cluster.nodes:
        node.command("CONFIG", "RESETSTAT")
    return cluster


@pytest.fixture(scope="module", params=["primary", "master", "prefer_primary", "replica", "prefer_replica", "any"])
def policy(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def reading_proxy(policy: str, cluster: EmbeddedCluster) -> Iterator[ProxyDaemon]:
    with ProxyDaemon(cluster.seeds, {"listeners": [{"reads": policy}]}) as daemon:
        # Two at once are at two workers, and each worker has its own connections to the replicas.
        with daemon.raw() as one, daemon.raw() as other:
            for raw in (one, other):
                replicas_in_use(raw, cluster, policy in ("replica", "prefer_replica", "any"))
        yield daemon


def replicas_in_use(raw: RawClient, cluster: EmbeddedCluster, wanted: bool = True) -> None:
    """Until every replica has answered a read: ready only means that the primaries are."""

    def all_read() -> bool:
        raw.send(b"".join(encode("GET", name) for name in NAMES * 10))
        raw.frames(len(NAMES) * 10)
        return all(node.info("commandstats").get("cmdstat_get", {}).get("calls") for node in cluster.replicas())

    if wanted:
        for node in cluster.nodes:
            node.command("CONFIG", "RESETSTAT")
        wait_for(all_read, 10, "every replica answers reads")


def test_policy(policy: str, reading_proxy: ProxyDaemon, filled: EmbeddedCluster) -> None:
    with contextlib.ExitStack() as stack:
        # Several clients: where nothing is pending, which of the least loaded nodes is taken depends on the client.
        clients = [stack.enter_context(reading_proxy.raw()) for _ in range(8)]
        for n, name in enumerate(NAMES * 4):
            assert clients[n % 8].command("GET", name) == b"$1\r\nv\r\n"
    primaries, replicas = calls(filled, "get")
    assert primaries + replicas == len(NAMES) * 4
    if policy in ("primary", "master", "prefer_primary"):
        assert replicas == 0
    elif policy in ("replica", "prefer_replica"):
        assert primaries == 0
    else:
        assert primaries > 0
        assert replicas > 0


def test_split_reads_follow_the_policy(policy: str, reading_proxy: ProxyDaemon, filled: EmbeddedCluster) -> None:
    with reading_proxy.raw() as raw:
        assert raw.command("MGET", *NAMES) == b"*30\r\n" + b"$1\r\nv\r\n" * 30
    primaries, replicas = calls(filled, "mget")
    assert (primaries == 0 or replicas == 0) or policy == "any"
    if policy in ("replica", "prefer_replica"):
        assert replicas == len({slot_of(name) for name in NAMES})


def test_writes_go_to_primaries(policy: str, reading_proxy: ProxyDaemon, filled: EmbeddedCluster) -> None:
    with reading_proxy.raw() as raw:
        for name in NAMES:
            assert raw.command("SET", name, "w") == b"+OK\r\n"
            # Commands that read and write, known by their flags: aster and camellia sent these to replicas.
            assert raw.command("GETSET", name, "x") == b"$1\r\nw\r\n"
            assert raw.command("GETDEL", name) == b"$1\r\nx\r\n"
            assert raw.command("GETEX", name) == b"$-1\r\n"


def test_readonly_and_readwrite_change_it_for_one_client(proxy: ProxyDaemon, filled: EmbeddedCluster) -> None:
    def replicas_read(raw: RawClient) -> bool:
        before = calls(filled, "get")
        for name in NAMES:
            assert raw.command("GET", name) == b"$1\r\nv\r\n"
        after = calls(filled, "get")
        assert sum(after) - sum(before) == len(NAMES)
        return after[1] > before[1]

    with proxy.raw() as one, proxy.raw() as other:
        assert not replicas_read(one)
        assert one.command("READONLY") == b"+OK\r\n"
        replicas_in_use(one, filled)
        assert replicas_read(one)
        assert not replicas_read(other)
        assert one.command("READWRITE") == b"+OK\r\n"
        assert not replicas_read(one)
        one.command("READONLY")
        one.command("RESET")
        assert not replicas_read(one)


@pytest.mark.parametrize("policy_without", ["prefer_replica", "any", "prefer_primary"])
def test_a_cluster_without_replicas(
    policy_without: str, bare_cluster: EmbeddedCluster, start_proxy: Callable[..., ProxyDaemon]
) -> None:
    daemon = start_proxy(bare_cluster.seeds, {"listeners": [{"reads": policy_without}]})
    with daemon.raw() as raw:
        for name in NAMES:
            assert raw.command("SET", name, "v") == b"+OK\r\n"
            assert raw.command("GET", name) == b"$1\r\nv\r\n"


@pytest.fixture(scope="module")
def bare_cluster(server: str) -> Iterator[EmbeddedCluster]:
    with EmbeddedCluster(server, replicas=0, node_timeout_ms=15000) as started:
        yield started
