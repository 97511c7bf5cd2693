"""What the tests of proxy.worker share."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from proxy.embedded import EmbeddedCluster
from tests.support.fake_node import FakeNode


@pytest.fixture(scope="package")
def nodes() -> Iterator[EmbeddedCluster]:
    """Three primaries nobody breaks."""
    with EmbeddedCluster(replicas=0, node_timeout_ms=15000) as cluster:
        yield cluster


@pytest.fixture
def start_node() -> Iterator[Callable[[str], FakeNode]]:
    """Starts a scripted node that owns all slots of a cluster of its own."""
    with ExitStack() as stack:

        def start(name: str) -> FakeNode:
            return stack.enter_context(FakeNode(name * 40))

        yield start


@pytest.fixture
def node(start_node: Callable[[str], FakeNode]) -> FakeNode:
    return start_node("a")


@pytest.fixture(autouse=True)
def logging_as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The root logger as pytest had it; no warning is left out because a test before had the same key."""
    monkeypatch.setattr("proxy.system.log._limited", {})
    root = logging.getLogger()
    handlers, level, raising = root.handlers[:], root.level, logging.raiseExceptions
    yield
    for handler in root.handlers:
        if handler not in handlers:
            handler.close()
    root.handlers[:], logging.raiseExceptions = handlers, raising
    root.setLevel(level)
