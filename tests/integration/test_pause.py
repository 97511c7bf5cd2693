"""PROXY PAUSE and RESUME: a node is restarted, or fails over, and nobody notices."""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
import redis

from proxy.embedded import EmbeddedCluster, EmbeddedNode, wait_for
from tests.support.cluster import key_in
from tests.support.proxyd import ProxyDaemon
from tests.support.raw import RawClient, encode
from tests.support.workload import APART, Workload

StartProxy = Callable[..., ProxyDaemon]
POOL = ThreadPoolExecutor(32)
ADMIN = {"clients": {"admin_password": "s3cret"}}


@pytest.fixture
def solid(server: str) -> Iterator[EmbeddedCluster]:
    """A cluster whose nodes may be away for a while without a failover."""
    with EmbeddedCluster(server, node_timeout_ms=15000) as started:
        yield started


@pytest.fixture
def fragile(server: str) -> Iterator[EmbeddedCluster]:
    """A cluster of its own."""
    with EmbeddedCluster(server, node_timeout_ms=2000) as started:
        yield started


def admin(daemon: ProxyDaemon) -> RawClient:
    raw = daemon.raw(timeout_s=30)
    assert raw.command("AUTH", "admin", "s3cret") == b"+OK\r\n"
    return raw


def key_of(cluster: EmbeddedCluster, node: EmbeddedNode, prefix: str = "k") -> str:
    slots = cluster.slots_of(node)
    return key_in(slots[0], slots[-1], prefix)


def shut_down(node: EmbeddedNode) -> None:
    with pytest.raises(redis.ConnectionError):
        node.command("SHUTDOWN", "SAVE")
    assert node.process is not None
    node.process.wait(10)


def test_a_primary_is_restarted_under_busy_clients(solid: EmbeddedCluster, start_proxy: StartProxy) -> None:
    daemon = start_proxy(solid.seeds, ADMIN)
    victim = solid.owner_of(0)  # where messages come from, too
    with admin(daemon) as operator:
        with Workload(daemon.address, 100, apart=True) as busy:
            done = busy.told.done
            wait_for(lambda: done["incr"] > 200, 20, "busy")
            assert operator.command("PROXY", "PAUSE", "NODE", victim.address, 30000) == b"+OK\r\n"
            assert all(int(n) == 0 for n in [daemon.metric("redis_proxy_backend_pending", node=victim.address)])
            shut_down(victim)
            begun = done.copy()
            time.sleep(1.0)  # what others do meanwhile
            others = done - begun
            solid.restart(victim)
            assert operator.command("PROXY", "RESUME", "NODE", victim.address) == b"+OK\r\n"
            before = done.copy()
            wait_for(lambda: done["incr"] > before["incr"] + 2000, 20, "all go on")
        busy.check(solid)
        assert min(others["incr"], others["get"]) > 100
        assert set(done) == set(APART)
        assert daemon.metric("redis_proxy_backend_connect_failures_total", node=victim.address) == 0
        assert daemon.log_contains(r"node paused.*node=" + re.escape(victim.address))


def ask_in_thread(daemon: ProxyDaemon, *words: str | int) -> Future[bytes]:
    """The reply to a command that may be held."""

    def ask() -> bytes:
        with daemon.raw(timeout_s=30) as raw:
            return raw.command(*words)

    return POOL.submit(ask)


def test_who_may_and_how_it_is_said(cluster: EmbeddedCluster, start_proxy: StartProxy) -> None:
    daemon = start_proxy(cluster.seeds, {})
    with daemon.raw() as raw:
        assert raw.command("PROXY", "INFO").startswith(b"-NOPERM PROXY is for administrators, and there are none")
        assert raw.command("AUTH", "admin", "") == b"-WRONGPASS invalid username-password pair or user is disabled.\r\n"
        daemon.reload(ADMIN)
        assert raw.command("PROXY", "INFO").startswith(b"-NOPERM PROXY is for administrators: AUTH admin")
        assert raw.command("AUTH", "admin", "wrong").startswith(b"-WRONGPASS")
        assert raw.command("HELLO", 3, "AUTH", "admin", "s3cret").startswith(b"%7\r\n")
        assert raw.command("ACL", "WHOAMI") == b"$5\r\nadmin\r\n"
        assert b"PAUSE" in raw.command("PROXY", "HELP")
        assert raw.command("PROXY") == b"-ERR wrong number of arguments for 'proxy' command\r\n"
        assert raw.command("PROXY", "NONSENSE").startswith(b"-ERR unknown subcommand 'NONSENSE'. Try PROXY HELP.")
        assert raw.command("PROXY", "PAUSE", "NODE") == b"-ERR syntax error\r\n"
        assert raw.command("PROXY", "PAUSE", "NODE", "10.9.9.9:1") == b"-ERR Unknown node 10.9.9.9:1\r\n"
        for wrong in ("0", "-1", "x", "3600001", "1e3"):
            assert raw.command("PROXY", "PAUSE", wrong).startswith(b"-ERR timeout must be an integer from 1 to 3600000")
        assert raw.command("PROXY", "RESUME") == b"+OK\r\n"  # nothing is paused
        # No server's command, nor one for a transaction.
        assert raw.command("COMMAND", "INFO", "proxy") in (b"*1\r\n_\r\n", b"*1\r\n*-1\r\n")
        assert raw.command("MULTI") == b"+OK\r\n"
        assert raw.command("PROXY", "RESUME").startswith(b"-ERR Command")
        assert raw.command("EXEC").startswith(b"-EXECABORT")
        assert daemon.metric("redis_proxy_commands_total", command="proxy") >= 10
        # Whoever knew the old password is no administrator by it.
        daemon.reload({"clients": {"admin_password": "another"}})
        assert raw.command("ACL", "WHOAMI") == b"$7\r\ndefault\r\n"
        assert raw.command("PROXY", "INFO").startswith(b"-NOPERM")
        assert raw.command("AUTH", "admin", "another") == b"+OK\r\n"
        daemon.reload({"clients": {"admin_password": "another", "password": "of all"}})
        assert raw.command("ACL", "WHOAMI") == b"$5\r\nadmin\r\n"
        daemon.reload({"clients": {"admin_password": "s3cret", "password": "of all"}})
        assert raw.command("PING").startswith(b"-NOAUTH")
        daemon.reload(ADMIN)
        assert raw.command("AUTH", "admin", "s3cret") == b"+OK\r\n"
        assert raw.command("RESET") == b"+RESET\r\n"
        assert raw.command("PROXY", "INFO").startswith(b"-NOPERM")
        daemon.reload(ADMIN | {"commands": {"deny": ["proxy"]}})
        assert raw.command("AUTH", "admin", "s3cret") == b"+OK\r\n"
        assert raw.command("PROXY", "INFO").startswith(b"-ERR command 'proxy' is not allowed")
    assert "s3cret" not in daemon.log


def test_reads_go_elsewhere_and_the_rest_is_held(cluster: EmbeddedCluster, start_proxy: StartProxy) -> None:
    daemon = start_proxy(
        cluster.seeds, {**ADMIN, "requests": {"timeout": "1s"}, "listeners": [{"reads": "prefer_primary"}]}
    )
    node, other, _ = cluster.primaries()
    key, free = key_of(cluster, node), key_of(cluster, other)
    with admin(daemon) as operator, daemon.raw() as raw:
        assert raw.command("SET", key, 1) == b"+OK\r\n"
        assert raw.command("WAIT", 1, 5000) == b":1\r\n"  # who wrote it asks: for others it may not be there yet
        assert operator.command("PROXY", "PAUSE", "NODE", node.id) == b"+OK\r\n"  # by its id
        assert node.address.encode() in operator.command("PROXY", "INFO")
        held = [ask_in_thread(daemon, *words) for words in (
            ("INCR", key), ("MSET", key, 2, free, 2), ("EVAL", "return redis.call('INCR', KEYS[1])", 1, key),
            ("DBSIZE",), ("WAIT", 0, 100), ("BLPOP", f"{{{key}}}list", 0.3), ("WATCH", key),
        )]  # fmt: skip
        wait_for(lambda: daemon.metric("redis_proxy_held_clients") == 4, 10, "held: INCR, MSET, EVAL, WATCH")
        assert daemon.metric("redis_proxy_node_paused", node=node.address) == 1
        assert daemon.metric("redis_proxy_node_paused") == 1
        assert raw.command("GET", key) == b"$1\r\n1\r\n"  # from the replica
        assert raw.command("INCR", free).startswith(b":")
        assert raw.command("MULTI") + raw.command("PING") + raw.command("EXEC") == b"+OK\r\n+QUEUED\r\n*1\r\n+PONG\r\n"
        assert held[5].result(5) == b"*-1\r\n"  # its own time was over
        time.sleep(1.2)  # longer than requests.timeout
        assert [one.done() for one in held] == [False, False, False, False, True, True, False]
        assert operator.command("PROXY", "RESUME", "NODE", node.address) == b"+OK\r\n"
        told = [one.result(10) for one in held]
        assert told[1] == told[6] == b"+OK\r\n"
        assert [told[n][:1] for n in (0, 2, 3)] == [b":"] * 3


def test_a_blocked_command_begins_again(cluster: EmbeddedCluster, start_proxy: StartProxy) -> None:
    """What blocks at the node would hold up its end; nothing is popped for nobody, and its time goes on."""
    daemon = start_proxy(cluster.seeds, ADMIN)
    node = cluster.primaries()[1]
    key = key_of(cluster, node, "list")
    with admin(daemon) as operator, daemon.raw() as raw:
        popped, short = ask_in_thread(daemon, "BLPOP", key, 0), ask_in_thread(daemon, "BLPOP", f"{{{key}}}2", 1)
        wait_for(lambda: int(node.info("clients")["blocked_clients"]) == 2, 10, "blocked")
        begun_s = time.monotonic()
        assert operator.command("PROXY", "PAUSE", "NODE", node.address) == b"+OK\r\n"
        assert int(node.info("clients")["blocked_clients"]) == 0
        pushed = ask_in_thread(daemon, "RPUSH", key, "x")
        assert short.result(10) == b"*-1\r\n"
        assert time.monotonic() - begun_s < 8
        assert not popped.done()
        assert operator.command("PROXY", "RESUME") == b"+OK\r\n"
        assert pushed.result(10) == b":1\r\n"
        assert popped.result(10).endswith(b"$1\r\nx\r\n")
        # A client that wants it unblocked meanwhile gets that.
        blocked = ask_in_thread(daemon, "BLPOP", key, 0)
        wait_for(lambda: int(node.info("clients")["blocked_clients"]) == 1, 10, "blocked")
        assert operator.command("PROXY", "PAUSE", "NODE", node.address) == b"+OK\r\n"
        (number,) = re.findall(rb"id=(\d+) [^\n]*cmd=blpop", raw.command("CLIENT", "LIST"))
        assert raw.command("CLIENT", "UNBLOCK", number, "ERROR") == b":1\r\n"
        assert blocked.result(10).startswith(b"-UNBLOCKED")
        assert operator.command("PROXY", "RESUME") == b"+OK\r\n"


def test_all_of_it_and_the_end_of_its_time(cluster: EmbeddedCluster, start_proxy: StartProxy) -> None:
    daemon = start_proxy(cluster.seeds, ADMIN)
    keys = [key_of(cluster, node) for node in cluster.primaries()]
    with admin(daemon) as operator, daemon.raw() as raw:
        assert operator.command("PROXY", "PAUSE", 60000) == b"+OK\r\n"
        assert operator.command("PROXY", "RESUME", "NODE", cluster.primaries()[0].address).startswith(b"-ERR all nodes")
        held = [ask_in_thread(daemon, "INCR", key) for key in keys]
        leaving = daemon.raw()
        leaving.send(encode("INCR", "left"))
        wait_for(lambda: daemon.metric("redis_proxy_held_clients") == 4, 10, "held")
        leaving.close()
        assert raw.command("PING") == b"+PONG\r\n"
        # A worker that is killed and replaced: its successor is paused, too.
        for pid in daemon.worker_pids():
            if pid != daemon.worker_of(operator):
                os.kill(pid, 9)
        wait_for(lambda: daemon.metric("redis_proxy_worker_restarts_total") == 1, 10, "its end is known")
        wait_for(lambda: daemon.metric("redis_proxy_workers") == 2, 10, "replaced")
        wait_for(lambda: len(set(daemon.served_by().values())) >= 1, 10, "served")
        fresh = [ask_in_thread(daemon, "GET", "forever") for _ in range(6)]
        time.sleep(0.3)
        assert not any(one.done() for one in fresh)
        begun_s = time.monotonic()
        assert operator.command("PROXY", "PAUSE", 700) == b"+OK\r\n"  # its time anew
        assert [one.result(10) for one in fresh] == [b"$-1\r\n"] * 6
        assert 0.5 < time.monotonic() - begun_s < 5
        wait_for(lambda: daemon.metric("redis_proxy_held_clients") == 0, 10, "who has left is carried out and gone")
        for one in held:  # of the worker that was killed, or answered
            assert one.exception(10) is not None or one.result().startswith(b":")
        assert daemon.log_contains("node resumed")


def test_a_paused_node_that_loses_its_role(fragile: EmbeddedCluster, start_proxy: StartProxy) -> None:
    """What is held goes to the new owner."""
    daemon = start_proxy(fragile.seeds, {**ADMIN, "requests": {"timeout": "1s"}})
    victim = fragile.primaries()[0]
    key = key_of(fragile, victim)
    with admin(daemon) as operator:
        assert operator.command("PROXY", "PAUSE", "NODE", victim.address) == b"+OK\r\n"
        held = ask_in_thread(daemon, "SET", key, "kept")
        fragile.failover(fragile.replicas_of(victim)[0])
        assert held.result(20) == b"+OK\r\n"
        assert operator.command("PROXY", "RESUME") == b"+OK\r\n"


def test_drain_and_reload_and_client_pause(cluster: EmbeddedCluster, start_proxy: StartProxy) -> None:
    daemon = start_proxy(cluster.seeds, ADMIN)
    key = key_of(cluster, cluster.primaries()[0])
    with admin(daemon) as operator, daemon.raw() as raw:
        assert raw.command("SET", key, 0) == b"+OK\r\n"
        assert operator.command("PROXY", "PAUSE", "NODE", cluster.primaries()[0].address) == b"+OK\r\n"
        held = [ask_in_thread(daemon, "INCR", key) for _ in range(4)]
        wait_for(lambda: daemon.metric("redis_proxy_held_clients") == 4, 10, "held")
        assert raw.command("CLIENT", "PAUSE", 300) == b"+OK\r\n"
        time.sleep(0.5)  # and that is over, but not ours
        daemon.reload({**ADMIN, "requests": {"timeout": "4s"}})
        assert not any(one.done() for one in held)
        daemon.terminate()
        assert sorted(one.result(10) for one in held) == [b":1\r\n", b":2\r\n", b":3\r\n", b":4\r\n"]
        assert "nodes resumed: this process ends" in daemon.log


@pytest.mark.parametrize("resume", [False, True])
def test_nobody_is_idle_or_forgotten(cluster: EmbeddedCluster, start_proxy: StartProxy, resume: bool) -> None:
    """A pause longer than clients.idle_timeout, that ends by itself or by RESUME; and who has ended its input."""
    daemon = start_proxy(cluster.seeds, {"clients": {"admin_password": "s3cret", "idle_timeout": "1s"}})
    node = cluster.primaries()[0]
    key = key_of(cluster, node, f"idle{resume}")
    node.command("DEL", key, f"{{{key}}}left")
    with admin(daemon) as operator:
        begun_s = time.monotonic()
        assert operator.command("PROXY", "PAUSE", "NODE", node.address, 60000 if resume else 1500) == b"+OK\r\n"
        clients = []
        for n in range(300):
            clients.append(daemon.raw(timeout_s=30))
            clients[-1].send(encode("INCR", key))  # at once: until then it is idle
            if n % 30 == 0:
                assert operator.command("PING") == b"+PONG\r\n"  # and so would this one be
        clients[0].sock.shutdown(socket.SHUT_WR)
        with daemon.raw() as leaving:
            leaving.send(encode("SET", f"{{{key}}}left", "1"))
        while resume and time.monotonic() - begun_s < 1.5:
            assert operator.command("PING") == b"+PONG\r\n"
            time.sleep(0.1)
        if resume:
            assert operator.command("PROXY", "RESUME") == b"+OK\r\n"
        assert sorted(int(client.frame()[1:]) for client in clients) == list(range(1, 301))
        assert time.monotonic() - begun_s > 1.4
        for client in clients:
            client.close()
        wait_for(lambda: node.command("EXISTS", f"{{{key}}}left"), 5, "who has left is carried out")
