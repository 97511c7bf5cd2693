"""An admin server with callbacks that can be held back or fail, and HTTP clients for it."""

from __future__ import annotations

import asyncio
import os
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import uvloop

from proxy.admin.http import AdminServer
from proxy.admin.metrics import MetricsPage
from proxy.admin.processes import Processes
from tests.unit.admin.snapshots import BOUNDS_S, snapshot

Answer = tuple[int, str, str]  # status, content type, body


def fetch(url: str, accept: str = "*/*", method: str = "GET") -> Answer:
    request = urllib.request.Request(url, headers={"Accept": accept}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=5) as response:
            return response.status, response.headers["Content-Type"], response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers["Content-Type"], error.read().decode()


async def get(url: str, **options: str) -> Answer:
    return await asyncio.to_thread(fetch, url, **options)


class Proxy:
    """What the server asks; `gate` holds its answers back while it is closed."""

    def __init__(self) -> None:
        self.page = MetricsPage(BOUNDS_S, Processes(lambda: [os.getpid()]))
        self.good = True
        self.details: Mapping[str, Any] = {}
        self.fault: Exception | None = None
        self.asked: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def ask(self, what: str) -> None:
        self.asked.append(what)
        await self.gate.wait()
        if self.fault is not None:
            raise self.fault

    async def metrics(self, accept: str) -> tuple[bytes, str]:
        await self.ask("metrics")
        return self.page.render(snapshot(), accept)

    async def live(self) -> tuple[bool, Mapping[str, Any]]:
        await self.ask("live")
        return self.good, self.details

    async def ready(self) -> tuple[bool, Mapping[str, Any]]:
        await self.ask("ready")
        return self.good, self.details

    async def state(self) -> Mapping[str, Any]:
        await self.ask("state")
        return self.details

    async def was_asked(self, times: int = 1) -> None:
        while len(self.asked) < times:
            await asyncio.sleep(0.001)


def admin_of(proxy: Proxy) -> AdminServer:
    return AdminServer(proxy.metrics, proxy.live, proxy.ready, proxy.state)


@asynccontextmanager
async def server_of(proxy: Proxy, address: str = "127.0.0.1:0") -> AsyncIterator[AdminServer]:
    server = admin_of(proxy)
    await server.stop()
    await server.prepare(address)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()
        await server.stop()


def base(server: AdminServer, host: str = "127.0.0.1") -> str:
    return f"http://{host}:{server.port}"


Check = Callable[[Proxy, AdminServer], Awaitable[None]]


def serve(check: Check, address: str = "127.0.0.1:0", proxy: Proxy | None = None) -> None:
    """Runs the check against a started server, on the loop the proxy runs on."""

    async def main() -> None:
        async with asyncio.timeout(30):
            asked = proxy or Proxy()
            async with server_of(asked, address) as server:
                await check(asked, server)

    uvloop.run(main())


Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@asynccontextmanager
async def connection(port: int, *sent: bytes) -> AsyncIterator[Streams]:
    """One that the client would keep, and what it sends first."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.writelines(sent)
        yield reader, writer
    finally:
        writer.close()
        await asyncio.gather(writer.wait_closed(), return_exceptions=True)  # it may be reset by then


def asking(path: str, accept: str = "*/*") -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: x\r\nAccept: {accept}\r\n\r\n".encode()


async def answer(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """One whole answer: (head, body)."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    return head, await reader.readexactly(int(length.split(b":")[1]))


async def scrape_body(port: int, accept: str = "*/*") -> bytes:
    async with connection(port, asking("/metrics", accept)) as (reader, _):
        return (await answer(reader))[1]
