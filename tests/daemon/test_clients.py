"""The CLIENT family over two workers: every client of the proxy is listed, killed and paused, wherever it is served."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest
import redis

from proxy.embedded import EmbeddedCluster, wait_for
from proxy.supervisor.relay import SILENT_S
from tests.support.processes import alive
from tests.support.proxyd import ProxyDaemon
from tests.support.raw import Closed, RawClient, encode
from tests.support.standstill import Standstill

StartProxy = Callable[..., ProxyDaemon]


@contextlib.contextmanager
def connected(daemon: ProxyDaemon, count: int) -> Iterator[list[RawClient]]:
    with contextlib.ExitStack() as stack:
        clients = []
        for n in range(count):
            clients.append(stack.enter_context(daemon.raw()))
            assert clients[-1].command("CLIENT", "SETNAME", f"n{n}") == b"+OK\r\n"
        yield clients


def ids(answer: bytes) -> list[int]:
    return [int(found) for found in re.findall(rb"^id=(\d+) ", answer, re.MULTILINE)]


def own_id(client: RawClient) -> int:
    return int(client.command("CLIENT", "ID")[1:-2])


def held(client: RawClient, *words: str, for_s: float = 0.15) -> bool:
    """Sends a command; whether it is not answered within that time."""
    client.send(encode(*words))
    client.sock.settimeout(for_s)
    try:
        client.frame()
        return False
    except TimeoutError:
        return True
    finally:
        client.sock.settimeout(10)


def on_both(daemon: ProxyDaemon, clients: list[RawClient]) -> bool:
    served = daemon.served_by()
    return len({served[client.sock.getsockname()[1]] for client in clients}) == 2


@pytest.fixture(scope="module")
def daemon(small_cluster: EmbeddedCluster) -> Iterator[ProxyDaemon]:
    with ProxyDaemon(small_cluster.seeds) as started:
        yield started
        assert started.alive


def quiet(daemon: ProxyDaemon) -> bool:
    """Whether new clients on both workers are left alone for a while."""
    with contextlib.suppress(Closed, ConnectionError), daemon.raw() as one, daemon.raw() as other:
        return all(client.command("CLIENT", "LIST") for client in (one, other) * 10)
    return False


# LIST


def test_everybody_is_listed_in_order(daemon: ProxyDaemon) -> None:
    with connected(daemon, 8) as clients:
        assert on_both(daemon, clients)
        known = [own_id(client) for client in clients]
        for client in clients:
            answer = client.command("CLIENT", "LIST")
            assert set(known) <= set(ids(answer))
            assert ids(answer) == sorted(ids(answer))
        wanted = [known[5], known[0], 999999999]
        assert ids(clients[3].command("CLIENT", "LIST", "ID", *wanted)) == sorted(wanted[:2])
        assert ids(clients[3].command("CLIENT", "LIST", "NAME", "n6")) == [known[6]]
        me = clients[3].command("CLIENT", "LIST", "ID", known[3])
        assert b" cmd=client|list " in me


def test_as_redis_py_reads_it(daemon: ProxyDaemon) -> None:
    for protocol in (2, 3):
        with (
            daemon.client(protocol=protocol, client_name="one") as one,
            daemon.client(protocol=protocol, client_name="two") as two,
        ):
            two.ping()
            listed = one.client_list()
            assert {"one", "two"} <= {entry["name"] for entry in listed}
            assert one.client_list(_type="replica") == []
            (entry,) = one.client_list(client_id=[two.client_id()])
            assert entry["name"] == "two"
            assert one.client_kill_filter(_id=two.client_id()) == 1
            assert two.ping() is True  # it has connected again
            with pytest.raises(redis.ResponseError, match="No such client"):
                one.client_kill("1.1.1.1:1")
            assert one.client_pause(10, all=False) is True
            assert one.client_unpause() in (True, b"OK", "OK")
            assert one.client_trackinginfo()
            assert one.client_getredir() == -1
            assert one.client_unblock(1) is False
            assert one.client_no_evict("ON") in (True, b"OK", "OK")
            assert one.client_no_touch("ON") in (True, b"OK", "OK")


def test_answers_keep_their_place(daemon: ProxyDaemon) -> None:
    with daemon.raw() as client:
        client.send((encode("SET", "p", "1") + encode("CLIENT", "LIST", "ID", "1") + encode("ECHO", "x")) * 300)
        for _ in range(300):
            first, listed, echo = client.frames(3)
            assert (first, listed[:1], echo) == (b"+OK\r\n", b"$", b"$1\r\nx\r\n")


# KILL


def test_clients_of_both_workers_are_killed(daemon: ProxyDaemon) -> None:
    with connected(daemon, 8) as clients:
        assert on_both(daemon, clients)
        killer, *others = clients
        known = {client: own_id(client) for client in clients}
        assert killer.command("CLIENT", "KILL", "ID", *[known[client] for client in others[:4]]) == b":4\r\n"
        assert [client.rest() for client in others[:4]] == [b""] * 4
        address = "{}:{}".format(*others[4].sock.getsockname())
        assert killer.command("CLIENT", "KILL", address) == b"+OK\r\n"
        assert others[4].rest() == b""
        assert killer.command("CLIENT", "KILL", address) == b"-ERR No such client\r\n"
        assert others[5].command("PING") == b"+PONG\r\n"
        killer.send(encode("CLIENT", "KILL", "ID", known[killer], known[others[5]], "SKIPME", "no") + encode("PING"))
        assert killer.rest() == b":2\r\n"  # its reply, and nothing of what came behind
        assert others[5].rest() == b""


def test_everybody_kills_everybody(daemon: ProxyDaemon) -> None:
    """From many clients at once, again and again: who is left is served, and nobody hangs."""
    for _ in range(5):
        with connected(daemon, 40) as clients:
            for client in clients:
                client.send(encode("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "no") + encode("PING"))
            for client in clients:
                assert client.rest_or_frame() == b"" or client.rest() == b""
        wait_for(lambda: quiet(daemon), 10, "the last order is obeyed")
    with daemon.raw() as client:
        wait_for(lambda: len(ids(client.command("CLIENT", "LIST"))) == 1, 10, "nobody else is left")


def test_thousands_of_questions_at_once(daemon: ProxyDaemon) -> None:
    """Pipelined by many clients; others are served meanwhile."""
    with Standstill() as still, connected(daemon, 30) as clients, daemon.raw() as other:
        for client in clients:
            client.send((encode("CLIENT", "LIST") + encode("CLIENT", "KILL", "ID", "999999999")) * 100)
        longest_s = 0.0
        for _ in range(100):
            begun_s = time.monotonic()
            assert other.command("SET", "k", "v") == b"+OK\r\n"
            longest_s = max(longest_s, time.monotonic() - begun_s)
        assert longest_s < 2.0 + 2 * still.longest_s
        for client in clients:
            for _ in range(100):
                assert client.frame()[:1] == b"$"
                assert client.frame() == b":0\r\n"


def test_clients_that_leave_while_they_wait(daemon: ProxyDaemon) -> None:
    for _ in range(20):
        with connected(daemon, 10) as clients:
            for client in clients:
                client.send(encode("CLIENT", "LIST") * 50)
    with daemon.raw() as client:
        wait_for(lambda: len(ids(client.command("CLIENT", "LIST"))) == 1, 10, "all have left")


# PAUSE


def test_writes_are_held_for_everybody(daemon: ProxyDaemon) -> None:
    with connected(daemon, 6) as clients:
        assert on_both(daemon, clients)
        pauser, *others = clients
        assert pauser.command("CLIENT", "PAUSE", "60000", "WRITE") == b"+OK\r\n"
        for client in others:
            assert client.command("GET", "pause")[:1] == b"$"
        assert all(held(client, "INCR", "{pause}n", for_s=0.05) for client in others)
        listed = partial(pauser.command, "CLIENT", "LIST", "FLAGS", "b")
        wait_for(lambda: len(ids(listed())) == len(others), 10, "all of them are read, and held")
        with daemon.raw() as newcomer:
            assert held(newcomer, "SET", "pause", "1")
            assert pauser.command("CLIENT", "PAUSE", "1", "WRITE") == b"+OK\r\n"  # no pause becomes shorter
            assert held(pauser, "PUBLISH", "c", "m") or pytest.fail("held by its own pause, too")
            with daemon.raw() as last:
                assert last.command("CLIENT", "UNPAUSE") == b"+OK\r\n"
            assert newcomer.frame() == b"+OK\r\n"
        assert pauser.frame() == b":0\r\n"
        assert sorted(client.frame() for client in others) == [b":%d\r\n" % n for n in range(1, 6)]
        pauser.command("DEL", "{pause}n")


def test_all_is_held_until_the_time_is_over(daemon: ProxyDaemon) -> None:
    with connected(daemon, 4) as clients:
        pauser, *others = clients
        begun_s = time.monotonic()
        assert pauser.command("CLIENT", "PAUSE", "1200") == b"+OK\r\n"
        for client in others:
            client.send(encode("PING"))
        assert held(pauser, "CLIENT", "UNPAUSE") or time.monotonic() - begun_s > 1.2  # held as at a real server
        for client in others:
            assert client.frame() == b"+PONG\r\n"
        assert 1.1 < time.monotonic() - begun_s < 6
        assert pauser.frame() == b"+OK\r\n"


def test_held_clients_that_leave(daemon: ProxyDaemon) -> None:
    with daemon.raw() as pauser:
        assert pauser.command("CLIENT", "PAUSE", "60000", "WRITE") == b"+OK\r\n"
        with connected(daemon, 20) as clients:
            for client in clients:
                client.send(encode("INCR", "left") * 100)
            wait_for(lambda: len(ids(pauser.command("CLIENT", "LIST", "FLAGS", "b"))) == 20, 10, "all are held")
        wait_for(lambda: len(ids(pauser.command("CLIENT", "LIST"))) == 1, 10, "all have left")
        assert pauser.command("CLIENT", "UNPAUSE") == b"+OK\r\n"
        assert pauser.command("EXISTS", "left") == b":0\r\n"


# A worker that dies


def test_a_worker_that_dies_in_the_middle(small_cluster: EmbeddedCluster, start_proxy: StartProxy) -> None:
    """The answer is as complete as it can be, at once; and the one that takes its place is paused as well."""
    # Where the machine stands still for a second, its end and its silence look alike.
    assert any(told_of_its_end(start_proxy(small_cluster.seeds)) for _ in range(5))


def told_of_its_end(daemon: ProxyDaemon) -> bool:
    """Kills a worker that is being asked; whether the answer came for its end, before its silence was long enough."""
    with connected(daemon, 10) as clients:
        served = daemon.served_by()
        of = {client: served[client.sock.getsockname()[1]] for client in clients}
        victim = of[clients[0]]
        mine, theirs = ([client for client in clients if (of[client] == victim) == same] for same in (False, True))
        asker = mine[0]
        known = {own_id(client) for client in mine}
        assert asker.command("CLIENT", "PAUSE", "60000", "WRITE") == b"+OK\r\n"
        os.kill(victim, signal.SIGSTOP)
        asker.send(encode("CLIENT", "LIST"))
        begun_s = time.monotonic()
        time.sleep(0.05)  # the question is on its way, or waits for it already
        os.kill(victim, signal.SIGKILL)
        listed = asker.frame()
        at_once = time.monotonic() - begun_s < SILENT_S
        assert set(ids(listed)) == known
        assert all(client.rest() == b"" for client in theirs)
        wait_for(lambda: not alive(victim), 10, "it has ended")

        def new() -> RawClient | None:
            # One that was just on its way to the worker that is killed shares its fate.
            with contextlib.suppress(Closed, ConnectionError), contextlib.ExitStack() as stack:
                more = [stack.enter_context(daemon.raw()) for _ in range(10)]
                if all(client.command("PING") == b"+PONG\r\n" for client in more):
                    served = daemon.served_by()
                    for client in more:
                        if served[client.sock.getsockname()[1]] not in (victim, of[asker]):
                            more.remove(client)
                            stack.pop_all()
                            for other in more:
                                other.close()
                            return client
            return None

        with wait_for(new, 20, "a new worker serves") as newcomer:
            assert held(newcomer, "SET", "k", "1")
            listed = partial(asker.command, "CLIENT", "LIST", "FLAGS", "b")
            wait_for(lambda: len(ids(listed())) == 1, 10, "it is read, and held")
            assert asker.command("CLIENT", "UNPAUSE") == b"+OK\r\n"
            assert newcomer.frame() == b"+OK\r\n"
    return at_once


def test_a_worker_that_is_stuck(small_cluster: EmbeddedCluster, start_proxy: StartProxy) -> None:
    daemon = start_proxy(small_cluster.seeds)
    with connected(daemon, 6) as clients:
        served = daemon.served_by()
        of = {client: served[client.sock.getsockname()[1]] for client in clients}
        stuck = of[clients[0]]
        asker = next(client for client in clients if of[client] != stuck)
        os.kill(stuck, signal.SIGSTOP)
        try:
            begun_s = time.monotonic()
            assert len(ids(asker.command("CLIENT", "LIST"))) == sum(of[client] != stuck for client in clients)
            assert 0.9 < time.monotonic() - begun_s < 8
            assert asker.command("CLIENT", "KILL", "NAME", "n0") == b":0\r\n"
        finally:
            os.kill(stuck, signal.SIGCONT)
        assert clients[0].rest() == b""  # it was told, and obeys when it can
        assert len(ids(asker.command("CLIENT", "LIST"))) == 5


def test_a_pause_is_seen(small_cluster: EmbeddedCluster, start_proxy: StartProxy) -> None:
    """In the log, once and by whom, and in INFO of every worker."""
    daemon = start_proxy(small_cluster.seeds)  # of its own: the pauses of others are in the log, too, now and then
    start = len(daemon.log)
    with connected(daemon, 4) as clients:
        assert on_both(daemon, clients)
        who = "{}:{}".format(*clients[0].sock.getsockname())
        assert clients[0].command("CLIENT", "PAUSE", 100000, "WRITE") == b"+OK\r\n"
        for client in clients:
            told = client.command("INFO", "clients")
            assert b"\r\npaused_reason:client_pause\r\npaused_actions:write\r\n" in told
            assert 90000 < int(told.partition(b"paused_timeout_milliseconds:")[2].split()[0]) <= 100000
        wait_for(lambda: "clients paused" in daemon.log[start:], 5, "the log tells of it")
        assert clients[1].command("CLIENT", "UNPAUSE") == b"+OK\r\n"
        assert b"paused_reason:none\r\npaused_actions:none\r\npaused_timeout_milliseconds:0" in clients[2].command(
            "INFO", "clients"
        )
        wait_for(lambda: "clients go on" in daemon.log[start:], 5, "the log tells of the end")
    log = daemon.log[start:]
    assert (log.count("clients paused"), log.count("clients go on")) == (1, 1)
    (line,) = (line for line in log.splitlines() if "clients paused" in line)
    assert f"mode=WRITE seconds=100.0 client={who}" in line
