"""Who is judged by the time when the worker has stood still: what has come meanwhile counts."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable

from proxy.resp.encode import encode_command
from proxy.worker.worker import Worker
from tests.support.fake_node import SILENCE, FakeNode, Reply, Session
from tests.unit.worker.scene import Client, Port, configured, run, until

PATIENCE_S = 0.6  # of the worker
STILL_S = 0.8


async def stand_still(meanwhile: Callable[[], object], still_s: float = STILL_S) -> None:
    """The whole worker stands still while it reads: the next thing that it comes to are its timers."""
    loop, done = asyncio.get_running_loop(), asyncio.Event()
    ours, theirs = socket.socketpair()

    def still() -> None:
        time.sleep(still_s)
        meanwhile()
        loop.remove_reader(theirs)
        done.set()

    with ours, theirs:
        theirs.setblocking(False)
        loop.add_reader(theirs, still)
        ours.send(b"x")
        await done.wait()


def test_who_has_written_meanwhile_is_not_idle(node: FakeNode) -> None:
    async def scene(worker: Worker, port: Port) -> None:
        client = Client(worker)
        assert await client.ask("SET", "k", "v") == b"OK"
        await stand_still(lambda: client.sock.send(encode_command("GET", "k")))
        assert await client.reply() == b"v"
        client.close()

    run(configured(clients={"idle_timeout": PATIENCE_S}), scene, node.address)


def test_who_has_ended_a_command_meanwhile_is_not_slow(node: FakeNode) -> None:
    async def scene(worker: Worker, port: Port) -> None:
        client = Client(worker)
        assert await client.ask("PING") == b"PONG"
        await client.send_bytes(b"*1\r\n$4\r\nPI")
        await asyncio.sleep(0.1)  # it is seen that one has begun
        await stand_still(lambda: client.sock.send(b"NG\r\n"))
        assert await client.reply() == b"PONG"
        client.close()

    run(configured(clients={"frame_timeout": PATIENCE_S}), scene, node.address)


def test_who_is_in_the_middle_of_a_command_has_its_time_all_the_same(node: FakeNode) -> None:
    """What it would have sent meanwhile had no room, and it has some of its time left."""

    async def scene(worker: Worker, port: Port) -> None:
        client = Client(worker)
        assert await client.ask("PING") == b"PONG"
        await client.send_bytes(b"*1\r\n$4\r\nPI")
        await asyncio.sleep(0.1)  # it is seen that one has begun
        await stand_still(lambda: None, 1.6)
        await asyncio.sleep(0.3)  # time for some sweeps
        await client.send_bytes(b"NG\r\n")
        assert await client.reply() == b"PONG"
        client.close()

    run(configured(clients={"frame_timeout": 1.5}), scene, node.address)


def test_what_a_node_has_answered_meanwhile_is_not_late(node: FakeNode) -> None:
    def answer(session: Session, words: list[bytes]) -> Reply:
        asked.append(session)
        return SILENCE

    asked: list[Session] = []
    node.on("GET", answer)

    async def scene(worker: Worker, port: Port) -> None:
        client = Client(worker)
        assert await client.ask("SET", "k", "v") == b"OK"
        await client.send("GET", "k")
        await until(lambda: asked)
        await stand_still(lambda: asked[0].sock.sendall(b"$1\r\nv\r\n"))
        assert await client.reply() == b"v"
        client.close()

    run(configured(requests={"timeout": PATIENCE_S}), scene, node.address)


def test_one_that_is_always_late_judges_all_the_same(node: FakeNode) -> None:
    async def scene(worker: Worker, port: Port) -> None:
        client = Client(worker)
        assert await client.ask("PING") == b"PONG"
        for _ in range(100):
            if worker.path.closed:
                break
            await stand_still(lambda: None, 0.1)
        assert worker.path.closed == 1

    run(configured(clients={"idle_timeout": PATIENCE_S}), scene, node.address)
