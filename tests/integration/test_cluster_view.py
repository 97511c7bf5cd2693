"""Cluster-aware clients see one virtual node, the proxy, that owns every slot."""

from __future__ import annotations

import re
from typing import Any

import pytest
import redis
from redis.cluster import RedisCluster

from proxy.embedded import EmbeddedCluster
from tests.support.proxyd import ProxyDaemon
from tests.support.raw import RawClient


@pytest.mark.parametrize("protocol", [2, 3])
def test_redis_pys_cluster_client_works(protocol: int, proxy: ProxyDaemon) -> None:
    client: Any = RedisCluster(host="127.0.0.1", port=proxy.port, protocol=protocol, decode_responses=True)
    with client:
        for n in range(50):
            assert client.set(f"k{n}", n) is True
        assert [client.get(f"k{n}") for n in range(50)] == [str(n) for n in range(50)]
        assert client.mget_nonatomic("k1", "k2", "none") == ["1", "2", None]
        assert {node.port for node in client.get_nodes()} == {proxy.port}


def test_slots(raw: RawClient, proxy: ProxyDaemon) -> None:
    frame = raw.command("CLUSTER", "SLOTS")
    my_id = raw.command("CLUSTER", "MYID")
    assert frame.startswith(b"*1\r\n*3\r\n:0\r\n:16383\r\n*")
    assert b"$9\r\n127.0.0.1\r\n:%d\r\n" % proxy.port in frame
    assert my_id in frame


def test_shards(proxy: ProxyDaemon) -> None:
    with proxy.raw() as two, proxy.raw() as three:
        three.command("HELLO", 3)
        flat, mapped = two.command("CLUSTER", "SHARDS"), three.command("CLUSTER", "SHARDS")
    assert flat.startswith(b"*1\r\n*4\r\n$5\r\nslots\r\n*2\r\n:0\r\n:16383\r\n$5\r\nnodes\r\n*1\r\n*")
    assert mapped.startswith(b"*1\r\n%2\r\n$5\r\nslots\r\n*2\r\n:0\r\n:16383\r\n$5\r\nnodes\r\n*1\r\n%")
    for frame in (flat, mapped):
        assert b"$4\r\nport\r\n:%d\r\n" % proxy.port in frame
        assert b"$4\r\nrole\r\n$6\r\nmaster\r\n" in frame
        assert b"$6\r\nhealth\r\n$6\r\nonline\r\n" in frame


def test_nodes(raw: RawClient, proxy: ProxyDaemon) -> None:
    text = raw.command("CLUSTER", "NODES").split(b"\r\n", 1)[1].strip().decode()
    my_id = raw.command("CLUSTER", "MYID").split(b"\r\n")[1].decode()
    assert len(text.splitlines()) == 1
    fields = text.split(" ")
    assert re.fullmatch("[0-9a-f]{40}", my_id)
    assert fields[0] == my_id
    assert fields[1].startswith(f"127.0.0.1:{proxy.port}@")
    assert fields[2] == "myself,master"
    assert (fields[7], fields[8]) == ("connected", "0-16383")


def test_info(raw: RawClient) -> None:
    text = raw.command("CLUSTER", "INFO").decode()
    for line in ("cluster_state:ok", "cluster_slots_assigned:16384", "cluster_slots_ok:16384", "cluster_size:1"):
        assert f"{line}\r\n" in text


KEYS = ["a", "", "{user}:1", "x{}y", "{", "}{a}", "{a}{b}", "key with \x00 and \xff", "k" * 5000]


@pytest.mark.parametrize("key", KEYS, ids=range(len(KEYS)))
def test_keyslot(key: str, raw: RawClient, cluster: EmbeddedCluster) -> None:
    expected = cluster.nodes[0].command("CLUSTER", "KEYSLOT", key)
    assert raw.command("CLUSTER", "KEYSLOT", key) == b":%d\r\n" % expected


@pytest.mark.parametrize("words", [["CLUSTER"], ["CLUSTER", "KEYSLOT"], ["CLUSTER", "KEYSLOT", "a", "b"]])
def test_faulty_forms(words: list[str], raw: RawClient, cluster: EmbeddedCluster) -> None:
    with RawClient(("127.0.0.1", cluster.nodes[0].port)) as direct:
        assert raw.command(*words) == direct.command(*words)


def test_my_id_is_the_same_for_every_client(proxy: ProxyDaemon) -> None:
    with proxy.raw() as one, proxy.raw() as other:
        assert one.command("CLUSTER", "MYID") == other.command("CLUSTER", "MYID")


def test_plain_client_is_not_told_of_a_cluster(client: redis.Redis) -> None:
    assert int(client.info("cluster").get("cluster_enabled", 0)) == 0
