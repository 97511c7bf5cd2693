"""MONITOR. What is shown, and to whom: worker.monitors.

A monitor is a client like any other that also gets lines. As in Redis, it may not touch the keyspace any more, until
RESET (proxy.forward.monitor sees to that), and a second MONITOR is not answered.
"""

from __future__ import annotations

from collections.abc import Iterator

from proxy.resp import errors
from proxy.serve.context import Answer, Answerers, ClientLike, Commands, Inquiry, ServeContext
from proxy.serve.words import OK


def _monitor(ctx: ServeContext, client: ClientLike, args: list[bytes]) -> Answer:
    if client.monitoring:
        return b""
    if client.pending:
        return None  # its own commands before this one are not shown
    monitors = ctx.monitors
    if monitors is None:
        return errors.not_served(b"monitor")
    monitors.add(client)

    def begin(merged: None) -> bytes:
        monitors.begin(client)
        return OK

    # Nothing is asked: whoever answers has been told before that its clients' commands are to be shown.
    told = ctx.inquire(Inquiry("monitor", b"", lambda parts, missing: None), begin)
    if isinstance(told, bytes) and told != OK:
        monitors.remove(client)
    return told


def _answer(ctx: ServeContext, body: bytes) -> Iterator[bytes]:
    yield b""


def ended(ctx: ServeContext, client: ClientLike) -> None:
    """It has left, or is reset."""
    if client.monitoring and ctx.monitors is not None:
        ctx.monitors.remove(client)


COMMANDS: Commands = {b"monitor": (1, _monitor)}

ANSWERERS: Answerers = {"monitor": _answer}
