"""The admin server over real sockets: paths, status codes, formats, and callbacks that fail or hang."""

from __future__ import annotations

import asyncio
import json
import logging

import pytest

from proxy.admin.http import AdminServer
from proxy.system import log as logs
from tests.unit.admin.serving import (
    Proxy,
    asking,
    base,
    connection,
    get,
    scrape_body,
    serve,
)

# ---- answers


def test_metrics_in_both_formats() -> None:
    async def check(proxy: Proxy, server: AdminServer) -> None:
        status, kind, body = await get(f"{base(server)}/metrics")
        assert (status, kind) == (200, "text/plain; version=0.0.4; charset=utf-8")
        assert "redis_proxy_client_connections_total 10.0\n" in body
        assert 'redis_proxy_node_up{node="10.0.0.1:7000",role="primary"} 1.0\n' in body
        status, kind, body = await get(f"{base(server)}/metrics", accept="application/openmetrics-text; version=1.0.0")
        assert (status, kind.split(";")[0]) == (200, "application/openmetrics-text")
        assert body.endswith("# EOF\n")

    serve(check)


@pytest.mark.parametrize(("path", "word"), [("/livez", "live"), ("/readyz", "ready")])
def test_probes(path: str, word: str) -> None:
    async def check(proxy: Proxy, server: AdminServer) -> None:
        url = base(server) + path
        proxy.details = {"reasons": []}
        assert await get(url) == (200, "text/plain; charset=utf-8", f"{word}\n")
        proxy.good = False
        assert (await get(url))[::2] == (503, f"not {word}\n")
        proxy.details = {"reasons": ["it rains", "it is late"], "depth": 3}
        assert (await get(url))[::2] == (503, f"not {word}: it rains; it is late\n")
        status, kind, body = await get(f"{url}?verbose")
        assert (status, kind) == (503, "application/json; charset=utf-8")
        assert json.loads(body) == {word: False, "reasons": ["it rains", "it is late"], "depth": 3}
        proxy.good = True
        assert (await get(f"{url}?verbose=1"))[0] == 200
        assert set(proxy.asked) == {word}

    serve(check)


def test_state() -> None:
    async def check(proxy: Proxy, server: AdminServer) -> None:
        proxy.details = {"clients": 3, "workers": [{"pid": 7}], "topology": None}
        status, kind, body = await get(f"{base(server)}/api/state")
        assert (status, kind) == (200, "application/json; charset=utf-8")
        assert json.loads(body) == proxy.details
        assert proxy.asked == ["state"]

    serve(check)


@pytest.mark.parametrize(
    ("path", "method", "status"),
    [
        ("/", "GET", 404),
        ("/nosuch", "GET", 404),
        ("/metrics/", "GET", 404),
        ("/metrics", "POST", 405),
        ("/metrics", "HEAD", 200),
        ("/livez", "HEAD", 200),
        ("/readyz", "HEAD", 200),
        ("/api/state", "HEAD", 200),
        ("/api/state", "PUT", 405),
        ("/api/state/", "GET", 404),
        ("/../metrics", "GET", 404),
        ("//metrics", "GET", 404),
    ],
)
def test_other_requests(path: str, method: str, status: int) -> None:
    async def check(proxy: Proxy, server: AdminServer) -> None:
        answer = await get(base(server) + path, method=method)
        assert answer[0] == status
        if method == "HEAD":
            assert answer[2] == ""

    serve(check)


@pytest.mark.parametrize("path", ["/metrics", "/livez", "/readyz", "/readyz?verbose", "/api/state"])
def test_a_callback_that_fails_is_logged_and_answered(path: str, caplog: pytest.LogCaptureFixture) -> None:
    async def check(proxy: Proxy, server: AdminServer) -> None:
        proxy.fault = RuntimeError("broken pipe dream")
        with caplog.at_level(logging.WARNING):
            assert (await get(base(server) + path))[::2] == (500, "internal error, see the log\n")
        proxy.fault = None
        assert (await get(base(server) + path))[0] == 200

    logs._limited.clear()
    serve(check)
    (record,) = caplog.records
    assert record.getMessage() == "cannot answer"
    assert record.__dict__["fields"]["path"] == path.partition("?")[0]
    assert "broken pipe dream" in record.__dict__["fields"]["error"]
    assert "in ask" in record.__dict__["fields"]["trace"]


@pytest.mark.parametrize("path", ["/metrics", "/livez", "/readyz", "/api/state"])
@pytest.mark.usefixtures("impatient")
def test_a_callback_that_hangs_is_not_waited_for(path: str, caplog: pytest.LogCaptureFixture) -> None:
    async def check(proxy: Proxy, server: AdminServer) -> None:
        proxy.gate.clear()
        assert (await get(base(server) + path))[::2] == (503, "no answer in time\n")
        proxy.gate.set()
        assert (await get(base(server) + path))[0] == 200

    logs._limited.clear()
    serve(check)
    assert [record.getMessage() for record in caplog.records] == ["no answer in time"]


def test_a_callbacks_own_timeout_is_a_failure() -> None:
    async def check(proxy: Proxy, server: AdminServer) -> None:
        proxy.fault = TimeoutError()
        assert (await get(f"{base(server)}/livez"))[0] == 500

    serve(check)


def test_scrapes_at_the_same_time_share_one_collection() -> None:
    async def check(proxy: Proxy, server: AdminServer) -> None:
        proxy.gate.clear()
        url = f"{base(server)}/metrics"
        first = asyncio.create_task(scrape_body(server.port))
        await proxy.was_asked()
        others = [asyncio.create_task(scrape_body(server.port)) for _ in range(5)]
        other_format = asyncio.create_task(get(url, accept="application/openmetrics-text"))
        await proxy.was_asked(2)  # it makes its own
        # The five have been read once the server has answered what came after them.
        assert (await get(f"{base(server)}/nosuch"))[0] == 404
        proxy.gate.set()
        bodies = {await one for one in [first, *others]}
        assert len(bodies) == 1
        assert (await other_format)[0] == 200
        assert proxy.asked == ["metrics"] * 2
        await get(url)
        assert proxy.asked == ["metrics"] * 3  # nothing is kept

    serve(check)


def test_headers_that_mean_the_same_format_share_one_collection() -> None:
    async def check(proxy: Proxy, server: AdminServer) -> None:
        proxy.gate.clear()
        made_up = [f"text/plain;q=0.{n}, x/{n}" for n in range(20)]
        made_up += [f"application/openmetrics-text; version=1.{n}" for n in range(1, 21)]
        asked = [asyncio.create_task(scrape_body(server.port, accept)) for accept in made_up]
        await proxy.was_asked(2)
        assert (await get(f"{base(server)}/nosuch"))[0] == 404  # so the others have been read
        proxy.gate.set()
        assert len({await one for one in asked}) == 2
        assert proxy.asked == ["metrics"] * 2

    serve(check)


def test_a_scraper_that_gives_up_takes_nobody_with_it() -> None:
    async def check(proxy: Proxy, server: AdminServer) -> None:
        proxy.gate.clear()
        async with connection(server.port, asking("/metrics")):
            await proxy.was_asked()
            second = asyncio.create_task(scrape_body(server.port))
            assert (await get(f"{base(server)}/nosuch"))[0] == 404
        proxy.gate.set()
        assert b"redis_proxy_build_info" in await second

    serve(check)


def test_stop_does_not_wait_for_a_hanging_request() -> None:
    async def check(proxy: Proxy, server: AdminServer) -> None:
        proxy.gate.clear()
        async with connection(server.port, asking("/metrics")):
            await proxy.was_asked()
            async with asyncio.timeout(4):
                await server.stop()
        assert [task for task in asyncio.all_tasks() if task.get_name() == "scrape"] == []

    serve(check)
