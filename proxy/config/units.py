"""How durations, sizes and addresses are written in the configuration, and how they are read.

Why: an option without a unit is easily misread; every value has one rule of spelling and one internal unit.
Called by proxy.config.values for every such option.

Invariants: durations are seconds as float, sizes bytes as int; parse_x(format_x(v)) == v; every fault is a ValueError
whose text reads after `file:line: key: `. Addresses are read by proxy.system.address.
"""

from __future__ import annotations

import re
from decimal import Decimal

from proxy.system.address import Address as Address
from proxy.system.address import check_socket_path as check_socket_path
from proxy.system.address import parse_address as parse_address

_DURATIONS = [("us", "0.000001"), ("ms", "0.001"), ("s", "1"), ("m", "60"), ("h", "3600"), ("d", "86400")]
DURATION_UNITS = {unit: Decimal(seconds) for unit, seconds in _DURATIONS}
# redis.conf's ("Note on units" at its top): k is 1000, kb is 1024; any case.
_SIZES = [("b", 1), ("k", 1000), ("kb", 1 << 10), ("m", 1000**2), ("mb", 1 << 20), ("g", 1000**3), ("gb", 1 << 30)]
SIZE_UNITS = {unit: Decimal(size) for unit, size in _SIZES}
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
