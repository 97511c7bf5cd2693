"""A client and a context for the tests of proxy.serve: what the data path and the worker provide in the daemon."""

from __future__ import annotations

import dataclasses
from typing import Any

from proxy.serve.context import ServeContext

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
    created_s: float = 1000.0
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

    def set_proto(self, proto: int, /) -> None:
        assert proto in (2, 3)
        self.proto = proto

    def set_reads(self, name: str, /) -> None:
        assert name in ("primary", "prefer_primary", "replica", "prefer_replica", "any")
        self.reads = name

    def close_after_reply(self) -> None:
        self.closing = True

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


def topology(*slots: tuple[int, int], epoch: int = 5) -> dict[str, Any]:
    """What a context says of a cluster with one shard for each range of slots."""
    covered = sum(last - first + 1 for first, last in slots)
    return {"shards": len(slots), "slots_covered": covered, "epoch": epoch}
