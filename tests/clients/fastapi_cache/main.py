"""fastapi-cache2 with an application of FastAPI: cached answers, their ETags and ages, clearing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from checks import HOST, PORT, equal, restart
from fastapi import FastAPI
from fastapi.testclient import TestClient
from fastapi_cache import FastAPICache
from fastapi_cache.backends.redis import RedisBackend
from fastapi_cache.decorator import cache
from redis import asyncio as aioredis
from stages import RUN, Stages, until

stages = Stages()
calls: list[str] = []


async def keys_of(namespace: str) -> list[str]:
    backend = FastAPICache.get_backend()
    return [key.decode() async for key in backend.redis.scan_iter(f"{FastAPICache.get_prefix()}:{namespace}:*")]


def application(prefix: str) -> FastAPI:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        db = aioredis.from_url(f"redis://{HOST}:{PORT}")
        FastAPICache.reset()
        FastAPICache.init(RedisBackend(db), prefix=prefix)
        yield
        await db.close()

    app = FastAPI(lifespan=lifespan)

    @app.get("/item/{name}")
    @cache(expire=60, namespace="items")
    async def item(name: str) -> dict[str, str]:
        calls.append(name)
        return {"name": name}

    @app.get("/short")
    @cache(expire=1)
    async def short() -> int:
        calls.append("short")
        return calls.count("short")

    @app.post("/clear")
    async def clear() -> None:
        for key in await keys_of("items"):
            await FastAPICache.get_backend().clear(key=key)

    return app


@stages.add("answers are cached")
def cached() -> None:
    calls.clear()
    with TestClient(application(RUN)) as client:
        for _ in range(2):
            for n in range(30):
                equal(client.get(f"/item/{n}").json(), {"name": str(n)})
        equal(len(calls), 30)
        response = client.get("/item/1")
        equal(response.headers["x-fastapi-cache"], "HIT")
        equal(client.get("/item/1", headers={"if-none-match": response.headers["etag"]}).status_code, 304)
        equal(client.get("/short").json(), 1)
        until(lambda: client.get("/short").json() == 2, "it expires")


@stages.add("keys are cleared")
def cleared() -> None:
    calls.clear()
    with TestClient(application(f"{RUN}c")) as client:
        for n in range(30):
            client.get(f"/item/{n}")
        client.post("/clear")
        for n in range(30):
            client.get(f"/item/{n}")
        equal(len(calls), 60)


@stages.add("the proxy restarts")
def reconnect() -> None:
    with TestClient(application(RUN)) as client:
        client.get("/item/before")
        restart()
        equal(client.get("/item/before").json(), {"name": "before"})
        equal(client.get("/item/after").json(), {"name": "after"})


stages.run("fastapi-cache2")
