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


def parse_address(written: object, *, listen: bool = False, unix: bool = False) -> Address:
    """`host:port` or `[v6]:port`; with listen=True port 0 too (any free one), with unix=True `unix:/path` too."""
    import re  # only here: a worker does without

    if not isinstance(written, str):
        raise ValueError("should be an address such as 127.0.0.1:6379, written in quotes")
    if unix and written.startswith(UNIX):
        return Address(path=check_socket_path(written[len(UNIX) :]))
    if "@" in written:  # not quoted: it may be a password
        raise ValueError("an address has no user and no password: host:port")
    host, colon, port = written.rpartition(":")
    if not colon or host.endswith(":") or ("[" not in host and ":" in host):
        bare = written.count(":") > 1
        raise ValueError(
            "an IPv6 address needs brackets: [::1]:6379" if bare else f"'{written}' has no port: host:port"
        )
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    labels = host.removesuffix(".").split(".")  # of which getaddrinfo takes 1 to 63 characters each
    if not re.fullmatch(r"[A-Za-z0-9_.:%-]+", host) or not all(0 < len(label) < 64 for label in labels):
        raise ValueError(f"'{written}' has no valid host" + (" (for all addresses: 0.0.0.0)" if listen else ""))
    if not re.fullmatch(r"\d{1,5}", port, re.ASCII) or not (0 if listen else 1) <= int(port) <= 65535:
        raise ValueError(f"'{port}' is not a port (1 to 65535)")
    return Address(host, int(port))


def check_socket_path(path: str) -> str:
    """The path, when a Unix socket can be there: absolute, and at most 107 bytes."""
    if not path.startswith("/"):
        raise ValueError(f"the path of a Unix socket should be absolute, not '{path}'")
    if len(path.encode()) > 107:  # sockaddr_un.sun_path with its ending zero, unix(7)
        raise ValueError(f"the path of a Unix socket has at most 107 bytes, this one {len(path.encode())}")
    return path
