"""Commands that concern the whole cluster, against real servers: what one Redis says, from all of them."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from proxy.embedded import HOST, EmbeddedCluster, wait_for
from proxy.resp.decode import decode
from tests.support.cluster import Standalone, spread_keys
from tests.support.proxyd import ProxyDaemon
from tests.support.raw import RawClient, encode
from tests.support.standstill import Standstill

SHA = "e0e1f9fabfc9d4800c877a703b823ac0578ff8db"  # of "return 1"
LIBRARY = "#!lua name=l\nredis.register_function('f', function() return 1 end)"
THREE = spread_keys(3)
BUSY = "for _ = 1, tonumber(ARGV[1]) do end"


def in_protocol(client: RawClient, proto: int) -> RawClient:
    assert client.command("HELLO", proto)[:1] in b"*%"
    return client


@pytest.fixture(params=[2, 3], ids=["resp2", "resp3"])
def through(request: pytest.FixtureRequest, proxy: ProxyDaemon) -> Iterator[RawClient]:
    with proxy.raw() as client:
        yield in_protocol(client, request.param)


@pytest.fixture
def proto(through: RawClient) -> int:
    return 3 if through.command("EVAL", "return redis.call('GET', KEYS[1])", 1, "nosuch") == b"_\r\n" else 2


@pytest.fixture
def alone(standalone: Standalone, proto: int) -> Iterator[RawClient]:
    """One server, empty, in the same protocol."""
    with standalone.raw() as client:
        in_protocol(client, proto)
        for words in (("FLUSHALL",), ("SCRIPT", "FLUSH"), ("FUNCTION", "FLUSH"), ("CONFIG", "RESETSTAT")):
            assert client.command(*words) == b"+OK\r\n"
        yield client


@pytest.fixture
def both(through: RawClient, alone: RawClient) -> list[RawClient]:
    for words in (("SCRIPT", "FLUSH"), ("FUNCTION", "FLUSH"), ("CONFIG", "RESETSTAT"), ("LATENCY", "RESET")):
        through.command(*words)
    return [through, alone]


SAME = [
    "DBSIZE", "RANDOMKEY", "KEYS *", "KEYS", "KEYS a b", "FLUSHALL", "FLUSHALL ASYNC", "FLUSHDB SYNC", "FLUSHDB x",
    "FLUSHALL x", "FLUSHALL SYNC x", "CONFIG SET maxmemory 0", "CONFIG SET maxmemory x", "CONFIG SET nosuch 1",
    "CONFIG SET maxmemory", "CONFIG SET maxmemory 0 maxmemory 0", "CONFIG RESETSTAT", "CONFIG RESETSTAT x",
    "CONFIG REWRITE", "CONFIG FOO", "CONFIG", "SLOWLOG RESET", "SLOWLOG GET -2", "SLOWLOG GET x", "SLOWLOG GET 1 2",
    "SLOWLOG GET 0", "SLOWLOG FOO", "COMMANDLOG GET 0 slow", "COMMANDLOG GET 1 x",
    "COMMANDLOG LEN large-reply", "COMMANDLOG RESET slow", "LATENCY LATEST", "LATENCY HISTORY command",
    "LATENCY GRAPH nosuch", "LATENCY RESET nosuch", "LATENCY DOCTOR", "LATENCY HISTOGRAM nosuch", "LATENCY FOO",
    "LATENCY HISTORY", "MEMORY PURGE", "MEMORY DOCTOR", "MEMORY DOCTOR x", "PUBSUB CHANNELS", "PUBSUB CHANNELS a*",
    "PUBSUB NUMSUB", "PUBSUB NUMSUB a b a", "PUBSUB NUMPAT", "PUBSUB NUMPAT x", "PUBSUB SHARDCHANNELS",
    "PUBSUB SHARDNUMSUB a", "PUBSUB FOO", "SCRIPT LOAD", "SCRIPT LOAD nonsense(", "SCRIPT EXISTS x y", "SCRIPT EXISTS",
    "SCRIPT FLUSH", "SCRIPT FLUSH ASYNC", "SCRIPT FLUSH x", "SCRIPT KILL", "SCRIPT FOO", "SCRIPT SHOW x",
    "FUNCTION LOAD x", "FUNCTION DELETE nosuch", "FUNCTION FLUSH", "FUNCTION FLUSH x", "FUNCTION RESTORE x",
    "FUNCTION KILL", "FUNCTION LIST", "FUNCTION LIST LIBRARYNAME x", "FUNCTION DUMP", "FUNCTION STATS", "FUNCTION FOO",
    "SCRIPT HELP", "SLOWLOG HELP", "PUBSUB HELP", "MEMORY HELP", "FUNCTION HELP", "CONFIG HELP", "LATENCY HELP",
]  # fmt: skip


@pytest.mark.parametrize("words", SAME)
def test_as_one_server_says_it(words: str, both: list[RawClient]) -> None:
    through, alone = (client.command(*words.split()) for client in both)
    assert through == alone


def test_keys_of_all_shards(both: list[RawClient], cluster: EmbeddedCluster) -> None:
    names = [f"key:{n}" for n in range(300)]
    for client in both:
        client.command("MSET", *(word for name in names for word in (name, "v")))
    for words in (["KEYS", "*"], ["KEYS", "key:1?"], ["KEYS", "nosuch*"], ["KEYS", THREE[0]], ["KEYS", "key:[0-3]"]):
        through, alone = (client.command(*words) for client in both)
        assert sorted(decode(through)) == sorted(decode(alone))
        assert through[:1] == b"*"
    assert both[0].command("DBSIZE") == both[1].command("DBSIZE") == b":300\r\n"
    seen = {decode(both[0].command("RANDOMKEY")) for _ in range(50)}
    assert seen <= {name.encode() for name in names}
    assert both[0].command("FLUSHALL") == b"+OK\r\n"
    assert both[0].command("DBSIZE") == b":0\r\n"
    for node in cluster.primaries():
        assert node.command("DBSIZE") == 0


def test_random_key_is_fair(through: RawClient, cluster: EmbeddedCluster) -> None:
    """Two shards with 90 and 10 keys: a node taken first, whatever it has, would give each half of the draws."""
    many, few = THREE[0], THREE[1]
    through.command("MSET", *(word for n in range(90) for word in (f"{{{many}}}{n}", "v")))
    through.command("MSET", *(word for n in range(10) for word in (f"{{{few}}}{n}", "v")))
    draws = 800
    through.send(encode("RANDOMKEY") * draws)
    drawn = Counter(decode(frame).startswith(f"{{{few}}}".encode()) for frame in through.frames(draws))
    assert 30 < drawn[True] < 180  # 80 expected; 30 is 6 times the deviation away


def test_scripts_and_functions_are_everywhere(both: list[RawClient], cluster: EmbeddedCluster) -> None:
    for client in both:
        assert client.command("SCRIPT", "LOAD", "return 1") == b"$40\r\n" + SHA.encode() + b"\r\n"
        assert client.command("SCRIPT", "EXISTS", SHA, "x" * 40, SHA) == b"*3\r\n:1\r\n:0\r\n:1\r\n"
        assert client.command("FUNCTION", "LOAD", LIBRARY) == b"$1\r\nl\r\n"
        for key in THREE:
            assert client.command("EVALSHA", SHA, 1, key) == b":1\r\n"
            assert client.command("FCALL", "f", 1, key) == b":1\r\n"
    for words in (["FUNCTION", "LIST"], ["FUNCTION", "STATS"], ["FUNCTION", "DUMP"], ["FUNCTION", "LOAD", LIBRARY]):
        through, alone = (client.command(*words) for client in both)
        assert through == alone
    dump = decode(both[0].command("FUNCTION", "DUMP"))
    for client in both:
        assert client.command("FUNCTION", "DELETE", "l") == b"+OK\r\n"
        assert client.command("FUNCTION", "RESTORE", dump) == b"+OK\r\n"
    for node in cluster.primaries():
        assert len(node.command("FUNCTION", "LIST")) == 1
    # One of them lacks the script: it does not exist.
    cluster.primaries()[1].command("SCRIPT", "FLUSH")
    assert both[0].command("SCRIPT", "EXISTS", SHA) == b"*1\r\n:0\r\n"
    for client in both:
        assert client.command("SCRIPT", "FLUSH") == b"+OK\r\n"
        assert client.command("FUNCTION", "FLUSH", "SYNC") == b"+OK\r\n"
        assert client.command("SCRIPT", "EXISTS", SHA) == b"*1\r\n:0\r\n"


def test_a_library_that_one_node_has_already(through: RawClient, cluster: EmbeddedCluster) -> None:
    through.command("FUNCTION", "FLUSH")
    node = cluster.primaries()[1]
    node.command("FUNCTION", "LOAD", LIBRARY)
    said = through.command("FUNCTION", "LOAD", LIBRARY)
    assert said == f"-ERR Library 'l' already exists (node {node.address})\r\n".encode()
    assert through.command("FUNCTION", "LOAD", "REPLACE", LIBRARY) == b"$1\r\nl\r\n"
    assert through.command("FUNCTION", "FLUSH") == b"+OK\r\n"


def test_configuration_of_every_node(through: RawClient, cluster: EmbeddedCluster) -> None:
    assert through.command("CONFIG", "SET", "slowlog-max-len", "77") == b"+OK\r\n"
    for node in cluster.nodes:
        assert "77" in str(node.command("CONFIG", "GET", "slowlog-max-len"))
    assert through.command("CONFIG", "SET", "slowlog-max-len", "128") == b"+OK\r\n"


def test_the_slow_log_of_every_node(through: RawClient, cluster: EmbeddedCluster) -> None:
    assert through.command("CONFIG", "SET", "slowlog-log-slower-than", "-1") == b"+OK\r\n"
    assert through.command("SLOWLOG", "RESET") == b"+OK\r\n"
    assert through.command("SLOWLOG", "LEN") == b":0\r\n"
    try:
        for node in cluster.primaries():  # not on replicas: what is replicated counts there, too
            node.command("CONFIG", "SET", "slowlog-log-slower-than", "0")
        for turn in range(4):
            for key in THREE:
                through.command("GET", f"{{{key}}}{turn}")
    finally:
        assert through.command("CONFIG", "SET", "slowlog-log-slower-than", "-1") == b"+OK\r\n"
    log = decode(through.command("SLOWLOG", "GET", "-1"))
    assert decode(through.command("SLOWLOG", "LEN")) == len(log)
    assert {(entry[3][0], entry[3][1]) for entry in log if entry[3][0] == b"GET"} == {
        (b"GET", f"{{{key}}}{turn}".encode()) for key in THREE for turn in range(4)
    }
    assert [entry[1] for entry in log] == sorted((entry[1] for entry in log), reverse=True)
    assert decode(through.command("SLOWLOG", "GET")) == log[:10]
    assert decode(through.command("SLOWLOG", "GET", "3")) == log[:3]
    assert through.command("SLOWLOG", "RESET") == b"+OK\r\n"
    through.command("CONFIG", "SET", "slowlog-log-slower-than", "10000")


def test_latency_of_every_node(through: RawClient, proto: int, cluster: EmbeddedCluster) -> None:
    assert through.command("CONFIG", "SET", "latency-monitor-threshold", "1") == b"+OK\r\n"
    try:
        for rounds, node in zip(("2000000", "8000000"), cluster.primaries(), strict=False):
            node.command("EVAL", BUSY, 0, rounds)
        latest = decode(through.command("LATENCY", "LATEST"))
        assert len({event[0] for event in latest}) == len(latest)
        (highest,) = (event[3] for event in latest if event[0] == b"command")
        history = decode(through.command("LATENCY", "HISTORY", "command"))
        assert len(history) >= 2
        assert max(ms for _, ms in history) == highest
        assert [time_s for time_s, _ in history] == sorted(time_s for time_s, _ in history)
        assert decode(through.command("LATENCY", "GRAPH", "command")).count(b"# Node ") >= 2
        assert decode(through.command("LATENCY", "DOCTOR")).count(b"# Node ") >= 3
        assert decode(through.command("LATENCY", "RESET", "command")) >= 2
    finally:
        assert through.command("CONFIG", "SET", "latency-monitor-threshold", "0") == b"+OK\r\n"
    through.command("CONFIG", "RESETSTAT")
    through.command("MSET", *(word for n in range(500) for word in (f"k{n}", "v")))
    for n in range(30):
        through.command("SET", f"k{n}", "v")
    histogram = decode(through.command("LATENCY", "HISTOGRAM", "set"))
    as_map = histogram if proto == 3 else {histogram[0]: dict(zip(histogram[1][::2], histogram[1][1::2], strict=True))}
    told = as_map[b"set"]
    assert told[b"calls"] >= 30
    buckets = told[b"histogram_usec"]
    counts = list(buckets.values()) if proto == 3 else buckets[1::2]
    assert counts == sorted(counts)
    assert counts[-1] == told[b"calls"]


def test_memory_of_all_primaries(both: list[RawClient], proto: int, cluster: EmbeddedCluster) -> None:
    for client in both:
        client.command("MSET", *(word for n in range(100) for word in (f"k{n}", "v")))
    through, alone = (client.command("MEMORY", "STATS") for client in both)
    assert through[:1] == alone[:1] == (b"*" if proto == 2 else b"%")
    fields, one = (
        value if proto == 3 else dict(zip(value[::2], value[1::2], strict=True))
        for value in map(decode, (through, alone))
    )
    assert set(one) <= set(fields)
    assert fields[b"keys.count"] == one[b"keys.count"] == 100
    assert {name: type(value) for name, value in one.items()} == {name: type(fields[name]) for name in one}
    allocated = sum(node.info("memory")["used_memory_startup"] for node in cluster.primaries())
    assert fields[b"startup.allocated"] == allocated


def test_subscribers_anywhere(through: RawClient, cluster: EmbeddedCluster) -> None:
    with RawClient((HOST, cluster.nodes[0].port)) as first, RawClient((HOST, cluster.nodes[-1].port)) as second:
        first.send(encode("SUBSCRIBE", "a", "b"))
        second.send(encode("SUBSCRIBE", "b") + encode("PSUBSCRIBE", "x*"))
        first.frames(2), second.frames(2)
        assert sorted(decode(through.command("PUBSUB", "CHANNELS"))) == [b"a", b"b"]
        assert decode(through.command("PUBSUB", "CHANNELS", "b*")) == [b"b"]
        assert decode(through.command("PUBSUB", "NUMSUB", "b", "a", "c")) == [b"b", 2, b"a", 1, b"c", 0]
        assert through.command("PUBSUB", "NUMPAT") == b":1\r\n"
        many = [f"c{n}" for n in range(2500)]
        assert decode(through.command("PUBSUB", "NUMSUB", *many, "b"))[-4:] == [b"c2499", 0, b"b", 2]


def test_keys_of_a_slot(through: RawClient, cluster: EmbeddedCluster) -> None:
    host, port = cluster.seeds[0].rsplit(":", 1)
    for key in THREE:
        slot = decode(through.command("CLUSTER", "KEYSLOT", key))
        through.command("MSET", f"{{{key}}}1", "v", f"{{{key}}}2", "v")
        assert through.command("CLUSTER", "COUNTKEYSINSLOT", slot) == b":2\r\n"
        found = decode(through.command("CLUSTER", "GETKEYSINSLOT", slot, 10))
        assert sorted(found) == [f"{{{key}}}1".encode(), f"{{{key}}}2".encode()]
        assert len(decode(through.command("CLUSTER", "GETKEYSINSLOT", slot, 1))) == 1
    with RawClient((host, int(port))) as direct:
        for words in ("COUNTKEYSINSLOT 16384", "COUNTKEYSINSLOT -1", "COUNTKEYSINSLOT x", "GETKEYSINSLOT 1 -1",
                      "GETKEYSINSLOT 1 x", "GETKEYSINSLOT 99999 1", "GETKEYSINSLOT 1", "COUNTKEYSINSLOT"):  # fmt: skip
            assert through.command("CLUSTER", *words.split()) == direct.command("CLUSTER", *words.split())


@pytest.mark.parametrize("what", ["SCRIPT", "FUNCTION"])
def test_a_script_that_runs_for_ever_is_killed(what: str, server: str, start_proxy: Callable[..., ProxyDaemon]) -> None:
    """It came by the connection that all share, from which its node reads nothing more."""
    with EmbeddedCluster(server, replicas=0, node_timeout_ms=15000, options={"lua-time-limit": "50"}) as broken:
        daemon = start_proxy(broken.seeds[:1], {"requests": {"timeout": "20s"}})
        with daemon.raw(30) as runner, daemon.raw(30) as killer:
            endless = "#!lua name=e\nredis.register_function('e', function() while true do end end)"
            assert killer.command("FUNCTION", "LOAD", endless) == b"$1\r\ne\r\n"
            assert killer.command(what, "KILL") == b"-NOTBUSY No scripts in execution right now.\r\n"
            command = ("EVAL", "while true do end", 1, "k") if what == "SCRIPT" else ("FCALL", "e", 1, "k")
            runner.send(encode(*command))
            wait_for(lambda: killer.command(what, "KILL") == b"+OK\r\n", 10, "the script to be killed")
            assert b"killed by user with " in runner.frame()
            assert killer.command("SET", "k", "v") == b"+OK\r\n"


def test_a_node_that_fails_is_named(server: str, start_proxy: Callable[..., ProxyDaemon]) -> None:
    with EmbeddedCluster(server, replicas=0, node_timeout_ms=60000) as broken:
        daemon = start_proxy(broken.seeds[:1], {"requests": {"timeout": "1s", "failover_timeout": "1s"}})
        with daemon.raw() as client:
            client.command("MSET", *(word for n in range(100) for word in (f"k{n}", "v")))
            lost = broken.primaries()[2]
            lost.command("CONFIG", "SET", "maxmemory", "1")
            denied = client.command("FUNCTION", "LOAD", LIBRARY)
            assert denied.startswith(b"-OOM command not allowed")
            assert denied.endswith(f" (node {lost.address})\r\n".encode())
            broken.pause(lost)
            for words in (["DBSIZE"], ["KEYS", "*"], ["RANDOMKEY"], ["FLUSHALL"], ["SLOWLOG", "LEN"]):
                said = client.command(*words)
                assert said.startswith(b"-")
                assert said.endswith(f" (node {lost.address})\r\n".encode())
            broken.resume(lost)
            broken.kill(lost)
            said = client.command("DBSIZE")
            assert said.startswith(b"-")
            assert said.endswith(f" (node {lost.address})\r\n".encode())


def test_keys_of_a_large_database(through: RawClient, proxy: ProxyDaemon) -> None:
    """While they are put together, others are served."""
    count = 100_000
    through.exchange(
        encode("MSET", *(word for n in range(begin, begin + 1000) for word in (f"user:{n}", "v")))
        for begin in range(0, count, 1000)
    )
    assert through.frames(count // 1000) == [b"+OK\r\n"] * (count // 1000)
    waits: list[float] = []
    done = threading.Event()

    def other() -> None:
        with proxy.raw() as client:
            while not done.is_set():
                begun = time.monotonic()
                assert client.command("PING") == b"+PONG\r\n"
                waits.append(time.monotonic() - begun)

    beside = threading.Thread(target=other)
    beside.start()
    with Standstill() as still:
        try:
            for _ in range(3):
                assert set(decode(through.command("KEYS", "*"))) == {b"user:%d" % n for n in range(count)}
        finally:
            done.set()
            beside.join()
    assert sorted(waits)[len(waits) * 9 // 10] < 0.05 + 4 * still.quantile_s(0.9)


def test_more_keys_than_are_held_are_an_error(
    cluster: EmbeddedCluster, start_proxy: Callable[..., ProxyDaemon]
) -> None:
    limits = {"clients": {"output_soft_limit": "100kb", "output_hard_limit": "1mb"}}
    with start_proxy(cluster.seeds[:1], limits).raw() as client:
        client.command("FLUSHALL")
        client.command("MSET", *(word for n in range(3000) for word in (f"{n:0100}", "v")))
        assert client.command("KEYS", "*") == b"-ERR the nodes' replies to this command are together too long\r\n"
        assert len(decode(client.command("KEYS", "*00"))) == 30
        assert client.command("FLUSHALL") == b"+OK\r\n"


def test_what_is_held_for_a_client_that_leaves(
    cluster: EmbeddedCluster, start_proxy: Callable[..., ProxyDaemon]
) -> None:
    daemon = start_proxy(cluster.seeds[:1], {"workers": 1})

    def held() -> float:
        return daemon.metric("redis_proxy_client_memory_bytes")

    with daemon.raw(30) as client:
        client.command("FLUSHALL")
        for begin in range(0, 20_000, 1000):
            client.command("MSET", *(word for n in range(begin, begin + 1000) for word in (f"{n:0500}", "v")))
    before = held()
    slow = cluster.primaries()[2]
    cluster.pause(slow)
    try:
        with daemon.raw() as client:
            client.send(encode("KEYS", "*"))
            wait_for(lambda: held() > before + 5_000_000, 10, "the replies of two nodes to be held")
        wait_for(lambda: held() < before + 1_000_000, 10, "what was held to be freed")
    finally:
        cluster.resume(slow)
    with daemon.raw() as client:
        wait_for(lambda: client.command("FLUSHALL") == b"+OK\r\n", 10, "the node to be back")
