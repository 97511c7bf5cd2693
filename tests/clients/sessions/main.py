"""Spring Session's way with Redis (RedisIndexedSessionRepository, ConfigureNotifyKeyspaceEventsAction), by redis-py.

A session is a hash, a key whose expiry is the session's, and a member of the set of those that end in the same
minute; the application hears of its end by keyspace events. Every event of every shard must be heard exactly once,
and no other.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter

import redis
from checks import HOST, PORT, equal, failover
from stages import RUN, Stages, spread, until

RESP = int(os.environ["RESP"])
stages = Stages()
db = redis.Redis(host=HOST, port=PORT, protocol=RESP, decode_responses=True)


class Listener:
    """What an application hears, by kind of event: how often each key was named. As a context manager."""

    def __init__(self, *patterns: str) -> None:
        self.heard: dict[str, Counter[str]] = {"expired": Counter(), "del": Counter()}
        self.channels: Counter[str] = Counter()
        self._client = redis.Redis(host=HOST, port=PORT, protocol=RESP, decode_responses=True)
        self._pubsub = self._client.pubsub()
        self._patterns = patterns
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)

    def __enter__(self) -> Listener:
        self._pubsub.psubscribe(*self._patterns)
        for _ in self._patterns:
            confirmed = until(lambda: self._pubsub.get_message(timeout=1), "the subscription is confirmed")
            equal(confirmed["type"], "psubscribe")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
        self._pubsub.close()
        self._client.close()

    def _listen(self) -> None:
        while not self._end.is_set():
            message = self._pubsub.get_message(timeout=0.1)
            if message and message["type"] == "pmessage" and RUN in message["channel"] + message["data"]:
                self.channels[message["channel"]] += 1
                self.heard.setdefault(message["channel"].rpartition(":")[2], Counter())[message["data"]] += 1


def expires(session: str) -> str:
    return f"spring:session:sessions:expires:{session}"


def save(session: str, ttl_ms: int) -> None:
    """A new session, as it is saved: command by command, or in a pipeline."""
    minute = int(time.time()) // 60 * 60000 + 60000
    key = f"spring:session:sessions:{session}"
    with db.pipeline(transaction=False) as pipe:
        pipe.hset(key, mapping={"creationTime": "1", "maxInactiveInterval": "1800", "sessionAttr:user": session})
        pipe.sadd(f"spring:session:expirations:{minute}", f"expires:{session}")
        pipe.expire(f"spring:session:expirations:{minute}", 2100)
        pipe.append(expires(session), "")
        pipe.pexpire(expires(session), ttl_ms)
        pipe.expire(key, ttl_ms // 1000 + 300)
        pipe.publish(f"spring:session:event:0:created:{session}", "x")
        pipe.execute()
    equal(db.hget(key, "sessionAttr:user"), session)


def exactly(heard: Counter[str], sessions: list[str], what: str) -> None:
    """Waits until each was heard, and then a little for one too many."""
    wanted = Counter(expires(session) for session in sessions)
    until(lambda: not wanted - heard, f"{what}: {len(wanted - heard)} of {len(wanted)} not heard", 15)
    time.sleep(0.5)
    surplus = heard - wanted
    if surplus:
        raise AssertionError(f"{what}: heard too often or for nothing: {dict(surplus.most_common(5))}")


@stages.add("notifications are switched on")
def configure() -> None:
    known = db.config_get("notify-keyspace-events").get("notify-keyspace-events", "")
    wanted = "".join(dict.fromkeys(known + "Egx"))
    equal(db.config_set("notify-keyspace-events", wanted), True)
    equal(set(db.config_get("notify-keyspace-events")["notify-keyspace-events"]) >= set("Egx"), True)


@stages.add("every end is heard once")
def ends() -> None:
    sessions = spread("session", 90)
    with Listener("__keyevent@0__:expired", "__keyevent@0__:del") as listener:
        for session in sessions:
            save(session, 1000 if session in sessions[:60] else 60_000)
        for session in sessions[60:]:
            equal(db.delete(expires(session)), 1)
        exactly(listener.heard["expired"], sessions[:60], "expired")
        exactly(listener.heard["del"], sessions[60:], "del")


@stages.add("wider patterns, several listeners, created sessions")
def wider() -> None:
    sessions = spread("wider", 30)
    with (
        Listener("__keyevent@*__:expired") as narrow,
        Listener("*expired") as wide,
        Listener("spring:session:event:0:created:*") as created,
    ):
        for session in sessions:
            save(session, 700)
        for listener in (narrow, wide):
            exactly(listener.heard["expired"], sessions, "expired")
        equal(created.channels, Counter(f"spring:session:event:0:created:{session}" for session in sessions))


@stages.add("a listener that leaves hears nothing, others go on")
def leaves() -> None:
    sessions = spread("leaves", 30)
    with Listener("__keyevent@0__:expired") as stays:
        with Listener("__keyevent@0__:expired"):
            pass
        for session in sessions:
            save(session, 500)
        exactly(stays.heard["expired"], sessions, "expired")


@stages.add("every end is heard once after a failover", timeout_s=90)
def fails_over() -> None:
    """Those of sessions from before it, and those of sessions made after it."""
    before, after, deleted = spread("before", 60), spread("after", 60), spread("deleted", 30)
    with Listener("__keyevent@0__:expired", "__keyevent@0__:del") as listener:
        for session in before:
            save(session, 20_000)
        for session in deleted:
            save(session, 60_000)
        failover()
        for session in before:
            db.pexpire(expires(session), 1500)
        for session in after:
            save(session, 1500)
        for session in deleted:
            equal(db.delete(expires(session)), 1)
        exactly(listener.heard["expired"], before + after, "expired")
        exactly(listener.heard["del"], deleted, "del")


stages.run("redis")
