"""INFO, ROLE and LASTSAVE through the daemon, against what the nodes themselves say."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from proxy.embedded import EmbeddedCluster, wait_for
from tests.support.cluster import Standalone, spread_keys
from tests.support.proxyd import ProxyDaemon
from tests.support.raw import RawClient

WHOLE = [
    "Server", "Clients", "Memory", "Persistence", "Stats", "Replication", "CPU", "Modules", "Commandstats",
    "Errorstats", "Latencystats", "Cluster", "Keyspace", "Proxy", "Nodes",
]  # fmt: skip
PLAIN = [name for name in WHOLE if name not in ("Commandstats", "Latencystats")]


def document(client: redis.Redis, *sections: str) -> str:
    """As it came, not parsed."""
    parse = client.response_callbacks.pop("INFO")
    try:
        reply: str | bytes = client.execute_command("INFO", *sections)
    finally:
        client.response_callbacks["INFO"] = parse
    return reply if isinstance(reply, str) else reply.decode()


def headings(client: redis.Redis, *sections: str) -> list[str]:
    return [line[2:] for line in document(client, *sections).splitlines() if line.startswith("# ")]


def asked(cluster: EmbeddedCluster) -> int:
    """INFOs of all nodes; a node that nobody has asked since its statistics were reset tells none."""
    found = [node.info("commandstats").get("cmdstat_info", {}) for node in cluster.nodes]
    return sum(int(one.get("calls", 0)) for one in found)


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ([], PLAIN),
        (["default"], PLAIN),
        (["all"], WHOLE),
        (["EVERYTHING"], WHOLE),
        (["keyspace", "CommandStats"], ["Commandstats", "Keyspace"]),
        (["commandstats", "default"], [name for name in WHOLE if name != "Latencystats"]),
        (["nosuch", "memory", "memory"], ["Memory"]),
        (["nosuch"], []),
    ],
)
def test_sections(client: redis.Redis, asked: list[str], found: list[str]) -> None:
    assert headings(client, *asked) == found


def test_the_order_is_that_of_the_server(client: redis.Redis, standalone: Standalone) -> None:
    with redis.Redis(port=standalone.port) as alone:
        theirs = headings(alone, "everything")
    ours = headings(client, "everything")
    common = [name for name in theirs if name in ours]
    assert [name for name in ours if name in theirs] == common
    # What the servers tell besides concerns single machines and the cluster's own links.
    assert set(theirs) - set(ours) <= {"TLS", "Cluster Info", "Scripting Engines", "Threads", "Keysizes", "Debug"}


def test_figures_of_a_plain_server_are_there(client: redis.Redis, standalone: Standalone) -> None:
    """Every field of these sections of a standalone server, with a value of the same kind."""
    with redis.Redis(port=standalone.port) as alone:
        for section in ("memory", "persistence", "stats", "cpu"):
            theirs, ours = alone.info(section), client.info(section)
            assert set(theirs) - set(ours) == set()
            kinds = {name for name, value in theirs.items() if isinstance(ours[name], str) != isinstance(value, str)}
            assert kinds == set(), section


def test_a_standalone_primary(client: redis.Redis) -> None:
    found = client.info()
    assert (found["redis_mode"], found["cluster_enabled"], found["role"]) == ("standalone", 0, "master")
    assert (found["connected_slaves"], found["loading"]) == (0, 0)
    assert found["master_failover_state"] == "no-failover"
    assert "proxy_primaries_missing" not in found
    assert found["proxy_nodes_missing"] == 0


def test_keyspace_is_summed(client: redis.Redis, cluster: EmbeddedCluster) -> None:
    assert client.info("keyspace") == {}
    keys = [f"key:{n}" for n in range(60)]
    for n, key in enumerate(keys):
        client.set(key, "v", ex=1000 if n % 3 == 0 else None)
    found = client.info("keyspace")["db0"]
    assert (found["keys"], found["expires"]) == (60, 20)
    assert 0 <= found["avg_ttl"] <= 1_000_000
    nodes = client.info("nodes")
    primaries = [node for node in nodes.values() if node["role"] == "primary"]
    assert sum(node["keys"] for node in primaries) == 60
    assert len(nodes) == 6
    assert all(node["used_memory"] > 100_000 and node["ops_per_sec"] >= 0 for node in nodes.values())
    assert {node["addr"] for node in primaries} == {node.address for node in cluster.primaries()}


def test_what_a_client_has_just_written_is_there(client: redis.Redis) -> None:
    for n in range(1, 40):
        client.set(f"new:{n}", "v")
        assert client.info("keyspace")["db0"]["keys"] == n
    with client.pipeline(transaction=False) as pipe:
        for n in range(1, 20):
            pipe.set(f"more:{n}", "v").execute_command("INFO", "keyspace")
        answers = pipe.execute()[1::2]
    # What comes behind it in the pipeline may be there already: the nodes are asked in rounds.
    assert all(n <= answer["db0"]["keys"] <= 58 for n, answer in enumerate(answers, 40))


def test_totals_are_those_of_the_primaries(client: redis.Redis, cluster: EmbeddedCluster) -> None:
    keys = spread_keys(3)
    before = client.info("everything")
    for key in keys:
        client.set(key, "v")
        client.get(key)
        client.get(key + "x")
    with pytest.raises(redis.ResponseError):
        client.lpush(keys[0], "x")
    after = client.info("everything")

    def more(name: str, field: str | None = None) -> int:
        one, two = before.get(name, {}), after[name]
        if field is None:
            return int(two) - int(one)
        return int(two[field]) - int(one.get(field, 0) if one else 0)

    # A key with a suffix may be in another slot; its miss is counted all the same.
    assert more("keyspace_hits") == 3
    assert more("keyspace_misses") == 3
    assert more("cmdstat_get", "calls") == 6
    assert more("cmdstat_set", "calls") == 3
    assert more("cmdstat_lpush", "failed_calls") == 1
    assert more("errorstat_WRONGTYPE", "count") == 1
    assert more("total_commands_processed") >= 10
    stats = after["cmdstat_set"]
    assert stats["usec_per_call"] == pytest.approx(stats["usec"] / stats["calls"], abs=0.01)
    assert after["latency_percentiles_usec_set"]["p99"] > 0
    memory = [node.info("memory") for node in cluster.primaries()]
    assert after["used_memory"] == pytest.approx(sum(one["used_memory"] for one in memory), rel=0.2)
    assert after["maxmemory"] == 0
    rss, used = after["used_memory_rss"], after["used_memory"]
    assert float(after["mem_fragmentation_ratio"]) == pytest.approx(rss / used, abs=0.01)


def test_redirections_are_no_clients_errors(client: redis.Redis, cluster: EmbeddedCluster) -> None:
    (key,) = spread_keys(1)
    for node in cluster.primaries():
        with redis.Redis(port=node.port) as direct, contextlib.suppress(redis.exceptions.MovedError):
            direct.get(key)
    assert "errorstat_MOVED" not in client.info("everything")


def test_server_alone_asks_nobody(client: redis.Redis, cluster: EmbeddedCluster) -> None:
    base = asked(cluster)
    others = asked(cluster) - base  # what this test itself asks; the proxy's probes may add some
    for _ in range(200):
        client.info("server")
        client.execute_command("INFO", "server", "clients", "cluster", "proxy")
    assert asked(cluster) - base < 200 + 2 * others


def test_many_clients_that_pipeline_it(proxy: ProxyDaemon, cluster: EmbeddedCluster) -> None:
    """200 clients, 50 each: all are answered, a bystander is not held up, and the nodes are not asked for each."""

    clients = [proxy.raw(timeout_s=60) for _ in range(200)]
    base, begun_s = asked(cluster), time.monotonic()
    slowest: list[float] = []
    done = threading.Event()

    def bystander() -> None:
        with proxy.client() as other:
            while not done.is_set():
                sent_s = time.monotonic()
                other.set("bystander", "v")
                slowest.append(time.monotonic() - sent_s)

    thread = threading.Thread(target=bystander)
    thread.start()
    try:
        for client in clients:
            client.send(b"INFO\r\n" * 50)
        for client in clients:
            frames = client.frames(50)
            assert all(b"\r\nredis_mode:standalone\r\n" in frame for frame in frames)
    finally:
        done.set()
        thread.join()
        for client in clients:
            client.close()
    took_s = time.monotonic() - begun_s
    # Two workers, six nodes, a round every 20 ms at the most; and what the probes ask.
    assert asked(cluster) - base < 6 * (2 * took_s / 0.02 + 20 + took_s * 2)
    assert sorted(slowest)[-(1 + len(slowest) // 100)] < 1.0  # some may have waited for this machine


def test_role_and_lastsave(client: redis.Redis, cluster: EmbeddedCluster) -> None:
    client.set("k", "v")
    role, offset, replicas = client.execute_command("ROLE")
    assert (role, replicas) == ("master", [])
    assert 0 < offset <= client.info("replication")["master_repl_offset"]
    times = [int(node.command("LASTSAVE")) for node in cluster.primaries()]
    assert int(client.execute_command("LASTSAVE").timestamp()) == max(times)


@pytest.fixture
def breakable(server: str) -> Iterator[EmbeddedCluster]:
    with EmbeddedCluster(server, node_timeout_ms=60_000) as started:
        yield started


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    begun_s = time.monotonic()
    return call(), time.monotonic() - begun_s


def quickly(client: redis.Redis, call: Callable[[], Any]) -> Any:
    """What the call gives within 0.9 s; in one of a few, for a machine may be busy for so long."""
    for _ in range(5):
        client.ping()  # who only repeats INFO gets what was asked a moment ago
        found, took_s = timed(call)
        if took_s < 0.9:
            return found
    raise AssertionError(f"each took long, the last {took_s:.1f} s")


def test_a_node_that_does_not_answer(breakable: EmbeddedCluster, start_proxy: Callable[..., ProxyDaemon]) -> None:
    """INFO and ROLE answer in time, say what is missing, and are whole again afterwards."""
    daemon = start_proxy(breakable.seeds, {"clients": {"max_clients": 100}}, workers=1)
    primary = breakable.primaries()[0]
    with daemon.client(decode_responses=True, socket_timeout=5) as client:
        for key in spread_keys(3):
            client.set(key, "v")
        assert client.info("keyspace")["db0"]["keys"] == 3
        breakable.pause(primary)
        try:
            client.ping()  # who only repeats INFO gets what was asked a moment ago
            found, took_s = timed(client.info)
            assert took_s < 4.0
            assert (found["proxy_nodes_missing"], found["proxy_primaries_missing"]) == (1, 1)
            assert found["db0"]["keys"] == 2
            missing = [node for name, node in found.items() if name.startswith("node") and "missing" in node]
            assert [node["addr"] for node in missing] == [primary.address]
            assert "used_memory" not in missing[0]
            # It is known now: nobody waits for it again.
            for section in ("keyspace", "memory", "replication"):
                found = quickly(client, lambda section=section: client.info(section))
            assert client.info("memory")["proxy_primaries_missing"] == 1
            role = quickly(client, lambda: client.execute_command("ROLE"))
            assert (role[0], role[2]) == ("master", [])
        finally:
            breakable.resume(primary)
        wait_for(lambda: client.info()["proxy_nodes_missing"] == 0, 15, "the node answers again")
        assert client.info("keyspace")["db0"]["keys"] == 3


def test_a_node_that_is_gone(breakable: EmbeddedCluster, start_proxy: Callable[..., ProxyDaemon]) -> None:
    daemon = start_proxy(breakable.seeds, workers=1)
    replica = breakable.replicas()[0]
    with daemon.client(decode_responses=True, socket_timeout=5) as client:
        assert client.info()["proxy_nodes_missing"] == 0
        breakable.kill(replica)
        for _ in range(5):
            found, took_s = timed(client.info)
            assert took_s < 4.0
            assert "proxy_primaries_missing" not in found
        wait_for(lambda: client.info()["proxy_nodes_missing"] == 1, 15, "the replica is missed")


def test_before_any_node_is_known(start_proxy: Callable[..., ProxyDaemon]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
        daemon = start_proxy([f"127.0.0.1:{port}"], wait="listening", workers=1)
        with daemon.raw() as client:
            reply = client.command("INFO", "everything")
    assert b"redis_mode:standalone" in reply
    assert b"used_memory:" not in reply


def test_a_client_that_leaves_takes_nothing_with_it(proxy: ProxyDaemon) -> None:
    for _ in range(50):
        with proxy.raw() as leaving:
            leaving.send(b"INFO\r\nROLE\r\nCOMMAND\r\n")
    with proxy.raw() as client:
        assert client.command("INFO", "keyspace").startswith(b"$")


def test_inside_a_pipeline_order_is_kept(raw: RawClient) -> None:
    raw.send(b"SET k v\r\nINFO nosuch\r\nGET k\r\nINFO cluster\r\nROLE\r\nPING\r\n")
    frames = raw.frames(6)
    assert frames[0] == b"+OK\r\n"
    assert frames[1] == b"$0\r\n\r\n"
    assert frames[2] == b"$1\r\nv\r\n"
    assert b"cluster_enabled:0" in frames[3]
    assert frames[4].startswith(b"*3\r\n$6\r\nmaster\r\n:")
    assert frames[5] == b"+PONG\r\n"
