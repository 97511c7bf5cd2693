"""Clients at their worst, beside one that behaves: what it sees, and what is left of them. bench/worst_clients.py has
the numbers."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator

import pytest

from bench import worst_clients as worst
from proxy.embedded import EmbeddedCluster, wait_for
from tests.support.proxyd import ProxyDaemon
from tests.support.raw import encode

StartProxy = Callable[..., ProxyDaemon]
LONGEST_S = 2.0  # of a GET beside them, on a machine that is shared: a worker that is held up takes many


@pytest.fixture(autouse=True)
def descriptors() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.fixture(scope="module")
def impatient(small_cluster: EmbeddedCluster) -> Iterator[ProxyDaemon]:
    """One for all kinds: each test sees that nothing is left of its clients."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    config = {"clients": {"frame_timeout": "1s", "idle_timeout": "1s"}}
    with ProxyDaemon(small_cluster.seeds, config) as daemon:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        with daemon.raw() as raw:
            raw.command("SET", "large", "x" * worst.LARGE)
        yield daemon


@pytest.mark.alone
@pytest.mark.parametrize("kind", [name for name in worst.KINDS if name not in ("nobody", "a busy client")])
def test_one_that_behaves_is_served(impatient: ProxyDaemon, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(worst, "MANY", 300)
    monkeypatch.setattr(worst, "HERD", 1000)
    monkeypatch.setattr(worst, "PAUSE_S", 0.2)
    daemon = impatient
    row = worst.measure(daemon, kind, 1.0)
    assert row.errors == 0
    assert row.gets > 10
    assert row.longest < LONGEST_S * 1000, row
    wait_for(lambda: daemon.metric("redis_proxy_client_connections") == 0, 10, "all have left")
    wait_for(lambda: daemon.metric("redis_proxy_client_memory_bytes") == 0, 10, "nothing is held for them")
    wait_for(lambda: daemon.metric("redis_proxy_inflight_commands") == 0, 10, "nothing is under way")


def test_half_a_command_has_its_time(small_cluster: EmbeddedCluster, start_proxy: StartProxy) -> None:
    """clients.frame_timeout: from a command's first byte to its last, however busily bytes come."""
    for timeout_ms in (600, 2400, 9600):  # long enough for this machine to end a command in time
        daemon = start_proxy(small_cluster.seeds, {"clients": {"frame_timeout": f"{timeout_ms}ms"}})
        if slow_ends_and_quick_stays(daemon, timeout_ms / 1000):
            return
    pytest.fail("nobody could be quick")


def slow_ends_and_quick_stays(daemon: ProxyDaemon, timeout_s: float) -> bool:
    """False where the machine has taken too long between two sends."""
    with daemon.raw() as slow, daemon.raw() as quick, daemon.raw() as blocked, daemon.raw() as idle:
        assert idle.command("PING") == b"+PONG\r\n"
        blocked.send(encode("BLPOP", "nothing", 1.5) + encode("PING"))  # what waits for us is not slow
        words = encode("SET", "slow", "x" * 200)
        begun_s = time.monotonic()
        for n in range(len(words)):
            try:
                slow.send(words[n : n + 1])
            except OSError:
                break
            assert quick.command("SET", "quick", n) == b"+OK\r\n"
            sent_s = time.monotonic()
            quick.send(words[:20])  # begins one, and ends it in time
            time.sleep(0.05)
            quick.send(words[20:])
            if time.monotonic() - sent_s > timeout_s / 2:
                return False
            assert quick.frame() == b"+OK\r\n"
        assert timeout_s - 0.1 < time.monotonic() - begun_s < timeout_s + 2.4
        assert daemon.metric("redis_proxy_client_disconnects_total", reason="slow_frame") == 1
        assert blocked.frames(2) == [b"*-1\r\n", b"+PONG\r\n"]
        assert idle.command("PING") == b"+PONG\r\n"
        daemon.reload({"clients": {"frame_timeout": "0"}})
        quick.send(words[:20])
        time.sleep(timeout_s + 0.2)
        quick.send(words[20:])
        assert quick.frame() == b"+OK\r\n"
    return True
