"""Which servers the suite runs against, and one standalone server to compare answers with.

Called by: tests/conftest.py and the tests that need a cluster of their own.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from types import TracebackType

import redis

from proxy.embedded import HOST, EmbeddedCluster, EmbeddedError, default_server, free_port, wait_for
from proxy.system.child import start_mortal
from tests.support.raw import RawClient


@lru_cache
def servers() -> dict[str, str]:
    """Kind of server -> path of its binary: Valkey always, Redis when it is on PATH."""
    found = {"valkey": default_server()}
    if redis_server := shutil.which("redis-server"):
        found["redis"] = redis_server
    return found


@lru_cache
def slot_of(key: str | bytes) -> int:
    """The key's slot as the specification says (CRC16 XMODEM of the hash tag or the key)."""
    raw = key.encode() if isinstance(key, str) else key
    start = raw.find(b"{")
    if start >= 0 and (end := raw.find(b"}", start + 1)) > start + 1:
        raw = raw[start + 1 : end]
    crc = 0
    for byte in raw:
        crc ^= byte << 8
        for _ in range(8):
            crc = (crc << 1 ^ 0x1021 if crc & 0x8000 else crc << 1) & 0xFFFF
    return crc % 16384


@lru_cache
def key_in(first: int, last: int, prefix: str = "k") -> str:
    """A key whose slot is in first..last."""
    return next(key for n in range(1 << 20) if first <= slot_of(key := f"{prefix}:{n}") <= last)


def spread_keys(shards: int = 3, prefix: str = "k") -> list[str]:
    """One key for each of `shards` equal parts of the slot space, so for each primary of a fresh cluster."""
    return [key_in(n * 16384 // shards, (n + 1) * 16384 // shards - 1, prefix) for n in range(shards)]


def counters(cluster: EmbeddedCluster, keys: Iterable[str]) -> dict[str, int]:
    """Key -> the number that its owner holds, of those of these keys that there are."""
    wanted = list(keys)
    found: dict[str, int] = {}
    for node in cluster.primaries():
        owned = set(cluster.slots_of(node))
        here = [key for key in wanted if slot_of(key) in owned]
        with node.client.pipeline(transaction=False) as pipe:
            for key in here:
                pipe.get(key)
            found.update((key, int(value)) for key, value in zip(here, pipe.execute(), strict=True) if value)
    return found


class Standalone:
    """One server without cluster mode on a free port, as a context manager."""

    def __init__(self, server: str, password: str = "") -> None:
        self._server = server
        self._password = password
        self._folder = Path(tempfile.mkdtemp(prefix="redis-proxy-standalone-"))
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0

    def __enter__(self) -> Standalone:
        for _ in range(20):
            self.port = free_port()
            self._process = start_mortal(
                [self._server, *self._settings()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            try:
                wait_for(self._answers_or_died, 10, "standalone server")
            except EmbeddedError:
                self.__exit__(None, None, None)
                raise
            if self._process.poll() is None:
                return self
        raise EmbeddedError(f"{self._server} does not start")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def raw(self, timeout_s: float = 10.0) -> RawClient:
        return RawClient((HOST, self.port), timeout_s)

    def _settings(self) -> list[str]:
        password = ["--requirepass", self._password] if self._password else []
        return ["--bind", HOST, "--port", str(self.port), "--dir", str(self._folder), "--save", "", *password]

    def _answers_or_died(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            return True
        with redis.Redis(host=HOST, port=self.port, password=self._password or None) as client:
            try:
                return bool(client.info("server")["process_id"] == self._process.pid)
            except redis.RedisError:
                return False
