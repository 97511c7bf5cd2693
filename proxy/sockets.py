"""Listening sockets: opened from the configuration, named for the log, removed at the end.

Why: binding can fail for reasons only the operator can mend, and each has its own sentence. Called by cli.

Invariants: a socket is bound when open_listener returns and begins to listen only with `listen`; the file of a Unix
socket is replaced only when nobody listens on it, and removed by whoever made it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from dataclasses import dataclass

from proxy.config import Address, Listener


class ListenError(Exception):
    """An address cannot be listened on; the text is one sentence for the operator."""


@dataclass(frozen=True)
class Listening:
    """A bound socket and the listener it was opened for."""

    sock: socket.socket
    listener: Listener

    @property
    def label(self) -> str:
        """Where it listens, with the port the kernel chose."""
        return spell(self.sock.getsockname(), self.listener.address)

    def listen(self) -> None:
        """Begins to take connections."""
        self.sock.listen(self.listener.backlog)

    def close(self) -> None:
        """Stops listening; removes the file of a Unix socket."""
        self.sock.close()
        if self.listener.address.path:
            with contextlib.suppress(OSError):
                os.unlink(self.listener.address.path)


def spell(where: object, fallback: Address | None = None) -> str:
    """A socket address as text: `127.0.0.1:7617`, `[::1]:7617`, `unix:/path`."""
    if isinstance(where, tuple):
        return str(Address(host=where[0], port=where[1]))
    path = where if isinstance(where, str) and where else (fallback.path if fallback else "")
    return f"unix:{path}"


def open_listener(listener: Listener) -> Listening:
    """Binds the listener's address; ListenError when that cannot be."""
    address = listener.address
    try:
        sock = _unix(address.path, int(listener.mode, 8)) if address.path else _tcp(address)
    except OSError as error:
        raise ListenError(f"cannot listen on {address}: {_reason(error)}") from error
    sock.setblocking(False)
    return Listening(sock, listener)


def _reason(error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return "the address is in use; is another proxy running?"
    if error.errno == errno.EACCES:
        return "permission denied"
    return error.strerror or str(error)


def _tcp(address: Address) -> socket.socket:
    found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, kind, proto, _, where = found[0]
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
            probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            with probe:
                try:
                    probe.connect(path)
                except ConnectionRefusedError:
                    os.unlink(path)  # left behind by a process that is gone
                else:
                    raise OSError(errno.EADDRINUSE, "in use")
        sock.bind(path)
        os.chmod(path, mode)
    except OSError:
        sock.close()
        raise
    return sock
