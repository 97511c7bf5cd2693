"""Listening sockets for tests of system.sockets: opened by it, or as the service manager makes them; closed at the end.

Called by: tests/unit/system/test_sockets*.py.
"""

from __future__ import annotations

import logging
import socket
from contextlib import ExitStack
from typing import Any

import pytest

from proxy.config.models import Listener
from proxy.system.sockets import LISTENER, SYSTEMD, Inherited, Listening, open_listener

HOST = "127.0.0.1"


def listener(address: str, **options: Any) -> Listener:
    """As from a file."""
    return Listener.model_validate({"address": address, **options})


class Sockets(ExitStack):
    """Closes what it opened."""

    def opened_all(self, address: str, given: list[Inherited] | None = None, **options: Any) -> list[Listening]:
        """What open_listener returns."""
        found = open_listener(listener(address, **options), given)
        for one in found:
            self.callback(one.close)
        return found

    def opened(self, address: str, given: list[Inherited] | None = None, **options: Any) -> Listening:
        """The same for an address that is one place."""
        [listening] = self.opened_all(address, given, **options)
        return listening

    def bound(self, where: Any, family: int = socket.AF_INET, listen: bool = True) -> socket.socket:
        """A stream socket as the service manager makes it: bound and, unless told otherwise, listening."""
        sock = self.enter_context(socket.socket(family, socket.SOCK_STREAM))
        sock.bind(where)
        if listen:
            sock.listen()
        return sock


def by_systemd(*socks: socket.socket) -> list[Inherited]:
    """Inherited from the service manager."""
    return [Inherited(sock, SYSTEMD) for sock in socks]


def by_predecessor(*socks: socket.socket) -> list[Inherited]:
    """Inherited from a predecessor, whose own they were."""
    return [Inherited(sock, LISTENER) for sock in socks]


def connects(where: Any, family: int = socket.AF_INET) -> bool:
    """Whether somebody listens there."""
    with socket.socket(family, socket.SOCK_STREAM) as client:
        client.settimeout(5)
        return client.connect_ex(where) == 0


def events(caplog: pytest.LogCaptureFixture, level: int = logging.WARNING) -> list[tuple[str, dict[str, Any]]]:
    """Message and fields of what was logged at the level."""
    return [(record.message, getattr(record, "fields", {})) for record in caplog.records if record.levelno == level]
