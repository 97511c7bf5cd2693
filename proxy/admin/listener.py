"""Where the admin server listens: its sockets, and the connections that came by them.

Why: an address can be changed, or given to a successor, while requests are under way; each address is a door of its own
that is left, not slammed. Called by proxy.admin.http.

Invariants: whoever came in before leave() is answered as before, and then let go; a door that cannot be opened leaves
nothing open.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Iterator, Sequence
from typing import Any

from aiohttp import web

_STOP_TIMEOUT_S = 1.0
_BACKLOG = 128


class Door:
    """Listening sockets and the connections that came by them. States: new -> open -> left (listens no more) -> closed.

    sockets: bound; the door's from here on.
    """

    def __init__(self, app: web.Application, sockets: list[socket.socket]) -> None:
        self.sockets = sockets
        self.closed = False
        self._runner = web.AppRunner(app, handle_signals=False, access_log=None, shutdown_timeout=_STOP_TIMEOUT_S)
        self._fading: asyncio.Task[None] | None = None
        app.on_response_prepare.append(self._prepare)

    async def open(self) -> None:
        """Answers; on failure the sockets are closed."""
        try:
            await self._runner.setup()
            for sock in self.sockets:
                await web.SockSite(self._runner, sock, backlog=_BACKLOG).start()
        except BaseException:
            await self.close()
            raise

    async def leave(self, linger_s: float) -> None:
        """Listens no more. Connections are closed once they have been answered, all others after linger_s."""
        for site in self._runner.sites:
            await site.stop()
        self._fading = asyncio.create_task(self._fade(linger_s), name="admin-fade")

    async def close(self) -> None:
        """Closes everything; requests under way get a second."""
        if self._fading is not None:
            self._fading.cancel()
            await asyncio.gather(self._fading, return_exceptions=True)
        await self._close()

    async def _fade(self, linger_s: float) -> None:
        await asyncio.sleep(linger_s)
        await self._close()

    async def _close(self) -> None:
        await self._runner.cleanup()
        for sock in self.sockets:
            sock.close()
        self.closed = True

    async def _prepare(self, request: web.Request, response: web.StreamResponse) -> None:
        if self._fading is not None:
            response.force_close()


async def bind(address: str, own: Sequence[socket.socket]) -> list[socket.socket]:
    """Listening sockets at "host:port" or "[ip6]:port", one for each of the host's addresses (localhost often has two).

    own: what the server listens on now; the same port may be taken beside it. OSError, with a sentence for the operator
    as its text, when the address cannot be had.
    """
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    sockets: list[socket.socket] = []
    missing: OSError | None = None
    try:
        found = await asyncio.get_running_loop().getaddrinfo(
            host or None, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
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
    except (OSError, UnicodeError) as error:  # UnicodeError: no name the resolver can be asked for
        for sock in sockets:
            sock.close()
        number, reason = error.args if isinstance(error, OSError) else (errno.EINVAL, "Not a host name")
        raise OSError(number, f"cannot listen on admin.address {address}: {reason}") from error
    return sockets


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
