from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from bench import churn_client
from bench.churn_client import PING, PONG, Churn
from proxy.embedded import HOST, free_port
from tests.support.proxyd import ROOT

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs epoll and 127.0.0.0/8")


class Seen:
    """What the server saw of its clients: where they came from, how they ended, how many there were at a time."""

    def __init__(self) -> None:
        self.port = 0
        self.sources: set[str] = set()
        self.ends: list[str] = []
        self.open = self.most = 0


@contextmanager
def server(answer: Callable[[socket.socket], None]) -> Iterator[Seen]:
    """A thread per client; answer(client) is called once it has said PING."""
    seen, lock = Seen(), threading.Lock()
    listening = socket.create_server((HOST, 0), backlog=500)
    seen.port = listening.getsockname()[1]
    threads: list[threading.Thread] = []

    def serve(client: socket.socket, source: str) -> None:
        with client:
            client.settimeout(10)
            assert client.recv(100) == PING
            answer(client)
            try:
                end = "closed" if client.recv(100) == b"" else "spoke"
            except ConnectionResetError:
                end = "reset"
        with lock:
            seen.ends.append(end)
            seen.sources.add(source)
            seen.open -= 1

    def accept() -> None:
        while True:
            try:
                client, where = listening.accept()
            except OSError:
                return
            with lock:
                seen.open += 1
                seen.most = max(seen.most, seen.open)
            threads.append(threading.Thread(target=serve, args=(client, where[0])))
            threads[-1].start()

    accepting = threading.Thread(target=accept)
    accepting.start()
    try:
        yield seen
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        accepting.join(10)
        for thread in threads:
            thread.join(10)


def test_every_connection_is_answered_and_half_of_them_end_with_a_reset() -> None:
    for _ in range(20):
        with server(lambda client: client.sendall(PONG)) as seen:
            told = Churn(seen.port, 200.0, 0.5).run()
        assert told["failures"] == {}
        assert told["begun"] == told["answered"]
        if told["answered"] >= 2 * churn_client.SOURCES:  # else this process stood still nearly all the time
            break
    assert 2 * churn_client.SOURCES <= told["answered"] <= 101  # fewer than 100 on a machine that stalls
    assert 0 < told["p50_ms"] <= told["p99_ms"] <= told["max_ms"]
    assert abs(seen.ends.count("reset") - seen.ends.count("closed")) <= 1
    assert len(seen.ends) == told["begun"]
    assert seen.sources == {f"127.0.0.{n}" for n in range(1, churn_client.SOURCES + 1)}


def test_the_rate_is_kept_however_short_the_visits() -> None:
    with server(lambda client: client.sendall(PONG)) as seen:
        told = Churn(seen.port, 50.0, 1.0).run()
    assert 2 <= told["begun"] <= 51
    assert told["rate"] <= 55


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda client: client.sendall(b"-ERR max number of clients reached\r\n"), "answered b'-ERR max number"),
        (lambda client: client.shutdown(socket.SHUT_RDWR), "closed without an answer"),
        (lambda client: None, "not answered"),
    ],
)
def test_what_is_no_answer_is_a_failure(
    answer: Callable[[socket.socket], None], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(churn_client, "ANSWER_S", 0.2 if reason == "not answered" else 10.0)
    with server(answer) as seen:
        told = Churn(seen.port, 100.0, 0.1).run()
    assert told["answered"] == 0
    failures = told["failures"]
    assert isinstance(failures, dict)
    assert sum(failures.values()) == told["begun"] > 0
    assert all(one.startswith(reason) for one in failures)


def test_an_answer_in_pieces_is_one() -> None:
    def slowly(client: socket.socket) -> None:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for place in range(len(PONG)):
            client.sendall(PONG[place : place + 1])

    with server(slowly) as seen:
        told = Churn(seen.port, 100.0, 0.1).run()
    assert told["failures"] == {}
    assert told["answered"] == told["begun"]


def test_nobody_listens() -> None:
    told = Churn(free_port(), 100.0, 0.1).run()
    assert set(told["failures"]) == {"Connection refused"}
    assert told["answered"] == 0


def test_no_more_than_so_many_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(churn_client, "ANSWER_S", 1.5)
    monkeypatch.setattr(churn_client, "IN_FLIGHT", 3)
    with server(lambda client: None) as seen:
        told = Churn(seen.port, 1000.0, 1.0).run()
    assert told["begun"] == 3
    assert seen.most == 3


def test_as_a_program() -> None:
    with server(lambda client: client.sendall(PONG)) as seen:
        command = [sys.executable, "-m", "bench.churn_client", str(seen.port), "50", "0.2"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True, timeout=20)
    assert json.loads(done.stdout)["answered"] in range(1, 12)
