"""The admin server over real sockets: paths, status codes, formats, and a port that is taken."""

from __future__ import annotations

import asyncio
import errno
import json
import socket
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from proxy.admin.http import AdminServer
from proxy.admin.metrics import build_registry
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


class State:
    """What the probes tell."""

    live = True
    ready = True
    details: dict[str, Any] = {"partial": False, "slots_covered": 16384}  # noqa: RUF012


def serve(check: Callable[[str, State], Awaitable[None]], address: str = "127.0.0.1:0") -> None:
    """Runs check(base URL, state) against a started server."""

    async def main() -> None:
        state = State()
        server = AdminServer(
            address, build_registry(snapshot, BOUNDS_S), lambda: state.live, lambda: (state.ready, state.details)
        )
        await server.start()
        try:
            host = address.rpartition(":")[0]
            await check(f"http://{host}:{server.port}", state)
        finally:
            await server.stop()
            await server.stop()

    asyncio.run(main())


def get(check: str, **options: str) -> Awaitable[Answer]:
    return asyncio.to_thread(fetch, check, **options)


def test_metrics_in_both_formats() -> None:
    async def check(base: str, state: State) -> None:
        status, kind, body = await get(f"{base}/metrics")
        assert (status, kind.split(";")[0]) == (200, "text/plain")
        assert "redis_proxy_client_connections_total 10.0\n" in body
        assert 'redis_proxy_node_up{node="10.0.0.1:7000",role="primary"} 1.0\n' in body
        status, kind, body = await get(f"{base}/metrics", accept="application/openmetrics-text; version=1.0.0")
        assert (status, kind.split(";")[0]) == (200, "application/openmetrics-text")
        assert body.endswith("# EOF\n")

    serve(check)


def test_probes() -> None:
    async def check(base: str, state: State) -> None:
        assert await get(f"{base}/livez") == (200, "text/plain; charset=utf-8", "live\n")
        assert (await get(f"{base}/readyz"))[::2] == (200, "ready\n")
        state.ready = False
        state.details = {"reason": "topology unknown"}
        assert (await get(f"{base}/readyz"))[::2] == (503, "not ready\n")
        assert (await get(f"{base}/livez"))[0] == 200
        status, kind, body = await get(f"{base}/readyz?verbose")
        assert (status, kind.split(";")[0]) == (503, "application/json")
        assert json.loads(body) == {"ready": False, "reason": "topology unknown"}
        state.live = False
        assert (await get(f"{base}/livez"))[::2] == (503, "not live\n")

    serve(check)


@pytest.mark.parametrize(
    ("path", "method", "status"),
    [("/", "GET", 404), ("/nosuch", "GET", 404), ("/metrics", "POST", 405), ("/livez", "HEAD", 200)],
)
def test_other_requests(path: str, method: str, status: int) -> None:
    async def check(base: str, state: State) -> None:
        assert (await get(base + path, method=method))[0] == status

    serve(check)


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6")
def test_ipv6_address() -> None:
    with socket.socket(socket.AF_INET6) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            pytest.skip("no IPv6 loopback")

    async def check(base: str, state: State) -> None:
        assert (await get(f"{base}/livez"))[0] == 200

    serve(check, "[::1]:0")


def test_a_taken_port_is_said_clearly() -> None:
    async def main(address: str) -> None:
        server = AdminServer(address, build_registry(snapshot, BOUNDS_S), lambda: True, lambda: (True, {}))
        with pytest.raises(OSError, match="cannot listen") as caught:
            await server.start()
        assert caught.value.errno == errno.EADDRINUSE
        assert caught.value.strerror == f"cannot listen on admin.address {address}: Address already in use"
        await server.stop()

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        asyncio.run(main(f"127.0.0.1:{taken.getsockname()[1]}"))


def test_an_address_that_is_not_ours_is_said_clearly() -> None:
    async def main() -> None:
        server = AdminServer("192.0.2.1:9617", build_registry(snapshot, BOUNDS_S), lambda: True, lambda: (True, {}))
        with pytest.raises(OSError, match=r"cannot listen on admin\.address 192\.0\.2\.1:9617: Cannot assign"):
            await server.start()

    asyncio.run(main())


def test_after_stop_the_port_is_free() -> None:
    async def main() -> None:
        server = AdminServer("127.0.0.1:0", build_registry(snapshot, BOUNDS_S), lambda: True, lambda: (True, {}))
        await server.start()
        port = server.port
        await server.stop()
        again = AdminServer(f"127.0.0.1:{port}", build_registry(snapshot, BOUNDS_S), lambda: True, lambda: (True, {}))
        await again.start()
        assert again.port == port
        await again.stop()

    asyncio.run(main())
