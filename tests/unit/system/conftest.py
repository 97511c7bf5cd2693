"""Fixtures of test_sockets*.py: what they open is closed at the end."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator

import pytest

from proxy.system.sockets import Listening
from tests.support.listening import Sockets


@pytest.fixture
def stack() -> Iterator[Sockets]:
    with Sockets() as opened:
        yield opened


@pytest.fixture
def opened(stack: Sockets) -> Callable[..., Listening]:
    return stack.opened


@pytest.fixture
def opened_all(stack: Sockets) -> Callable[..., list[Listening]]:
    return stack.opened_all


@pytest.fixture
def bound(stack: Sockets) -> Callable[..., socket.socket]:
    return stack.bound
