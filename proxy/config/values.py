"""What a single value of the configuration may be: how it is checked, written and described, one name per kind.

Why: every option of a kind is read by the same rule, and the models say only which kind an option is. Called by
proxy.config.models and diff.

Invariants: a kind takes what YAML gives and what `${NAME}` gives (text); what is printed is read back as the same
value, except a secret, whose mask is refused; a fault is a ValueError whose text reads after `file:line: key: ` and
never contains a secret.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, SecretStr, ValidationInfo, WithJsonSchema

from proxy.config import units
from proxy.system.address import Address
from proxy.system.owner import Owner, find_owner
from proxy.system.secret_file import SecretFile, read_secret

WORKERS_MAX = 256
MASK = "<secret not shown>"  # what --print-config writes in place of a secret
_MASKS = (MASK, "**********")  # the second one: of version 0.1.0


def has_port(name: str) -> bool:
    """Whether a host or host:port of address_map has a port."""
    return name.startswith("[") or name.count(":") == 1


def _must(hold: Callable[[Any], object], reason: str) -> AfterValidator:
    def check(value: Any) -> Any:
        if not hold(value):
            raise ValueError(reason)
        return value

    return AfterValidator(check)


def _no_mask(written: object) -> object:
    if written in _MASKS:
        raise ValueError("is the mask that --print-config writes in place of a secret: put the secret here")
    return written


def _secret_file(written: object, info: ValidationInfo) -> SecretFile:
    return read_secret(written, (info.context or {}).get("folder", Path()))


def _whole(written: object) -> int:
    # A number from the environment arrives as text.
    if isinstance(written, str) and re.fullmatch(r"\d{1,18}", written, re.ASCII):
        return int(written)
    if isinstance(written, bool) or not isinstance(written, int):
        raise ValueError("should be a whole number")
    return written


def _workers(written: object) -> object:
    if written == "auto":
        return written
    with contextlib.suppress(ValueError):
        if 1 <= (count := _whole(written)) <= WORKERS_MAX:
            return count
    raise ValueError(f"should be auto or a number from 1 to {WORKERS_MAX}")


def _memory(written: object) -> int | str:
    return "auto" if written == "auto" else units.parse_size(written)


def _yes_or_no(written: object) -> bool:
    if isinstance(written, str) and written.lower() in ("true", "false"):  # from the environment
        return written.lower() == "true"
    if not isinstance(written, bool):
        raise ValueError("should be true or false")
    return written


def _mode(written: object) -> str:
    if not isinstance(written, str) or not re.fullmatch(r"0?[0-7]{3}", written):
        raise ValueError('should be an octal file mode in quotes, such as "0660"')
    return written


def _reads(written: object) -> object:
    return written.replace("master", "primary") if isinstance(written, str) else written


def _switchable(written: object) -> Address | None:
    # YAML 1.1 reads a bare `off` as false.
    return None if written is False or written in ("", "off") else units.parse_address(written, listen=True)


def _command_name(written: str) -> str:
    name = written.strip().lower().replace(" ", "|")
    if not re.fullmatch(r"@[a-z0-9_-]+|[a-z0-9._-]+(\|[a-z0-9._-]+)?", name):
        raise ValueError(f"'{written}' is not a command name, such as debug, cluster|failover or @dangerous")
    return name


def _node_name(written: str) -> str:
    """A bare host (IPv6 without brackets), or host:port in its one spelling."""
    if has_port(written):
        return str(units.parse_address(written))
    if not written or ":" in written:
        ip_address(written)
    return written


def _either(plain: dict[str, Any], pattern: str) -> WithJsonSchema:
    return WithJsonSchema({"anyOf": [plain, {"type": "string", "pattern": pattern}]})


def _with_unit(words: Iterable[str], otherwise: str = "") -> WithJsonSchema:
    spelling = rf"^\s*\d+(\.\d+)?({'|'.join(words)})\s*$|^0$|{otherwise}\$\{{"
    return _either({"type": "integer", "const": 0}, spelling)


_SIZES = [*units.SIZE_UNITS, *map(str.upper, units.SIZE_UNITS)]
_Text = WithJsonSchema({"type": "string"})
_Spelt = PlainSerializer(str, return_type=str)
_Seconds = PlainSerializer(units.format_duration, return_type=str, when_used="json")
_Bytes = PlainSerializer(units.format_size, return_type=str, when_used="json")
_BytesOrAuto = PlainSerializer(lambda size: size if size == "auto" else units.format_size(size), when_used="json")
_Masked = PlainSerializer(lambda secret: MASK if secret.get_secret_value() else "", return_type=str, when_used="json")
_MORE_THAN_0 = _must(lambda value: value > 0, "should be more than 0")

# For a tuple: at least one entry. Not min_length, for which pydantic counts the valid entries only.
SOME = (_must(bool, "should have at least one entry"), Field(json_schema_extra={"minItems": 1}))

# What a value is, in code > how it is checked, written and described.
SecondsOrOff = Annotated[float, BeforeValidator(units.parse_duration), _Seconds, _with_unit(units.DURATION_UNITS)]
Seconds = Annotated[SecondsOrOff, _MORE_THAN_0]
Bytes = Annotated[int, BeforeValidator(units.parse_size), _MORE_THAN_0, _Bytes, _with_unit(_SIZES)]
Memory = Annotated[int | Literal["auto"], BeforeValidator(_memory), _BytesOrAuto, _with_unit(_SIZES, "^auto$|")]
# A batch's pause delays every answer in it; a smaller window would park what a single read brings in.
Pause = Annotated[SecondsOrOff, _must(lambda pause: pause <= 0.01, "should be at most 10ms")]
# Less than a busy node takes for an answer would have it suspected all the time; after more nobody would wait for it.
Suspicion = Annotated[SecondsOrOff, _must(lambda time: 0.1 <= time <= 60, "should be from 100ms to 60s")]
Window = Annotated[Bytes, _must(lambda size: size >= 64 << 10, "should be at least 64kb")]
Connections = Annotated[int, Field(ge=1, le=64), BeforeValidator(_whole)]
Redirections = Annotated[int, Field(ge=0, le=100), BeforeValidator(_whole)]
Count = Annotated[int, Field(ge=1, le=2**31 - 1), BeforeValidator(_whole)]
_WORKERS = _either({"type": "integer", "minimum": 1, "maximum": WORKERS_MAX}, r"^(auto|\d{1,3})$|\$\{")
Workers = Annotated[int | Literal["auto"], BeforeValidator(_workers), _WORKERS]
YesOrNo = Annotated[bool, BeforeValidator(_yes_or_no), _either({"type": "boolean"}, r"\$\{")]
Listen = Annotated[Address, BeforeValidator(lambda a: units.parse_address(a, listen=True, unix=True)), _Spelt, _Text]
Switchable = Annotated[Address | None, BeforeValidator(_switchable), PlainSerializer(lambda a: str(a or "off")), _Text]
Nodes = Annotated[tuple[Annotated[Address, BeforeValidator(units.parse_address), _Spelt, _Text], ...], *SOME]
_NodeName = Annotated[str, AfterValidator(_node_name)]
AddressMap = dict[_NodeName, _NodeName]
FileMode = Annotated[str, BeforeValidator(_mode)]
FileOwner = Annotated[Owner, BeforeValidator(find_owner), _Spelt, _Text]
_PASSWORD = WithJsonSchema({"type": "string", "format": "password", "writeOnly": True})
Secret = Annotated[SecretStr, BeforeValidator(_no_mask), _Masked, _PASSWORD]
FromFile = Annotated[SecretFile, BeforeValidator(_secret_file), PlainSerializer(lambda file: file.path), _Text]
_SETNAME = "Client names cannot contain spaces, newlines or special characters."  # as the servers say
ClientName = Annotated[str, _must(lambda name: re.fullmatch(r"[!-~]*", name), _SETNAME)]
CommandNames = tuple[Annotated[str, AfterValidator(_command_name)], ...]
_Reads = Literal["primary", "prefer_primary", "replica", "prefer_replica", "any"]
ReadPolicy = Annotated[_Reads, BeforeValidator(_reads)]
Endpoint = Literal["announced", "ip", "hostname"]
LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["logfmt", "json"]
