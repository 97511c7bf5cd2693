"""Listening sockets on loopback and in a temp folder: opened, taken over, refused with a reason, removed at the end."""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from proxy import sockets
from proxy.config import Listener
from proxy.sockets import ListenError, Listening, close_unused, inherited, open_listener, spell

HOST = "127.0.0.1"
FIRST = 200  # where the tests' inherited descriptors begin: 3 and the next are pytest's own


def listener(address: str, **options: Any) -> Listener:
    return Listener.model_validate({"address": address, **options})


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


@pytest.fixture
def opened(stack: ExitStack) -> Callable[..., Listening]:
    """open_listener, closed after the test."""

    def start(address: str, given: list[socket.socket] | None = None, **options: Any) -> Listening:
        listening = open_listener(listener(address, **options), given)
        stack.callback(listening.close)
        return listening

    return start


@pytest.fixture
def bound(stack: ExitStack) -> Callable[..., socket.socket]:
    """A stream socket as the service manager makes it: bound and, unless told otherwise, listening."""

    def start(where: Any, family: int = socket.AF_INET, listen: bool = True) -> socket.socket:
        sock = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
        sock.bind(where)
        if listen:
            sock.listen()
        return sock

    return start


@pytest.fixture
def pass_on(monkeypatch: pytest.MonkeyPatch, stack: ExitStack) -> Callable[..., None]:
    """Passes sockets or files to this process the way sd_listen_fds(3) describes, only from FIRST on."""

    def start(*passed: Any, names: str | None = None, pid: int | None = None, count: str | None = None) -> None:
        for place, one in enumerate(passed):
            descriptor = fcntl.fcntl(one.fileno(), fcntl.F_DUPFD, FIRST + place)
            assert descriptor == FIRST + place
            stack.callback(close_if_open, descriptor)
        monkeypatch.setattr(sockets, "_FIRST_INHERITED", FIRST)
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


def close_all(found: list[socket.socket]) -> None:
    for sock in found:
        sock.close()


def connects(where: Any, family: int = socket.AF_INET) -> bool:
    with socket.socket(family, socket.SOCK_STREAM) as client:
        client.settimeout(5)
        return client.connect_ex(where) == 0


def events(caplog: pytest.LogCaptureFixture, level: int = logging.WARNING) -> list[tuple[str, dict[str, Any]]]:
    return [(record.message, getattr(record, "fields", {})) for record in caplog.records if record.levelno == level]


# Opened by ourselves


def test_tcp_is_bound_at_once_and_listens_when_told(opened: Callable[..., Listening]) -> None:
    listening = opened(f"{HOST}:0")
    where = listening.sock.getsockname()
    assert not connects(where)
    listening.listen()
    assert connects(where)
    assert listening.label == f"{HOST}:{where[1]}"
    assert listening.sock.getblocking() is False
    assert listening.sock.get_inheritable() is False
    listening.close()
    assert not connects(where)
    listening.close()


def test_ipv6_is_ipv6_only(opened: Callable[..., Listening]) -> None:
    try:
        listening = opened("[::]:0")
    except ListenError as error:
        pytest.skip(str(error))
    port = listening.sock.getsockname()[1]
    listening.listen()
    assert listening.label == f"[::]:{port}"
    assert connects(("::1", port), socket.AF_INET6)
    assert not connects((HOST, port))


def test_a_port_in_use(opened: Callable[..., Listening], bound: Callable[..., socket.socket]) -> None:
    port = bound((HOST, 0)).getsockname()[1]
    with pytest.raises(ListenError) as raised:
        opened(f"{HOST}:{port}")
    assert str(raised.value) == f"cannot listen on {HOST}:{port}: the address is in use; is another proxy running?"


def test_an_address_that_is_not_ours(opened: Callable[..., Listening]) -> None:
    with pytest.raises(ListenError, match=r"^cannot listen on 192\.0\.2\.1:1: Cannot assign requested address$"):
        opened("192.0.2.1:1")  # TEST-NET-1, RFC 5737


def test_a_name_that_is_none(opened: Callable[..., Listening]) -> None:
    with pytest.raises(ListenError, match=r"^cannot listen on no\.invalid:1: \S+"):
        opened("no.invalid:1")


@pytest.mark.parametrize("mode", ["0600", "0666", "0770"])
def test_unix_file_has_its_mode_and_goes_away(mode: str, tmp_path: Path, opened: Callable[..., Listening]) -> None:
    path = tmp_path / "sock"
    listening = opened(f"unix:{path}", mode=mode)
    assert stat.S_IMODE(path.stat().st_mode) == int(mode, 8)
    assert listening.label == f"unix:{path}"
    assert not connects(str(path), socket.AF_UNIX)
    listening.listen()
    assert connects(str(path), socket.AF_UNIX)
    listening.close()
    assert not path.exists()


def test_a_file_left_behind_is_replaced(
    tmp_path: Path, opened: Callable[..., Listening], bound: Callable[..., socket.socket]
) -> None:
    path = tmp_path / "sock"
    bound(str(path), socket.AF_UNIX).close()
    assert path.exists()
    opened(f"unix:{path}").listen()
    assert connects(str(path), socket.AF_UNIX)


def test_a_living_unix_socket_is_in_use(
    tmp_path: Path, opened: Callable[..., Listening], bound: Callable[..., socket.socket]
) -> None:
    path = str(tmp_path / "sock")
    bound(path, socket.AF_UNIX)
    with pytest.raises(ListenError, match="in use"):
        opened(f"unix:{path}")
    assert connects(path, socket.AF_UNIX)


def test_a_unix_socket_that_accepts_nothing_is_in_use_too(
    tmp_path: Path, opened: Callable[..., Listening], bound: Callable[..., socket.socket], stack: ExitStack
) -> None:
    """Its backlog is full: a blocking look at it would last for ever."""
    path = str(tmp_path / "sock")
    bound(path, socket.AF_UNIX).listen(0)
    outcome = 0
    while not outcome:
        client = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        client.setblocking(False)
        outcome = client.connect_ex(path)
    with pytest.raises(ListenError, match="in use"):
        opened(f"unix:{path}")
    assert os.path.exists(path)


@pytest.mark.parametrize("kind", ["file", "folder", "datagram"])
def test_something_else_is_in_the_way(kind: str, tmp_path: Path, opened: Callable[..., Listening]) -> None:
    path = tmp_path / "sock"
    if kind == "file":
        path.write_text("precious")
    elif kind == "folder":
        path.mkdir()
    else:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
            other.bind(str(path))
            with pytest.raises(ListenError, match="wrong type"):
                opened(f"unix:{path}")
            assert path.exists()
            return
    with pytest.raises(ListenError, match="a file that is no socket is in the way"):
        opened(f"unix:{path}")
    assert path.exists()


def test_a_folder_that_is_missing(tmp_path: Path, opened: Callable[..., Listening]) -> None:
    with pytest.raises(ListenError, match="No such file or directory"):
        opened(f"unix:{tmp_path}/none/sock")


def test_the_file_of_a_successor_is_left_alone(tmp_path: Path, opened: Callable[..., Listening]) -> None:
    path = tmp_path / "sock"
    first = opened(f"unix:{path}")
    path.unlink()
    second = opened(f"unix:{path}")
    second.listen()
    first.close()
    assert connects(str(path), socket.AF_UNIX)
    second.close()
    assert not path.exists()
    third = opened(f"unix:{path}")
    third.listen()
    replace(second, file=third.file).close()  # again; a new file may well get the inode of the one that was removed
    assert connects(str(path), socket.AF_UNIX)


# Taken over


def test_nothing_is_inherited_without_the_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"):
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
    assert [sock.getsockname() for sock in found] == [tcp.getsockname(), path]
    assert [sock.fileno() for sock in found] == [FIRST, FIRST + 1]
    assert not any(sock.get_inheritable() for sock in found)
    assert not {"LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"} & set(os.environ)
    assert events(caplog, logging.INFO) == [
        ("inherited", {"name": "redis-proxy.socket", "address": spell(tcp.getsockname())}),
        ("inherited", {"name": "local", "address": f"unix:{path}"}),
    ]
    assert inherited() == []
    close_all(found)


def test_what_is_no_listening_stream_socket_is_named_and_closed(
    bound: Callable[..., socket.socket],
    pass_on: Callable[..., None],
    stack: ExitStack,
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
    assert [sock.fileno() for sock in found] == [FIRST + 3]
    assert not any(is_open(FIRST + place) for place in range(3))
    no_listener = "inherited socket not used: it does not listen"
    assert events(caplog)[:2] == [
        (no_listener, {"name": "connection", "address": spell(accepting.getsockname())}),
        (no_listener, {"name": "log", "address": f"unix:@redis-proxy-test-{os.getpid()}"}),
    ]
    message, fields = events(caplog)[2]
    assert message == "inherited descriptor not used: no socket"
    assert (fields["name"], fields["descriptor"]) == ("file", FIRST + 2)
    client.close()
    close_all(found)


def test_a_listener_takes_the_socket_with_its_address(
    tmp_path: Path, opened: Callable[..., Listening], bound: Callable[..., socket.socket]
) -> None:
    path = tmp_path / "sock"
    other, tcp, unix = bound((HOST, 0)), bound((HOST, 0)), bound(str(path), socket.AF_UNIX)
    os.chmod(path, 0o640)
    given = [other, tcp, unix]
    port = tcp.getsockname()[1]
    first, second = opened(f"{HOST}:{port}", given), opened(f"unix:{path}", given, mode="0666")
    assert first.sock is tcp
    assert second.sock is unix
    assert given == [other]
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
    assert opened(f"proxy.example:{where[1]}", [sock]).sock is sock


def test_a_taken_unix_socket_keeps_its_file(
    tmp_path: Path, opened: Callable[..., Listening], bound: Callable[..., socket.socket]
) -> None:
    """The service manager goes on listening: who connects meanwhile waits for the next proxy."""
    path = str(tmp_path / "sock")
    unix = bound(path, socket.AF_UNIX)
    listening = opened(f"unix:{path}", [unix.dup()])
    listening.listen()
    listening.close()
    assert connects(path, socket.AF_UNIX)


def test_other_ports_hosts_and_families_do_not_match(
    tmp_path: Path, opened: Callable[..., Listening], bound: Callable[..., socket.socket]
) -> None:
    tcp, unix = bound(("127.0.0.2", 0)), bound(str(tmp_path / "sock"), socket.AF_UNIX)
    port = tcp.getsockname()[1]
    given = [tcp, unix]
    for address in (f"{HOST}:{port}", "127.0.0.2:0", f"unix:{tmp_path}/other"):
        assert opened(address, given).sock not in (tcp, unix)
    assert given == [tcp, unix]


def test_what_no_listener_took_is_named_and_closed(
    tmp_path: Path, bound: Callable[..., socket.socket], caplog: pytest.LogCaptureFixture
) -> None:
    tcp, unix = bound((HOST, 0)), bound(str(tmp_path / "sock"), socket.AF_UNIX)
    where = tcp.getsockname()
    given = [tcp, unix]
    close_unused(given)
    assert given == []
    assert not connects(where)
    message = "inherited socket not used: no listener has its address"
    assert events(caplog) == [
        (message, {"address": spell(where)}),
        (message, {"address": f"unix:{tmp_path}/sock"}),
    ]


def test_spelling() -> None:
    assert spell((HOST, 1)) == "127.0.0.1:1"
    assert spell(("::1", 1, 0, 0)) == "[::1]:1"
    assert spell("/run/sock") == "unix:/run/sock"
    assert spell("", listener("unix:/run/sock").address) == "unix:/run/sock"
    assert spell("") == "unix:"
