"""What reaches the admin port and is no well-behaved scraper: too many, too slow, too much, and never read."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import AsyncIterator, Iterator

import pytest

from proxy.admin import connections
from proxy.admin.connections import _NEW_S, MAX_CONNECTIONS
from proxy.admin.http import AdminServer
from proxy.system import log as logs
from tests.unit.admin.serving import Proxy, Streams, answer, asking, base, connection, get, serve

LIVE = asking("/livez")


@pytest.fixture(autouse=True)
def fresh_log() -> None:
    """A warning that another test had would be left out."""
    logs._limited.clear()


@pytest.fixture
def short_head(monkeypatch: pytest.MonkeyPatch) -> float:
    monkeypatch.setattr(connections, "HEAD_S", 0.4)
    return 0.4


@pytest.fixture
def short_take(monkeypatch: pytest.MonkeyPatch) -> float:
    monkeypatch.setattr(connections, "TAKE_S", 0.4)
    return 0.4


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


async def until_gone(server: AdminServer) -> None:
    async with asyncio.timeout(5):
        while server._connections:
            await asyncio.sleep(0.001)


async def ended(reader: asyncio.StreamReader) -> bytes:
    """What still came before the server closed the connection."""
    with contextlib.suppress(ConnectionResetError):
        return await reader.read()
    return b""


@contextlib.asynccontextmanager
async def many(port: int, number: int) -> AsyncIterator[list[Streams]]:
    async with contextlib.AsyncExitStack() as stack:
        yield [await stack.enter_async_context(connection(port)) for _ in range(number)]


async def until_old(server: AdminServer) -> None:
    """Until none of those that are open counts as new."""
    began_s = max(one.idle_since_s or 0.0 for one in server._connections)
    while asyncio.get_running_loop().time() <= began_s + _NEW_S:
        await asyncio.sleep(0.01)


# ---- too many


def test_idle_connections_are_capped_and_end(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(connections, "HEAD_S", 3.0)  # nobody is at the end of his time before all have come
    monkeypatch.setattr(connections, "_NEW_S", 10.0)  # so long as this machine may take

    async def check(proxy: Proxy, server: AdminServer) -> None:
        async with many(server.port, MAX_CONNECTIONS + 8) as opened:
            ends = [asyncio.create_task(ended(reader)) for reader, _ in opened]
            async with asyncio.timeout(10):
                while sum(one.done() for one in ends) < 8:
                    await asyncio.sleep(0.001)
            assert sum(one.done() for one in ends) == 8
            assert len(server._connections) == MAX_CONNECTIONS
            assert await asyncio.gather(*ends) == [b""] * len(ends)
        await until_gone(server)
        assert (await get(f"{base(server)}/livez"))[0] == 200

    serve(check)
    assert warned(caplog) == ["admin connection refused: too many are open"]


def test_who_asks_is_answered_whoever_is_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection that has been idle for longest gives way."""
    monkeypatch.setattr(connections, "HEAD_S", 60.0)  # nobody's time ends meanwhile

    async def check(proxy: Proxy, server: AdminServer) -> None:
        async with many(server.port, 1) as oldest:
            while not server._connections:
                await asyncio.sleep(0.001)
            await asyncio.sleep(0.01)  # those that are accepted in one turn of the loop are of one age
            async with many(server.port, MAX_CONNECTIONS - 1) as opened:
                async with asyncio.timeout(5):
                    while len(server._connections) < MAX_CONNECTIONS:
                        await asyncio.sleep(0.001)
                await until_old(server)
                for _ in range(3):
                    async with connection(server.port, LIVE) as (reader, _):
                        assert (await answer(reader))[1] == b"live\n"
                    while len(server._connections) >= MAX_CONNECTIONS:  # the next one needs nobody to give way
                        await asyncio.sleep(0.001)
                async with asyncio.timeout(5):
                    assert await ended(oldest[0][0]) == b""
                assert not any(reader.at_eof() for reader, _ in opened)

    serve(check)


def test_the_cap_is_the_servers_and_not_one_of_each_address() -> None:
    async def check(proxy: Proxy, server: AdminServer) -> None:
        async with many(server.port, MAX_CONNECTIONS):
            async with asyncio.timeout(5):
                while len(server._connections) < MAX_CONNECTIONS:
                    await asyncio.sleep(0.001)
            await until_old(server)
            await server.move("localhost:0")
            async with connection(server.port, LIVE) as (reader, _):
                assert (await answer(reader))[1] == b"live\n"
            assert len(server._connections) <= MAX_CONNECTIONS

    serve(check)


def test_300_scrapes_at_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(connections, "_NEW_S", 30.0)  # so long as this machine may take
    monkeypatch.setattr(connections, "HEAD_S", 30.0)
    monkeypatch.setattr("proxy.admin.http.ANSWER_S", 30.0)

    async def check(proxy: Proxy, server: AdminServer) -> None:
        proxy.gate.clear()

        async def scrape() -> bytes:
            async with connection(server.port, asking("/metrics")) as (reader, _):
                try:
                    return (await answer(reader))[1]
                except (asyncio.IncompleteReadError, ConnectionError):
                    return b""

        scrapes = [asyncio.create_task(scrape()) for _ in range(300)]
        async with asyncio.timeout(10):
            while sum(one.done() for one in scrapes) < 300 - MAX_CONNECTIONS:
                await asyncio.sleep(0.001)
        proxy.gate.set()
        bodies = await asyncio.gather(*scrapes)
        assert bodies.count(b"") == 300 - MAX_CONNECTIONS
        assert len(set(bodies) - {b""}) == 1
        assert proxy.asked == ["metrics"]
        await until_gone(server)
        assert (await get(f"{base(server)}/metrics"))[0] == 200

    serve(check)
    assert warned(caplog) == ["admin connection refused: too many are open"]


# ---- too slow


async def dribble(writer: asyncio.StreamWriter, sent: bytes, every_s: float) -> None:
    with contextlib.suppress(ConnectionError):
        for n in range(len(sent)):
            writer.write(sent[n : n + 1])
            await asyncio.sleep(every_s)


def test_a_head_may_come_in_single_bytes() -> None:
    async def check(proxy: Proxy, server: AdminServer) -> None:
        async with connection(server.port) as (reader, writer):
            for _ in range(2):
                await dribble(writer, LIVE, 0.0001)
                assert (await answer(reader))[1] == b"live\n"

    serve(check)


@pytest.mark.parametrize("first", [b"", LIVE], ids=["at first", "after an answer"])
def test_a_head_that_takes_too_long_ends_the_connection(short_head: float, first: bytes) -> None:
    async def check(proxy: Proxy, server: AdminServer) -> None:
        before = time.monotonic()  # what begins the time: to be served, or answered, comes after that
        async with connection(server.port, first) as (reader, writer):
            if first:
                await answer(reader)
            slow = asyncio.create_task(dribble(writer, LIVE, short_head / 20))  # never silent for long
            assert await ended(reader) == b""
            assert short_head * 0.9 < time.monotonic() - before < short_head * 2 + 4
            slow.cancel()
        assert proxy.asked == ["live"] * bool(first)

    serve(check)


def test_an_answer_begins_the_time_anew(short_head: float) -> None:
    async def in_time(server: AdminServer) -> bool:
        """Whether no question came too late, because this process stood still."""
        before = time.monotonic()  # the last answer
        async with connection(server.port) as (reader, writer):
            for _ in range(4):
                await asyncio.sleep(short_head * 0.4)
                asked = time.monotonic()
                writer.write(LIVE)
                try:
                    assert (await answer(reader))[1] == b"live\n"
                except (asyncio.IncompleteReadError, ConnectionError):
                    assert time.monotonic() - before > short_head * 0.9
                    return False
                before = asked
            assert await ended(reader) == b""
            assert short_head * 0.9 < time.monotonic() - before < short_head * 2 + 4
        return True

    async def check(proxy: Proxy, server: AdminServer) -> None:
        while not await in_time(server):
            pass

    serve(check)


def test_an_answer_may_take_longer_than_a_head(short_head: float) -> None:
    async def check(proxy: Proxy, server: AdminServer) -> None:
        proxy.gate.clear()
        async with connection(server.port, LIVE) as (reader, _):
            await proxy.was_asked()
            await asyncio.sleep(short_head * 2)
            proxy.gate.set()
            assert (await answer(reader))[1] == b"live\n"

    serve(check)


# ---- too much

HUGE = [
    pytest.param(b"GET /livez HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 9000 + b"\r\n\r\n", id="a header"),
    pytest.param(b"GET /livez HTTP/1.1\r\nHost: x\r\n" + b"a" * 9000 + b": a\r\n\r\n", id="the name of a header"),
    pytest.param(b"GET /livez HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 1_000_000, id="a header without end"),
    pytest.param(b"GET /livez HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 100 + b"\r\n", id="100 headers"),
    pytest.param(b"GET /livez HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 100_000, id="headers without end"),
    pytest.param(b"GET /livez?" + b"a" * 9000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", id="a path"),
    pytest.param(b"G" * 100_000, id="a method"),
    pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500), id="TLS"),
    pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", id="HTTP/2"),
    pytest.param(b"*1\r\n$4\r\nPING\r\n", id="RESP"),
]


@pytest.mark.parametrize("sent", HUGE)
def test_a_request_that_is_none_is_refused(sent: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async def check(proxy: Proxy, server: AdminServer) -> None:
        for _ in range(3):
            async with connection(server.port, sent) as (reader, _):
                said = await ended(reader)  # it is reset when there was more than the server has read
                assert said == b"" or said.startswith((b"HTTP/1.1 400 ", b"HTTP/1.0 400 "))
                assert said == b"" or b"\r\nServer: redis-proxy\r\n" in said
        assert proxy.asked == []
        assert (await get(f"{base(server)}/livez"))[0] == 200

    serve(check)
    assert warned(caplog) in ([], ["bad request to the admin port"])
    assert all(record.exc_info is None for record in caplog.records)
    assert all(len(str(record.__dict__.get("fields"))) < 300 for record in caplog.records)


def test_a_refusal_says_what_was_wrong() -> None:
    async def check(proxy: Proxy, server: AdminServer) -> None:
        async with connection(server.port, b"GET / HTTP/1.1\r\nA: " + b"a" * 8200 + b"\r\n\r\n") as (reader, _):
            assert (await ended(reader)).startswith(b"HTTP/1.0 400 Bad Request\r\n")

    serve(check)


def with_body(method: str, path: str, framing: str) -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: x\r\n{framing}\r\n\r\n".encode()


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (with_body("GET", "/metrics", "Content-Length: 5") + b"hello", 413),
        (with_body("GET", "/livez", "Content-Length: 1000000000"), 413),
        (with_body("GET", "/api/state", "Transfer-Encoding: chunked") + b"5\r\nhello\r\n", 413),
        (with_body("POST", "/metrics", "Content-Length: 1000000000"), 405),
        (with_body("POST", "/metrics", "Content-Length: 1000000000\r\nContent-Encoding: gzip"), 405),
        (with_body("PUT", "/nosuch", "Content-Length: 1000000000\r\nExpect: 100-continue"), 404),
    ],
)
def test_bodies_are_refused_and_the_connection_ends(sent: bytes, status: int) -> None:
    async def check(proxy: Proxy, server: AdminServer) -> None:
        async with connection(server.port, sent) as (reader, _):
            head, _ = await answer(reader)
            assert head.startswith(f"HTTP/1.1 {status} ".encode())
            assert b"\r\nConnection: close\r\n" in head
            before = time.monotonic()
            assert await ended(reader) == b""
            assert time.monotonic() - before < 6
        assert proxy.asked == []

    serve(check)


def test_a_body_without_end_is_not_read_for_long() -> None:
    async def check(proxy: Proxy, server: AdminServer) -> None:
        begin = with_body("POST", "/livez", "Content-Length: 1000000000000")
        async with connection(server.port, begin) as (_, writer):
            before = time.monotonic()
            with contextlib.suppress(ConnectionError):
                while not writer.is_closing():
                    writer.write(bytes(1 << 16))
                    await writer.drain()
                    await asyncio.sleep(0.001)
            assert time.monotonic() - before < 8
        await until_gone(server)

    serve(check)


def test_pipelined_requests_are_answered_in_order() -> None:
    async def check(proxy: Proxy, server: AdminServer) -> None:
        paths = ["/livez", "/readyz", "/nosuch", "/api/state"] * 100
        async with connection(server.port, b"".join(asking(path) for path in paths)) as (reader, _):
            found = [(await answer(reader))[1] for _ in paths]
        assert found == [b"live\n", b"ready\n", b"not found\n", b"{}\n"] * 100
        assert proxy.asked == ["live", "ready", "state"] * 100

    serve(check)


# ---- never read


@contextlib.contextmanager
def unread(port: int, *sent: bytes) -> Iterator[socket.socket]:
    """A client with a small window, which sends and does not read."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(("127.0.0.1", port))
        sock.setblocking(False)
        for one in sent:
            sock.send(one)
        yield sock


class Large(Proxy):
    """With a page of 20 MB, more than the kernel takes for a client that does not read."""

    async def metrics(self, accept: str) -> tuple[bytes, str]:
        await self.ask("metrics")
        return b"x" * 20_000_000, "text/plain"


def test_a_client_that_never_reads_a_large_page_is_cut(short_take: float, caplog: pytest.LogCaptureFixture) -> None:
    async def check(proxy: Proxy, server: AdminServer) -> None:
        with unread(server.port, asking("/metrics")):
            await proxy.was_asked()
            async with connection(server.port, LIVE) as (reader, _):
                assert (await answer(reader))[1] == b"live\n"
            await until_gone(server)

    serve(check, proxy=Large())
    assert warned(caplog) == ["admin connection closed: its client does not read"]


def test_a_client_that_pipelines_and_never_reads_is_cut(short_take: float, short_head: float) -> None:
    async def check(proxy: Proxy, server: AdminServer) -> None:
        with unread(server.port) as sock:
            asked = asking("/metrics") * 50
            with contextlib.suppress(BlockingIOError):
                for _ in range(100):
                    sock.send(asked)
            await until_gone(server)
        assert len(proxy.asked) < 5

    serve(check, proxy=Large())


def test_a_client_that_reads_slowly_has_its_time() -> None:
    async def check(proxy: Proxy, server: AdminServer) -> None:
        async with connection(server.port, asking("/metrics")) as (reader, _):
            await asyncio.sleep(0.5)
            assert len((await answer(reader))[1]) == 20_000_000

    serve(check, proxy=Large())


def test_a_client_that_never_reads_does_not_outlive_stop() -> None:
    async def check(proxy: Proxy, server: AdminServer) -> None:
        with unread(server.port, asking("/metrics")) as sock:
            await proxy.was_asked()
            before = time.monotonic()
            await server.stop()
            assert time.monotonic() - before < 6
            await until_gone(server)
            sock.setblocking(True)
            sock.settimeout(5)
            await asyncio.to_thread(_read_to_end, sock)

    serve(check, proxy=Large())


def _read_to_end(sock: socket.socket) -> None:
    with contextlib.suppress(ConnectionResetError):
        while sock.recv(1 << 20):
            pass


# ---- what is told


@pytest.mark.parametrize(
    "sent",
    [
        asking("/metrics"),
        asking("/livez?verbose"),
        asking("/nosuch"),
        b"POST /livez HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc",
        b"HEAD /livez HTTP/1.0\r\n\r\n",
        b"nonsense\r\n\r\n",
    ],
)
def test_no_answer_names_what_the_server_is_made_of(sent: bytes) -> None:
    async def check(proxy: Proxy, server: AdminServer) -> None:
        async with connection(server.port, sent) as (reader, _):
            head = await reader.readuntil(b"\r\n\r\n")
            assert b"\r\nServer: redis-proxy\r\n" in head
            assert not {word for word in (b"python", b"aiohttp") if word in head.lower()}

    serve(check)
