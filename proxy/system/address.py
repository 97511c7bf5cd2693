"""An address to listen on or to connect to, as a value, and how it is written.

Why: the configuration, the sockets and the workers name addresses in the same way. A worker imports this, so it imports
next to nothing. Called by config.units (which reads what was written), system.sockets and worker.

Invariant: str() of an address is what config.units.parse_address reads back as the same address.
"""

from __future__ import annotations

from dataclasses import dataclass
from posixpath import realpath

UNIX = "unix:"


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen or connect: host (IPv6 without brackets) and port, or (path not empty) a Unix socket."""

    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        if self.path:
            return UNIX + self.path
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def overlaps(self, other: Address) -> bool:
        """Whether not both can be listened on: the same place, or one all addresses of the other's family (0.0.0.0).

        Names are not looked up; port 0 is any free one and overlaps nothing.
        """
        from ipaddress import ip_address  # only here: a worker does without

        if self.path or other.path:
            return bool(self.path and other.path) and realpath(self.path) == realpath(other.path)
        if self.port != other.port or not self.port:
            return False
        if self.host.lower() == other.host.lower():
            return True
        try:
            one, two = ip_address(self.host), ip_address(other.host)
        except ValueError:
            return False
        return one.version == two.version and (one == two or one.is_unspecified or two.is_unspecified)


def format_address(where: object, fallback: Address | None = None) -> str:
    """A socket address as getsockname() and getpeername() give it: `127.0.0.1:7617`, `[::1]:7617`, `unix:/path`.

    fallback: whose path to say when the socket has none, as a client that came by a Unix socket.
    """
    if isinstance(where, tuple):
        return str(Address(host=where[0], port=where[1]))
    if isinstance(where, bytes) and where[:1] == b"\0":
        return f"{UNIX}@{where[1:].decode(errors='replace')}"  # an abstract name, unix(7)
    path = where if isinstance(where, str) and where else (fallback.path if fallback else "")
    return UNIX + path
