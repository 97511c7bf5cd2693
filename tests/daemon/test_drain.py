"""SIGTERM: every command that was read gets its reply, everybody is parted with in order, nothing is left."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable

import pytest

from proxy.embedded import EmbeddedCluster, wait_for
from proxy.worker.drain import NEW_S
from tests.support.load import Load, knock
from tests.support.processes import session_members
from tests.support.proxyd import ProxyDaemon
from tests.support.raw import RawClient, encode

StartProxy = Callable[..., ProxyDaemon]


class Watch:
    """/metrics and /readyz asked over and over from a thread of its own, until nobody answers."""

    def __init__(self, daemon: ProxyDaemon) -> None:
        self.draining: list[float] = []
        self.ready: list[int] = []
        self.last_s = time.monotonic()  # of the last answer
        self.longest_s = 0.0  # between two of them
        self._daemon = daemon
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def join(self) -> None:
        self._thread.join()

    def _watch(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                status = self._daemon.http("/readyz")[0]
                draining = self._daemon.metric("redis_proxy_draining")
                self.ready.append(status)
                self.draining.append(draining)
                now_s = time.monotonic()
                self.longest_s = max(self.longest_s, now_s - self.last_s)
                self.last_s = now_s


def test_busy_clients_lose_nothing(small_cluster: EmbeddedCluster, start_proxy: StartProxy) -> None:
    """What was executed was answered: to each its replies in order, a whole one last, then the end of the stream."""
    daemon = start_proxy(small_cluster.seeds, {"drain": {"timeout": "15s"}}, unix=True)
    with Load(daemon.address, 120, depths=(1, 8, 32), pause_s=0, checked=False) as load:
        assert daemon.metric("redis_proxy_draining") == 0
        watch = Watch(daemon)
        wait_for(lambda: watch.ready, 5, "the watch begins")
        asked = load.sent
        daemon.signal(signal.SIGTERM)
        assert daemon.exit_code("SIGTERM") == 0
        ended_s = time.monotonic()
        wait_for(lambda: not load.alive(), 5, "every client has seen the end")
    watch.join()
    assert len(load.ended) == 120
    assert [ended for ended in load.ended if not ended.clean] == []
    assert load.wrong == []
    assert load.executed(small_cluster) == load.answered_by_key()
    assert load.sent > asked, "they were busy"
    assert 1 in watch.draining
    assert watch.ready[-1] == 503
    late_s = 1.5 + watch.longest_s
    assert max(ended.at_s for ended in load.ended) < watch.last_s + late_s, "/metrics answers to the end"
    assert ended_s - watch.last_s < late_s
    assert session_members(daemon.pid) == []
    assert not os.path.exists(daemon.unix_path)
    assert "Traceback" not in daemon.log


def test_readiness_fails_first(small_cluster: EmbeddedCluster, start_proxy: StartProxy) -> None:
    """During drain.delay it takes clients like before: the balancer has not noticed yet."""
    for delay_s in (2, 4, 8, 16):  # as long as this machine needs for what is asked meanwhile
        daemon = start_proxy(small_cluster.seeds, {"drain": {"delay": f"{delay_s}s", "timeout": "10s"}})
        with Load(daemon.address, 6, checked=False) as load:
            began_s = time.monotonic()
            daemon.signal(signal.SIGTERM)
            seen: list[object] = []
            with contextlib.suppress(OSError):  # the end came first
                wait_for(lambda daemon=daemon: daemon.http("/readyz")[0] == 503, 5, "not ready")
                seen.append(daemon.http("/livez")[0])
                seen.append({knock(daemon.address) for _ in range(20)})
                load.advance()
                seen.append(len(load.ended))
                seen.append(daemon.metric("redis_proxy_draining"))
            in_time = time.monotonic() - began_s < delay_s
            assert daemon.exit_code("SIGTERM") == 0
        assert all(ended.clean for ended in load.ended)
        if in_time:
            break
    assert in_time
    assert seen == [200, {""}, 0, 1]


def test_idle_clients_are_parted_with_one_by_one(small_cluster: EmbeddedCluster, start_proxy: StartProxy) -> None:
    """A hundred that connect again at the same moment would be a rush on whoever is left."""

    def crowd() -> int:
        """How many went within a fifth of a second, at most; each in its turn, and none before it."""
        daemon = start_proxy(small_cluster.seeds, {"drain": {"timeout": "2s"}})
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(daemon.raw()) for _ in range(100)]
            for client in clients:
                assert client.command("PING") == b"+PONG\r\n"
            began_s = time.monotonic()
            daemon.signal(signal.SIGTERM)
            ends = end_times(clients)
            assert daemon.exit_code("SIGTERM") == 0
        assert len(ends) == 100
        for place, at_s in enumerate(ends):  # two workers, each with 50 clients in 1.6 s
            assert at_s - began_s > 0.03 * (place // 2 - 1)
        return max(sum(start <= at < start + 0.2 for at in ends) for start in ends)

    assert any(crowd() < 70 for _ in range(5))  # those of the time that a machine stands still go together


def end_times(clients: list[RawClient]) -> list[float]:
    """When each of the connections was ended by the other side, ascending; they are closed as they end."""
    poll = select.poll()
    waiting = {client.sock.fileno(): client for client in clients}
    for descriptor in waiting:
        poll.register(descriptor, select.POLLIN)
    ends = []
    while waiting:
        found = poll.poll(10_000)
        assert found, f"{len(waiting)} clients are still there"
        for descriptor, _ in found:
            client = waiting.pop(descriptor)
            assert client.rest() == b""
            ends.append(time.monotonic())
            poll.unregister(descriptor)
            client.close()
    return sorted(ends)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_second_signal_ends_it_at_once(
    number: int, small_cluster: EmbeddedCluster, start_proxy: StartProxy
) -> None:
    daemon = start_proxy(small_cluster.seeds, {"drain": {"delay": "30s", "timeout": "30s"}})
    with daemon.raw() as raw:
        assert raw.command("PING") == b"+PONG\r\n"
        daemon.signal(signal.SIGTERM)
        wait_for(lambda: daemon.http("/readyz")[0] == 503, 5, "draining")
        assert raw.command("PING") == b"+PONG\r\n"
        again_s = time.monotonic()
        assert daemon.terminate(number) == 0
        assert time.monotonic() - again_s < 10  # of 30
        assert raw.rest() == b""


def test_further_signals_until_the_very_end(small_cluster: EmbeddedCluster, start_proxy: StartProxy) -> None:
    """An impatient operator gets the same exit code, also in the last milliseconds."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        daemon = start_proxy(small_cluster.seeds)
        daemon.signal(signal.SIGTERM)
        while daemon.alive:
            daemon.signal(number)
            time.sleep(0.0005)  # any moment will do
        assert daemon.exit_code("signals") == 0
        assert "Traceback" not in daemon.log


def test_a_client_that_does_not_read_is_waited_for_until_the_timeout(
    small_cluster: EmbeddedCluster, start_proxy: StartProxy
) -> None:
    daemon = start_proxy(small_cluster.seeds, {"drain": {"timeout": "1s"}})
    with daemon.raw(receive_buffer=4096) as stuck:
        assert stuck.command("SET", "big", "x" * 1_000_000) == b"+OK\r\n"
        stuck.send(encode("GET", "big") * 50)
        wait_for(lambda: daemon.metric("redis_proxy_output_buffer_bytes") > 100_000, 5, "replies wait")
        asked_s = time.monotonic()
        assert daemon.terminate() == 0
        assert 0.8 < time.monotonic() - asked_s < 6


def test_a_client_that_reads_late_gets_everything(small_cluster: EmbeddedCluster, start_proxy: StartProxy) -> None:
    """What was read is answered within drain.timeout, however much it is."""
    daemon = start_proxy(small_cluster.seeds, {"drain": {"timeout": "10s"}})
    with daemon.raw(receive_buffer=4096) as late:
        assert late.command("SET", "big", "x" * 1_000_000) == b"+OK\r\n"
        late.send(encode("GET", "big") * 10)
        wait_for(lambda: daemon.metric("redis_proxy_output_buffer_bytes") > 100_000, 5, "replies wait")
        daemon.signal(signal.SIGTERM)
        wait_for(lambda: daemon.metric("redis_proxy_draining") == 1, 5, "draining")
        received = late.rest()
        assert daemon.exit_code("SIGTERM") == 0
    reply = b"$1000000\r\n" + b"x" * 1_000_000 + b"\r\n"
    assert len(received) % len(reply) == 0
    assert received == reply * (len(received) // len(reply))
    assert received


def test_a_command_under_way_is_answered(small_cluster: EmbeddedCluster, start_proxy: StartProxy) -> None:
    """Its node takes its time, and the proxy does, too."""
    daemon = start_proxy(small_cluster.seeds, {"drain": {"timeout": "10s"}})
    for node in small_cluster.nodes:
        small_cluster.pause(node)
    try:
        with daemon.raw() as raw, daemon.raw() as idle:
            raw.send(encode("SET", "a", "v") + encode("GET", "a"))
            wait_for(lambda: daemon.metric("redis_proxy_inflight_commands") == 2, 5, "under way")
            daemon.signal(signal.SIGTERM)
            assert idle.rest() == b""
            assert daemon.alive
            for node in small_cluster.nodes:
                small_cluster.resume(node)
            assert raw.rest() == b"+OK\r\n$1\r\nv\r\n"
            assert daemon.exit_code("SIGTERM") == 0
    finally:
        for node in small_cluster.nodes:
            small_cluster.resume(node)


def test_who_waits_to_be_accepted_is_served(small_cluster: EmbeddedCluster, start_proxy: StartProxy) -> None:
    """Connections in the kernel's queue when the signal comes were made with us: they get an answer, not a reset."""
    daemon = start_proxy(small_cluster.seeds, {"drain": {"timeout": "5s"}})
    with contextlib.ExitStack() as stack:
        daemon.signal(signal.SIGSTOP)
        waiting = []
        for _ in range(20):
            sock = stack.enter_context(socket.create_connection(daemon.address, timeout=10))
            sock.sendall(b"PING\r\n")
            waiting.append(sock)
        daemon.signal(signal.SIGTERM)
        daemon.signal(signal.SIGCONT)
        for sock in waiting:
            assert sock.recv(64) == b"+PONG\r\n"
            assert sock.recv(64) == b""
    assert daemon.exit_code("SIGTERM") == 0


def test_who_has_just_connected_is_heard(small_cluster: EmbeddedCluster, start_proxy: StartProxy) -> None:
    """A client between its connect and its first command is no idle one: it would take the end for a failure."""
    took_s, attempts = 1.0, 0
    while took_s > NEW_S - 0.05 and attempts < 10:  # a machine that takes that long gives them no chance
        attempts += 1
        daemon = start_proxy(small_cluster.seeds, {"drain": {"timeout": "5s"}})
        with contextlib.ExitStack() as stack:
            begun_s = time.monotonic()
            fresh = [stack.enter_context(daemon.raw()) for _ in range(30)]
            daemon.signal(signal.SIGTERM)
            assert daemon.log_contains("msg=draining")
            with contextlib.suppress(OSError):
                for client in fresh:
                    client.send(encode("PING"))
            took_s = time.monotonic() - begun_s
            told = [client.rest() for client in fresh]
        assert daemon.exit_code("SIGTERM") == 0
    assert told == [b"+PONG\r\n"] * 30


def test_a_pause_is_lifted(small_cluster: EmbeddedCluster, start_proxy: StartProxy) -> None:
    """Clients that CLIENT PAUSE held back are answered, then parted with like others."""
    daemon = start_proxy(small_cluster.seeds, {"drain": {"timeout": "5s", "delay": "0s"}})
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(daemon.raw()) for _ in range(300)]
        for client in held:
            assert client.command("PING") == b"+PONG\r\n"
        with daemon.raw() as operator:
            assert operator.command("CLIENT", "PAUSE", 100000, "ALL") == b"+OK\r\n"
        for n, client in enumerate(held):
            client.send(encode("SET", f"held{n}", "1") + encode("GET", f"held{n}"))
            client.send(encode("ECHO", "x"))
        wait_for(lambda: daemon.metric("redis_proxy_held_clients") == 300, 10, "they are read, and held")
        daemon.signal(signal.SIGTERM)
        assert {client.rest() for client in held} == {b"+OK\r\n$1\r\n1\r\n$1\r\nx\r\n"}
    assert daemon.exit_code("SIGTERM") == 0
