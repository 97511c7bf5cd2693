"""proxy.system.successor with real processes: what they are started with, and whose READY=1 counts."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import errno
import functools
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from proxy.embedded import wait_for
from proxy.system import successor
from proxy.system.process import MANAGER, PREDECESSOR, TOLD
from proxy.system.successor import ReadySocket, SuccessorError, spawn

HOST = "127.0.0.1"
PATIENCE_S = 20.0

# A successor: says what it was started with as its status, and that it is ready.
CHILD = """
import os, signal, sys
descriptors = sorted(int(name) for name in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{name}"))
environment = {name: os.environ.get(name) for name in os.environ if "LISTEN" in name or "WATCHDOG" in name
               or "REDIS_PROXY" in name}
from proxy.system.sd_notify import Notifier
from proxy.system.sockets import inherited
notifier, found = Notifier(), inherited()
ignored = [int(one) for one in signal.valid_signals() if signal.getsignal(one) == signal.SIG_IGN]
blocked = [int(one) for one in signal.pthread_sigmask(signal.SIG_BLOCK, ())]
notifier.status(repr((sys.argv[1:], descriptors, environment, notifier.manager, ignored, blocked,
                      [(one.name, one.sock.fileno(), one.sock.getsockname()) for one in found])))
notifier.ready()
"""


@pytest.fixture
def ready() -> Iterator[ReadySocket]:
    made = ReadySocket()
    yield made
    made.close()


@pytest.fixture
def listening() -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(socket.create_server((HOST, 0))) for _ in range(4)]


def told(ready: ReadySocket, pid: int) -> Any:
    """What the child has said when it is ready; waits for its end, too."""

    async def wait() -> None:
        async with asyncio.timeout(PATIENCE_S):
            await ready.wait(pid)

    try:
        asyncio.run(wait())
    finally:
        assert os.waitpid(pid, 0) == (pid, 0)
    return ast.literal_eval(ready.status)


def test_what_a_successor_is_started_with(
    ready: ReadySocket, listening: list[socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sockets in their order as 3, 4, ... by their names, the variables, and nothing else of ours."""
    for name in ("LISTEN_PID", "WATCHDOG_PID", "WATCHDOG_USEC"):
        monkeypatch.setenv(name, "1")
    names = ["listener", "systemd", "admin:[::1]:9617", "listener"]
    sockets = list(zip(names, (one.fileno() for one in listening), strict=True))
    manager = {"NOTIFY_SOCKET": "/run/systemd/notify", "WATCHDOG_USEC": "30000000"}
    stray = os.open(os.devnull, os.O_RDONLY)
    os.set_inheritable(stray, True)
    before = sorted(os.listdir("/proc/self/fd"))
    was = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP, signal.SIGUSR2})
    usr1 = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        pid = spawn([sys.executable, "-c", CHILD, "-c", "a file"], sockets, ready.name, manager, '{"slots":1}')
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, was)
        signal.signal(signal.SIGUSR1, usr1)
    assert sorted(os.listdir("/proc/self/fd")) == before
    os.close(stray)
    words, descriptors, environment, its_manager, ignored, blocked, found = told(ready, pid)
    assert words == ["-c", "a file"]
    assert descriptors == [0, 1, 2, 3, 4, 5, 6]
    assert environment == {
        "LISTEN_FDS": "4",
        "LISTEN_FDNAMES": "listener:systemd:admin%3A[%3A%3A1]%3A9617:listener",
        "WATCHDOG_USEC": "30000000",
        PREDECESSOR: str(os.getpid()),
        TOLD: '{"slots":1}',
        MANAGER: "/run/systemd/notify",
    }
    assert its_manager == manager
    assert set(ignored) <= {signal.SIGPIPE, signal.SIGXFSZ}  # by Python itself
    assert blocked == []
    wheres = [one.getsockname() for one in listening]
    assert found == [(name, 3 + place, wheres[place]) for place, name in enumerate(names)]
    assert not any(one.get_inheritable() for one in listening)


CROSSED = """
import os, socket, sys
from proxy.system.successor import spawn
spare = [os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC) for _ in range(3)]
socks = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
for place, sock in enumerate(socks):
    os.dup2(sock.fileno(), 3 + place, inheritable=False)
code = "import os; print([os.fstat(n).st_ino for n in (3, 4, 5)])"
inodes = [os.fstat(n).st_ino for n in (5, 3, 4)]
pid = spawn([sys.executable, "-c", code], [("listener", 5), ("listener", 3), ("listener", 4)], "@nobody", {})
os.waitpid(pid, 0)
print(inodes)
"""


def test_sockets_that_have_each_others_numbers() -> None:
    """None is overwritten before it was copied."""
    done = subprocess.run([sys.executable, "-c", CROSSED], capture_output=True, text=True, timeout=30)
    first, second = done.stdout.splitlines()
    assert first == second, done.stderr


def test_without_a_service_manager(ready: ReadySocket, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor anything to tell, whatever our own predecessor told."""
    monkeypatch.setenv(TOLD, '{"works":true}')
    pid = spawn([sys.executable, "-c", CHILD], [], ready.name, {})
    _, descriptors, environment, manager, _, _, found = told(ready, pid)
    assert descriptors == [0, 1, 2]
    assert environment == {"LISTEN_FDS": "0", "LISTEN_FDNAMES": "", PREDECESSOR: str(os.getpid()), MANAGER: ""}
    assert (manager, found) == ({}, [])


def test_a_program_that_is_not_there(listening: list[socket.socket]) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    with pytest.raises(FileNotFoundError):
        spawn(["/no/such/program"], [("listener", listening[0].fileno())], "@nobody", {})
    assert sorted(os.listdir("/proc/self/fd")) == before


SAYS = """
import socket, sys
sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
for text in sys.argv[2:]:
    sock.sendto(text.encode(), chr(0) + sys.argv[1][1:])
"""


def say(ready: ReadySocket, *texts: str) -> int:
    """Another process says this; its pid. It has ended then."""
    with subprocess.Popen([sys.executable, "-c", SAYS, ready.name, *texts]) as process:
        assert process.wait(PATIENCE_S) == 0
    return process.pid


def test_one_that_cannot_be_watched_is_ended(listening: list[socket.socket], monkeypatch: pytest.MonkeyPatch) -> None:
    """It would serve beside us for ever: there is a descriptor for the start, and none for its pidfd."""
    started: list[int] = []

    def none_left(pid: int) -> int:
        started.append(pid)
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "pidfd_open", none_left)
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    with pytest.raises(SuccessorError, match="cannot be started: Too many open files"):
        asyncio.run(successor.start(command, [("a", listening[0].fileno())], {}, PATIENCE_S))
    with pytest.raises(ChildProcessError):  # ended, and waited for
        os.waitpid(started[0], os.WNOHANG)


def test_only_the_successors_own_word_counts(ready: ReadySocket) -> None:
    """Nobody else's, whatever the socket gets before and between."""

    async def wait() -> None:
        other = say(ready, "READY=1\nSTATUS=forged", "", "READY=0")
        pid = say(ready, "STATUS=starting", "READY=11", "X=READY=1", *["Y=1"] * 5)
        waiting = asyncio.create_task(ready.wait(pid))
        async with asyncio.timeout(PATIENCE_S):
            while ready.status != "starting":
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)  # what came behind that is no READY=1
        assert (waiting.done(), ready.status) == (False, "starting")
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        another = say(ready, "STATUS=serving\nREADY=1")
        assert another not in (pid, other)
        async with asyncio.timeout(PATIENCE_S):
            await ready.wait(another)
        assert ready.status == "serving"

    asyncio.run(wait())


def test_a_word_that_comes_while_it_is_waited_for(ready: ReadySocket) -> None:
    async def wait() -> None:
        waiting = asyncio.create_task(ready.wait(os.getpid()))
        await asyncio.sleep(0)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"READY=1", "\0" + ready.name[1:])
        async with asyncio.timeout(PATIENCE_S):
            await waiting

    asyncio.run(wait())


def test_a_wait_that_is_cancelled_leaves_nothing(ready: ReadySocket) -> None:
    async def wait() -> None:
        waiting = asyncio.create_task(ready.wait(1))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert not asyncio.get_running_loop().remove_reader(ready._sock.fileno())

    asyncio.run(wait())


# The whole of it

# A main process as far as this package goes: takes its sockets, is ready, serves one client after the other; on SIGUSR2
# starts its successor and ends when that is ready. Says which generation it is.
MAIN = """
import asyncio, os, signal, socket, sys
from proxy.system.address import Address
from proxy.system.sd_notify import Notifier
from proxy.system.sockets import close_unused, inherited, open_listener, unwanted
from proxy.system.successor import ReadySocket, spawn

class Options:
    backlog, mode = 16, "0600"
    class owner: written, uid, gid = "", -1, -1
    def __init__(self, address): self.address = address

async def main(port, path):
    notifier, given = Notifier(), inherited()
    listening = [one for address in (Address("127.0.0.1", port), Address(path=path))
                 for one in open_listener(Options(address), given)]
    assert unwanted(given) == []
    close_unused(given)
    loop, upgrade = asyncio.get_running_loop(), asyncio.Event()
    def accept(sock):
        with sock.accept()[0] as client:
            client.sendall(sys.argv[1].encode())
    for one in listening:
        one.listen()
        loop.add_reader(one.sock.fileno(), accept, one.sock)
    loop.add_signal_handler(signal.SIGUSR2, upgrade.set)
    notifier.ready()
    notifier.status(f"generation {sys.argv[1]}")
    await upgrade.wait()
    ready = ReadySocket()
    command = [sys.executable, sys.argv[0], str(int(sys.argv[1]) + 1), *sys.argv[2:]]
    pid = spawn(command, [(one.name, one.sock.fileno()) for one in listening], ready.name, notifier.manager)
    await ready.wait(pid)
    notifier.hand_over(pid)
    for one in listening:
        loop.remove_reader(one.sock.fileno())
        one.disown()
        one.close()
    notifier.stopping()
    ready.close()
    notifier.close()

asyncio.run(main(int(sys.argv[2]), sys.argv[3]))
"""


def test_three_generations_under_one_service_manager(tmp_path: Path) -> None:
    """Nobody who connects is refused, the Unix socket's file stays, and the manager hears one process at a time."""
    with socket.socket() as free:
        free.bind((HOST, 0))
        port = free.getsockname()[1]
    program = tmp_path / "main.py"
    program.write_text(MAIN)
    path, notify = str(tmp_path / "sock"), str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager, contextlib.ExitStack() as pids:
        manager.bind(notify)
        manager.settimeout(PATIENCE_S)
        process = subprocess.Popen(
            [sys.executable, str(program), "1", str(port), path], env={**os.environ, "NOTIFY_SOCKET": notify}
        )
        pids.callback(process.wait)
        pids.callback(process.kill)
        assert [manager.recv(100), manager.recv(100)] == [b"READY=1", b"STATUS=generation 1"]
        pid = process.pid
        for generation in (1, 2):
            alone = functools.partial(serves_alone, (HOST, port), path, generation)
            wait_for(alone, PATIENCE_S, f"generation {generation} serves alone")
            os.kill(pid, signal.SIGUSR2)
            said: list[bytes] = []
            while len(said) < 2:
                assert answer((HOST, port)) in (generation, generation + 1)
                assert answer(path) in (generation, generation + 1)
                with contextlib.suppress(BlockingIOError):
                    said.append(manager.recv(100, socket.MSG_DONTWAIT))
            # In either order: systemd does not hear a successor before it knows its pid (Notifier says it again).
            word, status = sorted(said)
            assert status == f"STATUS=generation {generation + 1}".encode()
            main, *rest = word.split(b"\n")
            assert rest == [b"READY=1", b"WATCHDOG=1"]
            pid = int(main.removeprefix(b"MAINPID="))
            pids.callback(kill, pid)
        wait_for(lambda: serves_alone((HOST, port), path, 3), PATIENCE_S, "generation 3 serves alone")


def kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def serves_alone(where: Any, path: str, generation: int) -> bool:
    return answer(where) == answer(path) == generation


def answer(where: Any) -> int:
    """Which generation serves there."""
    with socket.socket(socket.AF_UNIX if isinstance(where, str) else socket.AF_INET) as client:
        client.settimeout(PATIENCE_S)
        client.connect(where)
        return int(client.recv(1))
