"""Where names are subscribed: what only events can fit, what fits both, and the rest."""

from __future__ import annotations

import pytest

from proxy.forward.hub import CHANNELS, PATTERNS, SHARDS
from proxy.resp.glob import literal_prefix
from proxy.worker.upstream import scope


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
