"""The configuration: one pydantic model per YAML section, and a loader that names file, line and key of every fault.

Why: the models are the one place where an option, its default and meaning stand (proxy.config.values: what a value may
be); config/proxy.yaml and config/proxy.schema.json are held equal to them by tests.
Who calls it: cli (load, from_seeds, effective, schema); run, supervisor, worker and control (read the Settings).

Invariants:
- Settings never change after they were read and hold values in seconds and bytes, whatever the file spelt.
- load() reports everything that is wrong at once; a Settings it returns can be run.
- No fault, no repr and no printed configuration contains a secret.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator

from proxy.config.faults import Conflict, checked, impossible
from proxy.config.file import ConfigFaults, Fault, Key, Source, read
from proxy.config.units import Address
from proxy.config.values import (
    SOME,
    Bytes,
    ClientName,
    CommandName,
    Connections,
    Count,
    FileMode,
    FileOwner,
    Listen,
    LogLevel,
    Node,
    NodeName,
    Pause,
    ReadPolicy,
    Redirections,
    Seconds,
    SecondsOrOff,
    Secret,
    SecretFile,
    SocketPath,
    Switchable,
    Window,
    Workers,
    YesOrNo,
    has_port,
)

__all__ = ["Address", "ConfigFaults", "Fault", "Settings", "effective", "from_seeds", "load", "schema"]

COMMAND_LINE = "command line"
MODE = "0660"


def _option(default: object, text: str) -> Any:
    # Defaults are spelt as in the file: the schema shows them so, and the same rules read them.
    return Field(default, description=text, validate_default=True)


class Section(BaseModel):
    """A mapping of known options; an empty one (YAML null) has its defaults."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def conflicts(self) -> Iterator[Conflict]:
        """Each combination that cannot work, with keys below this section."""
        yield from ()

    @model_validator(mode="before")
    @classmethod
    def _empty(cls, written: object) -> object:
        return {} if written is None else written

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if found := list(self.conflicts()):
            raise impossible(found)
        return self


class Listener(Section):
    """One address clients connect to."""

    address: Listen = _option("127.0.0.1:7617", "host:port, [v6]:port or unix:/path to listen on.")
    reads: ReadPolicy = _option(
        "primary",
        "Where reads go: primary, prefer_primary, replica, prefer_replica or any (master: another word for primary).",
    )
    backlog: Count = _option(511, "Connections waiting to be accepted, at most the kernel's net.core.somaxconn.")
    mode: FileMode = _option(MODE, "File mode of a Unix socket, in quotes.")
    owner: FileOwner = _option(
        "",
        "Owner of a Unix socket's file: user, user:group or :group, names or numbers, in quotes; empty = the proxy's.",
    )

    def conflicts(self) -> Iterator[Conflict]:
        """A TCP port has no mode and no owner."""
        if self.mode != MODE and not self.address.path:
            yield Conflict(("mode",), "only the file of a unix: address has a mode", (("address",),))
        if self.owner.written and not self.address.path:
            yield Conflict(("owner",), "only the file of a unix: address has an owner", (("address",),))


class Cluster(Section):
    """How the Redis or Valkey Cluster is found and understood."""

    seeds: Annotated[tuple[Node, ...], *SOME] = Field(
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

    def conflicts(self) -> Iterator[Conflict]:
        """Passwords, the refresh gap and address_map entries that do not fit together."""
        yield from _password_conflicts(self.password, self.password_file)
        if self.username and not self.secret:
            needs = (("password",), ("password_file",))
            yield Conflict(("username",), "a user needs password or password_file", needs)
        if self.refresh_min_gap > self.refresh_interval:
            yield Conflict(("refresh_min_gap",), "longer than refresh_interval", (("refresh_interval",),))
        for announced, reached in self.address_map.items():
            if has_port(announced) != has_port(reached):
                yield Conflict(("address_map", announced), "a host maps to a host, host:port to host:port")


class Backends(Section):
    """Connections to the nodes."""

    connections: Connections = _option(1, "Shared connections per node and protocol.")
    connect_timeout: Seconds = _option("1s", "How long connecting and the handshake may take.")
    max_window: Window = _option(
        "16mb",
        "Bytes of unanswered commands on one connection from which on clients wait with more; at least 64kb.",
    )
    batch_pause: Pause = _option(
        "50us",
        "With many active clients: how long to wait for more of them before a batch is handled; 0 = not, at most 10ms.",
    )
    stall_timeout: Seconds = _option("10s", "A connection with commands pending that gives no byte so long is closed.")
    backoff_min: Seconds = _option("50ms", "First pause before a node is connected to again.")
    backoff_max: Seconds = _option("2s", "Longest such pause.")
    client_name: ClientName = _option("redis-proxy", "Name of the connections in the nodes' CLIENT LIST; empty = none.")
    keepalive: SecondsOrOff = _option("60s", "TCP keepalive towards the nodes; 0 = off.")
    health_interval: Seconds = _option("2s", "Time between two looks at a node's health.")

    def conflicts(self) -> Iterator[Conflict]:
        """A backoff that would shrink."""
        if self.backoff_min > self.backoff_max:
            yield Conflict(("backoff_min",), "longer than backoff_max", (("backoff_max",),))


class Requests(Section):
    """What one command is given."""

    timeout: Seconds = _option("5s", "Longest time from a command to its reply, retries and redirections included.")
    failover_timeout: SecondsOrOff = _option(
        "5s", "How long commands for a node known to be down are held; 0 = they fail at once."
    )
    retry_backoff_min: Seconds = _option("5ms", "First pause before a command refused for the moment is sent again.")
    retry_backoff_max: Seconds = _option("100ms", "Longest such pause.")
    max_redirections: Redirections = _option(5, "MOVED and ASK followed for one command.")

    def conflicts(self) -> Iterator[Conflict]:
        """A backoff that would shrink."""
        if self.retry_backoff_min > self.retry_backoff_max:
            yield Conflict(("retry_backoff_min",), "longer than retry_backoff_max", (("retry_backoff_max",),))


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

    def conflicts(self) -> Iterator[Conflict]:
        """Two passwords; a soft limit that can never be reached."""
        yield from _password_conflicts(self.password, self.password_file)
        if self.output_soft_limit > self.output_hard_limit:
            yield Conflict(("output_soft_limit",), "more than output_hard_limit", (("output_hard_limit",),))


class Commands(Section):
    """Which commands pass."""

    allow: tuple[CommandName, ...] = _option(
        (), "Commands to let through although they are refused by default, such as debug or cluster|failover."
    )


class Admin(Section):
    """The administration port (HTTP)."""

    address: Switchable = _option("127.0.0.1:9617", "host:port of /metrics, /livez and /readyz; off = none.")


class Ready(Section):
    """When /readyz answers 200."""

    partial: YesOrNo = _option(
        False, "true: as soon as a node is known for some slot; false: only when one is known for every slot."
    )


class Drain(Section):
    """The end after SIGTERM."""

    delay: SecondsOrOff = _option(
        "0s", "How long clients are still accepted while /readyz answers 503 already, for balancers to notice."
    )
    timeout: Seconds = _option(
        "10s", "How long clients may then take to get the replies to what they sent; who is left is closed."
    )


class Log(Section):
    """What is logged, how and where."""

    level: LogLevel = _option("info", "debug, info, warning or error.")
    format: Literal["logfmt", "json"] = _option("logfmt", "logfmt or json, one line each.")
    file: str = _option("", "File to append to, reopened on SIGUSR1; empty = stderr.")


class Settings(Section):
    """The whole configuration."""

    include: tuple[str, ...] = _option((), "Files, relative to this one, with options this one does not give.")
    workers: Workers = _option(
        "auto", "Worker processes, 1 to 256; auto = as many as CPUs are granted (affinity, the cgroup's quota)."
    )
    listeners: Annotated[tuple[Listener, ...], *SOME] = Field(
        default_factory=lambda: (Listener(),), description="Addresses clients connect to."
    )
    handover: SocketPath = _option(
        "", "Path of the Unix socket over which the next instance takes over the listening sockets; empty = none."
    )
    cluster: Cluster
    backends: Backends = Field(default_factory=Backends)
    requests: Requests = Field(default_factory=Requests)
    clients: Clients = Field(default_factory=Clients)
    commands: Commands = Field(default_factory=Commands)
    admin: Admin = Field(default_factory=Admin)
    ready: Ready = Field(default_factory=Ready)
    drain: Drain = Field(default_factory=Drain)
    log: Log = Field(default_factory=Log)

    @model_validator(mode="before")
    @classmethod
    def _seeds_are_missed_by_name(cls, written: object) -> object:
        return {"cluster": {}} | written if isinstance(written, dict) else written

    def conflicts(self) -> Iterator[Conflict]:
        """Two sockets in one place; readiness that nobody can ask for."""
        admin = ("admin", "address")
        taken: list[tuple[Key, Address]] = [(admin, self.admin.address)] if self.admin.address else []
        for n, listener in enumerate(self.listeners):
            key = ("listeners", n, "address")
            yield from _clashes(key, listener.address, taken)
            # Port 0 clashes with nothing, but it is the address that tells listeners apart (proxy.ipc.messages.Take).
            if not listener.address.path and not listener.address.port:
                for m in range(n):
                    if self.listeners[m].address == listener.address:
                        yield Conflict(key, f"{listener.address} is given twice", (("listeners", m, "address"),))
            taken.append((key, listener.address))
        if self.handover:
            yield from _clashes(("handover",), Address(path=self.handover), taken)
        if self.ready.partial and self.admin.address is None:
            reason = "nobody can ask for readiness while admin.address is off"
            yield Conflict(("ready", "partial"), reason, (admin,))


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


def _clashes(key: Key, address: Address, taken: Iterable[tuple[Key, Address]]) -> Iterator[Conflict]:
    """Why it cannot be listened at as well."""
    for other_key, other in taken:
        if address.overlaps(other):
            overlaps = "" if address == other else f"overlaps {other}, which "
            yield Conflict(key, f"{address} {overlaps}is listened on already", (other_key,))
            return


def _password_conflicts(password: SecretStr, file: SecretFile) -> Iterator[Conflict]:
    if password.get_secret_value() and file.path:
        yield Conflict(("password",), "either password or password_file, not both", (("password_file",),))


def _settings(source: Source, folder: Path) -> Settings:
    return checked(Settings, source, {"folder": folder}, {("cluster", "seeds"): ["localhost:1"]})
