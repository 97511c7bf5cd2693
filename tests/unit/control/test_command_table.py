from __future__ import annotations

import asyncio

import pytest

from proxy.cluster.topology import Address
from proxy.control.command_table import load_rows, server_version
from proxy.control.node_client import NodeClientError, NodeClientSettings
from proxy.embedded import HOST, EmbeddedCluster
from tests.support.fake_node import FakeNode

SETTINGS = NodeClientSettings(timeout_s=5.0)


def test_a_real_node(cluster: EmbeddedCluster) -> None:
    node = cluster.nodes[0]
    told = asyncio.run(load_rows(Address(HOST, node.port), SETTINGS))
    rows = {row.name: row for row in told.rows}
    assert rows["get"].arity == 2
    assert "readonly" in rows["get"].flags
    assert len(rows) > 200
    server = node.info("server")
    name = server.get("server_name", "redis")
    assert told.source == f"{name} {server.get('valkey_version', server['redis_version'])}"


@pytest.mark.parametrize("reply", [b"-NOPERM no permissions to run the 'command' command\r\n", b"*0\r\n", b"+OK\r\n"])
def test_a_node_that_does_not_tell(reply: bytes) -> None:
    with FakeNode() as node:
        node.on("COMMAND", reply)
        with pytest.raises(NodeClientError, match="does not tell its commands"):
            asyncio.run(load_rows(Address(HOST, node.port), SETTINGS))


def test_more_commands_than_there_can_be() -> None:
    """Each worker makes a table of them on the loop that its clients wait for."""
    rows = b"".join(b"*6\r\n$5\r\nx%04d\r\n:2\r\n*1\r\n+readonly\r\n:1\r\n:1\r\n:1\r\n" % n for n in range(3000))
    with FakeNode() as node:
        node.on("COMMAND", b"*3000\r\n" + rows)
        with pytest.raises(NodeClientError, match="tells 3000 commands, more than 2048"):
            asyncio.run(load_rows(Address(HOST, node.port), SETTINGS))


def test_rows_without_a_version() -> None:
    with FakeNode() as node:
        node.on("COMMAND", b"*1\r\n*6\r\n$3\r\nget\r\n:2\r\n*1\r\n+readonly\r\n:1\r\n:1\r\n:1\r\n")
        node.on("INFO", b"-NOPERM no permissions to run the 'info' command\r\n")
        told = asyncio.run(load_rows(Address(HOST, node.port), SETTINGS))
    assert ([row.name for row in told.rows], told.source) == (["get"], "")


@pytest.mark.parametrize(
    ("info", "expected"),
    [
        ("# Server\r\nredis_version:7.0.15\r\nredis_mode:cluster\r\n", ("redis", "7.0.15")),
        ("redis_version:7.2.4\r\nserver_name:valkey\r\nvalkey_version:9.1.2\r\n", ("valkey", "9.1.2")),
        ("redis_version:7.2.4\r\nserver_name:other\r\n", ("other", "7.2.4")),
        ("", ("", "")),
    ],
)
def test_server_version(info: str, expected: tuple[str, str]) -> None:
    assert server_version(info) == expected
