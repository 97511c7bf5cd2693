"""Nodes that hang or die under load: service is back with the new primary, and who comes back answers nobody.

A hang is SIGSTOP: connections stay open, the kernel takes what is sent, nothing is answered. When the new primary takes
writes is asked of itself, so that what is measured is the proxy's part.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
import redis

from proxy.embedded import EmbeddedCluster, EmbeddedNode, wait_for
from proxy.resp import errors
from tests.support.cluster import key_in
from tests.support.proxyd import ProxyDaemon
from tests.support.raw import encode
from tests.support.standstill import Standstill

StartProxy = Callable[..., ProxyDaemon]
LOST = errors.EXCHANGE_TEXTS["lost"]
CLIENTS = 8
GAP_S = 1.5  # tenths of a second, and what this machine adds
MARGIN_S = 0.05  # acknowledged so shortly before the node was stopped, a write may not have reached its replica


@pytest.fixture
def fragile(server: str) -> Iterator[EmbeddedCluster]:
    with EmbeddedCluster(server, node_timeout_ms=1000) as started:
        yield started


def tag_of(cluster: EmbeddedCluster, node: EmbeddedNode) -> str:
    slots = cluster.slots_of(node)
    return f"{{{key_in(slots[0], slots[-1])}}}"


class Counting(threading.Thread):
    """Increments a key of its own, and notes what was answered when."""

    def __init__(self, daemon: ProxyDaemon, key: str, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self.key = key
        self.answers: list[tuple[float, float, bytes]] = []  # asked, answered, what
        self._daemon = daemon
        self._stop_it = stop

    def run(self) -> None:
        with self._daemon.raw(timeout_s=30) as raw:
            while not self._stop_it.is_set():
                asked = time.monotonic()
                answer = raw.command("INCR", self.key)
                self.answers.append((asked, time.monotonic(), answer))
                time.sleep(0.001)

    def errors(self) -> list[bytes]:
        return [answer for _, _, answer in self.answers if answer[:1] != b":"]

    def first_after(self, moment: float) -> float:
        """When it was first served after that moment; infinity: not yet."""
        served = [answered for _, answered, answer in list(self.answers) if answer[:1] == b":" and answered > moment]
        return min(served, default=float("inf"))


class Reading(threading.Thread):
    """Reads keys over and over; `wrong`: answers that are not the value. slowest: the longest time of a read."""

    def __init__(self, daemon: ProxyDaemon, keys: list[str], stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self.wrong: list[bytes] = []
        self.slowest_s = 0.0
        self.reads = 0
        self._daemon, self._keys, self._stop_it = daemon, keys, stop

    def run(self) -> None:
        with self._daemon.raw(timeout_s=30) as raw:
            while not self._stop_it.is_set():
                for key in self._keys:
                    asked = time.monotonic()
                    if (answer := raw.command("GET", key)) != b"$1\r\nv\r\n":
                        self.wrong.append(answer)
                    self.slowest_s = max(self.slowest_s, time.monotonic() - asked)
                    self.reads += 1
                time.sleep(0.001)


def takes_writes(node: EmbeddedNode, key: str) -> bool:
    try:
        return bool(node.command("SET", key, "1") == "OK")
    except redis.RedisError:
        return False


def until_takes_writes(node: EmbeddedNode, key: str, timeout_s: float = 20.0) -> float:
    give_up = time.monotonic() + timeout_s
    while not takes_writes(node, key):
        assert time.monotonic() < give_up, "no failover"
        time.sleep(0.005)
    return time.monotonic()


def check_counts(thread: Counting, new: EmbeddedNode, stopped: float, taken: float) -> None:
    """Nothing doubled, nothing acknowledged is lost that the new primary had; what failed had been sent before."""
    value = int(new.command("GET", thread.key))
    acknowledged = [(answered, answer) for _, answered, answer in thread.answers if answer[:1] == b":"]
    failed = thread.errors()
    sure = sum(answered < stopped - MARGIN_S or answered > taken for answered, _ in acknowledged)
    assert sure <= value <= len(acknowledged) + len(failed), (sure, value, len(acknowledged), failed)
    assert all(error == LOST for error in failed), failed
    assert len(failed) <= 1, failed  # the one that was under way
    after = [int(answer[1:-2]) for answered, answer in acknowledged if answered > taken]
    assert after == list(range(after[0], after[0] + len(after)))  # nobody else answers, and nothing twice


@pytest.mark.parametrize("how", ["stopped", "stopped and continued"])
def test_a_primary_that_hangs_under_load(how: str, fragile: EmbeddedCluster, start_proxy: StartProxy) -> None:
    daemon = start_proxy(fragile.seeds)
    victim = fragile.primaries()[0]
    (heir,) = fragile.replicas_of(victim)
    tag, stop = tag_of(fragile, victim), threading.Event()
    threads = [Counting(daemon, f"{tag}:{n}", stop) for n in range(CLIENTS)]
    late = Counting(daemon, f"{tag}:late", stop)  # begins when the node is suspected: nothing of it is sent
    with Standstill() as still:
        for thread in threads:
            thread.start()
        try:
            wait_for(lambda: all(thread.answers for thread in threads), 10, "all are served")
            time.sleep(0.3)
            stopped = time.monotonic()
            fragile.pause(victim)
            wait_for(lambda: "primary is suspected" in daemon.log, 10, "suspected")
            time.sleep(0.5)  # by both workers
            daemon.metrics()  # whoever answers has read what it was told before
            late.start()
            taken = until_takes_writes(heir, f"{tag}:probe")
            wait_for(lambda: all(t.first_after(taken) < float("inf") for t in (*threads, late)), 10, "served")
            gaps = [t.first_after(taken) - taken for t in (*threads, late)]
            print(f"new primary after {taken - stopped:.3f} s, served {max(gaps):.3f} s later")
            if how == "stopped and continued":
                fragile.resume(victim)
                time.sleep(1.0)
        finally:
            stop.set()
            for thread in (*threads, late):
                if thread.ident is not None:  # it was begun
                    thread.join(30)
            fragile.resume(victim)
    assert max(gaps) < GAP_S + 2 * still.longest_s
    for thread in threads:
        check_counts(thread, heir, stopped, taken)
    assert late.errors() == []
    assert int(heir.command("GET", late.key)) == len(late.answers)


def test_a_busy_node_keeps_its_connections(server: str, start_proxy: StartProxy) -> None:
    """1.6 s of silence are suspicious, and cost nothing: what was sent is answered, what waited is sent then."""
    with EmbeddedCluster(server, replicas=0, node_timeout_ms=15000) as calm:
        daemon = start_proxy(calm.seeds, {"backends": {"suspect_timeout": "500ms"}})
        node = calm.primaries()[0]
        tag = tag_of(calm, node)
        with daemon.raw(timeout_s=10) as one, daemon.raw(timeout_s=10) as other:
            assert one.command("INCR", f"{tag}:a") == b":1\r\n"
            assert other.command("INCR", f"{tag}:b") == b":1\r\n"
            calm.pause(node)
            try:
                one.send(encode("INCR", f"{tag}:a"))
                wait_for(lambda: "primary is suspected" in daemon.log, 5, "suspected")
                other.send(encode("INCR", f"{tag}:b"))
                time.sleep(0.8)
            finally:
                calm.resume(node)
            assert one.frame() == b":2\r\n"
            assert other.frame() == b":2\r\n"
            assert one.command("INCR", f"{tag}:a") == b":3\r\n"
        wait_for(lambda: "not suspected any more" in daemon.log, 5, "not suspected")
        assert "connection to node lost" not in daemon.log


@pytest.mark.parametrize("fault", ["kill", "pause"])
@pytest.mark.parametrize("role", ["replica", "primary"])
def test_reads_that_prefer_replicas(role: str, fault: str, fragile: EmbeddedCluster, start_proxy: StartProxy) -> None:
    daemon = start_proxy(fragile.seeds, {"listeners": [{"reads": "prefer_replica"}]})
    primary = fragile.primaries()[0]
    (replica,) = fragile.replicas_of(primary)
    victim = replica if role == "replica" else primary
    keys = [f"{tag_of(fragile, node)}:r" for node in fragile.primaries()]
    with daemon.raw() as raw:
        for key in keys:
            assert raw.command("SET", key, "v") == b"+OK\r\n"
        assert raw.command("WAIT", 1, 5000) == b":1\r\n"  # who wrote it asks: for others it may not be there yet
    stop = threading.Event()
    threads = [Reading(daemon, keys, stop) for _ in range(4)]
    for thread in threads:
        thread.start()
    with ExitStack() as stack:
        stack.callback(stop.set)
        time.sleep(0.3)
        if fault == "kill":
            fragile.kill(victim)
        else:
            fragile.pause(victim)
            stack.callback(fragile.resume, victim)
        time.sleep(2.5)
        if role == "primary":
            until_takes_writes(replica, f"{keys[0]}:probe")
        time.sleep(0.5)
        reads = [thread.reads for thread in threads]
        time.sleep(0.5)
        assert all(thread.reads > before for thread, before in zip(threads, reads, strict=True))
    for thread in threads:
        thread.join(30)
    print("slowest", max(thread.slowest_s for thread in threads))
    assert [wrong for thread in threads for wrong in thread.wrong] == []


@pytest.mark.parametrize("fault", ["kill", "pause"])
def test_a_replica_goes_on_alone(fault: str, server: str, start_proxy: StartProxy) -> None:
    """Nobody takes over for longer than a command may wait: what the replica has is old, and better than nothing."""
    alone = {"cluster-replica-no-failover": "yes", "cluster-allow-reads-when-down": "yes"}
    with EmbeddedCluster(server, node_timeout_ms=1000, options=alone) as cluster, ExitStack() as stack:
        still = stack.enter_context(Standstill())
        daemon = start_proxy(
            cluster.seeds,
            {
                "listeners": [{"reads": "prefer_replica"}],
                "requests": {"timeout": "1500ms", "failover_timeout": "1s"},
                "backends": {"health_interval": "500ms"},
            },
        )
        primary = cluster.primaries()[0]
        key = f"{tag_of(cluster, primary)}:r"
        with daemon.raw() as raw:
            assert raw.command("SET", key, "v") == b"+OK\r\n"
            assert raw.command("WAIT", 1, 5000) == b":1\r\n"
        stop = threading.Event()
        threads = [Reading(daemon, [key], stop) for _ in range(2)]
        for thread in threads:
            thread.start()
        stack.callback(stop.set)
        time.sleep(0.2)
        if fault == "kill":
            cluster.kill(primary)
        else:
            cluster.pause(primary)
            stack.callback(cluster.resume, primary)
        # Of one that hangs the replica does not know for repl-timeout, which is a minute.
        sign = "its link to its primary is down" if fault == "kill" else "primary is suspected"
        wait_for(lambda: sign in daemon.log, 15, "the replica is on its own")
        time.sleep(2.0)
        stop.set()
        for thread in threads:
            thread.join(30)
        assert [wrong for thread in threads for wrong in thread.wrong] == []
        slowest_s = max(thread.slowest_s for thread in threads)
        print(f"slowest {slowest_s:.3f} s")
        assert slowest_s < 1.4 + 2 * still.longest_s  # less than a command may wait
