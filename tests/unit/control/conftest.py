"""Scripted nodes for the tests of proxy.control, and its warnings as they come."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.support.fake_node import FakeNode


@pytest.fixture(autouse=True)
def every_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """None is left out because a test before had the same address."""
    monkeypatch.setattr("proxy.system.log._limited", {})


@pytest.fixture
def start_node() -> Iterator[Callable[..., FakeNode]]:
    """Starts a node whose id is that letter, many times."""
    with ExitStack() as stack:
        yield lambda name="f": stack.enter_context(FakeNode(name * 40))


@pytest.fixture
def node(start_node: Callable[..., FakeNode]) -> FakeNode:
    return start_node("a")
