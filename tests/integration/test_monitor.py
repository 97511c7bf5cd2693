"""MONITOR: what passes through the proxy, line by line as a server shows it."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

import pytest

from proxy.embedded import EmbeddedCluster, wait_for
from tests.support.cluster import Standalone, spread_keys
from tests.support.proxyd import ProxyDaemon
from tests.support.raw import RawClient, Word, encode

END = ("ECHO", "the end of it")
SCRIPT = "return 1"


def shown(watcher: RawClient, client: RawClient, commands: list[tuple[Word, ...]]) -> list[bytes]:
    """The lines of these commands and no others; times are checked and cut away, addresses are <me>."""
    me = client.sock.getsockname()
    for words in [*commands, END]:
        client.command(*words)
    lines: list[bytes] = []
    while not lines or b'"the end of it"' not in lines[-1]:
        frame = watcher.frame()
        found = re.fullmatch(rb"\+(\d{10}\.\d{6}) (\[\d+ )(\S+)\] (.*)\r\n", frame, re.DOTALL)
        assert found is not None, frame
        assert abs(float(found[1]) - time.time()) < 60
        if found[3] == b"lua":
            continue  # what a script does: nobody but the server sees it
        assert found[3] == b"%s:%d" % (me[0].encode(), me[1]), frame
        lines.append(found[2] + b"<me> " + found[4])
    return lines


COMMANDS: list[tuple[Word, ...]] = [
    ("SET", "k", "v"),
    ("set", "k", b'\x00\x01 "quoted" \\ \n\r\t\a\b\x7f\xff'),
    ("SET", "", ""),
    ("GET",),
    ("NOSUCHCOMMAND", "x"),
    ("INCR", "k"),
    ("AUTH", "secret1"),
    ("AUTH", "default", "secret2"),
    ("HELLO", "2", "AUTH", "default", "secret4", "SETNAME", "me"),
    ("HELLO", "2", "SETNAME", "me", "AUTH", "nobody", "secret5"),
    ("HELLO", "9"),
    ("CONFIG", "GET", "maxmemory"),
    ("CONFIG", "SET", "masterauth", ""),
    ("ACL", "WHOAMI"),
    ("CLIENT", "LIST"),
    ("CLIENT", "SETNAME", "x"),
    ("CLIENT", "NOSUCH"),
    ("EVAL", SCRIPT, "0"),
    ("MULTI",),
    ("SET", "k", "1"),
    ("CLIENT", "SETNAME", "y"),
    ("GET", "k"),
    ("MULTI",),
    ("EXEC",),
    ("MULTI",),
    ("SET", "k", "2"),
    ("DISCARD",),
    ("MULTI",),
    ("SET", "k"),
    ("EXEC",),
    ("EXEC",),
    ("WATCH", "k"),
    ("MULTI",),
    ("SET", "k", "3"),
    ("EXEC",),
    ("MGET", "a", "b", "c"),
    ("DEL", "a", "b"),
    ("RESET",),
]


def test_lines_are_those_of_a_server(proxy: ProxyDaemon, standalone: Standalone) -> None:
    both = []
    for front in (proxy, standalone):
        with front.raw() as watcher, front.raw() as client:
            assert watcher.command("MONITOR") == b"+OK\r\n"
            both.append(shown(watcher, client, COMMANDS))
        with front.raw() as client:
            client.command("ACL", "LOG", "RESET")  # wrong passwords are logged; other tests compare that log
    assert both[0] == both[1]
    assert not any(b"secret" in line for line in both[0])


def test_what_a_monitor_may_still_do(proxy: ProxyDaemon, standalone: Standalone) -> None:
    """A second MONITOR is not answered; nothing about keys is carried out; RESET ends it."""

    def talk(front: ProxyDaemon | Standalone) -> list[bytes]:
        with front.raw() as client, front.raw() as other:
            client.command("MONITOR")
            said = []
            for words in [
                ("MONITOR", "x"),
                ("GET", "monitor:none"),
                ("SET", "k", "v"),
                ("PUBLISH", "a", "b"),
                ("GET",),
            ]:
                said.append(client.command(*words))
            client.send(encode("MONITOR") + encode("PING"))
            said += sorted(re.sub(rb"^\+[\d.]+ \[0 \S+\]", b"", frame) for frame in client.frames(2))
            said.append(client.command("RESET"))
            if b"RESET" not in said[-1]:
                said[-1] = client.frame()
            other.command("PING")
            said += [client.command("GET", "monitor:none"), client.command("PING")]
            with front.raw() as inside:
                said += [inside.command("MULTI"), inside.command("PING", "x"), inside.command("EXEC")]
            return said

    assert talk(proxy) == talk(standalone)


def test_clients_of_all_workers_are_shown_to_monitors_of_all(
    start_proxy: Callable[..., ProxyDaemon], small_cluster: EmbeddedCluster
) -> None:
    proxy = start_proxy(small_cluster.seeds, {"workers": 2})
    with proxy.raw() as one, proxy.raw() as two:  # clients go to the worker with the fewest
        watchers = [proxy.raw() for _ in range(4)]
        for watcher in watchers:
            assert watcher.command("MONITOR") == b"+OK\r\n"
        for client in (one, two):
            for watcher in watchers:
                wait_for(lambda client=client, watcher=watcher: sees(watcher, client), 10, "a line of the other worker")
        for watcher in watchers:
            watcher.close()
        with proxy.raw() as late:
            wait_for(lambda: b"flags=O" not in late.command("CLIENT", "LIST"), 10, "monitors have left")
            assert late.command("MONITOR") == b"+OK\r\n"
            for client in (one, two):
                wait_for(lambda client=client: sees(late, client), 10, "a line of the other worker")


def sees(watcher: RawClient, client: RawClient) -> bool:
    """Whether a command of the client, given now, is shown; workers learn of each other's monitors a moment later."""
    text = f"now {time.monotonic_ns()}"
    client.command("ECHO", text)
    watcher.sock.settimeout(0.5)
    try:
        while text.encode() not in watcher.frame():
            pass
    except TimeoutError:
        return False
    return True


def test_a_client_library_reads_it(proxy: ProxyDaemon) -> None:
    with proxy.client() as client, client.monitor() as monitor:
        client.ping()  # connects, which is shown, too
        while next(monitor.listen())["command"] != "PING":
            pass
        for number, key in enumerate(spread_keys()):
            client.set(key, number)
        seen = [next(monitor.listen()) for _ in spread_keys()]
        assert [entry["command"] for entry in seen] == [f"SET {key} {n}" for n, key in enumerate(spread_keys())]
        assert {entry["client_type"] for entry in seen} == {"tcp"}


@pytest.mark.parametrize("proto", [2, 3])
def test_a_monitor_that_does_not_read_holds_nobody_up(proxy: ProxyDaemon, proto: int) -> None:
    """It is cut nothing short but its lines, whole ones, which are counted."""
    before = dropped(proxy)
    with proxy.raw() as deaf, proxy.raw() as client:
        deaf.command("HELLO", str(proto))
        assert deaf.command("MONITOR") == b"+OK\r\n"
        client.command("ECHO", "first")
        assert b'"first"' in deaf.frame()
        client.send(encode("ECHO", b"x" * 20_000) * 5)  # which is little enough to be shown, before it is too much
        client.frames(5)
        sent = 5
        while dropped(proxy) == before:
            client.send(encode("ECHO", b"x" * 20_000) * 100)
            client.frames(100)
            sent += 100
            assert sent < 20_000
        got = 0
        deaf.sock.settimeout(0.1)
        while True:  # until all that was not dropped has come; what is said now may be dropped, too
            client.command(*END)
            try:
                while b"the end of it" not in (frame := deaf.frame()):
                    got += frame.startswith(b"+1") and frame.endswith(b'"\r\n')
                break
            except TimeoutError:
                continue
        assert 0 < got < sent
        assert proxy.log_contains("MONITOR is not taken fast enough")


def dropped(proxy: ProxyDaemon) -> float:
    return proxy.metrics()["redis_proxy_monitor_lines_dropped_total"]


def test_nothing_is_kept_when_monitors_have_left(proxy: ProxyDaemon) -> None:
    for _ in range(20):
        with proxy.raw() as watcher:
            watcher.command("MONITOR")
            watcher.send(encode("ECHO", "x") * 50)
    with proxy.raw() as client:
        wait_for(lambda: b"flags=O" not in client.command("CLIENT", "LIST"), 10, "monitors have left")
        assert client.command("ECHO", "x") == b"$1\r\nx\r\n"
