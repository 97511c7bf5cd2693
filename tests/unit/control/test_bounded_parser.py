"""What a broken node may cost the main process: no reply is longer than a bound, or worked on before it is whole."""

from __future__ import annotations

import asyncio
import resource
import time
from typing import Any

import pytest

from proxy.cluster.topology import Address
from proxy.control.bounded_parser import LIMIT
from proxy.control.node_client import NodeClientError, NodeClientSettings, node_client
from proxy.embedded import HOST
from tests.support.fake_node import FakeNode

MB = 1 << 20


def ask(node: FakeNode, *commands: tuple[str, ...]) -> list[Any]:
    async def play() -> list[Any]:
        async with node_client(Address(HOST, node.port), NodeClientSettings(timeout_s=3.0)) as client:
            return await client.ask(*commands)

    return asyncio.run(play())


def refused(node: FakeNode, reply: bytes) -> str:
    """What is said of it; neither time nor memory has been spent on it."""
    node.on("COMMAND", reply)
    before, began_s = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(NodeClientError) as error:
        ask(node, ("COMMAND",))
    assert time.process_time() - began_s < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 40 * 1024  # kilobytes
    return str(error.value)


@pytest.mark.parametrize(
    "reply",
    [
        b"$%d\r\n" % (3 * MB) + b"x" * (3 * MB) + b"\r\n",
        b"$2000000000\r\n" + b"x" * (8 * MB),
        b"*1000000\r\n" + b":1\r\n" * 1_000_000,
        b"*1000000000\r\n" + b"$-1\r\n" * 1_000_000,
        b"+" + b"x" * (4 * MB),
    ],
    ids=["bulk", "endless bulk", "array", "endless array", "endless line"],
)
def test_a_reply_has_a_bound(reply: bytes) -> None:
    with FakeNode() as node:
        assert "longer than 2 MB" in refused(node, reply)


def test_the_head_of_a_huge_array_is_not_believed() -> None:
    """hiredis makes room for a billion elements as soon as it reads so."""
    with FakeNode() as node:
        assert "does not answer in time" in refused(node, b"*1000000000\r\n:1\r\n")


def test_what_is_whole_is_read_and_then_comes_nonsense() -> None:
    with FakeNode() as node:
        node.on("PING", b"+PONG\r\n").on("COMMAND", b"?nonsense\r\n")
        with pytest.raises(NodeClientError, match="does not speak RESP"):
            ask(node, ("PING",), ("COMMAND",))


def test_large_replies_within_the_bound() -> None:
    words = [b"$%d\r\n" % size + b"x" * size + b"\r\n" for size in (LIMIT - 100, 0, 70_000)]
    with FakeNode() as node:
        node.on("COMMAND", lambda session, said: words[int(said[1])])
        replies = ask(node, *(("COMMAND", str(n)) for n in range(3)))
    assert [len(reply) for reply in replies] == [LIMIT - 100, 0, 70_000]
