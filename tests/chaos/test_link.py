"""Each fault of the bench's network does what its name says: otherwise the bench would praise what it has not tried."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tests.chaos.links import HOST, Links


@pytest.fixture(scope="module")
def links() -> Iterator[Links]:
    with Links() as started:
        yield started


@pytest.fixture
def echo() -> Iterator[int]:
    """The port of a server that sends back what it gets."""
    server = socket.create_server((HOST, 0))

    def serve(sock: socket.socket) -> None:
        with sock:
            try:
                while data := sock.recv(65536):
                    sock.sendall(data)
            except OSError:
                return

    def accept() -> None:
        while True:
            try:
                sock, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(sock,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    yield server.getsockname()[1]
    server.shutdown(socket.SHUT_RDWR)
    server.close()


@pytest.fixture
def port(links: Links, echo: int) -> Iterator[int]:
    yield links.open("1", "client", echo)
    links.heal()


def connect(port: int, source: str = HOST) -> socket.socket:
    return socket.create_connection((HOST, port), timeout=5, source_address=(source, 0))


def answer(sock: socket.socket, words: bytes = b"hello", timeout_s: float = 5.0) -> bytes:
    """What comes back; b"" when nothing does in time."""
    sock.settimeout(timeout_s)
    sock.sendall(words)
    found = b""
    try:
        while len(found) < len(words):
            if not (more := sock.recv(65536)):
                break
            found += more
    except TimeoutError:
        pass
    return found


def test_pass_and_count(links: Links, port: int) -> None:
    with connect(port) as sock:
        assert answer(sock) == b"hello"
        assert answer(sock, b"x" * 3_000_000) == b"x" * 3_000_000
        assert links.count(node="1", source="proxy") == 1
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(1) == b""  # the end of a stream passes, both ways


@pytest.mark.parametrize("direction", ["up", "down", "*"])
def test_drop_holds_back_what_tcp_would_send_again(links: Links, port: int, direction: str) -> None:
    with connect(port) as sock:
        assert answer(sock) == b"hello"
        links.set("drop", node="1", direction=direction)
        assert answer(sock, timeout_s=0.3) == b""
        with connect(port) as other:  # accepted, and silent
            assert answer(other, timeout_s=0.2) == b""
            links.heal()
            sock.settimeout(5)
            assert sock.recv(100) == b"hello"
            assert other.recv(100) == b"hello"


def test_only_one_source_is_cut_off(links: Links, port: int) -> None:
    with connect(port) as proxy, connect(port, "127.0.1.2") as node:
        links.set("drop", source="2", node="1")
        assert answer(proxy) == b"hello"
        assert answer(node, timeout_s=0.3) == b""
        links.heal()
        assert node.recv(100) == b"hello"


def test_delay_keeps_the_order(links: Links, port: int) -> None:
    with connect(port) as sock:
        answer(sock)
        links.set("delay", node="1", delay_s=0.05, jitter_s=0.05)
        started = time.monotonic()
        words = b"".join(b"%d " % n for n in range(10000))
        assert answer(sock, words) == words
        assert time.monotonic() - started >= 0.1


def test_stalls_come_now_and_then(links: Links, port: int) -> None:
    with connect(port) as sock:
        links.set("stall", node="1", direction="up", chance=1.0, stall_s=0.3)
        started = time.monotonic()
        assert answer(sock) == b"hello"
        assert time.monotonic() - started >= 0.2


def test_cut_ends_a_connection_in_the_middle(links: Links, port: int) -> None:
    links.set("cut", node="1", direction="up", after=[7, 7])
    with connect(port) as sock:
        assert answer(sock) == b"hello"
        try:
            assert len(answer(sock)) <= 2
            assert sock.recv(100) == b""
        except ConnectionResetError:
            pass
    assert links.cuts() > 0


def test_refuse_closes_the_port_and_resets_what_is_open(links: Links, port: int) -> None:
    with connect(port) as sock:
        answer(sock)
        links.set("refuse", node="1")
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
    with pytest.raises(ConnectionRefusedError):
        connect(port)
    links.heal()
    with connect(port) as sock:
        assert answer(sock) == b"hello"


def test_a_node_that_is_gone(links: Links, port: int, echo: int) -> None:
    links.gone("1")
    with pytest.raises(ConnectionRefusedError):
        connect(port)
    assert links.open("1", "client", echo) == port
    with connect(port) as sock:
        assert answer(sock) == b"hello"


@pytest.mark.parametrize("how", ["reset", "close"])
def test_connections_are_ended(links: Links, port: int, how: str) -> None:
    with connect(port) as sock:
        answer(sock)
        links.close(how, node="1")
        if how == "close":
            assert sock.recv(1) == b""
        else:
            with pytest.raises(ConnectionResetError):
                sock.recv(1)
