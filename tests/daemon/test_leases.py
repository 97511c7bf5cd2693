"""WATCH and the limit of file descriptors: those who watch leave enough for everybody else."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from proxy.embedded import EmbeddedCluster, wait_for
from proxy.resp.errors import NO_LEASE
from tests.support.cluster import key_in
from tests.support.proxyd import ProxyDaemon

StartProxy = Callable[..., ProxyDaemon]
LIMIT = ["prlimit", "--nofile=200:200"]
OK = b"+OK\r\n"


def test_those_who_watch_leave_room(small_cluster: EmbeddedCluster, start_proxy: StartProxy) -> None:
    """For new clients, up to clients.max_clients, and for connections to nodes that were lost."""
    one, other = small_cluster.primaries()[:2]
    key = key_in(*[small_cluster.slots_of(one)[0]] * 2)
    watched = key_in(*[small_cluster.slots_of(other)[0]] * 2)
    daemon = start_proxy(small_cluster.seeds, workers=1, prefix=LIMIT)
    with contextlib.ExitStack() as stack:
        seen = stack.enter_context(daemon.raw())
        clients = [stack.enter_context(daemon.raw()) for _ in range(105)]
        assert {client.command("PING") for client in clients} == {b"+PONG\r\n"}
        answers = [client.command("WATCH", watched) for client in clients]
        assert set(answers) == {OK, NO_LEASE}
        assert 20 < answers.count(OK) <= 50
        wait_for(lambda: "no more connections for WATCH" in daemon.log, 5, "the log says so")
        # The node drops the connection that all share: it is made again.
        one.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        wait_for(lambda: seen.command("GET", key) == b"$-1\r\n", 5, "the node is asked again")
        # All the clients there may be come: to those who watch it is as if a key had changed.
        clients += [stack.enter_context(daemon.raw()) for _ in range(30)]
        assert {client.command("PING") for client in clients} == {b"+PONG\r\n"}
        one.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        wait_for(lambda: seen.command("GET", key) == b"$-1\r\n", 5, "the node is asked again")
        wait_for(lambda: "connections that clients watch keys" in daemon.log, 5, "some are closed, to make room")
        lucky = [client for client, answer in zip(clients, answers, strict=False) if answer == OK]
        for client in lucky:
            assert client.command("MULTI") == OK
        executed = [client.command("EXEC") for client in lucky]
        assert set(executed) == {b"*0\r\n", b"*-1\r\n"}
        assert executed.count(b"*0\r\n") >= 16
    assert daemon.alive


def test_what_is_idle_leaves_room(small_cluster: EmbeddedCluster, start_proxy: StartProxy) -> None:
    daemon = start_proxy(small_cluster.seeds, workers=1, prefix=LIMIT)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(daemon.raw()) for _ in range(95)]
        for client in clients:
            client.command("WATCH", "k")
        for client in clients:
            assert client.command("UNWATCH") == OK
        for _ in range(30):
            clients.append(stack.enter_context(daemon.raw()))
            assert clients[-1].command("PING") == b"+PONG\r\n"
        assert clients[-1].command("WATCH", "k") == OK
