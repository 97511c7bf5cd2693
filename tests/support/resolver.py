"""A stand-in for getaddrinfo(3) that tells what a test says, or hangs. Called by tests of what resolves names."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

HANGS = "hangs"


class FakeResolver:
    """answers: by name, an address, several, an error, or HANGS; any other name is the real one's.

    asked: the names, once each time that it was asked. Who hangs hears EAI_AGAIN when the test is over.
    """

    def __init__(self) -> None:
        self.answers: dict[str, str | list[str] | OSError] = {}
        self.asked: list[str] = []
        self.over = threading.Event()
        self._real = socket.getaddrinfo

    def getaddrinfo(self, host: Any, port: Any, *args: Any, **options: Any) -> list[Any]:
        name = host.decode() if isinstance(host, bytes) else host
        if (answer := self.answers.get(name)) is None:
            return self._real(host, port, *args, **options)
        self.asked.append(name)
        if answer == HANGS:
            self.over.wait(30)
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        if isinstance(answer, OSError):
            raise answer
        addresses = [answer] if isinstance(answer, str) else answer
        return [found for address in addresses for found in self._real(address, port, *args, **options)]


@contextmanager
def fake_resolver(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeResolver]:
    """In place of the system's. What a name had is known to the process: each test has names of its own."""
    resolver = FakeResolver()
    monkeypatch.setattr(socket, "getaddrinfo", resolver.getaddrinfo)
    try:
        yield resolver
    finally:
        resolver.over.set()
