"""Sockets this process is started with, by a service manager or a predecessor: which are taken, and by what name."""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from proxy.system import sockets
from proxy.system.address import format_address
from proxy.system.process import PREDECESSOR
from proxy.system.sockets import (
    ADMIN,
    LISTENER,
    SYSTEMD,
    Inherited,
    ListenError,
    Listening,
    close_unused,
    inherited,
    joined_names,
    take_named,
    unwanted,
)
from tests.support.listening import HOST, Sockets, by_systemd, connects, events

FIRST = 200  # where the tests' inherited descriptors begin: 3 and the next are pytest's own


@pytest.fixture
def pass_on(monkeypatch: pytest.MonkeyPatch, stack: Sockets) -> Callable[..., None]:
    """Passes sockets or files to this process the way sd_listen_fds(3) describes, only from FIRST on."""

    def start(*passed: Any, names: str | None = None, pid: int | None = None, count: str | None = None) -> None:
        for place, one in enumerate(passed):
            descriptor = fcntl.fcntl(one.fileno(), fcntl.F_DUPFD, FIRST + place)
            assert descriptor == FIRST + place
            stack.callback(close_if_open, descriptor)
        monkeypatch.setattr(sockets, "FIRST_INHERITED", FIRST)
        monkeypatch.setenv("LISTEN_FDS", str(len(passed)) if count is None else count)
        monkeypatch.setenv("LISTEN_PID", str(os.getpid() if pid is None else pid))
        if names is not None:
            monkeypatch.setenv("LISTEN_FDNAMES", names)

    return start


def close_if_open(descriptor: int) -> None:
    if is_open(descriptor):
        os.close(descriptor)


def is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def close_all(found: list[Inherited]) -> None:
    for one in found:
        one.sock.close()


def test_nothing_is_inherited_without_the_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", PREDECESSOR):
        monkeypatch.delenv(name, raising=False)
    assert inherited() == []


@pytest.mark.parametrize("pid", [1, os.getppid()])
def test_what_is_meant_for_another_process_is_left_alone(
    pid: int, bound: Callable[..., socket.socket], pass_on: Callable[..., None]
) -> None:
    pass_on(bound((HOST, 0)), pid=pid)
    assert inherited() == []
    assert is_open(FIRST)
    assert not {"LISTEN_FDS", "LISTEN_PID"} & set(os.environ)


@pytest.mark.parametrize("count", ["", "0", "-1", "many"])
def test_no_count(count: str, bound: Callable[..., socket.socket], pass_on: Callable[..., None]) -> None:
    pass_on(bound((HOST, 0)), count=count)
    assert inherited() == []
    assert is_open(FIRST)


def test_inherited_in_order_and_kept_from_children(
    tmp_path: Path,
    bound: Callable[..., socket.socket],
    pass_on: Callable[..., None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    path = str(tmp_path / "sock")
    tcp, unix = bound((HOST, 0)), bound(path, socket.AF_UNIX)
    pass_on(tcp, unix, names="redis-proxy.socket:local")
    found = inherited()
    assert [one.sock.getsockname() for one in found] == [tcp.getsockname(), path]
    assert [one.sock.fileno() for one in found] == [FIRST, FIRST + 1]
    assert not any(one.sock.get_inheritable() for one in found)
    assert not {"LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"} & set(os.environ)
    assert events(caplog, logging.INFO) == [
        ("inherited", {"name": "redis-proxy.socket", "address": format_address(tcp.getsockname())}),
        ("inherited", {"name": "local", "address": f"unix:{path}"}),
    ]
    assert [one.name for one in found] == [SYSTEMD, SYSTEMD]
    assert inherited() == []
    close_all(found)


def test_what_is_no_listening_stream_socket_is_named_and_closed(
    bound: Callable[..., socket.socket],
    pass_on: Callable[..., None],
    stack: Sockets,
    caplog: pytest.LogCaptureFixture,
) -> None:
    accepting = bound((HOST, 0))
    client = stack.enter_context(socket.create_connection(accepting.getsockname()))
    connection = stack.enter_context(accepting.accept()[0])
    datagrams = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
    datagrams.bind("\0" + f"redis-proxy-test-{os.getpid()}")
    with open(os.devnull) as file:
        pass_on(connection, datagrams, file, accepting, names="connection:log:file:redis-proxy.socket")
    found = inherited()
    assert [one.sock.fileno() for one in found] == [FIRST + 3]
    assert not any(is_open(FIRST + place) for place in range(3))
    no_listener = "inherited socket not used: it does not listen"
    assert events(caplog)[:2] == [
        (no_listener, {"name": "connection", "address": format_address(accepting.getsockname())}),
        (no_listener, {"name": "log", "address": f"unix:@redis-proxy-test-{os.getpid()}"}),
    ]
    message, fields = events(caplog)[2]
    assert message == "inherited descriptor not used: no socket"
    assert fields == {"name": "file", "descriptor": FIRST + 2, "reason": "Socket operation on non-socket"}
    client.close()
    close_all(found)


def test_a_listener_takes_the_socket_with_its_address(
    tmp_path: Path, opened: Callable[..., Listening], bound: Callable[..., socket.socket]
) -> None:
    path = tmp_path / "sock"
    other, tcp, unix = bound((HOST, 0)), bound((HOST, 0)), bound(str(path), socket.AF_UNIX)
    os.chmod(path, 0o640)
    given = by_systemd(other, tcp, unix)
    port = tcp.getsockname()[1]
    first, second = opened(f"{HOST}:{port}", given), opened(f"unix:{path}", given, mode="0666")
    assert first.sock is tcp
    assert second.sock is unix
    assert [one.sock for one in given] == [other]
    assert [one.sock.getblocking() for one in (first, second)] == [False, False]
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    first.listen()
    second.listen()
    assert connects((HOST, port))
    assert connects(str(path), socket.AF_UNIX)


def test_a_name_is_the_address_it_means(
    opened: Callable[..., Listening], bound: Callable[..., socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    sock = bound((HOST, 0))
    where = sock.getsockname()
    answer = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", where)]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *words, **options: answer)
    assert opened(f"proxy.example:{where[1]}", by_systemd(sock)).sock is sock


def test_a_taken_unix_socket_keeps_its_file(
    tmp_path: Path, opened: Callable[..., Listening], bound: Callable[..., socket.socket]
) -> None:
    """The service manager goes on listening: who connects meanwhile waits for the next proxy."""
    path = str(tmp_path / "sock")
    unix = bound(path, socket.AF_UNIX)
    listening = opened(f"unix:{path}", by_systemd(unix.dup()))
    listening.listen()
    listening.close()
    assert connects(path, socket.AF_UNIX)


def test_other_ports_hosts_and_families_do_not_match(
    tmp_path: Path, opened: Callable[..., Listening], bound: Callable[..., socket.socket]
) -> None:
    tcp, unix = bound(("127.0.0.2", 0)), bound(str(tmp_path / "sock"), socket.AF_UNIX)
    port = tcp.getsockname()[1]
    given = by_systemd(tcp, unix)
    for address in (f"{HOST}:{port}", "127.0.0.2:0", f"unix:{tmp_path}/other"):
        assert opened(address, given).sock not in (tcp, unix)
    assert [one.sock for one in given] == [tcp, unix]


def test_what_no_listener_took_is_named_and_closed(
    tmp_path: Path, bound: Callable[..., socket.socket], caplog: pytest.LogCaptureFixture
) -> None:
    tcp, unix = bound((HOST, 0)), bound(str(tmp_path / "sock"), socket.AF_UNIX)
    where = tcp.getsockname()
    given = by_systemd(tcp, unix)
    close_unused(given)
    assert given == []
    assert not connects(where)
    message = "inherited socket not used: no listener has its address"
    assert events(caplog) == [
        (message, {"address": format_address(where)}),
        (message, {"address": f"unix:{tmp_path}/sock"}),
    ]


# From a predecessor


def test_a_predecessors_sockets_have_their_names(
    bound: Callable[..., socket.socket], pass_on: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with colons and percent signs; one that is not known is treated as the service manager's."""
    names = [LISTENER, SYSTEMD, "admin:[::1]:9617", "admin:[fe80::1%25eth0]:1", "admin:%3A", "of a later version"]
    pass_on(*(bound((HOST, 0)) for _ in names), names=joined_names(names))
    monkeypatch.delenv("LISTEN_PID")
    monkeypatch.setenv(PREDECESSOR, str(os.getppid()))
    found = inherited()
    assert [one.name for one in found] == [*names[:-1], SYSTEMD]
    assert not any(one.sock.get_inheritable() for one in found)
    assert not {"LISTEN_FDS", "LISTEN_FDNAMES", PREDECESSOR} & set(os.environ)
    close_all(found)


def test_only_the_parent_is_a_predecessor(
    bound: Callable[..., socket.socket], pass_on: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a child of the process the variables were meant for."""
    pass_on(bound((HOST, 0)), names=LISTENER)
    monkeypatch.delenv("LISTEN_PID")
    monkeypatch.setenv(PREDECESSOR, str(os.getpid()))
    assert inherited() == []
    assert is_open(FIRST)
    assert PREDECESSOR not in os.environ


def test_admin_sockets_are_the_admin_servers(
    opened: Callable[..., Listening], bound: Callable[..., socket.socket], caplog: pytest.LogCaptureFixture
) -> None:
    """A listener at the predecessor's admin address is refused; what is not needed is closed without a word."""
    first, second, moved = bound((HOST, 0)), bound(("127.0.0.2", 0)), bound((HOST, 0))
    name, port = f"{ADMIN}localhost:9617", moved.getsockname()[1]
    given = [Inherited(first, name), Inherited(moved, f"{ADMIN}{HOST}:{port}"), Inherited(second, name)]
    with pytest.raises(ListenError, match="the address is in use"):
        opened(f"{HOST}:{port}", given)
    assert take_named(given, name) == [first, second]
    assert unwanted(given) == []
    close_unused(given)
    assert (given, moved.fileno(), events(caplog)) == ([], -1, [])


def test_in_a_thread_without_a_loop(opened_all: Callable[..., list[Listening]]) -> None:
    """The resolver may take its time; where a loop runs, this is how it is called."""
    with ThreadPoolExecutor(1) as threads:
        found = threads.submit(opened_all, "localhost:0").result()
    for one in found:
        one.listen()
        assert connects(one.sock.getsockname(), one.sock.family)
