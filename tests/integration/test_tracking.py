"""CLIENT TRACKING through the proxy: byte dialogues beside one server, and what each mode tells of all shards."""

from __future__ import annotations

import time

import pytest
from redis.cache import CacheConfig
from redis.connection import CacheProxyConnection

from proxy.embedded import EmbeddedCluster, wait_for
from tests.support.cluster import Standalone, spread_keys
from tests.support.proxyd import ProxyDaemon
from tests.support.raw import RawClient, Word, array, bulk, encode

OK = b"+OK\r\n"
ON = ("CLIENT", "TRACKING", "ON")
OFF = ("CLIENT", "TRACKING", "OFF")
INFO = ("CLIENT", "TRACKINGINFO")
REDIR = ("CLIENT", "GETREDIR")
YES, NO = ("CLIENT", "CACHING", "YES"), ("CLIENT", "CACHING", "NO")
FLUSH = b">2\r\n$10\r\ninvalidate\r\n_\r\n"
KEYS = spread_keys()
CONNECTIONS = "redis_proxy_backend_connections"


def invalid(*keys: str) -> bytes:
    return b">2\r\n" + bulk(b"invalidate") + array(*(bulk(key.encode()) for key in keys))


def tracking(proxy: ProxyDaemon, *options: Word) -> RawClient:
    client = proxy.raw()
    client.command("HELLO", 3)
    assert client.command(*ON, *options) == OK
    return client


def quiet(client: RawClient) -> list[bytes]:
    """What it was pushed by now: everything before the replies to a read on each shard, and to an ECHO after them.

    Not pipelined: a push stands behind all that is answered already, so also behind such an ECHO.
    """
    frames = []
    for words in [*(("EXISTS", f"quiet:{{{key}}}") for key in KEYS), ("ECHO", "the end")]:
        frames.append(client.command(*words))
        while frames[-1].startswith(b">"):
            frames.append(client.frame())
    return [frame for frame in frames if frame.startswith(b">")]


@pytest.mark.parametrize("hello", [2, 3])
@pytest.mark.parametrize(
    "commands",
    [
        [INFO, REDIR, OFF, ON, INFO, REDIR, ON, OFF, INFO, REDIR],
        [("CLIENT", "TRACKING"), ("CLIENT", "TRACKING", "x"), (*ON, "x"), (*OFF, "x"), (*ON, "PREFIX"), INFO],
        [(*ON, "BCAST"), INFO, ON, (*ON, "BCAST"), INFO, (*ON, "BCAST", "PREFIX", "x"), OFF, INFO],
        [ON, (*ON, "BCAST"), INFO],
        [(*ON, "PREFIX", "x"), (*ON, "BCAST", "OPTIN"), (*ON, "BCAST", "OPTOUT"), (*ON, "OPTIN", "OPTOUT"), INFO],
        [(*ON, "OPTIN"), (*ON, "OPTOUT"), INFO, ON, INFO, (*ON, "OPTOUT", "NOLOOP"), INFO],
        [(*ON, "BCAST", "PREFIX", "b", "PREFIX", "a"), INFO, (*ON, "BCAST", "PREFIX", "c", "NOLOOP"), INFO],
        [(*ON, "BCAST", "PREFIX", "b"), (*ON, "BCAST", "PREFIX", "bc"), (*ON, "BCAST", "PREFIX", "b"), INFO],
        [(*ON, "BCAST", "PREFIX", "ab", "PREFIX", "a"), (*ON, "BCAST", "PREFIX", "", "PREFIX", "a"), INFO],
        [(*ON, "BCAST", "PREFIX", "ab"), (*ON, "BCAST"), INFO],
        [(*ON, "REDIRECT", 0), (*ON, "REDIRECT", -1), (*ON, "REDIRECT", "x"), (*ON, "REDIRECT"), INFO],
        [YES, NO, ("CLIENT", "CACHING"), ("CLIENT", "CACHING", "x"), ON, YES, NO, ("CLIENT", "CACHING", "x")],
        [(*ON, "OPTIN"), NO, ("CLIENT", "CACHING", "x"), YES, INFO, INFO, ("PING",), INFO],
        [(*ON, "OPTOUT"), YES, NO, INFO, ("GET", "k"), INFO],
        [(*ON, "OPTIN"), YES, ("MULTI",), ("GET", "k"), ("EXEC",), INFO],
        [(*ON, "OPTIN"), YES, ("MULTI",), ("DISCARD",), INFO],
        [(*ON, "OPTIN"), ("MULTI",), YES, ("GET", "k"), ("EXEC",), INFO],
        [(*ON, "OPTIN"), YES, ("RESET",), INFO, YES],
        [ON, ("RESET",), INFO, ("HELLO", 3), INFO],
        [ON, ("HELLO", 2), INFO, ("HELLO", 3), INFO],
    ],
    ids=str,
)
def test_dialogue(commands: list[tuple[Word, ...]], hello: int, proxy: ProxyDaemon, standalone: Standalone) -> None:
    """To the byte what one server says; pushes apart, of which the proxy may say more."""
    with proxy.raw() as through, standalone.raw() as direct:
        for client in (through, direct):
            client.command("HELLO", hello)
        for words in commands:
            said = through.command(*words)
            while said.startswith(b">"):
                said = through.frame()
            wanted = direct.command(*words)
            if words[0] != "HELLO":
                assert said == wanted, words


def test_a_change_of_what_was_read(proxy: ProxyDaemon) -> None:
    """On each shard, by GET, by a split MGET, in a transaction, by a script; once, and not for what was not read."""
    reads: list[tuple[tuple[Word, ...], ...]] = [
        (("GET", "{key}"),),
        (("MULTI",), ("GET", "{key}"), ("EXEC",)),
        (("EVAL", "return redis.call('get', KEYS[1])", 1, "{key}"),),
        (("WATCH", "{key}"), ("GET", "{key}"), ("MULTI",), ("PING",), ("EXEC",)),
        (("WATCH", "other:{{key}}"), ("MULTI",), ("GET", "{key}"), ("EXEC",)),
    ]
    with tracking(proxy) as reader, proxy.raw() as writer:
        for read in reads:
            for key in KEYS:
                for words in read:
                    said = reader.command(*(str(word).replace("{key}", key) for word in words))
                    assert not said.startswith((b"-", b">")), (words, said)
            assert quiet(reader) == []
            for key in KEYS:
                writer.command("SET", f"{key}:not read", 1)
                writer.command("SET", key, 1)
                assert reader.frame() == invalid(key)
                writer.command("SET", key, 2)
            assert quiet(reader) == []
        reader.command("MGET", *KEYS)
        writer.command("MSET", *(word for key in KEYS for word in (key, 3)))
        assert sorted(reader.frames(3)) == sorted(invalid(key) for key in KEYS)
        reader.command("MGET", *KEYS)
        assert reader.command(*OFF) == OK
        writer.command("DEL", *KEYS)
        assert quiet(reader) == []


@pytest.mark.parametrize("block", [("BLOCK", 20), ("BLOCK", 0)])
def test_what_a_blocking_read_has_read(proxy: ProxyDaemon, block: tuple[Word, ...]) -> None:
    """It is read over the same connection as everything else; CLIENT UNBLOCK finds it there."""
    with tracking(proxy) as client, proxy.raw() as other:
        other.command("DEL", "stream")
        if block == ("BLOCK", 0):
            other.command("XADD", "stream", "1-1", "f", "v")
        client.command("XREAD", *block, "STREAMS", "stream", "0")
        assert quiet(client) == []
        other.command("XADD", "stream", "2-2", "f", "v")
        assert client.frame() == invalid("stream")
        number = client.command("CLIENT", "ID")[1:-2].decode()
        client.send(encode("BLPOP", "none", "0"))
        wait_for(lambda: other.command("CLIENT", "UNBLOCK", number, "ERROR") == b":1\r\n", 5, "unblocked")
        assert client.frame().startswith(b"-UNBLOCKED client unblocked")
        assert quiet(client) == []


def test_ones_own_changes(proxy: ProxyDaemon) -> None:
    """Are told as any others, unless with NOLOOP; in transactions, scripts and split commands, too."""
    with tracking(proxy) as one, tracking(proxy, "NOLOOP") as other:
        for client in (one, other):
            client.command("MSET", *(word for key in KEYS for word in (key, 1)))
            told = []
            for change in (("SET", KEYS[0], 2), ("EVAL", "redis.call('set', KEYS[1], 3)", 1, KEYS[0])):
                client.command("GET", KEYS[0])
                client.send(encode(*change))
                told += [frame for frame in [client.frame(), *quiet(client)] if frame.startswith(b">")]
            client.command("MGET", *KEYS)
            client.send(encode("DEL", *KEYS))
            told += [frame for frame in [client.frame(), *quiet(client)] if frame.startswith(b">")]
            wanted = [invalid(KEYS[0])] * 3 + [invalid(key) for key in KEYS[1:]] if client is one else []
            assert sorted(told) == sorted(wanted)


def test_optin_and_optout(proxy: ProxyDaemon) -> None:
    """CLIENT CACHING holds for the next command alone, all parts of it, or the next transaction."""
    spread = ("MGET", *KEYS)
    with tracking(proxy, "OPTIN") as optin, tracking(proxy, "OPTOUT") as optout, proxy.raw() as writer:

        def told(client: RawClient, *commands: tuple[Word, ...]) -> list[bytes]:
            for words in commands:
                client.command(*words)
            writer.command("MSET", *(word for key in KEYS for word in (key, 1)))
            return sorted(quiet(client))

        everything = sorted(invalid(key) for key in KEYS)
        assert told(optin, spread) == []
        assert told(optin, YES, spread) == everything
        assert told(optin, YES, ("PING",), spread) == []
        assert told(optin, YES, ("CLIENT", "ID"), spread) == everything
        assert told(optin, YES, ("MULTI",), ("GET", KEYS[0]), ("GET", KEYS[0]), ("EXEC",)) == [invalid(KEYS[0])]
        assert told(optin, ("WATCH", KEYS[1]), YES, ("MULTI",), ("GET", KEYS[1]), ("EXEC",)) == [invalid(KEYS[1])]
        assert told(optin, ("MULTI",), YES, ("GET", KEYS[2]), ("EXEC",)) == [invalid(KEYS[2])]
        assert told(optin, YES, ("EVAL_RO", "return redis.call('get', KEYS[1])", 1, KEYS[1])) == [invalid(KEYS[1])]
        assert told(optout, spread) == everything
        assert told(optout, NO, spread) == []
        assert told(optout, NO, ("GET", KEYS[0]), ("GET", KEYS[1])) == [invalid(KEYS[1])]
        pipeline = [command for key in KEYS for command in (YES, ("GET", key))] * 50
        optin.send(b"".join(encode(*words) for words in pipeline))
        assert optin.frames(300)[::2] == [OK] * 150
        assert told(optin) == everything


def test_broadcast(proxy: ProxyDaemon) -> None:
    """All changes, without having read; or those of some prefixes."""
    with tracking(proxy, "BCAST") as every, tracking(proxy, "BCAST", "PREFIX", "k:", "PREFIX", "x") as some:
        with proxy.raw() as writer:
            for key in [*KEYS, "x1", "y1"]:
                writer.command("SET", key, 1)
                assert every.frame() == invalid(key)
                if key != "y1":
                    assert some.frame() == invalid(key)
        assert quiet(every) == quiet(some) == []


def test_resp2_hears_nothing_and_resp3_from_then_on(proxy: ProxyDaemon) -> None:
    with proxy.raw() as client, proxy.raw() as writer:
        assert client.command(*ON) == OK
        client.command("GET", KEYS[0])
        writer.command("SET", KEYS[0], 1)
        assert client.command("PING") == b"+PONG\r\n"
        client.send(encode("HELLO", 3))
        frames = client.frames(2)
        assert FLUSH in frames
        client.command("GET", KEYS[0])
        writer.command("SET", KEYS[0], 2)
        assert client.frame() == invalid(KEYS[0])
        client.command("GET", KEYS[0])
        client.command("HELLO", 2)
        writer.command("SET", KEYS[0], 3)
        assert client.command("PING") == b"+PONG\r\n"


def test_flushall(proxy: ProxyDaemon) -> None:
    with tracking(proxy) as reader, proxy.raw() as writer:
        reader.command("GET", KEYS[0])
        writer.command("FLUSHALL")
        assert reader.frame() == FLUSH


def test_a_lost_connection_to_a_node(proxy: ProxyDaemon, cluster: EmbeddedCluster) -> None:
    """Everything is invalidated; what is read afterwards is tracked anew. With BCAST, when the next one is up, too."""
    with tracking(proxy) as reader, tracking(proxy, "BCAST") as every, proxy.raw() as writer:
        for _ in range(3):
            for key in KEYS:
                reader.command("GET", key)
            for node in cluster.primaries():
                node.command("CLIENT", "KILL", "TYPE", "normal")
            for client in (reader, every):
                pushes = wait_for(lambda client=client: quiet(client), 5, "it is told")
                assert set(pushes) == {FLUSH}
        wait_for(lambda: not quiet(every), 5, "its connections are back")
        for key in KEYS:
            reader.command("GET", key)
            writer.command("SET", key, 1)
            assert reader.frame() == invalid(key)
            assert every.frame() == invalid(key)


def test_reads_go_to_primaries(proxy: ProxyDaemon) -> None:
    with tracking(proxy) as reader, proxy.raw() as writer:
        assert reader.command("READONLY") == OK
        for n in range(100):
            for key in KEYS:
                writer.command("SET", key, n)
                reader.send(encode("GET", key))
                frames = [reader.frame()]
                while frames[-1].startswith(b">"):
                    frames.append(reader.frame())
                assert frames[-1] == bulk(str(n).encode())
        assert b" flags=tr " in reader.command("CLIENT", "INFO")


@pytest.fixture
def any_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """redis-py refuses its cache below Redis 7.4, which no server here says that it is; all that it needs is older."""
    monkeypatch.setattr(CacheProxyConnection, "MIN_ALLOWED_VERSION", "6.0.0")


OTHERS = 30  # connections that the proxy has for others, which come and go


def node_clients(cluster: EmbeddedCluster) -> int:
    return sum(int(node.info("clients")["connected_clients"]) for node in cluster.primaries())


def test_many_come_and_leave(proxy: ProxyDaemon, cluster: EmbeddedCluster) -> None:
    """200 of them: each is told, what INFO and the metrics say of them, and nothing is left of them."""
    before = node_clients(cluster)
    clients = [tracking(proxy, *(["BCAST"] if n % 10 == 0 else [])) for n in range(200)]
    try:
        for client in clients:
            for key in KEYS:
                assert not client.command("GET", key).startswith(b"-")
        with proxy.raw() as writer:
            for key in KEYS:
                writer.command("SET", key, 1)
            wanted = sorted(invalid(key) for key in KEYS)
            assert all(sorted(client.frames(3)) == wanted for client in clients)
            wait_for(lambda: b"tracking_clients:200\r\n" in writer.command("INFO", "clients"), 5, "INFO counts them")
            assert writer.command("CLIENT", "LIST").count(b" redir=0 ") == 200
        assert node_clients(cluster) >= before + 600 - OTHERS
        wait_for(lambda: proxy.metric(CONNECTIONS, purpose="tracking", state="up") == 600, 5, "the metric")
        assert proxy.metric("redis_proxy_tracking_clients") == 200
        for n, client in enumerate(clients):
            if n % 3 == 0:
                client.command(*OFF)
            elif n % 3 == 1:
                client.command("RESET")
    finally:
        for client in clients:
            client.close()
    wait_for(lambda: node_clients(cluster) <= before + OTHERS, 15, "the nodes have forgotten them")
    wait_for(lambda: proxy.metric(CONNECTIONS, purpose="tracking", state="up") == 0, 15, "the metric is back")


def test_who_has_no_room_is_told_so(cluster: EmbeddedCluster, start_proxy) -> None:  # type: ignore[no-untyped-def]
    daemon = start_proxy(cluster.seeds[:1], {"backends": {"max_leased": 2}}, workers=1)
    clients = [tracking(daemon) for _ in range(2)]
    with daemon.raw() as late:
        late.command("HELLO", 3)
        assert late.command(*ON).startswith(b"-ERR no connections to the nodes are free for CLIENT TRACKING")
        assert b"off" in late.command(*INFO)
        assert clients[0].command(*ON, "NOLOOP") in (OK, FLUSH)
        clients.pop().close()
        wait_for(lambda: late.command(*ON) == OK, 5, "there is room again")
    for client in clients:
        client.close()


def test_a_user_that_may_not_track(cluster: EmbeddedCluster, start_proxy) -> None:  # type: ignore[no-untyped-def]
    """The node's own error, at once; nothing is tracked then, and no connection tried. Also when it comes later."""
    for node in cluster.nodes:
        node.command("ACL", "SETUSER", "px", "reset", "on", ">pw", "~*", "&*", "+@all", "-client|tracking")
    try:
        daemon = start_proxy(cluster.seeds[:1], {"cluster": {"username": "px", "password": "pw"}}, workers=1)
        with daemon.raw() as client:
            client.command("HELLO", 3)
            for options in ((), ("BCAST",), ("OPTIN",)):
                start = time.monotonic()
                said = client.command(*ON, *options)
                assert said.startswith(b"-NOPERM ")
                assert b"client|tracking" in said
                assert b"off" in client.command(*INFO)
                assert not client.command("GET", KEYS[0]).startswith(b"-")
                assert time.monotonic() - start < 2
            assert daemon.metric(CONNECTIONS, purpose="tracking") == 0
            for node in cluster.nodes:
                node.command("ACL", "SETUSER", "px", "+client|tracking")
            assert client.command(*ON) == OK
            for node in cluster.nodes:
                node.command("ACL", "SETUSER", "px", "-client|tracking")
            for node in cluster.primaries():
                node.command("CLIENT", "KILL", "TYPE", "normal")
            start = time.monotonic()
            client.send(encode("GET", KEYS[0]))
            frames = [client.frame()]
            while frames[-1].startswith(b">"):
                frames.append(client.frame())
            assert frames[-1].startswith(b"-NOPERM ")
            assert time.monotonic() - start < 3
    finally:
        for node in cluster.nodes:
            node.command("ACL", "DELUSER", "px")


@pytest.mark.usefixtures("any_version")
def test_the_cache_of_redis_py(proxy: ProxyDaemon) -> None:
    """redis-py's client-side cache, unmodified: hits come from it, changes by others are seen."""
    with (
        proxy.client(protocol=3, cache_config=CacheConfig(), decode_responses=False) as cached,
        proxy.client(protocol=3, decode_responses=True) as writer,
    ):
        for n in range(20):
            for key in KEYS:
                writer.set(key, n)
                deadline = time.monotonic() + 10
                while cached.get(key) != str(n).encode():
                    assert time.monotonic() < deadline
            assert cached.mget(KEYS) == [str(n).encode()] * 3
            assert [cached.get(key) for key in KEYS] == [str(n).encode()] * 3
        cache = cached.get_cache()
        assert cache is not None
        assert cache.size > 0


@pytest.mark.usefixtures("any_version")
def test_redis_py_pipelines_and_transactions_beside_its_cache(proxy: ProxyDaemon) -> None:
    with (
        proxy.client(protocol=3, cache_config=CacheConfig(), decode_responses=False) as cached,
        proxy.client() as writer,
    ):
        for n in range(10):
            writer.set(KEYS[0], n)
            with cached.pipeline(transaction=True) as pipe:
                pipe.get(KEYS[0])
                pipe.incr(f"count:{{{KEYS[0]}}}")
                assert pipe.execute() == [str(n).encode(), n + 1]
