"""How durations, sizes and addresses are spelt in the configuration, both ways.

Why: an option without a unit is an option misread; every value has exactly one spelling rule and one internal unit.
Who calls it: proxy.config.models for every such option; control and cli for addresses.

Invariants: durations are seconds as float, sizes bytes as int; parse_x(format_x(v)) == v; every fault is a ValueError
whose text reads after `file:line: key: ` and quotes only what was written.
"""

from __future__ import annotations

import re
from decimal import Decimal

from proxy.system.address import UNIX
from proxy.system.address import Address as Address

DURATION_UNITS = {
    "us": Decimal("0.000001"),
    "ms": Decimal("0.001"),
    "s": Decimal(1),
    "m": Decimal(60),
    "h": Decimal(3600),
    "d": Decimal(86400),
}
# redis.conf's ("Note on units" at its top): k is 1000, kb is 1024; any case.
SIZE_UNITS = {
    "b": Decimal(1),
    "k": Decimal(1000),
    "kb": Decimal(1 << 10),
    "m": Decimal(1000**2),
    "mb": Decimal(1 << 20),
    "g": Decimal(1000**3),
    "gb": Decimal(1 << 30),
}
DURATION_HINT = "should be a duration such as 250ms, 30s, 5m or 1h"
SIZE_HINT = "should be a size such as 512b, 64kb, 64mb or 1gb"
# What fits the data path's 64-bit nanoseconds and bytes with room to add to it.
DURATION_MAX = DURATION_UNITS["d"] * 365
SIZE_MAX = SIZE_UNITS["gb"] * 1024
NUMBER = re.compile(r"(\d+(?:\.\d+)?)([a-zA-Z]*)", re.ASCII)


def parse_duration(written: object) -> float:
    """Seconds of `50us`, `250ms`, `1.5s`, `5m`, `1h`, `2d` or a bare 0; at most a year."""
    seconds = _quantity(written, DURATION_UNITS, DURATION_HINT)
    if seconds > DURATION_MAX:
        raise ValueError(f"'{written}' is longer than 365d")
    return float(seconds)


def parse_size(written: object) -> int:
    """Bytes of `512b`, `64kb`, `64mb`, `1gb` or a bare 0; at most 1024gb."""
    size = _quantity(written, SIZE_UNITS, SIZE_HINT)
    if size > SIZE_MAX:
        raise ValueError(f"'{written}' is more than 1024gb")
    if size % 1:
        raise ValueError(f"'{written}' is not a whole number of bytes")
    return int(size)


def format_duration(seconds: float) -> str:
    """The shortest whole spelling: 300.0 -> `5m`, 0.25 -> `250ms`, 0.00005 -> `50us`, 0.0 -> `0`."""
    exact = Decimal(repr(seconds))
    return _spelling(exact, DURATION_UNITS) or (f"{(exact / DURATION_UNITS['us']).normalize():f}us" if exact else "0")


def format_size(size: int) -> str:
    """The shortest whole spelling in powers of 1024: 1048576 -> `1mb`, 1000 -> `1000b`, 0 -> `0`."""
    return _spelling(Decimal(size), {unit: SIZE_UNITS[unit] for unit in ("b", "kb", "mb", "gb")}) or "0"


def parse_address(written: object, *, listen: bool = False, unix: bool = False) -> Address:
    """`host:port` or `[v6]:port`; with listen=True port 0 too (any free one), with unix=True `unix:/path` too."""
    if not isinstance(written, str):
        raise ValueError("should be an address such as 127.0.0.1:6379, written in quotes")
    if unix and written.startswith(UNIX):
        return Address(path=check_socket_path(written[len(UNIX) :]))
    host, colon, port = written.rpartition(":")
    if not colon or host.endswith(":") or ("[" not in host and ":" in host):
        bare = written.count(":") > 1
        reason = "an IPv6 address needs brackets: [::1]:6379" if bare else f"'{written}' has no port: host:port"
        raise ValueError(reason)
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


def _quantity(written: object, units: dict[str, Decimal], hint: str) -> Decimal:
    if isinstance(written, bool) or not isinstance(written, int | float | str):
        raise ValueError(hint)
    match = NUMBER.fullmatch(str(written).strip())
    if match is None:
        raise ValueError(f"{hint}, not '{written}'")
    number, unit = Decimal(match[1]), match[2].lower()
    if not unit and number:
        raise ValueError(f"'{written}' has no unit: {hint}")
    if unit and unit not in units:
        raise ValueError(f"unknown unit '{match[2]}': {hint}")
    return number * units[unit] if unit else number


def _spelling(exact: Decimal, units: dict[str, Decimal]) -> str:
    for unit in reversed(units):
        if exact and exact % units[unit] == 0:
            return f"{int(exact / units[unit])}{unit}"
    return ""
