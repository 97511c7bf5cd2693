"""Listening sockets: taken over from the service manager or opened, named for the log, removed at the end.

Why: binding can fail for reasons only the operator can mend, and each has its own sentence. Called by run.

Invariants: a socket is bound when open_listener returns, and one of our own begins to listen only with `listen`; the
file of a Unix socket is replaced only when nobody listens on it, and removed only by whoever made it, for the service
manager keeps its sockets while the proxy is restarted.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from dataclasses import dataclass

from proxy import log as logs
from proxy.config import Address, Listener

log = logs.get(__name__)

_FIRST_INHERITED = 3  # SD_LISTEN_FDS_START, sd_listen_fds(3)


class ListenError(Exception):
    """An address cannot be listened on; the text is one sentence for the operator."""


@dataclass(frozen=True)
class Listening:
    """A bound socket and the listener it was opened for."""

    sock: socket.socket
    listener: Listener
    file: tuple[int, int] | None = None  # device and inode of a Unix socket's file, when it is we who made it

    @property
    def label(self) -> str:
        """Where it listens, with the port the kernel chose."""
        return spell(self.sock.getsockname(), self.listener.address)

    def listen(self) -> None:
        """Begins to take connections; an inherited socket gets this listener's backlog."""
        self.sock.listen(self.listener.backlog)

    def close(self) -> None:
        """Stops listening; removes the file of a Unix socket unless it is somebody else's, or has become so."""
        if self.file is not None and self.sock.fileno() >= 0:
            path = self.listener.address.path
            with contextlib.suppress(OSError):
                if _identity(path) == self.file:  # while the socket is open, its inode cannot be another file's
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


def open_listener(listener: Listener, given: list[socket.socket] | None = None) -> Listening:
    """Takes the socket with the listener's address out of given, else binds that; ListenError when that cannot be.

    A taken socket keeps the options it came with; so does the file of a Unix socket (mode is the socket unit's).
    """
    address = listener.address
    file = None
    try:
        sock = _take(address, given) if given else None
        if sock is None and address.path:
            sock = _unix(address.path, int(listener.mode, 8))
            file = _identity(address.path)
        elif sock is None:
            sock = _tcp(address)
    except OSError as error:
        raise ListenError(f"cannot listen on {address}: {_reason(error)}") from error
    sock.setblocking(False)
    return Listening(sock, listener, file)


def _take(address: Address, given: list[socket.socket]) -> socket.socket | None:
    wanted: tuple[int, object] = (socket.AF_UNIX, address.path)
    if not address.path:
        family, _, _, _, where = _resolved(address)
        wanted = family, where
    for place, sock in enumerate(given):
        if (sock.family, sock.getsockname()) == wanted:
            return given.pop(place)
    return None


def _label(sock: socket.socket) -> str:
    where = sock.getsockname()
    if isinstance(where, bytes):
        return f"unix:@{where[1:].decode(errors='replace')}"  # an abstract name, unix(7)
    return spell(where) if sock.family in (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6) else str(where)


def _identity(path: str) -> tuple[int, int]:
    found = os.lstat(path)
    return found.st_dev, found.st_ino


def _reason(error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return "the address is in use; is another proxy running?"
    if error.errno == errno.EACCES:
        return "permission denied"
    return error.strerror or str(error)


def _resolved(address: Address) -> tuple[int, int, int, str, tuple[object, ...]]:
    return socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]


def _tcp(address: Address) -> socket.socket:
    family, kind, proto, _, where = _resolved(address)
    sock = socket.socket(family, kind | socket.SOCK_CLOEXEC, proto)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(where)
    except OSError:
        sock.close()
        raise
    return sock


def _unix(path: str, mode: int) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISSOCK(os.stat(path).st_mode):
                raise OSError(errno.EEXIST, "a file that is no socket is in the way")
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                probe.setblocking(False)  # a stopped process with a full backlog would keep us waiting
                outcome = probe.connect_ex(path)
            if outcome == errno.ECONNREFUSED:
                os.unlink(path)  # left behind by a process that is gone
            elif outcome in (0, errno.EAGAIN):
                raise OSError(errno.EADDRINUSE, "in use")
            else:
                raise OSError(outcome, os.strerror(outcome))
        sock.bind(path)
        os.chmod(path, mode)
    except OSError:
        sock.close()
        raise
    return sock
