"""Where the admin server listens: its sockets, and the connections that came by them.

Why: the address can be changed, or given to a successor, while requests are under way; each address is a listener of
its own. Called by proxy.admin.http.

Invariants: who has been accepted before release() is answered as before, and then closed; a listener that cannot be
opened leaves nothing open; everything that can fail is done by bind() and prepare(), open() only begins to answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Iterator, Sequence
from typing import Any, Final

from proxy.admin.connections import Answer, Connection, Connections
from proxy.system.threads import in_thread

_RESOLVE_S = 5.0
_STOP_S: Final = 1.0  # for requests under way, when everything is closed
_BACKLOG: Final = 128


class AddressError(OSError):
    """The address cannot be had; the text, and strerror, is one sentence for the operator."""

    def __init__(self, number: int, sentence: str) -> None:
        super().__init__(number, sentence)

    def __str__(self) -> str:
        return str(self.strerror)


class Listener:
    """Listening sockets and the connections that came by them.

    States: new -> prepared -> open -> released (listens no more) -> closed; release() and close() from each of them.

    address: where, as it was written. sockets: bound to it; this listener's from here on. answer: makes the answer to
    a request, within within_s. everybody: the open connections of all listeners of one server.
    """

    def __init__(
        self, address: str, sockets: list[socket.socket], answer: Answer, within_s: float, everybody: set[Connection]
    ) -> None:
        self.address = address
        self.sockets = sockets
        self.closed = False
        self._connections = Connections(answer, within_s, everybody)
        self._accepting: list[asyncio.Server] = []
        self._ending: asyncio.Task[None] | None = None

    async def prepare(self) -> None:
        """Sets everything up and answers nobody yet. AddressError when a socket is of no use; all are closed then."""
        loop = asyncio.get_running_loop()
        try:
            for sock in self.sockets:
                self._accepting.append(
                    await loop.create_server(self._connections, sock=sock, backlog=_BACKLOG, start_serving=False)
                )
        except BaseException as error:
            await self.close()
            if isinstance(error, OSError | ValueError):  # ValueError: it is no stream socket
                sentence = f"cannot listen on admin.address {self.address}: the socket given cannot be used: {error}"
                raise AddressError(errno.EINVAL, sentence) from error
            raise

    async def open(self) -> None:
        """Begins to accept and to answer."""
        for one in self._accepting:
            await one.start_serving()

    def release(self, linger_s: float) -> None:
        """Listens no more. Connections are closed once they have been answered, all others after linger_s."""
        self._connections.released = True
        self._stop_listening()
        self._ending = asyncio.create_task(self._end(linger_s), name="admin-release")

    async def close(self) -> None:
        """Closes everything; requests under way get a second."""
        if self._ending is not None:
            self._ending.cancel()
            await asyncio.gather(self._ending, return_exceptions=True)
        await self._close()

    async def _end(self, linger_s: float) -> None:
        await asyncio.sleep(linger_s)
        await self._close()

    async def _close(self) -> None:
        self._stop_listening()
        await self._connections.close(_STOP_S)
        self.closed = True

    def _stop_listening(self) -> None:
        for one in self._accepting:
            one.close()
        for sock in self.sockets:
            sock.close()


async def bind(address: str, own: Sequence[socket.socket]) -> list[socket.socket]:
    """Listening sockets at "host:port" or "[ip6]:port", one for each of the host's addresses (localhost often has two).

    own: what the server listens on now; the same port may be taken beside it. AddressError when the address cannot be
    had.
    """
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    sockets: list[socket.socket] = []
    missing: OSError | None = None
    try:
        async with asyncio.timeout(_RESOLVE_S):
            found = await in_thread(
                lambda: socket.getaddrinfo(host or None, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE),
                "admin address",
            )
        for family, kind, proto, _, where in dict.fromkeys(found):
            try:
                sockets.append(_bind_one(family, kind, proto, where, own))
            except OSError as error:
                # A name may have an address this machine is without, IPv6 mostly; one that is there will do.
                if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise
                missing = error
        if missing is not None and not sockets:
            raise missing
    except (OSError, UnicodeError) as error:  # TimeoutError is an OSError; UnicodeError: nothing that can be looked up
        for sock in sockets:
            sock.close()
        number = error.errno if isinstance(error, OSError) and error.errno is not None else errno.EINVAL
        raise AddressError(number, f"cannot listen on admin.address {address}: {_reason(error)}") from error
    return sockets


def _reason(error: OSError | UnicodeError) -> str:
    if isinstance(error, UnicodeError):
        return "this is not a host name"
    if isinstance(error, TimeoutError) and error.errno is None:
        return f"the name could not be looked up within {_RESOLVE_S:g} s"
    if isinstance(error, socket.gaierror):
        return f"the name could not be looked up: {error.strerror}"
    known = {
        errno.EADDRINUSE: "the address is in use; is another proxy running?",
        errno.EADDRNOTAVAIL: "this machine does not have the address",
        errno.EACCES: "permission denied",
    }
    return known.get(error.errno or 0) or error.strerror or str(error)


def _bind_one(family: int, kind: int, proto: int, where: Any, own: Sequence[socket.socket]) -> socket.socket:
    sock = socket.socket(family, kind | socket.SOCK_CLOEXEC, proto)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        with _sharing([sock, *(one for one in own if one.getsockname()[1] == where[1])]):
            sock.bind(where)
            sock.listen(_BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


@contextlib.contextmanager
def _sharing(sockets: Sequence[socket.socket]) -> Iterator[None]:
    """Meanwhile these may listen on one port, such as 127.0.0.1:9617 and 0.0.0.0:9617 (socket(7), SO_REUSEPORT)."""
    if len(sockets) == 1:
        yield
        return
    for sock in sockets:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        yield
    finally:
        for sock in sockets:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 0)
