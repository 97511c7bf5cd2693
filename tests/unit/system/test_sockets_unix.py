"""Unix sockets in a temp folder: their files' mode and owner, who removes them, what happens to others' files."""

from __future__ import annotations

import os
import pwd
import socket
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from proxy.system import sockets
from proxy.system.sockets import ListenError, Listening
from tests.support.listening import Sockets, by_predecessor, by_systemd, connects, listener


@pytest.mark.parametrize("mode", ["0600", "0666", "0770"])
def test_unix_file_has_its_mode_and_goes_away(mode: str, tmp_path: Path, opened: Callable[..., Listening]) -> None:
    path = tmp_path / "sock"
    listening = opened(f"unix:{path}", mode=mode)
    assert stat.S_IMODE(path.stat().st_mode) == int(mode, 8)
    assert listening.label == f"unix:{path}"
    assert connects(str(path), socket.AF_UNIX)  # or another instance would take the file for one that was left behind
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
    tmp_path: Path, opened: Callable[..., Listening], bound: Callable[..., socket.socket], stack: Sockets
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
    second.file = third.file  # a new file may well get the inode of the one that was removed
    second.close()
    assert connects(str(path), socket.AF_UNIX)


# Owner and mode


ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
NOBODY = 65534


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that everybody may write to; tmp_path is inside one of the user's own."""
    with tempfile.TemporaryDirectory(prefix="redis-proxy-test-") as name:
        os.chmod(name, 0o777)
        yield Path(name)


@pytest.fixture
def become() -> Iterator[Callable[[int], None]]:
    """Makes the test go on as another user, without root's powers."""
    before = os.geteuid(), os.getegid(), os.getgroups()

    def start(user: int) -> None:
        os.setgroups([])
        os.setegid(user)
        os.seteuid(user)

    yield start
    if os.geteuid() != before[0]:
        os.seteuid(before[0])
        os.setegid(before[1])
        os.setgroups(before[2])


def belongs(path: Path) -> tuple[int, int, int]:
    """Owner, group, mode."""
    found = path.stat()
    return found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)


@ROOT_ONLY
@pytest.mark.parametrize(
    ("owner", "uid", "gid"), [("1234", 1234, 0), ("1234:2345", 1234, 2345), (":2345", 0, 2345), ("nobody", None, 0)]
)
def test_the_file_of_a_unix_socket_gets_its_owner(
    owner: str, uid: int | None, gid: int, tmp_path: Path, opened: Callable[..., Listening]
) -> None:
    path = tmp_path / "sock"
    os.chown(tmp_path, 0, 0)
    listening = opened(f"unix:{path}", owner=owner, mode="0620")
    assert belongs(path) == (pwd.getpwnam("nobody").pw_uid if uid is None else uid, gid, 0o620)
    listening.listen()
    assert connects(str(path), socket.AF_UNIX)
    listening.close()
    assert not path.exists()


def test_oneself_is_a_possible_owner(tmp_path: Path, opened: Callable[..., Listening]) -> None:
    path = tmp_path / "sock"
    opened(f"unix:{path}", owner=f"{os.geteuid()}:{os.getegid()}", mode="0600")
    assert belongs(path) == (os.geteuid(), os.getegid(), 0o600)


@pytest.mark.parametrize("mask", [0o000, 0o077, 0o777])
def test_until_it_has_its_options_the_file_is_nobody_elses(
    mask: int, tmp_path: Path, opened: Callable[..., Listening], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "sock"
    real, seen = sockets._set_file_options, []

    def look(*words: Any) -> None:
        seen.append(stat.S_IMODE(path.stat().st_mode))
        assert not connects(str(path), socket.AF_UNIX)
        real(*words)

    monkeypatch.setattr(sockets, "_set_file_options", look)
    before = os.umask(mask)
    try:
        opened(f"unix:{path}", mode="0666")
    finally:
        os.umask(before)
    assert seen == [0o600 & ~mask]
    assert belongs(path)[2] == 0o666


@ROOT_ONLY
def test_an_owner_it_may_not_be_given_to(
    public: Path, opened: Callable[..., Listening], become: Callable[[int], None]
) -> None:
    path = public / "sock"
    become(NOBODY)
    with pytest.raises(ListenError) as raised:
        opened(f"unix:{path}", owner="0:0")
    assert str(raised.value) == (
        f"cannot listen on unix:{path}: its file cannot be given to '0:0': Operation not permitted"
        " (root may do that, others may give it to groups of their own)"
    )
    assert list(public.iterdir()) == []


@ROOT_ONLY
def test_a_change_that_is_refused_changes_nothing(
    public: Path, opened: Callable[..., Listening], become: Callable[[int], None]
) -> None:
    path = public / "sock"
    become(NOBODY)
    listening = opened(f"unix:{path}", mode="0666", backlog=5)
    old = listening.listener
    with pytest.raises(ListenError, match=r"^cannot change unix:\S+: its file cannot be given to '0': "):
        listening.update(listener(f"unix:{path}", mode="0600", owner="0", backlog=6))
    assert listening.listener == old
    assert belongs(path) == (NOBODY, NOBODY, 0o666)


def waiting_room(listening: Listening) -> int:
    """How many connections a Unix socket keeps waiting before it turns one away; none is left there."""
    count = 0
    with ExitStack() as stack:
        while True:
            client = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            client.setblocking(False)
            if client.connect_ex(listening.listener.address.path):
                break
            count += 1
    for _ in range(count):
        listening.sock.accept()[0].close()
    return count


def test_new_options_of_a_listener_that_listens(tmp_path: Path, opened: Callable[..., Listening]) -> None:
    path = tmp_path / "sock"
    listening = opened(f"unix:{path}", backlog=3)
    listening.listen()
    room = waiting_room(listening)
    new = listener(f"unix:{path}", backlog=9, mode="0602", reads="any")
    listening.update(new)
    assert listening.listener is new
    assert belongs(path)[2] == 0o602
    assert waiting_room(listening) == room + 6


@ROOT_ONLY
def test_an_owner_that_changes_and_goes(tmp_path: Path, opened: Callable[..., Listening]) -> None:
    path = tmp_path / "sock"
    listening = opened(f"unix:{path}", owner="1234:2345")
    listening.update(listener(f"unix:{path}", owner="1235"))
    assert belongs(path) == (1235, os.getegid(), 0o660)
    listening.update(listener(f"unix:{path}", mode="0600"))
    assert belongs(path) == (os.geteuid(), os.getegid(), 0o600)


@pytest.mark.parametrize("what", ["link", "socket", "nothing"])
def test_no_other_file_is_changed(
    what: str, tmp_path: Path, opened: Callable[..., Listening], bound: Callable[..., socket.socket]
) -> None:
    """In a folder of somebody else's the name may come to mean something else."""
    path, victim = tmp_path / "sock", tmp_path / "victim"
    victim.touch(mode=0o600)
    listening = opened(f"unix:{path}")
    path.rename(tmp_path / "elsewhere")
    if what == "link":
        path.symlink_to(victim)
    elif what == "socket":
        bound(str(path), socket.AF_UNIX)
    before = [belongs(file) for file in sorted(tmp_path.iterdir())]
    with pytest.raises(ListenError, match="No such file" if what == "nothing" else "its file has been replaced"):
        listening.update(listener(f"unix:{path}", mode="0606"))
    assert [belongs(file) for file in sorted(tmp_path.iterdir())] == before


# Inherited


def test_the_file_goes_with_the_socket(tmp_path: Path, opened: Callable[..., Listening]) -> None:
    path = tmp_path / "sock"
    old = opened(f"unix:{path}", mode="0600")
    old.listen()
    given = by_predecessor(old.sock.dup())
    new = opened(f"unix:{path}", given, mode="0606")
    assert given == []
    assert (new.origin, new.name) == (sockets.LISTENER, sockets.LISTENER)
    assert belongs(path)[2] == 0o600  # nothing has changed as long as the successor does not serve
    assert old.disown() is True
    assert old.disown() is False
    old.close()
    new.listen()
    assert belongs(path)[2] == 0o606
    assert connects(str(path), socket.AF_UNIX)
    new.close()
    assert not path.exists()


def test_a_successor_that_fails_leaves_the_file(tmp_path: Path, opened: Callable[..., Listening]) -> None:
    path = tmp_path / "sock"
    old = opened(f"unix:{path}")
    old.listen()
    new = opened(f"unix:{path}", by_predecessor(old.sock.dup()))
    new.disown()
    new.close()
    assert connects(str(path), socket.AF_UNIX)
    old.close()
    assert not path.exists()


def test_the_service_managers_file_stays_its_own(
    tmp_path: Path, opened: Callable[..., Listening], bound: Callable[..., socket.socket]
) -> None:
    """Whichever way the socket came: from the service manager itself or through predecessors."""
    path = tmp_path / "sock"
    sock = bound(str(path), socket.AF_UNIX)
    path.chmod(0o640)
    new = opened(f"unix:{path}", by_systemd(sock.dup()), mode="0606")
    assert (new.origin, new.name, new.file) == (sockets.SYSTEMD, sockets.SYSTEMD, None)
    assert belongs(path)[2] == 0o640
    new.close()
    assert connects(str(path), socket.AF_UNIX)


def test_what_the_configuration_no_longer_wants(
    tmp_path: Path, opened: Callable[..., Listening], bound: Callable[..., socket.socket]
) -> None:
    """A predecessor's: kept open until it is closed with its file; the service manager's is left to close_unused."""
    path, foreign = tmp_path / "sock", tmp_path / "systemd"
    old, tcp = opened(f"unix:{path}"), opened("127.0.0.1:0")
    old.listen()
    tcp.listen()
    given = by_predecessor(old.sock.dup(), tcp.sock.dup()) + by_systemd(bound(str(foreign), socket.AF_UNIX).dup())
    unix, other = sockets.unwanted(given)
    assert [one.name for one in given] == [sockets.SYSTEMD]
    assert (unix.label, other.label) == (old.label, tcp.label)
    assert connects(str(path), socket.AF_UNIX)
    assert old.disown()
    for one in (old, unix, tcp, other):
        one.close()
    assert not path.exists()
    sockets.close_unused(given)
    assert connects(str(foreign), socket.AF_UNIX)


def test_an_unwanted_file_stays_with_a_successor_that_fails(tmp_path: Path, opened: Callable[..., Listening]) -> None:
    path = tmp_path / "sock"
    old = opened(f"unix:{path}")
    old.listen()
    (left,) = sockets.unwanted(by_predecessor(old.sock.dup()))
    left.disown()
    left.close()
    assert connects(str(path), socket.AF_UNIX)


def test_an_unwanted_socket_whose_name_is_another_files(tmp_path: Path, opened: Callable[..., Listening]) -> None:
    path = tmp_path / "sock"
    old = opened(f"unix:{path}")
    path.unlink()
    path.write_text("precious")
    (left,) = sockets.unwanted(by_predecessor(old.sock.dup()))
    left.close()
    assert path.read_text() == "precious"


def test_an_inherited_socket_without_its_file_is_replaced(tmp_path: Path, opened: Callable[..., Listening]) -> None:
    """Nobody can reach it any more."""
    path = tmp_path / "sock"
    old = opened(f"unix:{path}")
    old.listen()
    copy = old.sock.dup()
    path.unlink()
    new = opened(f"unix:{path}", by_predecessor(copy))
    assert new.sock is not copy
    assert new.origin == ""
    assert copy.fileno() == -1
    new.listen()
    assert connects(str(path), socket.AF_UNIX)


@ROOT_ONLY
def test_an_inherited_socket_whose_file_may_not_be_changed(
    public: Path, opened: Callable[..., Listening], become: Callable[[int], None]
) -> None:
    path = public / "sock"
    old = opened(f"unix:{path}", mode="0666")
    old.listen()
    copy = old.sock.dup()
    become(NOBODY)
    new = opened(f"unix:{path}", by_predecessor(copy), mode="0600")
    with pytest.raises(ListenError, match="Operation not permitted"):
        new.listen()
    new.disown()
    new.close()
    assert belongs(path)[2] == 0o666
    assert connects(str(path), socket.AF_UNIX)
