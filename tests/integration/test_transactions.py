"""Transactions, WATCH and numbered databases on real servers, as redis-py uses them and byte by byte."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis

from proxy.embedded import EmbeddedCluster, wait_for
from tests.support.cluster import Standalone, servers, slot_of, spread_keys
from tests.support.processes import descriptors, session_members
from tests.support.proxyd import ProxyDaemon
from tests.support.raw import RawClient
from tests.support.standstill import Standstill

StartProxy = Callable[..., ProxyDaemon]
CONNECTIONS = "redis_proxy_backend_connections"
NO_LEASE = b"-ERR no connection to the node is free (backends.max_leased, or the limit of file descriptors)\r\n"


def open_leases(proxy: ProxyDaemon) -> float:
    return proxy.metric(CONNECTIONS, purpose="leased", state="up")


# -- as a client library uses them


def test_a_pipeline(client: redis.Redis) -> None:
    with client.pipeline(transaction=True) as pipe:
        answers = (
            pipe.set("{t}a", 1).incr("{t}a").get("{t}a").hset("{t}h", mapping={"f": "v"}).hgetall("{t}h").execute()
        )
    assert answers == [True, 2, "2", 1, {"f": "v"}]
    with client.pipeline(transaction=True) as pipe, pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        pipe.set("{t}a", 1).lpush("{t}a", 1).incr("{t}a").execute()
    assert client.get("{t}a") == "2"
    with client.pipeline(transaction=True) as pipe, pytest.raises(redis.exceptions.RedisError):
        pipe.set("{t}a", 1).set("{other}a", 1).execute()
    assert client.get("{t}a") == "2"


def test_many_clients_watch_one_counter(proxy: ProxyDaemon) -> None:
    """WATCH, GET, MULTI, SET: no increment is lost, none is counted that was not made."""
    clients, each = 8, 25
    refused, before = [0] * clients, open_leases(proxy)

    def count(number: int) -> None:
        with proxy.client(protocol=2 + number % 2) as own:
            for _ in range(each):
                while True:
                    with own.pipeline() as pipe:
                        try:
                            pipe.watch("counter")
                            value = int(str(pipe.get("counter") or 0))
                            pipe.multi()
                            pipe.set("counter", value + 1)
                            pipe.execute()
                            break
                        except redis.WatchError:
                            refused[number] += 1

    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(count, range(clients)))
    with proxy.client() as own:
        assert own.get("counter") == str(clients * each)
    assert sum(refused) > 0
    assert 0 < open_leases(proxy) <= before + 2 * 2 * clients  # a worker and protocol each has its own


def test_two_thousand_a_second_open_no_further_connection(proxy: ProxyDaemon, cluster: EmbeddedCluster) -> None:
    """envoy#44338: a connection for each MULTI."""
    with proxy.client() as one:
        one.set("x", 1)
    raws = [proxy.raw() for _ in range(100)]
    try:
        frames = b"".join(b"MULTI\r\nINCR {m}%d\r\nGET {m}%d\r\nEXEC\r\n" % (n, n) for n in range(10))
        for raw in raws:  # connected and warm
            raw.send(frames)
            raw.frames(40)
        before = sum(node.info("stats")["total_connections_received"] for node in cluster.primaries())
        shared = proxy.metric(CONNECTIONS, purpose="shared", state="up")
        began = time.monotonic()
        for _ in range(4):
            for raw in raws:
                raw.send(frames)
            for raw in raws:
                assert not any(frame.startswith(b"-") for frame in raw.frames(40))
        took = time.monotonic() - began
        after = sum(node.info("stats")["total_connections_received"] for node in cluster.primaries())
    finally:
        for raw in raws:
            raw.close()
    assert proxy.metric(CONNECTIONS, purpose="shared", state="up") == shared
    assert after - before <= 3 * 2  # the control plane's own, of three nodes
    assert took < 20
    with proxy.client() as one:
        assert one.get("{m}3") == "500"


# -- byte by byte, against a single server

DIALOGUES = [
    ["MULTI", "EXEC", "EXEC", "DISCARD", "UNWATCH"],
    ["MULTI", "MULTI", "SET a 1", "EXEC", "DISCARD"],
    ["MULTI", "WATCH a", "SET a 1", "EXEC", "DISCARD"],
    ["MULTI", "GET", "SET a 1", "EXEC"],
    ["MULTI", "NOSUCH x y", "SET a 1", "EXEC"],
    ["MULTI", "CLIENT NOSUCH", "EXEC"],
    ["MULTI", "DISCARD x", "EXEC"],
    ["MULTI", "EXEC x", "EXEC"],
    ["MULTI", "SET a 1", "DISCARD", "GET a"],
    ["MULTI", "PING", "PING a", "PING a b", "ECHO x", "SET a 1", "GET a", "INCR a", "LPUSH a x", "EXEC"],
    ["MULTI", "SET a 5", "CLIENT SETNAME me", "CLIENT GETNAME", "INCR a", "SELECT 0", "SELECT abc", "UNWATCH", "EXEC"],
    ["MULTI", "AUTH x y", "CLIENT GETNAME", "EXEC"],
    ["MULTI", "SET a 1", "RESET", "EXEC", "GET a"],
    ["MULTI", "BLPOP b 0", "XREAD BLOCK 0 STREAMS s $", "BLMOVE b b LEFT LEFT 0", "EXEC"],
    ["WATCH a", "SET a 9", "MULTI", "GET a", "EXEC", "MULTI", "GET a", "EXEC"],
    ["WATCH a", "MULTI", "EXEC", "WATCH a", "UNWATCH", "MULTI", "GET a", "EXEC"],
    ["WATCH a", "SET a 1", "MULTI", "CLIENT GETNAME", "EXEC"],
    ["WATCH a", "MULTI", "CLIENT GETNAME", "GET a", "CLIENT GETNAME", "EXEC"],
    ["WATCH a", "SET a 1", "DISCARD", "MULTI", "NOSUCH", "EXEC", "MULTI", "EXEC"],
    ["WATCH", "UNWATCH x", "WATCH a a a", "WATCH a", "MULTI", "SET a 2", "EXEC"],
    ["WATCH a", "DEL a", "SET a 1", "RESET", "MULTI", "GET a", "EXEC"],
    ["HSET h f v", "MULTI", "HGETALL h", "SMEMBERS s", "ZADD z 1 m", "ZSCORE z m", "EXEC"],
    ["WATCH h", "MULTI", "HGETALL h", "ZADD z 1.5 m", "ZSCORE z m", "EXEC", "WATCH h", "HSET h f w", "MULTI", "EXEC"],
    ["MULTI", "PUBLISH c m", "SET a 1", "EXEC"],
    ["MULTI", """EVAL "return{1,redis.call('get',KEYS[1])}" 1 a""", "EXEC"],
]


@pytest.mark.parametrize("proto", [2, 3])
@pytest.mark.parametrize("lines", DIALOGUES, ids=lambda lines: " ".join(lines)[:40])
def test_as_on_a_single_server(proxy: ProxyDaemon, standalone: Standalone, lines: list[str], proto: int) -> None:
    """One by one, and all at once. Keys in one slot, by their hash tag."""
    tagged = [
        " ".join(f"{{t}}{word}" if len(word) == 1 and word in "abhsz" else word for word in line.split())
        for line in lines
    ]
    said: list[list[bytes]] = []
    for opened in (standalone.raw(), proxy.raw(), proxy.raw()):
        with opened as raw:
            raw.command("DEL", "{t}a", "{t}h", "{t}s", "{t}z", "{t}b")
            raw.command("HELLO", str(proto))
            if len(said) < 2:
                said.append([])
                for line in tagged:
                    raw.send(line.encode() + b"\r\n")
                    said[-1].append(raw.frame())
            else:
                raw.send("".join(f"{line}\r\n" for line in tagged).encode())
                said.append(raw.frames(len(tagged)))
    assert said[1] == said[0]
    assert said[2] == said[0]


def test_wait_does_not_wait_inside(raw: RawClient) -> None:
    """It tells how many replicas have it by now: none or one."""
    raw.send(b"MULTI\r\nSET {t}a 1\r\nWAIT 5 0\r\nEXEC\r\n")
    assert raw.frames(4)[-1] in (b"*2\r\n+OK\r\n:0\r\n", b"*2\r\n+OK\r\n:1\r\n")


# -- WATCH in a cluster


@pytest.fixture
def own(server: str, start_proxy: StartProxy) -> Iterator[tuple[EmbeddedCluster, ProxyDaemon]]:
    """A cluster that changes, and a daemon of its own."""
    with EmbeddedCluster(server, node_timeout_ms=2500) as started:
        yield started, start_proxy(started.seeds[:1])


def test_what_is_watched_moves_away(own: tuple[EmbeddedCluster, ProxyDaemon]) -> None:
    """With its slot, there and back again, or with its primary's role: nil, and then it works."""
    cluster, daemon = own
    key = spread_keys()[0]
    one, two = cluster.owner_of(slot_of(key)), cluster.primaries()[2]
    with daemon.raw(timeout_s=30) as raw:

        def dialogue(change: Callable[[], object]) -> bytes:
            assert raw.command("SET", key, "1") == b"+OK\r\n"
            assert raw.command("WATCH", key) == b"+OK\r\n"
            assert raw.command("GET", key) == b"$1\r\n1\r\n"
            change()
            assert raw.command("MULTI") == b"+OK\r\n"
            assert raw.command("SET", key, "2") == b"+QUEUED\r\n"
            return raw.command("EXEC")

        def there_and_back() -> None:
            cluster.move_slots([slot_of(key)], two, one)
            cluster.move_slots([slot_of(key)], one, two)

        assert dialogue(lambda: None) == b"*1\r\n+OK\r\n"
        assert dialogue(lambda: cluster.move_slots([slot_of(key)], one, two)) == b"*-1\r\n"
        assert dialogue(there_and_back) == b"*-1\r\n"
        assert dialogue(lambda: None) == b"*1\r\n+OK\r\n"
        assert dialogue(lambda: cluster.failover(cluster.replicas_of(two)[0])) == b"*-1\r\n"
        assert dialogue(lambda: None) == b"*1\r\n+OK\r\n"


def test_watch_in_a_slot_that_is_moving(own: tuple[EmbeddedCluster, ProxyDaemon]) -> None:
    cluster, daemon = own
    key = spread_keys()[0]
    slot = slot_of(key)
    one, two = cluster.owner_of(slot), cluster.primaries()[1]
    with daemon.raw() as raw:
        two.command("CLUSTER", "SETSLOT", slot, "IMPORTING", one.id)
        one.command("CLUSTER", "SETSLOT", slot, "MIGRATING", two.id)
        for _ in range(2):  # it is on neither, then on the importing one
            assert raw.command("WATCH", key) == b"+OK\r\n"
            raw.send(f"MULTI\r\nSET {key} 1\r\nGET {key}\r\nEXEC\r\n".encode())
            assert raw.frames(4) == [b"+OK\r\n", b"+QUEUED\r\n", b"+QUEUED\r\n", b"*2\r\n+OK\r\n$1\r\n1\r\n"]
            raw.send(f"WATCH {key}\r\nSET {key} 0\r\nMULTI\r\nGET {key}\r\nEXEC\r\n".encode())
            assert raw.frames(5)[-1] == b"*-1\r\n"
        cluster.move_slots([slot], one, two)
        raw.send(f"WATCH {key}\r\nMULTI\r\nGET {key}\r\nEXEC\r\n".encode())
        assert raw.frames(4)[-1] == b"*1\r\n$1\r\n0\r\n"


def test_leases_are_bounded_reused_and_renewed(cluster: EmbeddedCluster, empty: None, start_proxy: StartProxy) -> None:
    config = {"backends": {"max_leased": 1}}
    daemon = start_proxy(cluster.seeds, config, workers=1)
    with daemon.raw() as one, daemon.raw() as two:
        assert one.command("WATCH", "{w}a") == b"+OK\r\n"
        assert two.command("WATCH", "{w}b") == NO_LEASE
        assert two.command("GET", "{w}b") == b"$-1\r\n"
        assert one.command("UNWATCH") == b"+OK\r\n"
        assert two.command("WATCH", "{w}b") == b"+OK\r\n"
        assert one.command("WATCH", "{w}a") == NO_LEASE
        wait_for(lambda: open_leases(daemon) == 1, 5, "one lease")
        # Reloaded with another identity while it is in use: kept as long as it is needed, and no longer.
        daemon.reload({"backends": {"max_leased": 2, "client_name": "another"}})
        assert open_leases(daemon) == 1
        assert one.command("WATCH", "{w}a") == b"+OK\r\n"
        two.send(b"MULTI\r\nSET {w}b 1\r\nEXEC\r\n")
        assert two.frames(3)[-1] == b"*1\r\n+OK\r\n"
        assert one.command("UNWATCH") == b"+OK\r\n"
        wait_for(lambda: open_leases(daemon) == 1, 5, "the one with the old name is closed")


def test_a_thousand_clients_that_leave_in_the_middle(
    cluster: EmbeddedCluster, empty: None, start_proxy: StartProxy
) -> None:
    daemon = start_proxy(cluster.seeds)

    def held() -> int:
        return sum(len(descriptors(pid)) for pid in session_members(daemon.session))

    def leave(n: int) -> None:
        with daemon.raw() as raw:
            raw.send(b"WATCH k%d\r\nGET k%d\r\nMULTI\r\nSET k%d 1\r\n" % (n, n, n))
            if n % 2:
                raw.frames(4)
            if n % 3 == 0:
                raw.send(b"EXEC\r\n")

    with ThreadPoolExecutor(10) as pool:
        list(pool.map(leave, range(100)))
        settled = held()
        list(pool.map(leave, range(1000)))
    wait_for(lambda: held() <= settled + 3 * 2 * 10, 10, f"{held()} descriptors after {settled}")
    assert open_leases(daemon) <= 3 * 2 * 10  # ten clients at a time, and two workers
    with daemon.client() as client:
        assert client.set("k", 1)


# -- numbered databases


@pytest.fixture(scope="module")
def databases() -> Iterator[EmbeddedCluster]:
    with EmbeddedCluster(
        servers()["valkey"], replicas=0, node_timeout_ms=15000, options={"cluster-databases": "16"}
    ) as started:
        yield started


def select(raw: RawClient, db: int) -> bytes:
    return raw.command("SELECT", str(db))


def test_keys_in_databases(databases: EmbeddedCluster, start_proxy: StartProxy) -> None:
    daemon = start_proxy(databases.seeds[:1])
    keys = spread_keys()
    with daemon.raw() as raw, daemon.raw() as other:
        wait_for(lambda: select(raw, 1) == b"+OK\r\n", 10, "the number of databases is known")
        assert select(raw, 16) == b"-ERR DB index is out of range\r\n"
        for db in (0, 3, 15):
            assert select(raw, db) == b"+OK\r\n"
            for key in keys:
                assert raw.command("SET", key, f"{db}") == b"+OK\r\n"
        raw.send(b"".join(b"SELECT %d\r\nGET %s\r\n" % (db, key.encode()) for key in keys for db in (15, 3, 0, 7, 0)))
        values = [b"$2\r\n15\r\n", b"$1\r\n3\r\n", b"$1\r\n0\r\n", b"$-1\r\n", b"$1\r\n0\r\n"]
        assert raw.frames(30)[1::2] == values * 3
        # A transaction, one that watches, and one that watches in one database and goes on in another.
        raw.send(f"SELECT 3\r\nMULTI\r\nGET {keys[0]}\r\nSELECT 3\r\nEXEC\r\n".encode())
        assert raw.frames(5)[-1] == b"*2\r\n$1\r\n3\r\n+OK\r\n"
        assert raw.command("WATCH", keys[0]) == b"+OK\r\n"
        assert other.command("SET", keys[0], "0") == b"+OK\r\n"  # in database 0
        raw.send(f"MULTI\r\nGET {keys[0]}\r\nEXEC\r\n".encode())
        assert raw.frames(3)[-1] == b"*1\r\n$1\r\n3\r\n"
        raw.send(f"WATCH {keys[0]}\r\nSELECT 15\r\nMULTI\r\nGET {keys[0]}\r\nEXEC\r\n".encode())
        assert raw.frames(5)[-1] == b"*1\r\n$2\r\n15\r\n"
        raw.send(f"WATCH {keys[0]}\r\nSET {keys[0]} 15\r\nSELECT 0\r\nMULTI\r\nGET {keys[0]}\r\nEXEC\r\n".encode())
        assert raw.frames(6)[-1] == b"*-1\r\n"
        raw.send(f"SELECT 7\r\nWATCH {keys[0]}\r\nHELLO 3\r\nMULTI\r\nGET {keys[0]}\r\nEXEC\r\n".encode())
        assert raw.frames(6)[-1] == b"*1\r\n_\r\n"


def test_no_databases(proxy: ProxyDaemon, cluster: EmbeddedCluster) -> None:
    """As one server of the cluster says itself."""
    with proxy.raw() as raw, RawClient(("127.0.0.1", cluster.primaries()[0].port)) as node:
        assert select(raw, 1) == select(node, 1)
        assert select(raw, 0) == b"+OK\r\n"


# -- attacks


def test_hostile_pipelines(proxy: ProxyDaemon) -> None:
    with proxy.raw(timeout_s=30) as raw, proxy.raw() as other:
        raw.send(b"MULTI\r\n" * 10_000)
        assert all(frame[:1] in b"+-" for frame in raw.frames(10_000))
        began = time.monotonic()
        assert other.command("PING") == b"+PONG\r\n"
        assert time.monotonic() - began < 5
        raw.send(b"DISCARD\r\nMULTI\r\n" + b"CLUSTER SLOTS\r\nPING\r\n" * 900 + b"EXEC\r\n")
        assert raw.frames(1803)[-1].startswith(b"*1800\r\n")
        raw.send(b"MULTI\r\n" + b"SELECT 0\r\n" * 20_000 + b"EXEC\r\nPING\r\n")
        assert raw.frames(20_003)[-2:] == [
            b"-EXECABORT Transaction discarded because of previous errors.\r\n",
            b"+PONG\r\n",
        ]


def test_others_are_not_held_up_by_long_ones(proxy: ProxyDaemon) -> None:
    stop = threading.Event()

    def transact() -> None:
        with proxy.raw(timeout_s=60) as raw:
            block = b"MULTI\r\n" + b"".join(b"SET {l}%d %b\r\n" % (n, b"x" * 100) for n in range(5000)) + b"EXEC\r\n"
            while not stop.is_set():
                raw.send(block)
                raw.frames(5002)

    thread = threading.Thread(target=transact)
    thread.start()
    try:
        with Standstill() as still, proxy.raw() as raw:
            slowest = 0.0
            for n in range(300):
                began = time.monotonic()
                assert raw.command("GET", f"o{n}") == b"$-1\r\n"
                slowest = max(slowest, time.monotonic() - began)
    finally:
        stop.set()
        thread.join()
    assert slowest < 1.0 + 2 * still.longest_s
