"""Commands about the connection itself are answered for the proxy's own client, and never reach a shared connection."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

import pytest
import redis

from proxy.embedded import EmbeddedCluster
from tests.support.cluster import Standalone, spread_keys
from tests.support.proxyd import ProxyDaemon
from tests.support.raw import RawClient, Word


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("PING",), b"+PONG\r\n"),
        (("ping",), b"+PONG\r\n"),
        (("PING", "hello"), b"$5\r\nhello\r\n"),
        (("PING", ""), b"$0\r\n\r\n"),
        (("ECHO", "x\r\ny"), b"$4\r\nx\r\ny\r\n"),
        (("ECHO", ""), b"$0\r\n\r\n"),
        (("SELECT", "0"), b"+OK\r\n"),
        (("READONLY",), b"+OK\r\n"),
        (("READWRITE",), b"+OK\r\n"),
        (("RESET",), b"+RESET\r\n"),
        (("CLIENT", "GETNAME"), b"$-1\r\n"),
        (("CLIENT", "SETNAME", "me"), b"+OK\r\n"),
        (("CLIENT", "SETNAME", ""), b"+OK\r\n"),
        (("CLIENT", "SETINFO", "LIB-NAME", "lib"), b"+OK\r\n"),
        (("CLIENT", "SETINFO", "lib-ver", "1.0"), b"+OK\r\n"),
    ],
)
def test_answers(words: tuple[Word, ...], expected: bytes, raw: RawClient) -> None:
    assert raw.command(*words) == expected


def test_select_of_another_database(raw: RawClient) -> None:
    # Redis Cluster's error, or (Valkey 9) that of a cluster with one database.
    assert raw.command("SELECT", 1) in (
        b"-ERR SELECT is not allowed in cluster mode\r\n",
        b"-ERR DB index is out of range\r\n",
    )
    assert raw.command("SET", "k", "v") == b"+OK\r\n"


def test_names_belong_to_one_client(proxy: ProxyDaemon) -> None:
    with proxy.raw() as one, proxy.raw() as other:
        assert one.command("CLIENT", "SETNAME", "one") == b"+OK\r\n"
        assert one.command("CLIENT", "GETNAME") == b"$3\r\none\r\n"
        assert other.command("CLIENT", "GETNAME") == b"$-1\r\n"
        assert one.command("CLIENT", "SETNAME", "") == b"+OK\r\n"
        assert one.command("CLIENT", "GETNAME") == b"$-1\r\n"


def test_ids_are_distinct_and_stay(proxy: ProxyDaemon) -> None:
    with proxy.raw() as one, proxy.raw() as other:
        first = one.command("CLIENT", "ID")
        assert re.fullmatch(rb":\d+\r\n", first)
        assert one.command("CLIENT", "ID") == first
        assert other.command("CLIENT", "ID") != first


def test_client_info_tells_of_this_client(proxy: ProxyDaemon) -> None:
    with proxy.client(protocol=3, client_name="me", driver_info=None) as client:
        client.execute_command("CLIENT SETINFO", "LIB-NAME", "lib")
        info = client.client_info()
        assert isinstance(info, dict)
        assert info["name"] == "me"
        assert int(info["resp"]) == 3
        assert int(info["id"]) == client.client_id()
        assert str(info["laddr"]).endswith(f":{proxy.port}")
        assert str(info["addr"]).startswith("127.0.0.1:")
        assert info["lib-name"] == "lib"
        assert int(info["db"]) == 0


def test_reset_takes_back_name_and_protocol(raw: RawClient) -> None:
    raw.command("HELLO", 3, "SETNAME", "me")
    raw.command("READONLY")
    assert raw.command("RESET") == b"+RESET\r\n"
    assert raw.command("GET", "none") == b"$-1\r\n"
    assert raw.command("CLIENT", "GETNAME") == b"$-1\r\n"


def test_quit_answers_what_came_before_it_then_closes(raw: RawClient) -> None:
    raw.send(b"SET k v\r\nGET k\r\nQUIT\r\nGET k\r\n")
    assert raw.rest() == b"+OK\r\n$1\r\nv\r\n+OK\r\n"


def test_time_is_now(client: redis.Redis) -> None:
    seconds, microseconds = client.time()
    assert abs(seconds + microseconds / 1e6 - time.time()) < 5


@pytest.mark.parametrize("protocol", [2, 3])
def test_command_count_and_info_are_the_servers(protocol: int, proxy: ProxyDaemon, cluster: EmbeddedCluster) -> None:
    port = cluster.nodes[0].port
    with proxy.raw() as through, RawClient(("127.0.0.1", port)) as direct:
        for client in (through, direct):
            client.command("HELLO", protocol)
        for words in (
            ("COMMAND", "INFO", "get", "nosuch", "xread"),
            ("COMMAND", "GETKEYS", "MSET", "a", "b", "c", "d"),
            ("COMMAND", "GETKEYS", "EVAL", "x", "2", "k1", "k2", "a"),
        ):
            assert through.command(*words) == direct.command(*words)
        assert len(through.command("COMMAND", "DOCS", "get")) == len(direct.command("COMMAND", "DOCS", "get"))


def test_info_looks_like_one_server(client: redis.Redis, cluster: EmbeddedCluster) -> None:
    # Spring's health check, ioredis's ready check (redis/ioredis#780)
    info = client.info()
    assert info["redis_version"] == cluster.nodes[0].info("server")["redis_version"]
    assert info["redis_mode"] == "standalone"
    assert int(info.get("loading", 0)) == 0
    assert int(info.get("cluster_enabled", 0)) == 0


def test_info_sections(raw: RawClient) -> None:
    server = raw.command("INFO", "server")
    assert b"redis_version:" in server
    assert server.startswith(b"$")
    assert raw.command("INFO", "SERVER")[:3] == server[:3]
    assert raw.command("INFO", "nosuchsection") == b"$0\r\n\r\n"


@pytest.mark.parametrize("pattern", ["maxmemory", "save", "appendonly"])
def test_config_get(pattern: str, client: redis.Redis, cluster: EmbeddedCluster) -> None:
    # redis-benchmark asks save and appendonly.
    name, value = cluster.nodes[0].command("CONFIG", "GET", pattern)
    assert client.config_get(pattern) == {name: value}


def test_replies_of_the_connection_keep_their_place(proxy: ProxyDaemon, standalone: Standalone) -> None:
    """Answers of the proxy's own do not overtake those that it still waits for."""
    data = b"".join(
        b"SET k%d v\r\nPING\r\nGET k%d\r\nECHO x\r\nNOSUCH\r\nGET\r\nSELECT 0\r\nMGET k%d none\r\nCLIENT GETNAME\r\n"
        % (n, n, n)
        for n in range(50)
    )
    with proxy.raw() as through, standalone.raw() as direct:
        for client in (through, direct):
            client.send(data)
        assert through.frames(450) == direct.frames(450)


def test_what_one_client_sets_does_not_reach_another(proxy: ProxyDaemon) -> None:
    with proxy.raw() as one, proxy.raw() as other:
        for words in (("HELLO", 3), ("READONLY",), ("CLIENT", "SETNAME", "x"), ("SELECT", 0), ("ASKING",), ("RESET",)):
            one.command(*words)
            for key in spread_keys():
                assert other.command("GET", key) == b"$-1\r\n"
                assert other.command("SET", key, "v") == b"+OK\r\n"
                assert other.command("DEL", key) == b":1\r\n"


def test_connections_come_and_go(proxy: ProxyDaemon) -> None:
    for n in range(300):
        with proxy.raw() as client:
            if n % 3 == 0:
                assert client.command("SET", f"k{n}", n) == b"+OK\r\n"
            elif n % 3 == 1:
                client.send(b"*3\r\n$3\r\nSET\r\n$1")  # half a command
            else:
                client.send(b"MGET a b c\r\nGET a\r\n" * 50)  # closes without reading
    with proxy.raw() as client:
        assert client.command("EXISTS", *(f"k{n}" for n in range(300))) == b":100\r\n"


@pytest.mark.parametrize("protocol", [2, 3])
def test_unix_socket(protocol: int, cluster: EmbeddedCluster, start_proxy: Callable[..., ProxyDaemon]) -> None:
    daemon = start_proxy(cluster.seeds, unix=True)
    with redis.Redis(unix_socket_path=daemon.unix_path, protocol=protocol, decode_responses=True) as client:
        assert client.set("k", "v") is True
        assert client.mget("k", "none") == ["v", None]
    with RawClient(daemon.unix_path) as raw:
        raw.send(b"PING\r\nGET k\r\n")
        assert raw.frames(2) == [b"+PONG\r\n", b"$1\r\nv\r\n"]
