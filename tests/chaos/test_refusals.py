"""What nodes refuse: connections (maxclients, a new password) and writes (OOM, MISCONF, NOREPLICAS)."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator

import pytest

from proxy.embedded import EmbeddedNode, wait_for
from proxy.resp import errors
from tests.support.changing import ChangingCluster
from tests.support.cluster import key_in
from tests.support.proxyd import ProxyDaemon
from tests.support.raw import RawClient, bulk, encode
from tests.support.standstill import Standstill
from tests.support.workload import Workload

StartProxy = Callable[..., ProxyDaemon]


@pytest.fixture(scope="module")
def refusing(server: str) -> Iterator[ChangingCluster]:
    """Three primaries that have users with passwords, each with a replica."""
    with ChangingCluster(server, node_timeout_ms=15000, password="one") as cluster:
        yield cluster


def login(password: str) -> dict[str, object]:
    return {"cluster": {"password": password}, "requests": {"timeout": "1s", "failover_timeout": "500ms"}}


def key_of(cluster: ChangingCluster, node: EmbeddedNode) -> str:
    slots = cluster.slots_of(node)
    return key_in(slots[0], slots[-1])


def test_a_node_takes_no_more_clients(refusing: ChangingCluster, start_proxy: StartProxy) -> None:
    """What is connected works on; what needs a further connection is told why; then all is well again."""
    daemon = start_proxy(refusing.seeds, login("one"), workers=1)
    node = refusing.primaries()[0]
    key = key_of(refusing, node)
    with daemon.raw() as raw, daemon.raw() as other, daemon.raw() as resp3:
        assert raw.command("SET", key, "v") == b"+OK\r\n"
        node.command("CONFIG", "SET", "maxclients", 1)
        try:
            for _ in range(100):
                assert raw.command("GET", key) == bulk(b"v")
            for words in (("WATCH", key), ("BLPOP", f"{{{key}}}list", 1)):
                assert other.command(*words) == errors.NODE_FULL
            assert resp3.command("HELLO", 3).startswith(b"%")
            started_s = time.monotonic()
            assert resp3.command("GET", key) == errors.NODE_DOWN
            assert time.monotonic() - started_s < 4
            assert daemon.log_contains('cannot connect to node.*"ERR max number of clients')
            failures = daemon.metric("redis_proxy_backend_connect_failures_total", node=node.address)
            assert 3 <= failures < 40  # it backs off
            assert raw.command("GET", key) == bulk(b"v")
        finally:
            node.command("CONFIG", "SET", "maxclients", 10000)
        wait_for(lambda: resp3.command("GET", key) == bulk(b"v"), 5, "RESP3 clients are served")
        assert other.command("WATCH", key) == b"+OK\r\n"
        assert other.command("UNWATCH") == b"+OK\r\n"


def passwords(nodes: list[EmbeddedNode], *words: str) -> None:
    """These are the passwords from now on; replication is told of the last."""
    for node in nodes:
        node.command("CONFIG", "SET", "masterauth", words[-1])
        node.command("ACL", "SETUSER", "default", "resetpass", *(f">{word}" for word in words))


def drop_ours(nodes: list[EmbeddedNode]) -> None:
    """The nodes close the proxy's connections."""
    for node in nodes:
        for line in node.command("CLIENT", "LIST").splitlines():
            if "name=redis-proxy " in line:
                node.command("CLIENT", "KILL", "ID", line.split(" ", 1)[0].removeprefix("id="))


def test_the_password_is_changed_at_the_servers_first(refusing: ChangingCluster, start_proxy: StartProxy) -> None:
    """Whoever is connected works on; what is lost meanwhile is back as soon as the proxy has been told."""
    daemon = start_proxy(refusing.seeds, login("one"))
    nodes = refusing.nodes
    keys = [key_of(refusing, node) for node in refusing.primaries()]
    try:
        with Workload(daemon.address) as load:
            passwords(nodes, "two")
            load.advance(50)
            daemon.reload(login("two"))
            drop_ours(nodes)  # those of before
            load.advance(50)
        assert load.told.longest_s < 3.0
        assert {error.partition(": ")[2][:27] for error in load.told.errors} <= {"ERR connection to the node "}
        with daemon.raw(timeout_s=30) as raw:
            passwords(nodes, "three")
            drop_ours(nodes)
            for key in keys:
                wait_for(lambda key=key: raw.command("GET", key) == errors.NODE_DOWN, 5, "nobody is let in")
            time.sleep(3)  # until it tries every 2 s only
            raw.send(encode("SET", keys[0], "v"))
            assert raw.frame() == errors.NODE_DOWN
            daemon.reload(login("three"))
            with Standstill() as still:
                reloaded_s = time.monotonic()
                for key in keys:
                    wait_for(lambda key=key: raw.command("SET", key, "v") == b"+OK\r\n", 5, "served")
                took_s = time.monotonic() - reloaded_s
            assert took_s < 1.5 + 2 * still.longest_s
            wait_for(lambda: daemon.http("/readyz")[0] == 200, 5, "ready")
    finally:
        passwords(nodes, "one")


@pytest.mark.long
def test_the_proxy_is_told_of_the_new_password_first(refusing: ChangingCluster, start_proxy: StartProxy) -> None:
    """With two passwords for a while nobody notices anything."""
    daemon = start_proxy(refusing.seeds, login("one"))
    nodes = refusing.nodes
    try:
        with Workload(daemon.address) as load:
            passwords(nodes, "one", "two")
            load.advance(20)
            daemon.reload(login("two"))
            load.advance(20)
            passwords(nodes, "two")
            load.advance(20)
        load.check(refusing)
        assert load.told.longest_s < 3.0
        assert "credentials" not in daemon.log
    finally:
        passwords(nodes, "one")


def test_writes_that_nodes_refuse(refusing: ChangingCluster, start_proxy: StartProxy) -> None:
    """What a node says of its own state is its client's, letter for letter and at once; reads go on."""
    daemon = start_proxy(refusing.seeds, login("one"))
    node = refusing.primaries()[0]
    replicas = refusing.replicas_of(node)
    key, other = key_of(refusing, node), key_of(refusing, refusing.primaries()[1])
    refusals = (
        (("maxmemory", "1"), ("maxmemory", "0"), b"-OOM "),
        (("min-replicas-to-write", "3"), ("min-replicas-to-write", "0"), b"-NOREPLICAS "),
        ((), (), b"-MISCONF "),
    )
    with daemon.raw() as raw, RawClient((node.host, node.port)) as direct:
        assert direct.command("AUTH", "one") == b"+OK\r\n"
        assert raw.command("SET", key, "w") == b"+OK\r\n"
        for begin, end, word in refusals:
            with refused(node, begin, end):
                wait_for(lambda word=word: direct.command("SET", key, "w").startswith(word), 10, word)
                line = direct.command("SET", key, "w")
                started_s = time.monotonic()
                assert raw.command("SET", key, "w") == line
                assert raw.command("MSET", key, "w", other, "w") == line
                assert raw.command("INCRBY", f"{{{key}}}n", 1) == direct.command("INCRBY", f"{{{key}}}n", 1)
                script = ("EVAL", "return redis.call('SET', KEYS[1], 'w')", 1, key)
                assert raw.command(*script) == direct.command(*script)
                for client in (raw, direct):
                    client.send(b"MULTI\r\n" + encode("SET", key, "w") + b"EXEC\r\n")
                assert direct.frames(3)[1] == line
                assert raw.frames(3)[2] == b"-EXECABORT Transaction discarded because of: " + line[1:]
                assert time.monotonic() - started_s < 4
                assert raw.command("GET", key) == bulk(b"w")
                assert raw.command("SET", other, "v") == b"+OK\r\n"
            assert raw.command("SET", key, "w") == b"+OK\r\n"
        assert len(replicas) == 1


@contextlib.contextmanager
def refused(node: EmbeddedNode, begin: tuple[str, ...], end: tuple[str, ...]) -> Iterator[None]:
    """The node refuses writes for a reason of its own: a setting, or that it cannot save."""
    if end:
        node.command("CONFIG", "SET", *begin)
        try:
            yield
        finally:
            node.command("CONFIG", "SET", *end)
        return
    dump = node.directory / "dump.rdb"
    dump.unlink(missing_ok=True)
    (dump / "in-the-way").mkdir(parents=True)  # which no file can be renamed to
    try:
        node.command("CONFIG", "SET", "save", "3600 1")  # it is only then that a node minds
        node.command("BGSAVE")
        yield
    finally:
        shutil.rmtree(dump)
        node.command("CONFIG", "SET", "save", "")
        node.command("SAVE")
