"""Listening sockets: taken over from the service manager or a predecessor, or opened; named, changed, removed.

Why: binding can fail for reasons only the operator can mend, and each has its own sentence. Called by run and the
supervisor.

Invariants:
- A socket is bound when open_listener returns, and one of our own begins to listen only with `listen`.
- A name that has several addresses is listened on at all of them or at none, but for a family the machine lacks.
- The file of a Unix socket is replaced only when nobody listens on it, and removed only by whom it belongs to: the
  service manager keeps its sockets while the proxy is restarted, a predecessor gives its files away (`disown`).
- Such a file is nobody's but ours until it has its owner and mode, and what is changed is never another file.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from proxy.config.models import Address, Listener
from proxy.system import log as logs

log = logs.get(__name__)

_FIRST_INHERITED = 3  # SD_LISTEN_FDS_START, sd_listen_fds(3)
_SOMAXCONN: Final = Path("/proc/sys/net/core/somaxconn")
_ATTEMPTS: Final = 10  # to find a port that is free at all addresses of a name
_LOOPBACK: Final = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}

FileId = tuple[int, int]  # device and inode
Place = tuple[int, tuple[object, ...]]  # family and socket address


class ListenError(Exception):
    """An address cannot be listened on; the text is one sentence for the operator."""


@dataclass(eq=False)
class Listening:
    """A bound socket and the listener it was opened for."""

    sock: socket.socket
    listener: Listener
    file: FileId | None = None  # of a Unix socket, when it is ours
    label: str = field(init=False)  # where it listens, with the port the kernel chose

    def __post_init__(self) -> None:
        self.label = spell(self.sock.getsockname(), self.listener.address)

    def listen(self) -> None:
        """Begins to take connections, or goes on with the listener's present backlog; ListenError."""
        with _sentence(self.listener.address):
            self.sock.listen(self.listener.backlog)

    def update(self, listener: Listener) -> None:
        """Follows the new options of its listener: backlog, and mode and owner of a file of ours.

        ListenError when the file cannot be changed so; then everything is as it was.
        """
        old = self.listener
        if self.file is not None and (listener.mode, listener.owner) != (old.mode, old.owner):
            # Who is no longer named gives the file back to the process.
            uid = os.geteuid() if old.owner.uid != -1 else -1
            gid = os.getegid() if old.owner.gid != -1 else -1
            with _sentence(listener.address, "cannot change"):
                _dress(listener, self.file, uid, gid)
        self.listener = listener
        if listener.backlog != old.backlog and self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            self.listen()

    def disown(self) -> bool:
        """Leaves a Unix socket's file to somebody else: close() will not remove it. Whether there was one of ours."""
        ours = self.file is not None
        self.file = None
        return ours

    def adopt(self) -> None:
        """Takes the Unix socket's file, if it is there, for ours: close() will remove it."""
        path = self.listener.address.path
        self.file = _socket_file(path) if path else None

    def close(self) -> None:
        """Stops listening; removes the file of a Unix socket unless it is somebody else's, or has become so."""
        if self.file is not None and self.sock.fileno() >= 0:
            path = self.listener.address.path
            with contextlib.suppress(OSError):
                # While the socket is open, its inode cannot be another file's.
                if _identity(os.lstat(path)) == self.file:
                    os.unlink(path)
        self.sock.close()


def spell(where: object, fallback: Address | None = None) -> str:
    """A socket address as text: `127.0.0.1:7617`, `[::1]:7617`, `unix:/path`."""
    if isinstance(where, tuple):
        return str(Address(host=where[0], port=where[1]))
    path = where if isinstance(where, str) and where else (fallback.path if fallback else "")
    return f"unix:{path}"


def inherited() -> list[socket.socket]:
    """The listening sockets the service manager passed to this very process (sd_listen_fds(3)), in its order.

    Takes the variables out of the environment and the sockets away from children. What is passed along but is no
    listening stream socket, such as the connection of a socket unit with Accept=yes, is named in a warning and closed.
    """
    count, pid = os.environ.pop("LISTEN_FDS", ""), os.environ.pop("LISTEN_PID", "")
    names = os.environ.pop("LISTEN_FDNAMES", "").split(":")
    if pid != str(os.getpid()) or not (count.isascii() and count.isdigit()):
        return []
    found = []
    for place in range(int(count)):
        descriptor = _FIRST_INHERITED + place
        name = names[place] if place < len(names) else ""
        try:
            sock = socket.socket(fileno=descriptor)
        except OSError as error:
            log.warning("inherited descriptor not used: no socket", name=name, descriptor=descriptor, error=str(error))
            with contextlib.suppress(OSError):
                os.close(descriptor)
            continue
        if sock.type != socket.SOCK_STREAM or not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            log.warning("inherited socket not used: it does not listen", name=name, address=_label(sock))
            sock.close()
            continue
        sock.set_inheritable(False)
        log.info("inherited", name=name, address=_label(sock))
        found.append(sock)
    return found


def close_unused(given: list[socket.socket]) -> None:
    """Closes the inherited sockets that no listener took, with a warning for each."""
    while given:
        sock = given.pop(0)
        log.warning("inherited socket not used: no listener has its address", address=_label(sock))
        sock.close()


def unwanted(handed: list[socket.socket]) -> list[Listening]:
    """What is left of a predecessor's sockets, out of the list; their close() removes the files of Unix sockets."""
    left = []
    while handed:
        sock = handed.pop(0)
        where = sock.getsockname()
        unix = sock.family == socket.AF_UNIX and isinstance(where, str)
        one = Listening(sock, Listener(address=f"unix:{where}") if unix else Listener())
        one.adopt()
        left.append(one)
    return left


def open_listener(
    listener: Listener, given: list[socket.socket] | None = None, handed: list[socket.socket] | None = None
) -> list[Listening]:
    """Listens at the listener's address, or at each of those its name has; ListenError when that cannot be.

    Sockets with the address are taken out of given (the service manager's, see inherited) and handed (a predecessor's);
    the others are bound. One that was given keeps the options it came with, as does its file, which stays the service
    manager's. The file of one that was handed over is ours from now on, with the listener's mode and owner: until the
    predecessor has let go of it, disown() comes before close().
    """
    address = listener.address
    with _sentence(address):
        if address.path:
            opened = [_unix(listener, given or [], handed or [])]
        else:
            opened = [Listening(sock, listener) for sock in _tcp(address, [given or [], handed or []])]
    for one in opened:
        one.sock.setblocking(False)
    return opened


def warn_somaxconn(one: Listening) -> None:
    """Warns when the kernel cuts the listener's backlog, listen(2)."""
    try:
        most = int(_SOMAXCONN.read_text())
    except (OSError, ValueError):
        return
    if most < one.listener.backlog:
        log.warning(
            "the kernel's net.core.somaxconn is below the listener's backlog",
            address=one.label,
            backlog=one.listener.backlog,
            somaxconn=most,
        )


@contextlib.contextmanager
def _sentence(address: Address, what: str = "cannot listen on") -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ListenError(f"{what} {address}: {_reason(error)}") from error


def _reason(error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return "the address is in use; is another proxy running?"
    if error.errno == errno.EACCES:
        return "permission denied"
    return error.strerror or str(error)


def _label(sock: socket.socket) -> str:
    where = sock.getsockname()
    if isinstance(where, bytes):
        return f"unix:@{where[1:].decode(errors='replace')}"  # an abstract name, unix(7)
    return spell(where) if sock.family in (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6) else str(where)


def _take(wanted: tuple[int, object], given: list[socket.socket]) -> socket.socket | None:
    for place, sock in enumerate(given):
        if (sock.family, sock.getsockname()) == wanted:
            return given.pop(place)
    return None


# TCP


def _tcp(address: Address, lists: list[list[socket.socket]]) -> list[socket.socket]:
    found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    places: list[Place] = list(dict.fromkeys((family, where) for family, _, _, _, where in found))
    for _ in range(_ATTEMPTS if not address.port else 1):
        try:
            return _all(address, places, lists)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            taken = error
    raise taken


def _all(address: Address, places: list[Place], lists: list[list[socket.socket]]) -> list[socket.socket]:
    """A socket at each place; port 0: at the same port, EADDRINUSE when the one chosen is taken at another place."""
    opened: list[socket.socket] = []
    lacking: OSError | None = None
    try:
        for family, where in places:
            taken = next(filter(None, (_take((family, where), given) for given in lists)), None)
            port = address.port or (opened[0].getsockname()[1] if opened else 0)
            try:
                opened.append(taken or _bound(family, (where[0], port, *where[2:])))
            except OSError as error:
                if not _lacks(family, error):
                    raise
                lacking = error
                log.info("address not used: the machine lacks its family", address=spell(where), listener=str(address))
        if not opened and lacking is not None:
            raise lacking
    except OSError:
        for sock in opened:
            sock.close()
        raise
    return opened


def _bound(family: int, where: tuple[object, ...]) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(where)
    except OSError:
        sock.close()
        raise
    return sock


def _lacks(family: int, error: OSError) -> bool:
    """Whether it failed because the machine has no such addresses at all, as where IPv6 is switched off."""
    if error.errno == errno.EADDRNOTAVAIL and family in _LOOPBACK:
        try:
            _bound(family, (_LOOPBACK[socket.AddressFamily(family)], 0)).close()
        except OSError:
            return True
        return False
    return error.errno == errno.EAFNOSUPPORT


# Unix sockets


def _unix(listener: Listener, given: list[socket.socket], handed: list[socket.socket]) -> Listening:
    path = listener.address.path
    wanted = (socket.AF_UNIX, path)
    if sock := _take(wanted, given):
        return Listening(sock, listener)
    sock = _take(wanted, handed)
    file = _socket_file(path) if sock else None
    if sock and file:
        try:
            _dress(listener, file)
        except OSError:
            sock.close()
            raise
        return Listening(sock, listener, file)
    if sock:  # its file is gone: nobody can reach it
        sock.close()
    return _new_unix(listener)


def _new_unix(listener: Listener) -> Listening:
    path = listener.address.path
    _clear(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    file = None
    try:
        os.fchmod(sock.fileno(), 0o600)  # on Linux the file will have the mode of the socket, less the umask
        sock.bind(path)
        file = _socket_file(path)
        if file is None:
            raise OSError(errno.ENOENT, "its file has vanished")
        _dress(listener, file)
        return Listening(sock, listener, file)
    except OSError:
        if file is not None:
            Listening(sock, listener, file).close()
        sock.close()
        raise


def _clear(path: str) -> None:
    """Removes what a process that is gone has left behind; OSError when somebody listens, or it is something else."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            raise OSError(errno.EEXIST, "a file that is no socket is in the way")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)  # a stopped process with a full backlog would keep us waiting
            outcome = probe.connect_ex(path)
        if outcome == errno.ECONNREFUSED:
            os.unlink(path)
        elif outcome in (0, errno.EAGAIN):
            raise OSError(errno.EADDRINUSE, "in use")
        else:
            raise OSError(outcome, os.strerror(outcome))


def _socket_file(path: str) -> FileId | None:
    with contextlib.suppress(OSError):
        found = os.lstat(path)
        if stat.S_ISSOCK(found.st_mode):
            return _identity(found)
    return None


def _identity(found: os.stat_result) -> FileId:
    return found.st_dev, found.st_ino


def _dress(listener: Listener, file: FileId, uid: int = -1, gid: int = -1) -> None:
    """Gives the listener's file its mode and owner; uid and gid for what the listener does not say (-1: as it is).

    OSError with everything as it was. Nobody gets in meanwhile who may in neither before nor after.
    """
    owner = listener.owner
    mode = int(listener.mode, 8)
    uid, gid = (owner.uid if owner.uid != -1 else uid), (owner.gid if owner.gid != -1 else gid)
    # Held fast: in a folder that others may write to, the name could be a link to any file a moment later.
    pin = os.open(listener.address.path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        was = os.fstat(pin)
        if _identity(was) != file:
            raise OSError(errno.EEXIST, "its file has been replaced")
        held, old = f"/proc/self/fd/{pin}", stat.S_IMODE(was.st_mode)
        try:
            if old & ~mode:
                os.chmod(held, old & mode)
            if uid not in (-1, was.st_uid) or gid not in (-1, was.st_gid):
                _chown(held, uid, gid, owner.written)
            if mode & ~old:
                os.chmod(held, mode)
        except OSError:
            with contextlib.suppress(OSError):
                os.chown(held, was.st_uid, was.st_gid)
            with contextlib.suppress(OSError):
                os.chmod(held, old)
            raise
    finally:
        os.close(pin)


def _chown(file: str, uid: int, gid: int, owner: str) -> None:
    try:
        os.chown(file, uid, gid)
    except OSError as error:
        whom = f"to '{owner}'" if owner else "back to the proxy's user"
        hint = " (root may do that, others may give it to groups of their own)" if error.errno == errno.EPERM else ""
        raise OSError(error.errno, f"its file cannot be given {whom}: {error.strerror}{hint}") from error
