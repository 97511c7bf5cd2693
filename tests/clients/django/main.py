"""Django's own Redis cache or django-redis: the cache's interface, sessions in it, cached views; locks and patterns."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from typing import Any

import django
from checks import HOST, PORT, equal, restart
from django.conf import settings
from stages import RUN, SHARDS, Stages, raises, slot_of, until

BACKEND = os.environ["BACKEND"]
LOCATION = f"redis://{HOST}:{PORT}/0"
OWN = BACKEND.startswith("django.core")
settings.configure(
    CACHES={
        "default": {"BACKEND": BACKEND, "LOCATION": LOCATION, "KEY_PREFIX": RUN},
        "one slot": {"BACKEND": BACKEND, "LOCATION": LOCATION, "KEY_PREFIX": "{" + RUN + "}"},
    },
    SESSION_ENGINE="django.contrib.sessions.backends.cache",
    INSTALLED_APPS=["django.contrib.sessions"],
    MIDDLEWARE=["django.contrib.sessions.middleware.SessionMiddleware"],
    ROOT_URLCONF=__name__,
    ALLOWED_HOSTS=["*"],
    SECRET_KEY="x",
)
django.setup()

from django.core.cache import cache, caches  # noqa: E402
from django.http import HttpResponse  # noqa: E402
from django.test import Client  # noqa: E402
from django.urls import path  # noqa: E402
from django.views.decorators.cache import cache_page  # noqa: E402

stages = Stages()


def visit(request: Any) -> HttpResponse:
    request.session["visits"] = request.session.get("visits", 0) + 1
    return HttpResponse(str(request.session["visits"]))


@cache_page(60)
def cached(_: Any) -> HttpResponse:
    return HttpResponse(str(time.time()))


urlpatterns = [path("visit", visit), path("cached", cached)]


def spread_names(number: int) -> list[str]:
    """Names whose keys, as this cache makes them, are on every shard."""
    names = [f"name{n}" for n in range(number)]
    equal(len({slot_of(cache.make_key(name)) * SHARDS // 16384 for name in names}), SHARDS)
    return names


@stages.add("values")
def values() -> None:
    for name in spread_names(30):
        cache.set(name, {"name": name, "list": [1, 2]}, timeout=100)
        equal(cache.get(name), {"name": name, "list": [1, 2]})
        equal(cache.add(name, "other"), False)
        equal(cache.touch(name, 50), True)
    equal(cache.get("none", "default"), "default")
    equal(cache.get_or_set("made", lambda: 7), 7)
    equal(cache.has_key("made"), True)
    equal([cache.delete("made"), cache.delete("made")], [True, False])
    cache.set("short", 1, timeout=1)
    until(lambda: cache.get("short") is None, "it expires")
    cache.set("version", 1, version=2)
    equal([cache.get("version"), cache.get("version", version=2)], [None, 1])


@stages.add("counters")
def counters() -> None:
    for name in spread_names(12):
        cache.set(f"{name}n", 1)
        equal([cache.incr(f"{name}n"), cache.incr(f"{name}n", 10), cache.decr(f"{name}n")], [2, 12, 11])
    with raises(ValueError):
        cache.incr("no such counter")


@stages.add("many at once")
def many() -> None:
    wanted = {name: n for n, name in enumerate(spread_names(200))}
    tagged = caches["one slot"]
    equal(tagged.set_many(wanted, timeout=100) or [], [])
    equal(tagged.get_many([*wanted, "none"]), wanted)
    for name, value in wanted.items():
        cache.set(name, value)
    equal(cache.get_many([*wanted, "none"]), wanted)
    cache.delete_many([*wanted][:100])
    equal(sorted(cache.get_many(wanted)), sorted([*wanted][100:]))
    cache.clear()
    equal(cache.get_many(wanted), {})


@stages.add("asynchronous interface")
async def asynchronous() -> None:
    names = spread_names(12)
    await asyncio.gather(*[cache.aset(name, name) for name in names])
    equal(await cache.aget_many(names), {name: name for name in names})
    equal(await cache.aincr("a", 2) if await cache.aadd("a", 1) else None, 3)


@stages.add("sessions and cached views")
def views() -> None:
    clients = [Client() for _ in range(20)]
    for count in range(1, 4):
        equal([client.get("/visit").content for client in clients], [b"%d" % count] * 20)
    equal(clients[0].get("/cached").content, clients[1].get("/cached").content)


@stages.add("locks, patterns, times to live")
def extras() -> None:
    if OWN:
        return
    names = spread_names(100)
    for name in names:
        cache.set(f"pattern:{name}", 1, timeout=None)
    equal(len(cache.keys("pattern:*")), 100)
    equal(len(set(cache.iter_keys("pattern:*"))), 100)
    equal(cache.ttl(f"pattern:{names[0]}"), None)
    equal(cache.expire(f"pattern:{names[0]}", 100), True)
    equal(90 < cache.ttl(f"pattern:{names[0]}") <= 100, True)
    equal(cache.persist(f"pattern:{names[0]}"), True)
    tagged = caches["one slot"]
    for name in names:
        tagged.set(f"pattern:{name}", 1)
    equal(tagged.delete_pattern("pattern:*"), 100)
    equal([len(tagged.keys("pattern:*")), len(cache.keys("pattern:*"))], [0, 100])
    inside, most = [0], [0]

    def work() -> None:
        with cache.lock("the lock", timeout=10, sleep=0.01):
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            time.sleep(0.01)
            inside[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    equal(most[0], 1)


@stages.add("the proxy restarts")
def reconnect() -> None:
    restart()
    for name in spread_names(12):
        cache.set(name, 1)
        equal(cache.get(name), 1)


stages.run("django" if OWN else "django-redis")
