"""The whole cluster goes down and comes back; a shard stays dead; nodes come back with much to load."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from redis.exceptions import RedisError

from proxy.embedded import EmbeddedCluster, EmbeddedNode, free_port, wait_for
from proxy.resp import errors
from tests.support.changing import ChangingCluster
from tests.support.cluster import key_in, spread_keys
from tests.support.proxyd import ProxyDaemon
from tests.support.raw import RawClient, array, bulk
from tests.support.workload import Workload

StartProxy = Callable[..., ProxyDaemon]
# What one client may be told while nobody serves its key.
OUTAGE = ("CLUSTERDOWN", "LOADING", "ERR connection to the node was lost after the command was sent")


class Watch(threading.Thread):
    """SETs a key at a server, or through the proxy, again and again; times of good answers in time.monotonic()."""

    def __init__(self, connect: Callable[[], RawClient], key: str) -> None:
        super().__init__(daemon=True)
        self.connect, self.key = connect, key
        self.good_s = self.gap_s = self.back_s = self.first_s = 0.0
        self.running = True
        self.start()

    def run(self) -> None:
        while self.running:
            try:
                with self.connect() as raw:
                    while self.running:
                        if raw.command("SET", self.key, "v") == b"+OK\r\n":
                            now_s = time.monotonic()
                            if self.good_s and now_s - self.good_s > self.gap_s:
                                self.gap_s, self.back_s = now_s - self.good_s, now_s
                            self.good_s = now_s
                            self.first_s = self.first_s or now_s
                        time.sleep(0.005)
            except Exception:  # the server is down
                time.sleep(0.01)

    def stop(self) -> None:
        self.running = False
        self.join(20)


@pytest.mark.parametrize("down_s", [2, pytest.param(20, marks=pytest.mark.long)])
def test_the_cluster_is_down_for_a_while(down_s: float, server: str, start_proxy: StartProxy) -> None:
    """Back within a second after the servers are, by itself, with what they had saved."""
    with ChangingCluster(server, replicas=1, node_timeout_ms=2000) as cluster:
        daemon = start_proxy(cluster.seeds)
        primaries = cluster.primaries()
        keys = [key_in(cluster.slots_of(node)[0], cluster.slots_of(node)[-1]) for node in primaries]
        with daemon.raw() as raw:
            assert raw.command("SET", "{a}kept", "v") == b"+OK\r\n"
        direct = [
            Watch(lambda port=node.port: RawClient(("127.0.0.1", port)), f"{{{key}}}d")
            for key, node in zip(keys, primaries, strict=True)
        ]
        proxied = [Watch(lambda: daemon.raw(timeout_s=30), f"{{{key}}}p") for key in keys]
        with Workload(daemon.address) as load:
            wait_for(lambda: all(watch.good_s for watch in direct + proxied), 10, "all write")
            for node in cluster.nodes:
                cluster.save(node)
            for node in cluster.nodes:
                cluster.kill(node)
            time.sleep(down_s)
            cluster.begin(cluster.nodes)
            cluster.await_nodes(cluster.nodes)
            up_s = time.monotonic()
            wait_for(lambda: all(watch.back_s > up_s - 1 for watch in direct + proxied), 30, "all write again")
            load.advance(20)
        for watch in direct + proxied:
            watch.stop()
        late = [through.back_s - own.back_s for through, own in zip(proxied, direct, strict=True)]
        print(f"down {[round(watch.gap_s, 2) for watch in direct]}, late by {[round(s, 3) for s in late]}")
        assert max(late) < 3.0  # a second, and what this machine adds
        others = [error for error in load.told.errors if not error.partition(": ")[2].startswith(OUTAGE)]
        assert (others, load.told.ended) == ([], [])
        with daemon.raw() as raw:
            assert raw.command("GET", "{a}kept") == bulk(b"v")


def timed(raw: RawClient, *words: str | int) -> tuple[bytes, float]:
    started_s = time.monotonic()
    return raw.command(*words), time.monotonic() - started_s


def quickly(raw: RawClient, *words: str | int) -> bytes:
    """The answer within 0.8 s; in one of a few, for a machine may be busy for so long."""
    for _ in range(5):
        answer, took_s = timed(raw, *words)
        if took_s < 0.8:
            return answer
    raise AssertionError(f"{words}: each took long, the last {took_s:.1f} s")


def test_a_dead_shard_without_full_coverage(server: str, start_proxy: StartProxy) -> None:
    """The other shards work on; its own keys get a clear error, at once after a while; it is back when it is back."""
    options = {"cluster-require-full-coverage": "no"}
    with ChangingCluster(server, replicas=0, node_timeout_ms=1000, options=options) as cluster:
        daemon = start_proxy(cluster.seeds, {"requests": {"timeout": "1s", "failover_timeout": "1s"}})
        victim = cluster.primaries()[0]
        dead, *kept = spread_keys()
        with Workload(daemon.address, split=False, hot=range(8000, 9000)) as load, daemon.raw() as raw:
            for key in (dead, *kept):
                assert raw.command("SET", key, "v") == b"+OK\r\n"
            cluster.save(victim)
            cluster.kill(victim)
            answer, took_s = timed(raw, "GET", dead)
            assert (answer, took_s < 4.0) == (errors.NODE_DOWN, True)
            wait_for(lambda: timed(raw, "GET", dead)[1] < 0.5, 5, "it is not waited for any more")
            for words in (("SET", dead, 1), ("MGET", *kept, dead), ("MSET", dead, 1, kept[0], "v")):
                assert quickly(raw, *words) == errors.NODE_DOWN, words
            for key in kept:
                assert quickly(raw, "GET", key) == bulk(b"v")
            assert raw.command("MGET", *kept) == array(bulk(b"v"), bulk(b"v"))
            load.advance(20)
            cluster.begin([victim])
            cluster.await_nodes([victim])
            wait_for(lambda: raw.command("GET", dead) == bulk(b"v"), 10, "it is back")
            load.advance(20)
        assert {error.partition(": ")[2].partition(" ")[0] for error in load.told.errors} <= {"CLUSTERDOWN", "ERR"}
        assert not load.told.ended


@pytest.mark.long
def test_a_dead_shard_with_full_coverage(server: str, start_proxy: StartProxy) -> None:
    """Every node refuses: its word reaches the client, after the time that commands have; then all of it is back."""
    with ChangingCluster(server, replicas=0, node_timeout_ms=1000) as cluster:
        daemon = start_proxy(cluster.seeds, {"requests": {"timeout": "1s", "failover_timeout": "1s"}})
        victim = cluster.primaries()[0]
        dead, *kept = spread_keys()
        with daemon.raw() as raw:
            for key in (dead, *kept):
                assert raw.command("SET", key, "v") == b"+OK\r\n"
            cluster.save(victim)
            cluster.kill(victim)
            wait_for(lambda: "state:fail" in cluster.nodes[1].command("CLUSTER", "INFO"), 10, "the cluster is down")
            for key in kept:
                answer, took_s = timed(raw, "SET", key, "w")
                assert (answer, took_s < 4.0) == (errors.CLUSTERDOWN, True)
            raw.send(b"".join(b"GET %b\r\n" % kept[n % 2].encode() for n in range(100)))
            started_s = time.monotonic()
            assert set(raw.frames(100)) == {errors.CLUSTERDOWN}
            assert time.monotonic() - started_s < 4.0
            cluster.begin([victim])
            cluster.await_nodes([victim])
            wait_for(lambda: all(state_ok(node) for node in cluster.nodes), 20, "the cluster is ok")
            ok_s = time.monotonic()
            for key in (dead, *kept):
                assert raw.command("GET", key) == bulk(b"v")
            assert time.monotonic() - ok_s < 3.0


def state_ok(node: EmbeddedNode) -> bool:
    return "state:ok" in node.command("CLUSTER", "INFO")


LOADS_S = 3
KEYS = 3000


@pytest.fixture
def heavy(server: str) -> Iterator[ChangingCluster]:
    """Nodes that take LOADS_S to load what test_..._loading writes, and tell that they do."""
    options = {
        "loading-process-events-interval-bytes": "1024",
        "key-load-delay": str(LOADS_S * 1_000_000 // KEYS),
        "repl-diskless-load": "swapdb",  # a replica that syncs serves meanwhile
    }
    with ChangingCluster(server, node_timeout_ms=15000, options=options) as cluster:
        yield cluster


def fill(cluster: EmbeddedCluster, node: EmbeddedNode) -> str:
    """KEYS keys of one slot of the node, and a further one, returned."""
    slot = cluster.slots_of(node)[0]
    tag = key_in(slot, slot)
    with node.client.pipeline(transaction=False) as pipe:
        for n in range(KEYS):
            pipe.set(f"{{{tag}}}:{n}", "v")
        pipe.execute()
    node.command("SET", tag, "v")
    assert node.command("WAIT", 1, 5000) == 1
    return tag


def test_a_primary_that_is_loading(heavy: ChangingCluster, start_proxy: StartProxy) -> None:
    """Reads that may go to a replica go there; all else is held, up to its deadline, and then LOADING is the answer."""
    victim = heavy.primaries()[0]
    key = fill(heavy, victim)
    listeners = [{"reads": policy, "address": f"127.0.0.1:{free_port()}"} for policy in ("any", "prefer_primary")]
    daemon = start_proxy(heavy.seeds, {"requests": {"timeout": "1s"}, "listeners": [{}, *listeners]})
    with ExitStack() as stack:
        raw = daemon.raw()
        readers = [RawClient(("127.0.0.1", int(str(one["address"]).rpartition(":")[2]))) for one in listeners]
        for client in (raw, *readers):
            stack.enter_context(client)
            assert client.command("GET", key) == bulk(b"v")
        heavy.save(victim)
        heavy.kill(victim)
        heavy.begin([victim])
        wait_for(lambda: loading(victim), 5, "it is loading")
        reads_s: list[float] = []
        began_s = time.monotonic()
        while len(reads_s) < 100 and (len(reads_s) < 10 or time.monotonic() - began_s < 1):  # it does not take for ever
            for reader in readers:
                answer, took_s = timed(reader, "GET", key)
                assert answer == bulk(b"v")
                reads_s.append(took_s)
        assert loading(victim)
        answer, took_s = timed(raw, "SET", key, "w")
        # The latter: the node looks at its slots first, and knows of none before it has loaded.
        assert answer.startswith((b"-LOADING ", errors.CLUSTERDOWN)), answer
        assert 0.9 < took_s < 4.0
        answer, took_s = timed(raw, "GET", key)
        assert answer.startswith((b"-LOADING ", errors.CLUSTERDOWN)), answer
        # A replica that is cut off from its primary is the last resort. A few may have waited for this machine.
        assert sorted(reads_s)[-4] < 0.9
        # As soon as it serves: a primary that was restarted takes nothing for 2 s after it has loaded.
        through = Watch(lambda: daemon.raw(timeout_s=30), f"{{{key}}}p")
        direct = Watch(lambda: RawClient((victim.host, victim.port)), f"{{{key}}}d")
        wait_for(lambda: through.good_s and direct.good_s, 15, "writes go on")
        assert through.first_s - direct.first_s < 2.0
        for watch in (through, direct):
            watch.stop()
        assert heavy.role(victim) == "primary"


@pytest.mark.long
def test_a_replica_that_is_loading(heavy: ChangingCluster, start_proxy: StartProxy) -> None:
    """It is not read from; nobody waits for it, and it is used again soon after."""
    primary = heavy.primaries()[0]
    (victim,) = heavy.replicas_of(primary)
    key = fill(heavy, primary)
    config = {"listeners": [{"reads": "prefer_replica"}], "backends": {"health_interval": "200ms"}}
    daemon = start_proxy(heavy.seeds, config)
    with daemon.raw() as raw:
        assert raw.command("GET", key) == bulk(b"v")
        heavy.save(victim)
        heavy.kill(victim)
        heavy.begin([victim])
        wait_for(lambda: loading(victim), 5, "it is loading")
        slowest_s = 0.0
        while loading(victim):
            answer, took_s = timed(raw, "GET", key)
            assert answer == bulk(b"v")
            slowest_s = max(slowest_s, took_s)
        assert slowest_s < 0.3

        def read_from() -> bool:
            before = int(victim.info("commandstats").get("cmdstat_get", {}).get("calls", 0))
            raw.command("GET", key)
            return int(victim.info("commandstats").get("cmdstat_get", {}).get("calls", 0)) > before

        wait_for(read_from, 10, "it is read from again")


def loading(node: EmbeddedNode) -> bool:
    try:
        return bool(node.info("persistence").get("loading"))
    except RedisError:
        return False
