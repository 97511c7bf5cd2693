"""Where names are subscribed: what only events can fit, what fits both, and the rest."""

from __future__ import annotations

import asyncio

import pytest

from proxy.forward.hub import CHANNELS, PATTERNS, SHARDS
from proxy.resp.glob import literal_prefix
from proxy.worker.upstream import scope
from proxy.worker.worker import Worker
from tests.support.fake_node import FakeNode
from tests.unit.worker.scene import Client, Port, configured, run, until


@pytest.mark.parametrize(
    ("pattern", "literal", "whole"),
    [
        (b"", b"", True),
        (b"abc", b"abc", True),
        (b"a*c", b"a", False),
        (b"a?", b"a", False),
        (b"a[b]", b"a", False),
        (rb"a\*b*", b"a*b", False),
        (rb"a\*b", b"a*b", True),
        (b"a\\", b"a\\", True),
    ],
)
def test_what_every_name_begins_with(pattern: bytes, literal: bytes, whole: bool) -> None:
    assert literal_prefix(pattern) == (literal, whole)


@pytest.mark.parametrize(
    ("kind", "name", "where"),
    [
        (CHANNELS, b"news", "ordinary"),
        (CHANNELS, b"", "ordinary"),
        (CHANNELS, b"*", "ordinary"),
        (CHANNELS, b"__keyspace@0__:k", "events"),
        (CHANNELS, b"__keyspace", "ordinary"),
        (SHARDS, b"__keyspace@0__:k", "ordinary"),
        (PATTERNS, b"*", "wide"),
        (PATTERNS, b"?*", "wide"),
        (PATTERNS, b"[_n]*", "wide"),
        (PATTERNS, b"__key*", "wide"),
        (PATTERNS, rb"\_\_key*", "wide"),
        (PATTERNS, b"__keyspace*", "wide"),
        (PATTERNS, b"__keyspace@*", "events"),
        (PATTERNS, b"__keyevent@0__:expired", "events"),
        (PATTERNS, b"__keyspac", "ordinary"),
        (PATTERNS, b"news.*", "ordinary"),
        (PATTERNS, b"__keyspacX*", "ordinary"),
        (PATTERNS, b"", "ordinary"),
    ],
)
def test_scope(kind: int, name: bytes, where: str) -> None:
    assert scope(kind, name) == where


def test_who_subscribes_while_a_node_is_down(node: FakeNode) -> None:
    """However many do, the next attempt to connect is one."""

    async def scene(worker: Worker, port: Port) -> None:
        upstream, client = worker.subscriptions.upstream, Client(worker)
        await client.send("SUBSCRIBE", "a")
        await until(lambda: node.seen("SUBSCRIBE"))
        node.close()
        await until(lambda: upstream._main.opens_at_s)
        for n in range(1000):
            topic = worker.subscriptions.hub.topic(CHANNELS, b"%d" % n)
            topic.waiting += 1
            upstream.place(topic)
            await asyncio.sleep(0)
        assert len(upstream._timers) < 5
        client.close()

    run(configured(backends={"backoff_min": 60.0, "backoff_max": 60.0}), scene, node.address)
