"""A client and a context for the tests of proxy.serve: what the data path and the worker provide in the daemon."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from proxy.forward.tracking import Tracking
from proxy.serve import table
from proxy.serve.context import Inquiry, ServeContext

RUN_ID = "0123456789abcdef0123456789abcdef01234567"


@dataclasses.dataclass
class FakeClient:
    """Fits ClientLike; remembers what was asked of it."""

    id: int = 7
    proto: int = 2
    db: int = 0
    authenticated: bool = True
    user: str = "default"
    name: bytes = b""
    lib_name: bytes = b""
    lib_ver: bytes = b""
    address: str = "127.0.0.1:40001"
    local_address: str = "127.0.0.1:7617"
    age_s: float = 10.0
    last_active_s: float = 1000.0
    last_command: str = ""
    pending: int = 0
    output_bytes: int = 0
    query_bytes: int = 0
    total_commands: int = 0
    fd: int = 12
    reads: str = "primary"
    listener_reads: str = "primary"
    closing: bool = False
    resets: int = 0
    held_back: bool = False
    blocked: bool = False
    subscriptions: tuple[int, int, int] = (0, 0, 0)
    subscriber: None = None
    unblocked_with: bool | None = None
    no_evict: bool = False
    no_touch: bool = False
    redirects: bool = False
    monitoring: bool = False
    tracking: Tracking | None = None
    cached: bool = False
    tracked: list[Tracking | None] = dataclasses.field(default_factory=list)
    room: bool = True
    reply: str = "on"
    killed: bool = False

    def track(self, tracking: Tracking | None, /) -> bool:
        self.tracked.append(tracking)
        self.tracking = tracking if self.room else None
        return self.room

    def set_proto(self, proto: int, /) -> None:
        assert proto in (2, 3)
        self.proto = proto

    def set_reads(self, name: str, /) -> None:
        assert name in ("primary", "prefer_primary", "replica", "prefer_replica", "any")
        self.reads = name

    def set_reply(self, mode: str, /) -> None:
        assert mode in ("on", "off", "skip")
        self.reply = mode

    def unblock(self, error: bool, told: Callable[[bool], object], /) -> None:
        assert self.blocked
        self.unblocked_with = error
        told(True)

    def close_after_reply(self) -> None:
        self.closing = True

    def kill_after_reply(self) -> None:
        self.closing = True

    def kill(self) -> None:
        assert not self.killed
        self.killed = True
        self.fd = -1

    def reset(self) -> None:
        self.resets += 1


def context(**changes: Any) -> ServeContext:
    """A proxy without a password in front of servers of version 7.2.4."""
    values: dict[str, Any] = {
        "client_password": None,
        "server_version": "7.2.4",
        "proxy_version": "0.1.0",
        "started_s": 1000.0,
        "run_id": RUN_ID,
    }
    return ServeContext(**(values | changes))


def alone(ctx: ServeContext, clients: list[FakeClient]) -> ServeContext:
    """A proxy of one worker with these clients, and whatever is paused."""
    state = [(0, 0)]

    def inquire(inquiry: Inquiry, reply: Callable[[Any], bytes]) -> bytes:
        return reply(inquiry.merge(list(table.ANSWERERS[inquiry.kind](ctx, inquiry.body)), 0))

    def pause(level: int, until_ns: int, who: str) -> None:
        state[0] = (level, until_ns)

    ctx.clients, ctx.inquire, ctx.pause, ctx.paused = lambda: clients, inquire, pause, lambda: state[0]
    return ctx


def topology(*slots: tuple[int, int], epoch: int = 5) -> dict[str, Any]:
    """What a context says of a cluster with one shard for each range of slots."""
    covered = sum(last - first + 1 for first, last in slots)
    return {"shards": len(slots), "slots_covered": covered, "epoch": epoch}
