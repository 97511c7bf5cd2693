"""Hand-overs between real processes, and between two ends in one where the timing matters."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from proxy.embedded import die_with_parent, wait_for
from proxy.supervisor import handover as module
from proxy.supervisor.handover import READY, HandoverError, Taken, take_over
from tests.unit.supervisor.instance import ROOT, Instance

HOST = "127.0.0.1"
NOBODY = 65534
GREETING = b'{"handover":1,"version":"x"}\n'


class Crowd:
    """Clients that connect in tight loops, one per address, and ask who answers. Errors are kept."""

    def __init__(self, *addresses: Any) -> None:
        self.names: Counter[bytes] = Counter()
        self.errors: list[BaseException] = []
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._come, args=(address,)) for address in addresses]

    def _come(self, address: Any) -> None:
        while not self._stopped.is_set():
            try:
                self.names[ask(address)] += 1
            except BaseException as error:
                self.errors.append(error)

    def __enter__(self) -> Crowd:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def met(self, name: bytes, times: int) -> None:
        """Waits until that instance has answered so many more."""
        wanted = self.names[name] + times
        wait_for(lambda: self.names[name] >= wanted, 30, f"{name!r} answers")


def ask(address: Any) -> bytes:
    """Who listens at the address; b"" from somebody who closes without a word."""
    with socket.socket(socket.AF_INET if isinstance(address, tuple) else socket.AF_UNIX) as client:
        client.settimeout(20)
        client.connect(address)
        return client.recv(100)


def address_of(label: str) -> Any:
    if label.startswith("unix:"):
        return label.removeprefix("unix:")
    host, _, port = label.rpartition(":")
    return host, int(port)


def talk(path: str, *words: bytes) -> bytes:
    """Says these words to whoever hands over, and gives everything that is answered."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(20)
        sock.connect(path)
        for word in words:
            sock.sendall(word)
        answer = b""
        with contextlib.suppress(ConnectionResetError):  # it did not want to hear everything
            while part := sock.recv(1 << 16):
                answer += part
        return answer


def taken_from(path: str) -> Taken:
    taken = take_over(path, 10)
    assert taken is not None
    return taken


def error_in(answer: bytes) -> str:
    return str(msgspec.json.decode(answer)["error"])


@pytest.fixture
def path(tmp_path: Path) -> str:
    """Where hand-overs are made."""
    return str(tmp_path / "handover")


@pytest.fixture
def start(tmp_path: Path, path: str) -> Iterator[Callable[..., Instance]]:
    """start(name, *addresses): an instance, killed at the end."""
    with contextlib.ExitStack() as stack:

        def begin(name: str, *addresses: str) -> Instance:
            return stack.enter_context(Instance(name, path, addresses or (f"{HOST}:0", f"unix:{tmp_path}/sock")))

        yield begin


@pytest.fixture
def old(start: Callable[..., Instance]) -> Instance:
    """A predecessor that serves at a TCP port and a Unix socket."""
    instance = start("old")
    assert instance.predecessor == 0
    instance.serve()
    return instance


# -- processes -----------------------------------------------------------------------------------------------------


def test_no_connection_is_refused(old: Instance, start: Callable[..., Instance], path: str) -> None:
    """Three instances in a row, and clients that connect all the time."""
    tcp, unix = (address_of(label) for label in old.labels)
    with Crowd(tcp, unix) as crowd:
        crowd.met(b"old", 200)
        before = old
        for name in (b"second", b"third"):
            instance = start(name.decode(), *old.labels)
            assert (instance.predecessor, instance.labels) == (before.pid, old.labels)
            crowd.met(b"old" if before is old else b"second", 200)
            instance.serve()
            assert before.hear() == ["over"]
            assert before.ends() == 0
            crowd.met(name, 200)
            before = instance
    assert crowd.errors == []
    assert set(crowd.names) == {b"old", b"second", b"third"}
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    before.tell("stop")
    assert before.ends() == 0
    assert not os.path.exists(unix)
    assert not os.path.exists(path)


def test_a_successor_that_is_killed_changes_nothing(old: Instance, start: Callable[..., Instance]) -> None:
    addresses = [address_of(label) for label in old.labels]
    with Crowd(*addresses) as crowd:
        for _ in range(2):
            successor = start("new", *old.labels)
            assert successor.predecessor == old.pid
            successor.process.kill()
            successor.ends()
            crowd.met(b"old", 100)
        successor = start("new", *old.labels)  # at once: the one before is forgotten as soon as it is gone
        successor.serve()
        assert old.ends() == 0
        crowd.met(b"new", 100)
    assert crowd.errors == []


def test_a_predecessor_that_is_killed_leaves_its_sockets(old: Instance, start: Callable[..., Instance]) -> None:
    addresses = [address_of(label) for label in old.labels]
    successor = start("new", *old.labels)
    old.process.kill()
    old.ends()
    with contextlib.ExitStack() as stack:
        clients = []
        for address in addresses:  # they wait: the socket never closed
            client = socket.socket(socket.AF_INET if isinstance(address, tuple) else socket.AF_UNIX)
            clients.append(stack.enter_context(client))
            client.settimeout(20)
            client.connect(address)
        successor.tell("serve")
        assert successor.hear() == ["ready", "the", "predecessor", "is", "gone:", "Broken", "pipe"]
        assert [client.recv(100) for client in clients] == [b"new"] * 2
    assert successor.hear() == ["serving"]
    third = start("third", *old.labels)
    third.serve()  # the path works as before
    assert successor.ends() == 0


def test_one_at_a_time(old: Instance, path: str) -> None:
    with contextlib.closing(taken_from(path)) as taken:
        with pytest.raises(HandoverError, match=f"process {os.getpid()} is about to take over"):
            take_over(path, 10)
        assert taken.pid == old.pid
    with contextlib.closing(taken_from(path)) as again:
        assert [(kind, name) for kind, name, _ in again.sockets] == [("listener", label) for label in old.labels]
        assert [sock.getsockname() for _, _, sock in again.sockets] == [address_of(label) for label in old.labels]
        assert [sock.get_inheritable() for _, _, sock in again.sockets] == [False, False]


def test_a_predecessor_that_hangs(old: Instance, path: str) -> None:
    os.kill(old.pid, signal.SIGSTOP)
    with pytest.raises(HandoverError, match="does not answer"):
        take_over(path, 0.2)
    with contextlib.ExitStack() as stack:
        error = 0
        while not error:  # until its backlog is full
            sock = stack.enter_context(socket.socket(socket.AF_UNIX))
            sock.setblocking(False)
            error = sock.connect_ex(path)
        assert error == errno.EAGAIN
        with pytest.raises(HandoverError, match="does not answer"):
            take_over(path, 0.2)
    os.kill(old.pid, signal.SIGCONT)
    with contextlib.closing(taken_from(path)) as taken:
        assert taken.pid == old.pid


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ((b"GET / HTTP/1.1\r\n",), "not a greeting: "),
        ((b"GET / HTTP/1.1\r\n\r\n",), "out of turn"),
        ((b"\xff\0" * 100 + b"\n",), "not a greeting: "),
        ((b"[]\n",), "not a greeting: "),
        ((b'{"handover":"1"}\n',), "not a greeting: "),
        ((b'{"handover":2,"else":[1]}\n',), "version 2 of the hand-over is not spoken here, but 1"),
        ((b"x" * (1 << 20) + b"y" * 65536,), "a line without end"),
    ],
    ids=["line", "http", "binary", "json", "type", "version", "endless"],
)
def test_garbage_does_not_disturb(old: Instance, path: str, words: tuple[bytes, ...], answer: str) -> None:
    said = talk(path, *words)
    assert error_in(said).startswith(answer)
    with contextlib.closing(taken_from(path)):
        pass
    assert ask(address_of(old.labels[0])) == b"old"


def test_garbage_instead_of_ready(old: Instance, path: str) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(20)
        sock.connect(path)
        sock.sendall(GREETING)
        offer, _, rest = sock.recv(1 << 16).partition(b"\n")  # the descriptors are dropped
        assert msgspec.json.decode(offer)["sockets"] == [["listener", label] for label in old.labels]
        sock.sendall(b"go away\n")
        while part := sock.recv(1 << 16):
            rest += part
        assert error_in(rest.lstrip(b"\0")) == "not a word of this conversation"
    assert ask(address_of(old.labels[0])) == b"old"


def test_ready_before_there_is_anything_to_be_ready_with(old: Instance, path: str) -> None:
    assert error_in(talk(path, GREETING + READY)) == "out of turn"
    assert ask(address_of(old.labels[0])) == b"old"


STRANGER = """
import os, sys
from proxy.supervisor.handover import HandoverError, take_over
os.setgroups([]), os.setgid(65534), os.setuid(65534)
try:
    print(take_over(sys.argv[1], 10))
except HandoverError as error:
    print(error)
"""
STRANGE_PREDECESSOR = """
import os, socket, sys
os.setgroups([]), os.setgid(65534), os.setuid(65534)
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
print("listening", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def open_path() -> Iterator[str]:
    """A path that every user can reach."""
    if os.geteuid() != 0:
        pytest.skip("only root can be somebody else")
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        yield f"{folder}/handover"


@pytest.mark.parametrize(
    ("mode", "reason"),
    [(0o600, "Permission denied"), (0o666, "only root and the user of the proxy may take over, not user 65534")],
)
def test_strangers_get_nothing(open_path: str, mode: int, reason: str) -> None:
    with Instance("old", open_path, [f"{HOST}:0"]) as old:
        old.serve()
        os.chmod(open_path, mode)
        done = subprocess.run(
            [sys.executable, "-c", STRANGER, open_path], cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert done.stdout == f"cannot take over from the process that listens at {open_path}: {reason}\n"
        assert done.stderr == ""


def test_strangers_are_not_asked(open_path: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", STRANGE_PREDECESSOR, open_path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        preexec_fn=die_with_parent(),
    ) as stranger:
        assert stranger.stdout is not None
        assert stranger.stdout.readline() == b"listening\n"
        with pytest.raises(HandoverError, match=f"another user's \\(uid {NOBODY}\\)"):
            take_over(open_path, 10)


# -- the successor's end -------------------------------------------------------------------------------------------


def test_nobody_to_take_over_from(path: str) -> None:
    assert take_over(path, 1) is None
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(path)
    assert take_over(path, 1) is None


@contextlib.contextmanager
def fake(path: str, *scene: Callable[[socket.socket], Any]) -> Iterator[None]:
    """A predecessor that does these things, one with each connection after its greeting; then it is gone."""

    def perform() -> None:
        for act in scene:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1000)
                act(connection)
        listener.close()

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        thread = threading.Thread(target=perform)
        thread.start()
        try:
            yield
        finally:
            thread.join()


def offering(*sockets: socket.socket, announced: int, chunk: int = 253) -> Callable[[socket.socket], None]:
    """Offers so many sockets, and hands over these."""

    def act(connection: socket.socket) -> None:
        line = {"handover": 1, "sockets": [["listener", "x"]] * (announced - 1), "file": [0, 0], "unheard": "of"}
        connection.sendall(msgspec.json.encode(line) + b"\n")
        numbers = [sock.fileno() for sock in sockets]
        for first in range(0, announced, chunk):
            socket.send_fds(connection, [b"\0"], numbers[first : first + chunk])
        connection.recv(1000)

    return act


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n", "it does not speak our language: "),
        (b'{"handover":1}\n', "it does not speak our language: "),
        (b'{"handover":1,"sockets":[["x"]],"file":[1,2]}\n', "it does not speak our language: "),
        (b'{"handover":2,"sockets":{}}\n', "it speaks version 2 of the hand-over, not 1"),
        (b'{"handover":2,"error":"not today"}\n', "not today"),
        (b"x" * 1200000, "it does not speak our language: a line without end"),
    ],
    ids=["http", "half", "shape", "version", "error", "endless"],
)
def test_a_predecessor_that_says_something_else(path: str, said: bytes, reason: str) -> None:
    def act(connection: socket.socket) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(said)
            connection.recv(1000)

    with fake(path, act), pytest.raises(HandoverError) as raised:
        take_over(path, 10)
    assert str(raised.value).startswith(f"cannot take over from the process that listens at {path}: {reason}")


def test_descriptors_that_are_no_listening_sockets(path: str) -> None:
    before = set(os.listdir("/proc/self/fd"))
    with socket.create_server((HOST, 0)) as good, socket.socket() as bad, open(os.devnull) as file:
        for wrong in (bad, file):
            with (
                fake(path, offering(good, wrong, announced=2)),  # type: ignore[arg-type]
                pytest.raises(HandoverError, match="hands over something that does not listen"),
            ):
                take_over(path, 10)
            os.unlink(path)
        with fake(path, offering(good, announced=2)), pytest.raises(HandoverError, match="only 1 of 2 sockets"):
            take_over(path, 10)
    assert set(os.listdir("/proc/self/fd")) == before


def test_a_predecessor_that_dies_before_it_has_handed_over(path: str) -> None:
    def half(connection: socket.socket) -> None:
        connection.sendall(b'{"handover":1,')

    with fake(path, half):
        assert take_over(path, 10) is None


def test_a_predecessor_that_hangs_up_on_us(path: str) -> None:
    """It lives on, so its addresses cannot be had."""
    ended = threading.Event()

    def hang_up(connection: socket.socket) -> None:
        pass

    def probed(connection: socket.socket) -> None:
        ended.wait(20)

    with fake(path, hang_up, probed):
        try:
            with pytest.raises(HandoverError, match="it ends the conversation"):
                take_over(path, 10)
        finally:
            ended.set()


def test_out_of_descriptors_while_taking_over(path: str, few_descriptors: Callable[[int], None]) -> None:
    """The kernel drops what it cannot give us; the predecessor has not lost anything."""
    limited = threading.Event()

    def act(connection: socket.socket) -> None:
        limited.wait(20)
        offering(*[good] * 20, announced=20)(connection)

    with socket.create_server((HOST, 0)) as good, fake(path, act):
        connected = module._connect

        def limit(path: str, deadline: float) -> socket.socket | None:
            sock = connected(path, deadline)
            few_descriptors(8)
            limited.set()
            return sock

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "_connect", limit)
            with pytest.raises(HandoverError, match=r"only [0-9]+ of 20 sockets have arrived"):
                take_over(path, 10)
