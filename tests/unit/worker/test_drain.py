"""How clients leave a worker: parted with in a drain, waited for in a retirement."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import time

import pytest

from proxy.embedded import EmbeddedCluster
from proxy.system.log import FIELDS
from proxy.worker import drain
from proxy.worker.worker import Worker
from tests.support.fake_node import SILENCE, FakeNode, Session
from tests.unit.worker.scene import TCP, Client, Port, configured, run, until


def many(worker: Worker, count: int) -> list[Client]:
    return [Client(worker, client_id=n) for n in range(1, count + 1)]


class TestRetire:
    def test_waits_for_the_last_to_leave(self, node: FakeNode) -> None:
        async def scene(worker: Worker, port: Port) -> None:
            first, last = many(worker, 2)
            retired = asyncio.create_task(worker.leaving.empty())
            first.close()
            await until(lambda: worker.path.closed == 1)
            assert await last.ask("SET", "k", "v") == b"OK"
            assert not retired.done()
            last.close()
            await retired
            assert worker.path.closed == 2

        run(configured(), scene, node.address)

    def test_nobody_to_wait_for(self, node: FakeNode) -> None:
        async def scene(worker: Worker, port: Port) -> None:
            await worker.leaving.empty()

        run(configured(), scene, node.address)


class TestDrain:
    def test_nobody_there(self, node: FakeNode) -> None:
        async def scene(worker: Worker, port: Port) -> None:
            begun_s = time.monotonic()
            await worker.leaving.drain(5.0, 10.0)
            assert time.monotonic() - begun_s < 4

        run(configured(), scene, node.address)

    def test_turns_are_spread_evenly(self, node: FakeNode) -> None:
        async def scene(worker: Worker, port: Port) -> None:
            clients = many(worker, 40)
            for client in clients:
                await client.ask("PING")
            begun_s = time.monotonic()
            times: list[float] = []
            longest_s = 0.0  # that this process stood still

            async def idle(client: Client) -> None:
                assert await client.rest() == []
                times.append(time.monotonic() - begun_s)

            async def watch() -> None:
                nonlocal longest_s
                while len(times) < 40:
                    before_s = time.monotonic()
                    await asyncio.sleep(0.005)
                    longest_s = max(longest_s, time.monotonic() - before_s)

            await asyncio.gather(worker.leaving.drain(0.8, 5.0), watch(), *map(idle, clients))
            assert worker.path.closed == 40
            for place, at_s in enumerate(sorted(times)):
                assert -0.005 < at_s - 0.8 * place / 40 < 0.08 + 2 * longest_s, times
            assert worker.counters.snapshot()["closed"]["shutdown"] == 40

        run(configured(), scene, node.address)

    def test_who_has_just_come_is_heard(self, node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(drain, "NEW_S", 2.5)  # more than this process may stand still

        async def scene(worker: Worker, port: Port) -> None:
            old, new = many(worker, 2)
            await old.ask("PING")
            begun_s = time.monotonic()

            async def late() -> None:
                await old.rest()
                assert time.monotonic() - begun_s < 2.5
                assert await new.ask("PING") == b"PONG"

            await asyncio.gather(worker.leaving.drain(0.0, 5.0), late())
            assert time.monotonic() - begun_s >= 0.5

        run(configured(), scene, node.address)

    def test_the_wall_clock_steps_back(
        self, node: FakeNode, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Who has said nothing is not new for an hour: nobody is waited for until the time is over."""

        async def scene(worker: Worker, port: Port) -> None:
            (silent,) = many(worker, 1)
            stepped = time.time() - 3600
            monkeypatch.setattr(time, "time", lambda: stepped)
            await asyncio.gather(worker.leaving.drain(0.0, 8.0), silent.rest())
            assert not any("cut off" in record.msg for record in caplog.records)

        run(configured(), scene, node.address)

    def test_what_was_read_is_answered(self, nodes: EmbeddedCluster, caplog: pytest.LogCaptureFixture) -> None:
        """Busy clients: as many replies as commands were read, in order, and then the end."""

        async def scene(worker: Worker, port: Port) -> None:
            warm = asyncio.Event()

            async def busy(number: int, client: Client) -> int:
                """Keeps a pipeline full until the end comes; how many replies did."""
                replies: list[bytes] = []

                async def push() -> None:
                    with contextlib.suppress(OSError):
                        for n in itertools.count():
                            await client.send("ECHO", f"{number}:{n}")
                            while n - len(replies) > 100:
                                await asyncio.sleep(0)

                pushing = asyncio.create_task(push())
                with contextlib.suppress(EOFError, ConnectionResetError):
                    while True:
                        replies.append(await client.reply())
                        if len(replies) == 200:
                            warm.set()
                pushing.cancel()
                await asyncio.gather(pushing, return_exceptions=True)
                client.close()
                assert replies == [f"{number}:{n}".encode() for n in range(len(replies))]
                return len(replies)

            work = asyncio.gather(*itertools.starmap(busy, enumerate(many(worker, 8))))
            await warm.wait()
            await worker.leaving.drain(0.3, 10.0)
            counts = await work
            values = worker.counters.snapshot()
            assert sum(counts) == values["commands"]["echo"]["calls"]
            assert values["closed"]["shutdown"] == 8
            assert worker.path.closed == 8
            assert not any("cut off" in record.msg for record in caplog.records)

        run(configured(), scene, nodes.seeds[0])

    def test_commands_under_way_may_take_until_the_timeout(self, node: FakeNode) -> None:
        def slow(session: Session, words: list[bytes]) -> bytes:
            time.sleep(0.4)
            return b"$4\r\nslow\r\n"

        node.on("GET", slow)

        async def scene(worker: Worker, port: Port) -> None:
            client = Client(worker)
            await client.send("GET", "k")
            await until(lambda: worker.counters.snapshot()["inflight"])
            drained = asyncio.create_task(worker.leaving.drain(0.0, 5.0))
            assert await client.rest() == [b"slow"]
            await drained

        run(configured(), scene, node.address)

    def test_whoever_is_left_at_the_timeout_is_closed(self, node: FakeNode, caplog: pytest.LogCaptureFixture) -> None:
        node.on("GET", SILENCE)

        async def scene(worker: Worker, port: Port) -> None:
            client = Client(worker)
            await client.send("GET", "k")
            await until(lambda: worker.counters.snapshot()["inflight"])
            begun_s = time.monotonic()
            await worker.leaving.drain(0.0, 0.3)
            assert 0.25 < time.monotonic() - begun_s < 8.0
            assert await client.rest() == []
            assert worker.path.closed == 1

        run(configured(), scene, node.address)
        (record,) = [record for record in caplog.records if record.msg == "clients cut off at the end of the drain"]
        assert getattr(record, FIELDS) == {"clients": 1}

    def test_a_client_that_does_not_close_has_a_second(self, node: FakeNode) -> None:
        async def scene(worker: Worker, port: Port) -> None:
            client = Client(worker)
            await client.ask("PING")
            begun_s = time.monotonic()
            await worker.leaving.drain(0.0, 10.0)
            assert 0.9 < time.monotonic() - begun_s < 8.0
            client.close()

        run(configured(), scene, node.address)

    def test_whoever_is_blocked_at_the_timeout_is_closed(self, node: FakeNode) -> None:
        """Without an error, as by a server that shuts down. A node that says nothing has a second for it."""
        node.on("BLPOP", SILENCE)
        node.on("CLIENT", SILENCE)

        async def scene(worker: Worker, port: Port) -> None:
            client = Client(worker)
            await client.send("BLPOP", "k", "0")
            await until(lambda: worker.counters.snapshot()["blocked"])
            begun_s = time.monotonic()
            drained = asyncio.create_task(worker.leaving.drain(0.0, 0.1))
            assert await client.rest() == []
            await drained
            assert time.monotonic() - begun_s < 5
            assert worker.path.closed == 1

        run(configured(), scene, node.address)

    def test_no_time_at_all(self, node: FakeNode) -> None:
        async def scene(worker: Worker, port: Port) -> None:
            clients = many(worker, 3)
            await worker.leaving.drain(0.0, 0.0)
            for client in clients:
                assert await client.rest() == []
            assert worker.path.closed == 3

        run(configured(), scene, node.address)

    def test_one_that_comes_too_late_is_parted_with(self, node: FakeNode) -> None:
        async def scene(worker: Worker, port: Port) -> None:
            first = Client(worker)
            drained = asyncio.create_task(worker.leaving.drain(0.3, 5.0))
            await asyncio.sleep(0)
            late = Client(worker, TCP, 2)
            assert await late.rest() == []
            assert await first.rest() == []
            await drained
            assert worker.path.closed == 2

        run(configured(), scene, node.address)

    def test_after_a_retirement(self, node: FakeNode) -> None:
        """The supervisor may end a worker that waits for its last client."""

        async def scene(worker: Worker, port: Port) -> None:
            client = Client(worker)
            retired = asyncio.create_task(worker.leaving.empty())
            drained = asyncio.create_task(worker.leaving.drain(0.0, 5.0))
            client.sock.shutdown(socket.SHUT_WR)
            assert await client.rest() == []
            await asyncio.gather(retired, drained)

        run(configured(), scene, node.address)
