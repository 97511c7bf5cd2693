"""MONITOR: who begins to be shown everything, and who does not."""

from __future__ import annotations

from typing import Any

from proxy.serve import table
from proxy.serve.context import ClientLike
from tests.unit.serve.fakes import FakeClient, alone, context


class FakeMonitors:
    """Fits MonitorsLike."""

    def __init__(self) -> None:
        self.coming: list[ClientLike] = []
        self.begun: list[ClientLike] = []

    def add(self, client: ClientLike, /) -> None:
        client.monitoring = True
        self.coming.append(client)

    def begin(self, client: ClientLike, /) -> None:
        self.begun.append(client)

    def remove(self, client: ClientLike, /) -> None:
        client.monitoring = False
        self.coming.remove(client)


def ask(**changes: Any) -> tuple[Any, FakeClient, FakeMonitors]:
    monitors, client = FakeMonitors(), FakeClient()
    ctx = alone(context(monitors=monitors), [])
    for name, value in changes.items():
        setattr(ctx, name, value)
    return table.answer(ctx, client, [b"MONITOR"]), client, monitors  # type: ignore[arg-type]


def test_it_begins() -> None:
    answer, client, monitors = ask()
    assert (answer, client.monitoring, monitors.begun) == (b"+OK\r\n", True, [client])


def test_who_is_refused_is_no_monitor() -> None:
    """When the queue of questions to all workers is full: he would be kept from the keys, and shown nothing."""
    answer, client, monitors = ask(inquire=lambda inquiry, reply: b"-ERR too many questions\r\n")
    assert (answer, client.monitoring, monitors.coming) == (b"-ERR too many questions\r\n", False, [])
