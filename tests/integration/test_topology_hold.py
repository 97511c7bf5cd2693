"""A change of a large topology under load: for how long no client of the worker gets its turn (issue 8, F)."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from array import array

import msgspec
import pytest

from proxy.cluster.topology import Address
from proxy.embedded import HOST, EmbeddedCluster, die_with_parent
from proxy.ipc.channel import encode
from proxy.ipc.messages import TO_WORKER, Topology
from proxy.worker.worker import Worker
from tests.unit.worker.scene import TCP, Port, configured, run, topology, until

LIMIT_S = 0.004  # 2 ms are promised; twice that, for a machine that is slower or not quiet
SHARDS = 100
CHANGES = 30
CLIENTS = 16

# Sixteen clients in a process of their own that ask as soon as they are answered; says how often, in the end.
LOAD = """
import socket, sys
socks = [socket.create_connection(("127.0.0.1", int(sys.argv[1]))) for _ in range(int(sys.argv[2]))]
rounds = 0
try:
    while True:
        for number, sock in enumerate(socks):
            sock.sendall(b"*2\\r\\n$3\\r\\nGET\\r\\n$%d\\r\\n%d\\r\\n" % (len(str(number + rounds)), number + rounds))
        for sock in socks:
            assert sock.recv(4096) == b"$-1\\r\\n"
        rounds += 1
except (ConnectionError, AssertionError):
    print(rounds)
"""


def encoded(whole: Topology, turn: int) -> bytes:
    """Every slot next to one of another shard, and with each turn another shard's."""
    owners = array("H", [(slot * 7 + turn) % SHARDS for slot in range(16384)])
    return encode(msgspec.structs.replace(whole, owners=owners.tobytes()))


def large(port: int) -> Topology:
    """300 nodes that are one: its port on a hundred addresses for the primaries; nobody is at the replicas'."""
    shards = [[Address(f"127.0.{place}.{n + 1}", port) for place in (1, 2, 3)] for n in range(SHARDS)]
    names = {f"host-{n}.example.com:{port + k}": n for n in range(3 * SHARDS) for k in range(2)}
    return topology(*[([], addresses) for addresses in shards], names=names)


async def turns(longest_s: list[float]) -> None:
    """Notes the CPU time of each turn of the loop: what other processes of the machine take does not count."""
    last_s = time.thread_time()
    while True:
        await asyncio.sleep(0)
        now_s = time.thread_time()
        longest_s.append(now_s - last_s)
        last_s = now_s


@pytest.mark.alone
def test_a_large_topology_does_not_hold_the_loop() -> None:
    with EmbeddedCluster(primaries=1, replicas=0) as cluster, socket.create_server((HOST, 0)) as listening:
        node = cluster.nodes[0]
        node.command("CONFIG", "SET", "bind", "0.0.0.0")
        port = listening.getsockname()[1]
        command = [sys.executable, "-c", LOAD, str(port), str(CLIENTS)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, preexec_fn=die_with_parent()) as load:

            async def scene(worker: Worker, _: Port) -> None:
                whole = large(node.port)
                bodies = [encoded(whole, turn) for turn in range(CHANGES)]
                worker.publish(TO_WORKER.decode(bodies[0]))
                nodes = worker.router.nodes.values()
                await until(lambda: sum(one.figures()["up"] for one in nodes if not one.replica) == SHARDS)
                for number in range(CLIENTS):
                    client, _ = listening.accept()
                    worker.take(TCP, [client.detach()], number + 1, 1)
                await until(lambda: worker.counters.snapshot()["commands"]["get"]["calls"] > 1000)
                calm_s: list[float] = []
                held_s: list[float] = []
                watching = asyncio.create_task(turns(calm_s))
                await asyncio.sleep(0.3)
                watching.cancel()
                watching = asyncio.create_task(turns(held_s))
                for body in bodies:
                    worker.publish(TO_WORKER.decode(body))
                    await asyncio.sleep(0.02)
                watching.cancel()
                await asyncio.gather(watching, return_exceptions=True)
                print(f"longest turn {max(held_s) * 1000:.2f} ms, without a change {max(calm_s) * 1000:.2f} ms")
                assert worker.counters.snapshot()["commands"]["get"]["errors"] == {}
                # A few turns may be longer by what other processes of the machine have thrown out of the caches.
                assert sorted(held_s)[-CHANGES // 10] < LIMIT_S

            run(configured(), scene)
            assert load.stdout is not None
            assert int(load.stdout.read()) > 100


def test_it_counts_what_it_says() -> None:
    """The measurement can fail: a callback of 5 ms is seen."""

    async def play() -> float:
        held_s: list[float] = []
        watching = asyncio.create_task(turns(held_s))
        await asyncio.sleep(0.01)
        until_s = time.thread_time() + 0.005
        while time.thread_time() < until_s:
            os.getpid()
        await asyncio.sleep(0.01)
        watching.cancel()
        return max(held_s)

    assert asyncio.run(play()) >= 0.005
