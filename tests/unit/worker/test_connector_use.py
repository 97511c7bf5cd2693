"""Connections that end while they are in use, and what that means for those who wait for the next one."""

from __future__ import annotations

import asyncio
import socket

from proxy.cluster.topology import Address
from proxy.embedded import HOST
from proxy.forward.clients import accept, close_all
from proxy.forward.datapath import ClientSettings
from proxy.resp import errors
from tests.support.fake_node import Cut, FakeNode
from tests.support.raw import encode
from tests.unit.worker.scene import until
from tests.unit.worker.test_connector import Nodes, run, settings


def test_a_node_that_lets_go_of_a_connection_over_a_command(node: FakeNode) -> None:
    """It was reached, so nobody else is held up; a read that it cannot bear costs three connections."""
    node.on("GET", Cut()).on("SET", b"+OK\r\n")

    async def scene(nodes: Nodes) -> None:
        nodes.want(Address(HOST, node.port))
        await until(lambda: len(nodes.up) == 1)
        loop = asyncio.get_running_loop()
        ends = []
        for number in (1, 2):
            near, far = socket.socketpair()
            near.setblocking(False)
            far.setblocking(False)
            accept(nodes.path, near.detach(), ClientSettings(timeout_ns=5 * 10**9), "a:1", "b:1", number)
            ends.append(far)
        await loop.sock_sendall(ends[0], encode("GET", "a"))
        await until(lambda: node.seen("GET"))
        await loop.sock_sendall(ends[1], encode("SET", "a", "b"))
        async with asyncio.timeout(5):
            assert await loop.sock_recv(ends[1], 100) == b"+OK\r\n"
            assert await loop.sock_recv(ends[0], 200) == errors.NODE_CUTS
        assert len(node.seen("GET")) == 3
        assert nodes.connector._breakers._of == {}
        close_all(nodes.path)
        for far in ends:
            far.close()

    run(settings(), scene)
