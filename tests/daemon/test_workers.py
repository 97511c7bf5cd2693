"""Worker processes: how clients come to them, what becomes of one that dies, and that all of them are one proxy."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from proxy.embedded import EmbeddedCluster, wait_for
from tests.support.load import Load
from tests.support.processes import alive, session_members
from tests.support.proxyd import ProxyDaemon
from tests.support.raw import Closed, RawClient, encode

StartProxy = Callable[..., ProxyDaemon]
ONLY_GROWS = re.compile(r"\w+_(total|count|sum|bucket)(\{|$)")


@contextlib.contextmanager
def connected(daemon: ProxyDaemon, count: int) -> Iterator[list[RawClient]]:
    """So many connections, one after the other, each of which has been answered."""
    with contextlib.ExitStack() as stack:
        clients = []
        for _ in range(count):
            clients.append(stack.enter_context(daemon.raw()))
            assert clients[-1].command("PING") == b"+PONG\r\n"
        yield clients


def workers_of(daemon: ProxyDaemon, clients: list[RawClient]) -> list[int]:
    """The pid that serves each of them; they have been answered."""
    served_by = daemon.served_by()
    return [served_by[client.sock.getsockname()[1]] for client in clients]


def info(client: RawClient) -> dict[str, str]:
    text = client.command("INFO").decode()
    return dict(line.split(":", 1) for line in text.split("\r\n") if ":" in line)


def settled(daemon: ProxyDaemon, clients: int) -> None:
    """Waits until the proxy has noticed who came and went."""
    wait_for(lambda: daemon.metric("redis_proxy_client_connections") == clients, 10, f"{clients} clients")


def serving_pid(daemon: ProxyDaemon, not_in: list[int]) -> int:
    """Pid of a worker outside not_in that has answered a client; waits for one. The clients are not kept."""

    def new() -> int:
        # One that was just on its way to a worker that is killed shares its fate.
        with contextlib.suppress(Closed, ConnectionError), connected(daemon, 2 * len(not_in) + 2) as clients:
            return next((pid for pid in workers_of(daemon, clients) if pid not in not_in), 0)
        return 0

    return int(wait_for(new, 10, "a new worker serves"))


def replacement(daemon: ProxyDaemon, *known: int) -> int:
    """Pid of the one worker that is none of these, as soon as there is one."""
    (found,) = wait_for(lambda: set(daemon.worker_pids()).difference(known), 20, "a replacement")
    return int(found)


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not alive(pid), 5, f"process {pid} is gone")


# Handing out


def test_clients_are_spread_evenly(small_cluster: EmbeddedCluster, start_proxy: StartProxy) -> None:
    """To the worker with the fewest, also after others have left."""
    daemon = start_proxy(small_cluster.seeds)
    workers = daemon.worker_pids()
    assert len(workers) == 2
    settled(daemon, 0)
    with contextlib.ExitStack() as stack:
        clients = stack.enter_context(connected(daemon, 20))
        served = dict(zip(clients, workers_of(daemon, clients), strict=True))
        assert Counter(served.values()) == dict.fromkeys(workers, 10)
        for client in clients:
            if served[client] == workers[0]:
                client.close()
        settled(daemon, 10)
        more = stack.enter_context(connected(daemon, 10))
        assert workers_of(daemon, more) == [workers[0]] * 10
        more = stack.enter_context(connected(daemon, 10))
        assert Counter(workers_of(daemon, more)) == dict.fromkeys(workers, 5)


def test_a_rush_of_clients_is_spread_evenly(small_cluster: EmbeddedCluster, start_proxy: StartProxy) -> None:
    daemon = start_proxy(small_cluster.seeds, workers=3)
    settled(daemon, 0)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(daemon.raw()) for _ in range(300)]  # before any of them is answered
        for client in clients:
            assert client.command("PING") == b"+PONG\r\n"
        assert Counter(workers_of(daemon, clients)) == dict.fromkeys(daemon.worker_pids(), 100)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no CPU affinity")
def test_auto_is_the_granted_cpus(small_cluster: EmbeddedCluster, start_proxy: StartProxy) -> None:
    granted = sorted(os.sched_getaffinity(0))
    every = start_proxy(small_cluster.seeds, workers="auto")
    one = start_proxy(small_cluster.seeds, workers="auto", prefix=["taskset", "-c", str(granted[0])])
    assert len(one.worker_pids()) == 1
    assert 1 <= len(every.worker_pids()) <= len(granted)  # fewer where a cgroup has a quota


def test_the_limit_of_clients_is_the_proxys(small_cluster: EmbeddedCluster, start_proxy: StartProxy) -> None:
    daemon = start_proxy(small_cluster.seeds, {"clients": {"max_clients": 5}})
    settled(daemon, 0)
    with connected(daemon, 5) as clients:
        assert len(set(workers_of(daemon, clients))) == 2
        with daemon.raw() as refused:
            assert refused.rest() == b"-ERR max number of clients reached\r\n"
        assert daemon.metric("redis_proxy_client_connections_rejected_total", reason="max_clients") == 1

        def served() -> RawClient | None:
            client = daemon.raw()
            client.send(encode("PING"))
            if client.rest_or_frame() == b"+PONG\r\n":
                return client
            client.close()  # on a busy machine who leaves may be noticed too late for the first who comes
            return None

        for n in range(20):  # whoever leaves makes room
            clients[n % 5].close()
            clients[n % 5] = wait_for(served, 10, "there is room again")
        for client in clients:
            client.close()


# One proxy


def test_every_worker_speaks_for_the_whole_proxy(small_cluster: EmbeddedCluster, start_proxy: StartProxy) -> None:
    daemon = start_proxy(small_cluster.seeds, {"clients": {"max_clients": 77}})
    settled(daemon, 0)
    with connected(daemon, 5) as clients:
        for client in clients:
            for n in range(100):
                assert client.command("SET", "a", n) == b"+OK\r\n"
        by_worker = dict(zip(workers_of(daemon, clients), clients, strict=True))
        assert len(by_worker) == 2

        def seen(field: str) -> set[str]:
            return {info(client)[field] for client in by_worker.values()}

        wait_for(lambda: seen("connected_clients") == {"5"}, 5, "every worker counts all clients")
        assert seen("maxclients") == {"77"}
        wait_for(lambda: all(int(n) >= 500 for n in seen("proxy_commands_processed")), 5, "and all commands")
        wait_for(lambda: all(int(n) >= 5 for n in seen("total_connections_received")), 5, "and all connections")
        assert len(seen("run_id")) == 1
        ids = [client.command("CLIENT", "ID") for client in clients]
        assert len(set(ids)) == 5


def test_log_lines_say_which_worker(small_cluster: EmbeddedCluster, start_proxy: StartProxy) -> None:
    daemon = start_proxy(small_cluster.seeds, {"log": {"level": "debug"}})
    for worker in range(2):
        assert daemon.log_contains(rf"level=\w+ .*\bworker={worker}\b")


# Death


def test_a_killed_worker_under_load(small_cluster: EmbeddedCluster, start_proxy: StartProxy) -> None:
    """Its clients are disconnected, the others notice nothing, and it is replaced within a second."""
    daemon = start_proxy(small_cluster.seeds)
    workers = daemon.worker_pids()
    settled(daemon, 0)
    with connected(daemon, 4) as clients:
        for client in clients:
            for n in range(50):
                assert client.command("SET", "a", n) == b"+OK\r\n"
    settled(daemon, 0)
    assert daemon.metric("redis_proxy_commands_total", command="set") == 200
    with Load(daemon.address, 20, checked=False) as load:
        load.locate(daemon.served_by())
        victims = {client.number for client in load.clients if client.worker == workers[0]}
        assert len(victims) == 10
        before = daemon.metrics()
        killed_s = time.monotonic()
        kill(workers[0])
        new = serving_pid(daemon, workers)
        assert time.monotonic() - killed_s < 5  # a second, and what this machine adds
        after = daemon.metrics()
        load.advance(50)
        last = daemon.metrics()
    assert {ended.client for ended in load.ended} == victims
    assert load.wrong == []
    assert set(daemon.worker_pids()) == {workers[1], new}
    for earlier, later in ((before, after), (after, last)):
        assert {name for name, value in earlier.items() if ONLY_GROWS.match(name) and later.get(name, -1) < value} == (
            set()
        )
    assert daemon.metric("redis_proxy_worker_restarts_total") == 1
    assert daemon.metric("redis_proxy_commands_total", command="set") == 200
    counted = sum(daemon.metric("redis_proxy_commands_total", command=name) for name in ("incr", "get"))
    assert load.answered <= counted <= load.sent
    settled(daemon, 0)
    assert "Traceback" not in daemon.log


def test_a_worker_that_keeps_dying_backs_off(small_cluster: EmbeddedCluster, start_proxy: StartProxy) -> None:
    daemon = start_proxy(small_cluster.seeds)
    victim, survivor = daemon.worker_pids()
    with Load(daemon.address, 6, checked=False) as load:
        load.locate(daemon.served_by())
        steady = [client for client in load.clients if client.worker == survivor]
        pause_s = 0.0
        for _ in range(5):
            killed_s = time.monotonic()
            kill(victim)
            victim = replacement(daemon, victim, survivor)
            pause_s = time.monotonic() - killed_s
            load.advance(5)
        told = [float(found) for found in re.findall(r'msg="worker lost.* after_s=([\d.]+)', daemon.log)]
        assert told == [0.0, 0.1, 0.2, 0.4, 0.8]
        assert pause_s > told[-1]
        assert serving_pid(daemon, [survivor]) == victim
        assert not any(client.gone or client.wrong for client in steady)
    assert daemon.metric("redis_proxy_worker_restarts_total") == 5
    assert wait_for(lambda: daemon.http("/readyz")[0] == 200, 5, "ready again")


def test_a_stopped_worker_goes_on_where_it_was(small_cluster: EmbeddedCluster, start_proxy: StartProxy) -> None:
    """Not alive while it is stopped; its clients lose nothing when it goes on in time."""
    daemon = start_proxy(small_cluster.seeds)
    stopped, other = daemon.worker_pids()
    with Load(daemon.address, 8) as load:
        load.locate(daemon.served_by())
        others = [client for client in load.clients if client.worker == other]
        os.kill(stopped, signal.SIGSTOP)
        try:
            wait_for(lambda: daemon.http("/livez")[0] == 503, 8, "/livez tells")
            goals = [(client, client.answered + 50) for client in others]
            wait_for(lambda: all(client.answered >= goal for client, goal in goals), 10, "the others go on")
        finally:
            os.kill(stopped, signal.SIGCONT)
        wait_for(lambda: daemon.http("/livez")[0] == 200, 8, "alive again")
        load.advance(50)
    assert daemon.worker_pids() == [stopped, other]
    assert daemon.metric("redis_proxy_worker_restarts_total") == 0


@pytest.mark.long
def test_a_silent_worker_is_replaced(small_cluster: EmbeddedCluster, start_proxy: StartProxy) -> None:
    daemon = start_proxy(small_cluster.seeds)
    stopped, other = daemon.worker_pids()
    with Load(daemon.address, 8, checked=False) as load:
        load.locate(daemon.served_by())
        os.kill(stopped, signal.SIGSTOP)
        replacement(daemon, stopped, other)
        wait_for(lambda: not alive(stopped), 5, "the old one is gone")
        wait_for(lambda: daemon.http("/livez")[0] == 200, 8, "alive again")
        load.advance(50)
    assert {ended.worker for ended in load.ended} == {stopped}
    assert daemon.metric("redis_proxy_worker_restarts_total") == 1


def test_nothing_outlives_the_main_process(small_cluster: EmbeddedCluster) -> None:
    daemon = ProxyDaemon(small_cluster.seeds).start()
    try:
        with Load(daemon.address, 6, checked=False) as load:
            assert len(session_members(daemon.pid)) == 3
            assert daemon.terminate(signal.SIGKILL) == -signal.SIGKILL
            wait_for(lambda: session_members(daemon.pid) == [], 5, "every process is gone")
            wait_for(lambda: not load.alive(), 5, "every client is disconnected")
    finally:
        daemon.remove()
