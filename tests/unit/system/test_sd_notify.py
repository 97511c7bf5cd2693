"""sd_notify against a real datagram socket: what arrives, byte for byte, and what happens when nothing can."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from proxy.system import sd_notify
from proxy.system.process import MANAGER, PREDECESSOR
from proxy.system.sd_notify import Notifier, tell


class ServiceManager:
    """The receiving end: a bound datagram socket and its name as NOTIFY_SOCKET has it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.bind("\0" + name[1:] if name.startswith("@") else name)
        self.sock.setblocking(False)

    def received(self) -> list[bytes]:
        """All datagrams there are; sendto(2) to a local socket has delivered when it returns."""
        found = []
        while True:
            try:
                found.append(self.sock.recv(4096))
            except BlockingIOError:
                return found

    def fill(self) -> int:
        """Sends itself as many datagrams as it holds."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            for count in range(100_000):
                try:
                    sender.sendto(b"X=1", self.sock.getsockname())
                except BlockingIOError:
                    return count
        raise AssertionError("never full")


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ServiceManager]:
    started = ServiceManager(str(tmp_path / "notify") if request.param == "path" else f"@{secrets.token_hex(8)}")
    yield started
    started.sock.close()


@pytest.fixture
def notifier(manager: ServiceManager) -> Iterator[Notifier]:
    made = Notifier({"NOTIFY_SOCKET": manager.name})
    yield made
    made.close()


def test_a_life(manager: ServiceManager, notifier: Notifier) -> None:
    assert notifier.active
    notifier.ready()
    notifier.status("3 clients")
    notifier.watchdog()
    notifier.stopping()
    assert manager.received() == [b"READY=1", b"STATUS=3 clients", b"WATCHDOG=1", b"STOPPING=1"]


def test_a_reload_has_its_time(manager: ServiceManager, notifier: Notifier) -> None:
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    notifier.reloading()
    notifier.ready()
    after = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    reloading, ready = manager.received()
    state, _, stamp = reloading.partition(b"\nMONOTONIC_USEC=")
    assert (state, ready) == (b"RELOADING=1", b"READY=1")
    assert before <= int(stamp) <= after


def test_a_status_is_one_line(manager: ServiceManager, notifier: Notifier) -> None:
    notifier.status("no topology:\nSTOPPING=1\r\n é \ud800")
    assert manager.received() == ["STATUS=no topology: STOPPING=1 é ?".encode()]


def test_a_full_socket_delays_states_and_drops_the_rest(manager: ServiceManager, notifier: Notifier) -> None:
    full = manager.fill()
    assert notifier._sock is not None
    assert notifier._sock.gettimeout() == 0  # or the next would wait
    notifier.watchdog()
    notifier.status("dropped")
    notifier.reloading()
    notifier.ready()
    assert manager.received() == [b"X=1"] * full
    notifier.watchdog()
    reloading, *rest = manager.received()
    assert reloading.startswith(b"RELOADING=1\n")
    assert rest == [b"READY=1", b"WATCHDOG=1"]


def test_what_is_owed_is_bounded_and_the_newest_stays(manager: ServiceManager, notifier: Notifier) -> None:
    manager.fill()
    for _ in range(100):
        notifier.reloading()
    notifier.ready()
    manager.received()
    notifier.watchdog()
    received = manager.received()
    assert len(received) <= 10
    assert received[-2:] == [b"READY=1", b"WATCHDOG=1"]


@pytest.mark.parametrize("name", ["/no/such/socket", "@no-such-socket", "/" + "x" * 200, "@" + "x" * 200])
def test_a_missing_socket_is_no_error(name: str) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": name})
    notifier.ready()
    notifier.status("x")
    notifier.watchdog()
    notifier.stopping()
    notifier.close()


def test_a_socket_that_appears_later_gets_the_states(tmp_path: Path) -> None:
    name = str(tmp_path / "notify")
    notifier = Notifier({"NOTIFY_SOCKET": name})
    notifier.ready()
    manager = ServiceManager(name)
    with manager.sock:
        notifier.watchdog()
        assert manager.received() == [b"READY=1", b"WATCHDOG=1"]
    notifier.close()


@pytest.mark.parametrize("environ", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "vsock:2:1234"}])
def test_nobody_to_tell(environ: dict[str, str]) -> None:
    notifier = Notifier({**environ, "WATCHDOG_USEC": "1000000"})
    assert not notifier.active
    assert notifier.watchdog_interval_s == 0
    notifier.ready()
    notifier.reloading()
    notifier.status("x")
    notifier.watchdog()
    notifier.stopping()
    notifier.close()


def test_after_close_nothing_is_told(manager: ServiceManager, notifier: Notifier) -> None:
    notifier.close()
    notifier.ready()
    notifier.close()
    assert not notifier.active
    assert manager.received() == []


# A successor and its predecessor


@pytest.fixture
def predecessor() -> Iterator[ServiceManager]:
    started = ServiceManager(f"@{secrets.token_hex(8)}")
    yield started
    started.sock.close()


def as_successor(predecessor: ServiceManager, manager: ServiceManager | None, **more: str) -> dict[str, str]:
    environ = {PREDECESSOR: str(os.getppid()), "NOTIFY_SOCKET": predecessor.name, MANAGER: "", **more}
    return environ | ({MANAGER: manager.name} if manager else {})


def test_a_successor_is_heard_by_its_predecessor_until_it_is_ready(
    manager: ServiceManager, predecessor: ServiceManager
) -> None:
    environ = as_successor(predecessor, manager, WATCHDOG_USEC="3000000")
    notifier = Notifier(environ)
    assert environ == {PREDECESSOR: str(os.getppid())}  # which sockets.inherited() takes
    assert notifier.manager == {"NOTIFY_SOCKET": manager.name, "WATCHDOG_USEC": "3000000"}
    assert notifier.watchdog_interval_s == 3.0
    notifier.status("no topology")
    notifier.ready()
    assert predecessor.received() == [b"STATUS=no topology", b"READY=1"]
    assert manager.received() == []
    notifier.watchdog()
    notifier.status("3 clients")
    notifier.reloading()
    notifier.ready()
    notifier.stopping()
    assert predecessor.received() == []
    said = manager.received()
    assert said[:2] == [b"WATCHDOG=1", b"STATUS=3 clients"]
    assert said[3:] == [b"READY=1", b"STOPPING=1"]
    notifier.close()


def test_also_when_the_sockets_were_taken_before(manager: ServiceManager, predecessor: ServiceManager) -> None:
    environ = as_successor(predecessor, manager)
    del environ[PREDECESSOR]
    notifier = Notifier(environ)
    notifier.ready()
    assert (predecessor.received(), manager.received()) == ([b"READY=1"], [])
    notifier.close()


def test_a_successor_without_a_service_manager(predecessor: ServiceManager) -> None:
    notifier = Notifier(as_successor(predecessor, None))
    assert (notifier.manager, notifier.active) == ({}, True)
    notifier.ready()
    assert not notifier.active
    notifier.status("3 clients")
    notifier.stopping()
    notifier.close()
    assert predecessor.received() == [b"READY=1"]


def test_a_predecessor_that_does_not_read_is_told_later(manager: ServiceManager, predecessor: ServiceManager) -> None:
    """And until then nothing is said in the name of the service."""
    predecessor.fill()
    notifier = Notifier(as_successor(predecessor, manager))
    notifier.ready()
    notifier.watchdog()
    assert manager.received() == []
    predecessor.received()
    notifier.watchdog()
    assert (predecessor.received(), manager.received()) == ([b"READY=1"], [b"WATCHDOG=1"])
    notifier.close()


def test_a_predecessor_that_is_gone_is_waited_for_by_nobody(
    manager: ServiceManager, predecessor: ServiceManager
) -> None:
    notifier = Notifier(as_successor(predecessor, manager))
    predecessor.sock.close()
    notifier.ready()
    notifier.status("3 clients")
    assert manager.received() == [b"STATUS=3 clients"]
    notifier.close()


def test_a_successor_is_on_trial_until_its_predecessor_listens_no_more(predecessor: ServiceManager) -> None:
    notifier = Notifier(as_successor(predecessor, None))
    assert notifier.on_trial()
    notifier.ready()
    assert notifier.on_trial()
    assert predecessor.received() == [b"READY=1"]  # asking says nothing
    predecessor.sock.close()
    assert not notifier.on_trial()
    again = ServiceManager(predecessor.name)  # the name is somebody else's
    assert not notifier.on_trial()
    again.sock.close()
    notifier.close()


def test_nobodys_successor_is_not_on_trial(manager: ServiceManager, notifier: Notifier) -> None:
    assert not notifier.on_trial()


def test_somebody_elses_successor(manager: ServiceManager, predecessor: ServiceManager) -> None:
    """The variables came from a process that is not the parent: NOTIFY_SOCKET is all that counts."""
    environ = as_successor(predecessor, manager) | {PREDECESSOR: str(os.getpid())}
    notifier = Notifier(environ)
    notifier.ready()
    notifier.stopping()
    assert predecessor.received() == [b"READY=1", b"STOPPING=1"]
    assert MANAGER not in environ
    notifier.close()


def test_a_predecessor_passes_the_word_on_and_is_silent(manager: ServiceManager, notifier: Notifier) -> None:
    notifier.hand_over(1234)
    notifier.status("draining")
    notifier.watchdog()
    notifier.stopping()
    notifier.close()
    assert manager.received() == [b"MAINPID=1234\nREADY=1\nWATCHDOG=1"]


@pytest.mark.parametrize("last", [Notifier.watchdog, Notifier.stopping, Notifier.close])
def test_the_last_word_of_a_predecessor_is_not_lost(
    manager: ServiceManager, notifier: Notifier, last: Callable[[Notifier], None]
) -> None:
    manager.fill()
    notifier.hand_over(1234)
    manager.received()
    last(notifier)
    assert manager.received() == [b"MAINPID=1234\nREADY=1\nWATCHDOG=1"]


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({}, 0.0),
        ({"WATCHDOG_USEC": "15000000"}, 15.0),
        ({"WATCHDOG_USEC": "500000", "WATCHDOG_PID": str(os.getpid())}, 0.5),
        ({"WATCHDOG_USEC": "500000", "WATCHDOG_PID": str(os.getppid())}, 0.0),
        ({"WATCHDOG_USEC": "soon"}, 0.0),
        ({"WATCHDOG_USEC": "-1"}, 0.0),
        ({"WATCHDOG_USEC": "0"}, 0.0),
    ],
)
def test_when_pings_are_expected(environ: dict[str, str], seconds: float) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": "@nobody", **environ})
    assert notifier.watchdog_interval_s == seconds
    usec = {"WATCHDOG_USEC": environ["WATCHDOG_USEC"]} if seconds else {}
    assert notifier.manager == {"NOTIFY_SOCKET": "@nobody", **usec}
    notifier.close()


def test_children_inherit_neither_the_variables_nor_the_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"NOTIFY_SOCKET": "@nobody", "WATCHDOG_USEC": "1", "WATCHDOG_PID": str(os.getpid())}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("UNTOUCHED", "1")
    notifier = Notifier()
    assert notifier.active
    assert notifier._sock is not None
    assert not notifier._sock.get_inheritable()
    shown = "import os; print(*(name for name in os.environ if name.startswith(('NOTIFY', 'WATCHDOG', 'UNTOUCHED'))))"
    told = subprocess.run([sys.executable, "-c", shown], capture_output=True, text=True, check=True).stdout
    assert told.split() == ["UNTOUCHED"]
    notifier.close()


def test_a_loop_that_hangs_sends_no_sign_of_life(tmp_path: Path) -> None:
    path = str(tmp_path / "notify")
    status = "nobody"
    live = True

    async def life(manager: socket.socket) -> None:
        nonlocal status, live
        telling = asyncio.create_task(tell(notifier, lambda: live, lambda: status))
        loop = asyncio.get_running_loop()
        heard = [await loop.sock_recv(manager, 100) for _ in range(3)]
        assert heard == [b"WATCHDOG=1", b"STATUS=nobody", b"WATCHDOG=1"]
        with contextlib.suppress(BlockingIOError):  # on a busy machine there may be more by now
            while True:
                assert manager.recv(100) == b"WATCHDOG=1"
        time.sleep(3 * notifier.watchdog_interval_s)  # hangs
        with pytest.raises(BlockingIOError):
            manager.recv(100)
        status = "somebody"
        assert [await loop.sock_recv(manager, 100) for _ in range(2)] == [b"WATCHDOG=1", b"STATUS=somebody"]
        live, status = False, "a worker hangs"
        while (said := await loop.sock_recv(manager, 100)) == b"WATCHDOG=1":
            pass
        assert said == b"STATUS=a worker hangs"
        live, status = True, "all is well"
        assert [await loop.sock_recv(manager, 100) for _ in range(2)] == [b"WATCHDOG=1", b"STATUS=all is well"]
        telling.cancel()
        await asyncio.gather(telling, return_exceptions=True)

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(path)
        manager.setblocking(False)
        notifier = Notifier({"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "100000"})
        asyncio.run(life(manager))
        notifier.close()


def test_a_status_is_said_again_now_and_then(
    manager: ServiceManager, notifier: Notifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a successor says before systemd knows that it is the main process is lost."""
    monkeypatch.setattr(sd_notify, "_AGAIN_S", 0.0)
    monkeypatch.setattr(sd_notify, "_STATUS_S", 0.01)

    async def life() -> None:
        telling = asyncio.create_task(tell(notifier, lambda: True, lambda: "well"))
        loop = asyncio.get_running_loop()
        assert [await loop.sock_recv(manager.sock, 100) for _ in range(3)] == [b"STATUS=well"] * 3
        telling.cancel()
        await asyncio.gather(telling, return_exceptions=True)

    asyncio.run(life())
