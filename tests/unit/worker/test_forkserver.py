"""The fork server as a process of its own, with work of the test's own."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import time
from array import array
from collections.abc import Iterator
from typing import Any

import pytest

from proxy.embedded import wait_for
from proxy.worker.forkserver import ORPHANS_S, ForkServer


def work(channel: socket.socket) -> int:
    """Does as it is told: exit N, raise, spin, or hang with its channel closed; echoes its descriptors first."""
    channel.send(json.dumps(open_files()).encode())
    word, _, value = channel.recv(100).decode().partition(" ")
    if word == "exit":
        return int(value)
    if word == "raise":
        raise RuntimeError("on purpose")
    if word == "spin":
        until_s = time.process_time() + float(value)
        while time.process_time() < until_s:
            pass
        return 0
    if word == "hang":
        while True:
            time.sleep(10)
    return 0  # the end of the channel


def open_files() -> list[str]:
    """What the descriptors of this process are."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the one that listed them
            found.append(os.readlink(f"/proc/self/fd/{name}"))
    return found


class Served:
    """A fork server and this side of its socket."""

    def __init__(self) -> None:
        self.sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.settimeout(10)
        self.pid = os.fork()
        if self.pid == 0:
            self.sock.close()
            try:
                ForkServer(theirs, work).serve()
            finally:
                os._exit(0)
        theirs.close()

    def heard(self) -> tuple[dict[str, Any], list[int]]:
        data, ancillary, _, _ = self.sock.recvmsg(4096, socket.CMSG_SPACE(4))
        descriptors = array("i")
        for _, _, rights in ancillary:
            descriptors.frombytes(rights)
        return json.loads(data), list(descriptors)

    def fork(self) -> tuple[int, int, socket.socket]:
        """pid, pidfd and our end of its channel."""
        ours, theirs = socket.socketpair()
        ours.settimeout(10)
        with theirs:
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [theirs.fileno()]))]
            self.sock.sendmsg([b"fork"], rights)
        what, (pidfd,) = self.heard()
        return what["pid"], pidfd, ours


@pytest.fixture
def served() -> Iterator[Served]:
    one = Served()
    yield one
    one.sock.close()
    with contextlib.suppress(ChildProcessError):
        os.waitpid(one.pid, 0)


def ended(pidfd: int, timeout_s: float) -> bool:
    """Whether the process has ended, or does within the time."""
    return bool(select.select([pidfd], [], [], timeout_s)[0])


def test_exit_codes_and_signals_are_told(served: Served) -> None:
    for said, code in (("exit 0", 0), ("exit 7", 7), ("raise", 1)):
        pid, pidfd, channel = served.fork()
        with channel:
            channel.recv(4096)
            channel.send(said.encode())
            what, _ = served.heard()
        assert (what["pid"], os.waitstatus_to_exitcode(what["status"])) == (pid, code)
        os.close(pidfd)
    pid, pidfd, channel = served.fork()
    with channel:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        what, _ = served.heard()
        assert (what["pid"], os.waitstatus_to_exitcode(what["status"])) == (pid, -signal.SIGKILL)
    os.close(pidfd)


def test_the_cpu_time_of_the_dead_is_told(served: Served) -> None:
    _, pidfd, channel = served.fork()
    with channel:
        channel.recv(4096)
        channel.send(b"spin 0.1")
        assert 0.1 <= served.heard()[0]["cpu_s"] < 5
    os.close(pidfd)


def test_a_worker_holds_nothing_of_its_siblings_or_of_the_server(served: Served) -> None:
    workers = [served.fork() for _ in range(3)]
    seen = [json.loads(channel.recv(4096)) for _, _, channel in workers]
    sockets = [[path for path in paths if path.startswith("socket:")] for paths in seen]
    inherited = [path for path in sockets[0] if all(path in other for other in sockets)]  # the test's own, not ours
    assert [len(paths) - len(inherited) for paths in sockets] == [1, 1, 1]
    assert not any("pidfd" in path for paths in seen for path in paths)
    for _, pidfd, channel in workers:
        channel.close()  # nobody else holds it: the worker sees the end
        assert ended(pidfd, 10)
        os.close(pidfd)


def test_what_is_not_understood_is_refused_and_leaks_nothing(served: Served) -> None:
    served.sock.sendmsg([b"ready?"])
    assert "error" in served.heard()[0]  # it has closed what it inherited
    before = len(os.listdir(f"/proc/{served.pid}/fd"))
    for said, descriptors in ((b"spoon", [0]), (b"fork", []), (b"fork!", [0])):
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", descriptors))] if descriptors else []
        served.sock.sendmsg([said], rights)
        assert "error" in served.heard()[0]
    assert len(os.listdir(f"/proc/{served.pid}/fd")) == before


def test_nobody_outlives_the_supervisor(served: Served) -> None:
    _, willing, first = served.fork()
    _, hanging, second = served.fork()
    second.recv(4096)
    second.send(b"hang")
    started_s = time.monotonic()
    for sock in (first, second, served.sock):
        sock.close()
    assert ended(willing, ORPHANS_S / 2)
    assert ended(hanging, ORPHANS_S * 3)
    assert time.monotonic() - started_s >= ORPHANS_S / 2  # it was given time to go by itself
    for pidfd in (willing, hanging):
        os.close(pidfd)
    wait_for(lambda: os.waitpid(served.pid, os.WNOHANG)[0] == served.pid, 10, "the fork server ends")
