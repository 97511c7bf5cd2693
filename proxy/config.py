"""The configuration: one pydantic model per YAML section, and a loader that names file, line and key of every fault.

Why: the models are the one place where an option, its type, default and meaning stand; config/proxy.yaml and
config/proxy.schema.json are held equal to them by tests.
Who calls it: cli (load, from_seeds, effective, schema), worker and control (read the Settings).

Invariants:
- Settings never change after they were read and hold values in seconds and bytes, whatever the file spelt.
- load() reports everything that is wrong at once; a Settings it returns can be run.
- No fault, no repr and no printed configuration contains a secret.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeGuard, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    SecretStr,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

from proxy.config_file import ConfigFaults, Fault, Key, Source, nearest, read, spelt
from proxy.units import (
    DURATION_UNITS,
    SIZE_UNITS,
    Address,
    format_duration,
    format_size,
    parse_address,
    parse_duration,
    parse_size,
)

__all__ = ["Address", "ConfigFaults", "Fault", "Settings", "effective", "from_seeds", "load", "schema"]

COMMAND_LINE = "command line"
MODE = "0660"


@dataclass(frozen=True, slots=True)
class SecretFile:
    """A file that holds a secret: its path as written (empty = none) and what it held, without the final newline."""

    path: str = ""
    secret: str = field(default="", repr=False)


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


def _positive(value: float) -> float:
    if value <= 0:
        raise ValueError("should be more than 0")
    return value


def _not_empty(entries: tuple[object, ...]) -> tuple[object, ...]:
    # Not min_length: pydantic counts only the valid entries, and a bad one is reported by itself.
    if not entries:
        raise ValueError("should have at least one entry")
    return entries


def _mode(written: object) -> str:
    if not isinstance(written, str) or not re.fullmatch(r"0?[0-7]{3}", written):
        raise ValueError('should be an octal file mode in quotes, such as "0660"')
    return written


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
    if _has_port(written):
        return str(parse_address(written))
    if not written or ":" in written:
        ip_address(written)
    return written


def _has_port(name: str) -> bool:
    return name.startswith("[") or name.count(":") == 1


def _pattern(units: Iterable[str]) -> dict[str, Any]:
    spelling = rf"^\s*\d+(\.\d+)?({'|'.join(units)})\s*$|^0$|\$\{{"
    return {"anyOf": [{"type": "string", "pattern": spelling}, {"type": "integer", "const": 0}]}


_Duration = WithJsonSchema(_pattern(DURATION_UNITS))
_Size = WithJsonSchema(_pattern([*SIZE_UNITS, *(unit.upper() for unit in SIZE_UNITS)]))
_Text = WithJsonSchema({"type": "string"})
_Spelt = PlainSerializer(str, return_type=str)
_Seconds = PlainSerializer(format_duration, return_type=str, when_used="json")
_Bytes = PlainSerializer(format_size, return_type=str, when_used="json")

_SOME = (AfterValidator(_not_empty), Field(json_schema_extra={"minItems": 1}))

# What a value is, in code > how it is checked, written and described.
SecondsOrOff = Annotated[float, BeforeValidator(parse_duration), _Seconds, _Duration]
Seconds = Annotated[float, BeforeValidator(parse_duration), AfterValidator(_positive), _Seconds, _Duration]
Bytes = Annotated[int, BeforeValidator(parse_size), AfterValidator(_positive), _Bytes, _Size]
Count = Annotated[int, Field(ge=1, le=2**31 - 1), BeforeValidator(_whole)]
Listen = Annotated[Address, BeforeValidator(lambda a: parse_address(a, listen=True, unix=True)), _Spelt, _Text]
Switchable = Annotated[Address | None, BeforeValidator(_switchable), PlainSerializer(lambda a: str(a or "")), _Text]
Node = Annotated[Address, BeforeValidator(parse_address), _Spelt, _Text]
NodeName = Annotated[str, AfterValidator(_node_name)]
Secret = Annotated[SecretFile, BeforeValidator(_read_secret), PlainSerializer(lambda file: file.path), _Text]
ReadPolicy = Literal["primary", "prefer_primary", "replica", "prefer_replica", "any"]
LogLevel = Literal["debug", "info", "warning", "error"]


def _option(default: object, text: str) -> Any:
    # Defaults are spelt as in the file: the schema shows them so, and the same rules read them.
    return Field(default, description=text, validate_default=True)


class Section(BaseModel):
    """A mapping of known options; an empty one (YAML null) has its defaults."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def conflicts(self) -> Iterator[tuple[Key, str]]:
        """Each combination that cannot work, as the option below this section to change, and why."""
        yield from ()

    @model_validator(mode="before")
    @classmethod
    def _empty(cls, written: object) -> object:
        return {} if written is None else written

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if found := list(self.conflicts()):
            text = "; ".join(f"{spelt(option)}: {reason}" for option, reason in found)
            raise PydanticCustomError("conflict", "{text}", {"text": text, "found": found})
        return self


class Listener(Section):
    """One address clients connect to."""

    address: Listen = _option("127.0.0.1:7617", "host:port, [v6]:port or unix:/path to listen on.")
    reads: Annotated[ReadPolicy, BeforeValidator(_reads)] = _option(
        "primary",
        "Where reads go: primary, prefer_primary, replica, prefer_replica or any (master: another word for primary).",
    )
    backlog: Count = _option(511, "Connections waiting to be accepted, at most the kernel's net.core.somaxconn.")
    mode: Annotated[str, BeforeValidator(_mode)] = _option(MODE, "File mode of a Unix socket, in quotes.")

    def conflicts(self) -> Iterator[tuple[Key, str]]:
        """A TCP port has no mode."""
        if self.mode != MODE and not self.address.path:
            yield ("mode",), "only the file of a unix: address has a mode"


class Cluster(Section):
    """How the Redis or Valkey Cluster is found and understood."""

    seeds: Annotated[tuple[Node, ...], *_SOME] = Field(
        description="Nodes to ask for the topology, host:port each; one that lives is enough."
    )
    username: str = _option("", "User of the proxy at the nodes (AUTH); empty = the default user.")
    password: SecretStr = _option("", "The proxy's password at the nodes; empty = none.")
    password_file: Secret = _option("", "File that holds that password, relative to the folder of the configuration.")
    address_map: dict[NodeName, NodeName] = _option(
        {},
        "Announced host or host:port -> the one the proxy can reach (Docker, NAT).",
    )
    endpoint: Literal["announced", "ip", "hostname"] = _option(
        "announced", "Which of a node's addresses to use: the one the servers prefer (announced), ip or hostname."
    )
    refresh_interval: Seconds = _option("30s", "Time between two looks at the topology when nothing seems wrong.")
    refresh_min_gap: SecondsOrOff = _option("250ms", "Least time between two looks, however many MOVED come in.")
    refresh_timeout: Seconds = _option("2s", "How long one node may take to tell the topology.")

    @property
    def secret(self) -> str:
        """The password, wherever it came from; empty = none."""
        return self.password_file.secret or self.password.get_secret_value()

    def conflicts(self) -> Iterator[tuple[Key, str]]:
        """Passwords, the refresh gap and address_map entries that do not fit together."""
        yield from _password_conflicts(self.password, self.password_file)
        if self.username and not self.secret:
            yield ("username",), "a user needs password or password_file"
        if self.refresh_min_gap > self.refresh_interval:
            yield ("refresh_min_gap",), "longer than refresh_interval"
        for announced, reached in self.address_map.items():
            if _has_port(announced) != _has_port(reached):
                yield ("address_map", announced), "a host maps to a host, host:port to host:port"


class Backends(Section):
    """Connections to the nodes."""

    connections: Annotated[int, Field(ge=1, le=64), BeforeValidator(_whole)] = _option(
        1, "Shared connections per node and protocol."
    )
    connect_timeout: Seconds = _option("1s", "How long connecting and the handshake may take.")
    stall_timeout: Seconds = _option("10s", "A connection with commands pending that gives no byte so long is closed.")
    backoff_min: Seconds = _option("50ms", "First pause before a node is connected to again.")
    backoff_max: Seconds = _option("2s", "Longest such pause.")
    client_name: Annotated[str, AfterValidator(_client_name)] = _option(
        "redis-proxy", "Name of the connections in the nodes' CLIENT LIST; empty = none."
    )
    keepalive: SecondsOrOff = _option("60s", "TCP keepalive towards the nodes; 0 = off.")
    health_interval: Seconds = _option("2s", "Time between two looks at a node's health.")

    def conflicts(self) -> Iterator[tuple[Key, str]]:
        """A backoff that would shrink."""
        if self.backoff_min > self.backoff_max:
            yield ("backoff_min",), "longer than backoff_max"


class Requests(Section):
    """What one command is given."""

    timeout: Seconds = _option("5s", "Longest time from a command to its reply, retries and redirections included.")
    failover_timeout: SecondsOrOff = _option(
        "5s", "How long commands for a node known to be down are held; 0 = they fail at once."
    )
    retry_backoff_min: Seconds = _option("5ms", "First pause before a command refused for the moment is sent again.")
    retry_backoff_max: Seconds = _option("100ms", "Longest such pause.")
    max_redirections: Annotated[int, Field(ge=0, le=100), BeforeValidator(_whole)] = _option(
        5, "MOVED and ASK followed for one command."
    )

    def conflicts(self) -> Iterator[tuple[Key, str]]:
        """A backoff that would shrink."""
        if self.retry_backoff_min > self.retry_backoff_max:
            yield ("retry_backoff_min",), "longer than retry_backoff_max"


class Clients(Section):
    """What clients may do and use."""

    max_clients: Count = _option(10000, "Clients at the same time; more are refused with Redis's error.")
    password: SecretStr = _option("", "What clients say with AUTH; empty = no AUTH is needed.")
    password_file: Secret = _option("", "File that holds that password, relative to the folder of the configuration.")
    idle_timeout: SecondsOrOff = _option("0", "A client that is silent so long is closed; 0 = never.")
    max_pending: Count = _option(1024, "Unanswered commands of one client before it is read no further.")
    max_pending_bytes: Bytes = _option("16mb", "Bytes of such commands before it is read no further.")
    output_soft_limit: Bytes = _option("1mb", "Unread replies of one client before it is read no further.")
    output_hard_limit: Bytes = _option("1gb", "Unread replies of one client before it is closed.")
    max_query: Bytes = _option("1gb", "Bytes of one command (client-query-buffer-limit).")
    max_bulk: Bytes = _option("512mb", "Bytes of one argument (proto-max-bulk-len).")
    max_arguments: Count = _option(1048576, "Arguments of one command.")
    tcp_keepalive: SecondsOrOff = _option("300s", "TCP keepalive towards clients; 0 = off.")

    @property
    def secret(self) -> str:
        """The password, wherever it came from; empty = none."""
        return self.password_file.secret or self.password.get_secret_value()

    def conflicts(self) -> Iterator[tuple[Key, str]]:
        """Two passwords; a soft limit that can never be reached."""
        yield from _password_conflicts(self.password, self.password_file)
        if self.output_soft_limit > self.output_hard_limit:
            yield ("output_soft_limit",), "more than output_hard_limit"


class Commands(Section):
    """Which commands pass."""

    allow: tuple[Annotated[str, AfterValidator(_command_name)], ...] = _option(
        (), "Commands to let through although they are refused by default, such as debug or cluster|failover."
    )


class Admin(Section):
    """The administration port (HTTP)."""

    address: Switchable = _option("127.0.0.1:9617", "host:port of /metrics, /livez and /readyz; off = none.")


class Log(Section):
    """What is logged, how and where."""

    level: LogLevel = _option("info", "debug, info, warning or error.")
    format: Literal["logfmt", "json"] = _option("logfmt", "logfmt or json, one line each.")
    file: str = _option("", "File to append to, reopened on SIGUSR1; empty = stderr.")


class Settings(Section):
    """The whole configuration."""

    include: tuple[str, ...] = _option((), "Files, relative to this one, with options this one does not give.")
    listeners: Annotated[tuple[Listener, ...], *_SOME] = Field(
        default_factory=lambda: (Listener(),), description="Addresses clients connect to."
    )
    cluster: Cluster
    backends: Backends = Field(default_factory=Backends)
    requests: Requests = Field(default_factory=Requests)
    clients: Clients = Field(default_factory=Clients)
    commands: Commands = Field(default_factory=Commands)
    admin: Admin = Field(default_factory=Admin)
    log: Log = Field(default_factory=Log)

    @model_validator(mode="before")
    @classmethod
    def _seeds_are_missed_by_name(cls, written: object) -> object:
        return {"cluster": {}} | written if isinstance(written, dict) else written

    def conflicts(self) -> Iterator[tuple[Key, str]]:
        """One address for two listeners."""
        taken = {self.admin.address}
        for n, listener in enumerate(self.listeners):
            if listener.address in taken and (listener.address.port or listener.address.path):
                yield ("listeners", n, "address"), f"{listener.address} is listened on already"
            taken.add(listener.address)


def load(path: str | Path) -> Settings:
    """Reads, merges and checks the file; ConfigFaults with everything that is wrong."""
    path = Path(path)
    source = read(path)
    return _settings(source, path.parent)


def from_seeds(seeds: Iterable[str]) -> Settings:
    """Defaults against these host:port seeds; ConfigFaults as load."""
    return _settings(Source(COMMAND_LINE, {"cluster": {"seeds": list(seeds)}}), Path())


def effective(settings: Settings) -> str:
    """The whole configuration as YAML, defaults included, secrets masked."""
    return str(yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, width=120))


def schema() -> dict[str, Any]:
    """JSON Schema of the file, for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Settings.model_json_schema()}


def _password_conflicts(password: SecretStr, file: SecretFile) -> Iterator[tuple[Key, str]]:
    if password.get_secret_value() and file.path:
        yield ("password",), "either password or password_file, not both"


def _settings(source: Source, folder: Path) -> Settings:
    settings = None
    try:
        settings = Settings.model_validate(source.values, context={"folder": folder})
    except ValidationError as error:
        known = {fault.key for fault in source.faults}
        for detail in error.errors(include_url=False, include_input=False):
            if detail["type"] == "missing" and source.incomplete:
                continue
            for key, reason in _explained(detail["loc"], detail["type"], detail["msg"], detail.get("ctx", {})):
                if spelt(key) not in known:
                    source.fault(key, reason)
    if source.faults or settings is None:
        raise ConfigFaults(source.faults)
    return settings


REASONS = {
    "missing": "is required",
    "model_type": "should be a mapping of options",
    "model_attributes_type": "should be a mapping of options",
    "dict_type": "should be a mapping",
    "tuple_type": "should be a list",
    "string_type": "should be text: write it in quotes",
    "greater_than_equal": "should be at least {ge}",
    "less_than_equal": "should be at most {le}",
}


def _explained(key: Key, kind: str, message: str, context: dict[str, Any]) -> Iterator[tuple[Key, str]]:
    """pydantic's error in our words; a conflict is as many faults as it names."""
    if kind == "conflict":
        for option, reason in context["found"]:
            yield (*key, *option), reason
    elif kind == "extra_forbidden":
        yield key, f"unknown option '{key[-1]}'{_known_near(key)}"
    elif kind == "value_error":
        yield tuple(step for step in key if step != "[key]"), str(context["error"])
    elif kind == "literal_error":
        yield key, f"should be {context['expected']}"
    else:
        yield key, REASONS[kind].format(**context) if kind in REASONS else message[:1].lower() + message[1:]


def _known_near(key: Key) -> str:
    """The option meant by an unknown one: the closest of its section, or the same word in another section."""
    section: type[BaseModel] = Settings
    for step in key[:-1]:
        if isinstance(step, str):
            annotation = section.model_fields[step].annotation
            section = next(kind for kind in (annotation, *get_args(annotation)) if _is_section(kind))
    word = str(key[-1])
    if hint := nearest(word, section.model_fields):
        return hint
    elsewhere = [
        f"{name}.{word}"
        for name, option in Settings.model_fields.items()
        if _is_section(option.annotation) and word in option.annotation.model_fields
    ]
    return f", did you mean '{elsewhere[0]}'?" if elsewhere else ""


def _is_section(kind: Any) -> TypeGuard[type[Section]]:
    return isinstance(kind, type) and issubclass(kind, Section)
