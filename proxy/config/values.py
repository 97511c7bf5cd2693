"""What a single value of the configuration may be: how it is checked, written and described, one name per kind.

Why: every option of a kind is read by the same rule, and the models say no more than which kind an
option is. Called by proxy.config.models only.

Invariants: a kind takes what YAML gives and what `${NAME}` gives (text); what is printed is read back as the same
value; a fault is a ValueError whose text reads after `file:line: key: ` and never contains a secret.
"""

from __future__ import annotations

import grp
import pwd
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, ValidationInfo, WithJsonSchema

from proxy.config.units import (
    DURATION_UNITS,
    SIZE_UNITS,
    Address,
    check_socket_path,
    format_duration,
    format_size,
    parse_address,
    parse_duration,
    parse_size,
)

WORKERS_MAX = 256
OWNER_HINT = "should be user, user:group or :group"
_ID_MAX = 2**32 - 2  # the one above means "as it is" to chown(2)


@dataclass(frozen=True, slots=True)
class SecretFile:
    """A file that holds a secret: its path as written (empty = none) and what it held, without the final newline."""

    path: str = ""
    secret: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Owner:
    """Whom a file is to belong to: as written (empty = whoever makes it), and the ids, -1 = as it is."""

    written: str = ""
    uid: int = -1
    gid: int = -1

    def __str__(self) -> str:
        return self.written


def has_port(name: str) -> bool:
    """Whether a host or host:port of address_map has a port."""
    return name.startswith("[") or name.count(":") == 1


def _read_secret(written: object, info: ValidationInfo) -> SecretFile:
    if not isinstance(written, str):
        raise ValueError("should be the path of a file")
    if not written:
        return SecretFile()
    folder = (info.context or {}).get("folder", Path())
    try:
        secret = (folder / written).read_text("utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ValueError(f"cannot read the secret in '{written}': {reason}") from None
    if not secret:
        raise ValueError(f"the secret in '{written}' is empty")
    return SecretFile(written, secret)


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
    try:
        count = _whole(written)
    except ValueError:
        count = 0
    if not 1 <= count <= WORKERS_MAX:
        raise ValueError(f"should be auto or a number from 1 to {WORKERS_MAX}")
    return count


def _yes_or_no(written: object) -> bool:
    if isinstance(written, str) and written.lower() in ("true", "false"):  # from the environment
        return written.lower() == "true"
    if not isinstance(written, bool):
        raise ValueError("should be true or false")
    return written


def _positive(value: float) -> float:
    if value <= 0:
        raise ValueError("should be more than 0")
    return value


def _at_most(most: str) -> AfterValidator:
    def check(value: float) -> float:
        if value > parse_duration(most):
            raise ValueError(f"should be at most {most}")
        return value

    return AfterValidator(check)


def _at_least(least: str) -> AfterValidator:
    def check(value: int) -> int:
        if value < parse_size(least):
            raise ValueError(f"should be at least {least}")
        return value

    return AfterValidator(check)


def _not_empty(entries: tuple[object, ...]) -> tuple[object, ...]:
    # Not min_length: pydantic counts only the valid entries, and a bad one is reported by itself.
    if not entries:
        raise ValueError("should have at least one entry")
    return entries


def _mode(written: object) -> str:
    if not isinstance(written, str) or not re.fullmatch(r"0?[0-7]{3}", written):
        raise ValueError('should be an octal file mode in quotes, such as "0660"')
    return written


def _owner(written: object) -> Owner:
    if isinstance(written, int | float):  # to YAML 1.1 a bare 33:33 is the number 2013
        raise ValueError(f"{OWNER_HINT}, in quotes")
    if not isinstance(written, str):
        raise ValueError(OWNER_HINT)
    user, colon, group = written.partition(":")
    if (colon and not group) or ":" in group:
        raise ValueError(f"{OWNER_HINT}, not '{written}'")
    uid = _id(user, "user", lambda name: pwd.getpwnam(name).pw_uid)
    gid = _id(group, "group", lambda name: grp.getgrnam(name).gr_gid)
    return Owner(written, uid, gid)


def _id(name: str, kind: str, known: Callable[[str], int]) -> int:
    if not name:
        return -1
    # A number need not have a name: inside a container it seldom has.
    if re.fullmatch(r"\d+", name, re.ASCII):
        if int(name) > _ID_MAX:
            raise ValueError(f"'{name}' is not the number of a {kind} (0 to {_ID_MAX})")
        return int(name)
    try:
        return known(name)
    except KeyError:
        raise ValueError(f"there is no {kind} '{name}' on this machine") from None


def _reads(written: object) -> object:
    return written.replace("master", "primary") if isinstance(written, str) else written


def _switchable(written: object) -> Address | None:
    # YAML 1.1 reads a bare `off` as false.
    return None if written is False or written in ("", "off") else parse_address(written, listen=True)


def _client_name(name: str) -> str:
    if not re.fullmatch(r"[!-~]*", name):
        raise ValueError(
            "Client names cannot contain spaces, newlines or special characters."
        )  # CLIENT SETNAME's words
    return name


def _command_name(written: str) -> str:
    name = written.strip().lower().replace(" ", "|")
    if not re.fullmatch(r"[a-z0-9._-]+(\|[a-z0-9._-]+)?", name):
        raise ValueError(f"'{written}' is not a command name, such as debug or cluster|failover")
    return name


def _node_name(written: str) -> str:
    """A bare host (IPv6 without brackets), or host:port in its one spelling."""
    if has_port(written):
        return str(parse_address(written))
    if not written or ":" in written:
        ip_address(written)
    return written


def _pattern(units: Iterable[str]) -> dict[str, Any]:
    spelling = rf"^\s*\d+(\.\d+)?({'|'.join(units)})\s*$|^0$|\$\{{"
    return {"anyOf": [{"type": "string", "pattern": spelling}, {"type": "integer", "const": 0}]}


_WORKERS = {
    "anyOf": [
        {"type": "integer", "minimum": 1, "maximum": WORKERS_MAX},
        {"type": "string", "pattern": r"^(auto|\d{1,3})$|\$\{"},
    ]
}
_YES_OR_NO = {"anyOf": [{"type": "boolean"}, {"type": "string", "pattern": r"\$\{"}]}
_Duration = WithJsonSchema(_pattern(DURATION_UNITS))
_Size = WithJsonSchema(_pattern([*SIZE_UNITS, *(unit.upper() for unit in SIZE_UNITS)]))
_Text = WithJsonSchema({"type": "string"})
_Spelt = PlainSerializer(str, return_type=str)
_Seconds = PlainSerializer(format_duration, return_type=str, when_used="json")
_Bytes = PlainSerializer(format_size, return_type=str, when_used="json")

# For a tuple: at least one entry.
SOME = (AfterValidator(_not_empty), Field(json_schema_extra={"minItems": 1}))

# What a value is, in code > how it is checked, written and described.
SecondsOrOff = Annotated[float, BeforeValidator(parse_duration), _Seconds, _Duration]
Seconds = Annotated[float, BeforeValidator(parse_duration), AfterValidator(_positive), _Seconds, _Duration]
Bytes = Annotated[int, BeforeValidator(parse_size), AfterValidator(_positive), _Bytes, _Size]
# A batch's pause delays every answer in it; a smaller window would park what a single read brings in.
Pause = Annotated[SecondsOrOff, _at_most("10ms")]
Window = Annotated[Bytes, _at_least("64kb")]
Connections = Annotated[int, Field(ge=1, le=64), BeforeValidator(_whole)]
Redirections = Annotated[int, Field(ge=0, le=100), BeforeValidator(_whole)]
Count = Annotated[int, Field(ge=1, le=2**31 - 1), BeforeValidator(_whole)]
Workers = Annotated[int | Literal["auto"], BeforeValidator(_workers), WithJsonSchema(_WORKERS)]
YesOrNo = Annotated[bool, BeforeValidator(_yes_or_no), WithJsonSchema(_YES_OR_NO)]
Listen = Annotated[Address, BeforeValidator(lambda a: parse_address(a, listen=True, unix=True)), _Spelt, _Text]
Switchable = Annotated[Address | None, BeforeValidator(_switchable), PlainSerializer(lambda a: str(a or "off")), _Text]
Node = Annotated[Address, BeforeValidator(parse_address), _Spelt, _Text]
NodeName = Annotated[str, AfterValidator(_node_name)]
SocketPath = Annotated[str, AfterValidator(lambda path: path and check_socket_path(path))]
FileMode = Annotated[str, BeforeValidator(_mode)]
FileOwner = Annotated[Owner, BeforeValidator(_owner), _Spelt, _Text]
Secret = Annotated[SecretFile, BeforeValidator(_read_secret), PlainSerializer(lambda file: file.path), _Text]
ClientName = Annotated[str, AfterValidator(_client_name)]
CommandName = Annotated[str, AfterValidator(_command_name)]
ReadPolicy = Annotated[
    Literal["primary", "prefer_primary", "replica", "prefer_replica", "any"], BeforeValidator(_reads)
]
LogLevel = Literal["debug", "info", "warning", "error"]
