"""The configuration: one pydantic model per YAML section, and the functions that read it.

Why: the models are the one place where an option, its default and its meaning stand (proxy.config.values: what a value
may be); config/proxy.yaml and config/proxy.schema.json are held equal to them by tests.
Called by cli (load, from_seeds, effective, schema); run, supervisor and admin read the Settings.

Invariants:
- Settings never change after they were read and hold values in seconds and bytes, whatever the file says.
- load() reports everything that is wrong at once; the Settings it returns can be run.
- No fault, no repr and no printed configuration contains a secret.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from proxy.config import values as kind
from proxy.config.faults import Conflict, checked
from proxy.config.file import COMMAND_LINE, ConfigFaults, Fault, Key, Source, read
from proxy.system.address import Address

__all__ = ["Address", "ConfigFaults", "Fault", "Settings", "effective", "from_seeds", "load", "schema", "settings_of"]

MODE = "0660"
_STAND_IN = {"cluster": {"seeds": ["localhost:1"]}}


def _option(default: object, text: str) -> Any:
    # Defaults are spelt as in the file: the schema shows them so, and the same rules read them.
    return Field(default, description=text, validate_default=True)


class Section(BaseModel):
    """A mapping of known options; an empty one (YAML null) has its defaults."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)
    ORDER: ClassVar[tuple[tuple[str, str, str], ...]] = ()  # an option, what it must not be, and than which

    def conflicts(self) -> Iterator[Conflict]:
        """Each combination that cannot work, with keys that begin at this section."""
        for less, excess, more in self.ORDER:
            if getattr(self, less) > getattr(self, more):
                yield Conflict((less,), f"{excess} {more}", ((more,),))
        for name, value in self:
            for place, one in enumerate(value) if isinstance(value, tuple) else [(None, value)]:
                if isinstance(one, Section):
                    above = (name,) if place is None else (name, place)
                    for option, reason, others in one.conflicts():
                        yield Conflict((*above, *option), reason, tuple((*above, *other) for other in others))

    @model_validator(mode="before")
    @classmethod
    def _empty(cls, written: object) -> object:
        return {} if written is None else written


class Listener(Section):
    """One address clients connect to."""

    address: kind.Listen = _option("127.0.0.1:7617", "host:port, [v6]:port or unix:/path to listen on.")
    reads: kind.ReadPolicy = _option(
        "primary", "Where reads go: primary, prefer_primary, replica, prefer_replica or any."
    )
    backlog: kind.Count = _option(511, "Connections waiting to be accepted, at most the kernel's net.core.somaxconn.")
    mode: kind.FileMode = _option(MODE, "File mode of a Unix socket, in quotes.")
    owner: kind.FileOwner = _option(
        "", "Owner of its file: user, user:group or :group, in quotes; empty = the proxy's."
    )

    def conflicts(self) -> Iterator[Conflict]:
        """A TCP port has no mode and no owner."""
        if self.mode != MODE and not self.address.path:
            yield Conflict(("mode",), "only the file of a unix: address has a mode", (("address",),))
        if self.owner.written and not self.address.path:
            yield Conflict(("owner",), "only the file of a unix: address has an owner", (("address",),))


class Login(Section):
    """A section with a password, given as such or in a file."""

    if TYPE_CHECKING:
        password: kind.Secret
        password_file: kind.FromFile

    @property
    def secret(self) -> str:
        """The password, wherever it came from; empty = none."""
        return self.password_file.secret or self.password.get_secret_value()

    def conflicts(self) -> Iterator[Conflict]:
        """Two passwords."""
        yield from super().conflicts()
        if self.password.get_secret_value() and self.password_file.path:
            yield Conflict(("password",), "either password or password_file, not both", (("password_file",),))


class Cluster(Login):
    """How the Redis or Valkey Cluster is found and understood."""

    ORDER = (("refresh_min_gap", "longer than", "refresh_interval"),)

    seeds: kind.Nodes = Field(description="Nodes to ask for the topology, host:port each; one that lives is enough.")
    username: str = _option("", "User of the proxy at the nodes (AUTH); empty = the default user.")
    password: kind.Secret = _option("", "The proxy's password at the nodes; empty = $REDIS_PROXY_PASSWORD, or none.")
    password_file: kind.FromFile = _option("", "File with that password, relative to the folder of the configuration.")
    address_map: kind.AddressMap = _option({}, "Announced host or host:port -> the one to be reached (Docker, NAT).")
    endpoint: kind.Endpoint = _option("announced", "Which of a node's addresses to use: announced, ip or hostname.")
    refresh_interval: kind.Seconds = _option("30s", "Time between two looks at the topology when nothing seems wrong.")
    refresh_min_gap: kind.SecondsOrOff = _option("250ms", "Least time between two looks, however many MOVED come in.")
    refresh_timeout: kind.Seconds = _option("2s", "How long one node may take to tell the topology.")

    def conflicts(self) -> Iterator[Conflict]:
        """A user without a password; entries of address_map that do not fit."""
        yield from super().conflicts()
        if self.username and not self.secret:
            needs = (("password",), ("password_file",))
            yield Conflict(("username",), "a user needs password or password_file", needs)
        for announced, reached in self.address_map.items():
            if kind.has_port(announced) != kind.has_port(reached):
                yield Conflict(("address_map", announced), "a host maps to a host, host:port to host:port")


class Backends(Section):
    """Connections to the nodes."""

    ORDER = (("backoff_min", "longer than", "backoff_max"),)

    connections: kind.Connections = _option(1, "Shared connections per node and protocol.")
    max_leased: kind.Count = _option(
        1000,
        "Connections per node, protocol, database and worker that one client has for itself (WATCH, BLPOP, tracking).",
    )
    connect_timeout: kind.Seconds = _option("1s", "How long connecting and the handshake may take.")
    max_window: kind.Window = _option(
        "16mb", "Unanswered bytes per connection after which clients wait; at least 64kb."
    )
    batch_pause: kind.Pause = _option(
        "50us",
        "With many active clients: how long to wait for more of them before a batch is handled; 0 = not, at most 10ms.",
    )
    stall_timeout: kind.Seconds = _option("10s", "A connection that owes replies and is silent so long is closed.")
    suspect_timeout: kind.Suspicion = _option(
        "1s",
        "A node that owes replies and is silent so long is suspected: reads go elsewhere, writes wait; 100ms to 60s.",
    )
    backoff_min: kind.Seconds = _option("50ms", "First pause before a node is connected to again.")
    backoff_max: kind.Seconds = _option("2s", "Longest such pause.")
    client_name: kind.ClientName = _option("redis-proxy", "Name of the connections in CLIENT LIST; empty = none.")
    keepalive: kind.SecondsOrOff = _option("60s", "TCP keepalive towards the nodes; 0 = off.")
    health_interval: kind.Seconds = _option("2s", "Time between two looks at a node's health.")


class Requests(Section):
    """What one command is given."""

    ORDER = (("retry_backoff_min", "longer than", "retry_backoff_max"),)

    timeout: kind.Seconds = _option("5s", "Longest time from a command to its reply, with retries and redirections.")
    failover_timeout: kind.SecondsOrOff = _option("5s", "How long commands wait for a node that is down; 0 = not.")
    retry_backoff_min: kind.Seconds = _option("5ms", "First pause before a refused command is sent again.")
    retry_backoff_max: kind.Seconds = _option("100ms", "Longest such pause.")
    max_redirections: kind.Redirections = _option(5, "MOVED and ASK followed in a row before a command waits.")
    max_held: kind.Count = _option(
        50000,
        "Commands held until they can be sent: half of them for one node at most, a quarter for one client; more are"
        " refused.",
    )
    max_held_bytes: kind.Bytes = _option("64mb", "Bytes of such commands, shared out in the same way.")


class Clients(Login):
    """What clients may do and use."""

    ORDER = (
        ("output_soft_limit", "more than", "output_hard_limit"),
        ("pubsub_soft_limit", "more than", "pubsub_output_limit"),
    )

    max_clients: kind.Count = _option(10000, "Clients at the same time; more are refused with Redis's error.")
    password: kind.Secret = _option("", "What clients say with AUTH; empty = $REDIS_PROXY_CLIENT_PASSWORD, or none.")
    password_file: kind.FromFile = _option("", "File with that password, relative to the folder of the configuration.")
    admin_password: kind.Secret = _option("", "Password of the user `admin`, who may use PROXY; empty = nobody may.")
    admin_password_file: kind.FromFile = _option("", "File with that password, likewise.")
    protected_mode: kind.YesOrNo = _option(
        True, "true: when the cluster has a password, listeners for other machines need one too; false: not."
    )
    max_memory: kind.Memory = _option(
        "auto", "Memory of all clients together; auto = half of what machine or container grant, 0 = no limit."
    )
    idle_timeout: kind.SecondsOrOff = _option("0", "A client that is silent so long is closed; 0 = never.")
    frame_timeout: kind.SecondsOrOff = _option(
        "0", "A client that takes so long from a command's first byte to its last is closed; 0 = never."
    )
    max_pending: kind.Count = _option(1024, "Unanswered commands of one client before it is read no further.")
    max_pending_bytes: kind.Bytes = _option("16mb", "Bytes of such commands before it is read no further.")
    output_soft_limit: kind.Bytes = _option("1mb", "Unread replies of one client before it is read no further.")
    output_hard_limit: kind.Bytes = _option("1gb", "Unread replies of one client before it is closed.")
    pubsub_output_limit: kind.Bytes = _option("32mb", "Unread messages of a subscriber before it is closed.")
    pubsub_soft_limit: kind.Bytes = _option("8mb", "... that it may have for pubsub_soft_time at most.")
    pubsub_soft_time: kind.Seconds = _option("60s", "How long a subscriber may be above pubsub_soft_limit.")
    max_subscriptions: kind.Count = _option(100000, "Channels and patterns of one client.")
    max_query: kind.Bytes = _option("1gb", "Bytes of one command (client-query-buffer-limit).")
    max_bulk: kind.Bytes = _option("512mb", "Bytes of one argument (proto-max-bulk-len).")
    max_arguments: kind.Count = _option(1048576, "Arguments of one command.")
    tcp_keepalive: kind.SecondsOrOff = _option("300s", "TCP keepalive towards clients; 0 = off.")

    @property
    def admin_secret(self) -> str:
        """The administrators' password, wherever it came from; empty = none."""
        return self.admin_password_file.secret or self.admin_password.get_secret_value()

    def conflicts(self) -> Iterator[Conflict]:
        """Two passwords of administrators."""
        yield from super().conflicts()
        if self.admin_password.get_secret_value() and self.admin_password_file.path:
            reason = "either admin_password or admin_password_file, not both"
            yield Conflict(("admin_password",), reason, (("admin_password_file",),))


class Commands(Section):
    """Which commands pass."""

    allow: kind.CommandNames = _option((), "Commands to allow that are refused by default, such as cluster|failover.")
    deny: kind.CommandNames = _option((), "Commands to refuse: names, cluster|info, categories such as @dangerous.")
    script_memory: kind.Bytes = _option("16mb", "Scripts remembered for nodes that lack them (NOSCRIPT).")


class Admin(Section):
    """The administration port (HTTP)."""

    address: kind.Switchable = _option("127.0.0.1:9617", "host:port of /metrics, /livez and /readyz; off = none.")


class Ready(Section):
    """When /readyz answers 200."""

    partial: kind.YesOrNo = _option(False, "true: ready when a node is known for some slot; false: for every slot.")


class Drain(Section):
    """The end after SIGTERM."""

    delay: kind.SecondsOrOff = _option("0s", "Time with /readyz at 503 and clients still accepted, for balancers.")
    timeout: kind.Seconds = _option("10s", "Time clients then have to get their replies; who is left is closed.")


class Log(Section):
    """What is logged, how and where."""

    level: kind.LogLevel = _option("info", "debug, info, warning or error.")
    format: kind.LogFormat = _option("logfmt", "logfmt or json, one line each.")
    file: str = _option("", "File to append to, reopened on SIGUSR1; empty = stderr.")


class Settings(Section):
    """The whole configuration."""

    include: tuple[str, ...] = _option((), "Files or patterns (conf.d/*.yaml) with options this file does not give.")
    workers: kind.Workers = _option("auto", "Worker processes, 1 to 256; auto = one per CPU granted (affinity, quota).")
    listeners: Annotated[tuple[Listener, ...], *kind.SOME] = Field(
        default_factory=lambda: (Listener(),), description="Addresses clients connect to."
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
        """Those of the sections; two sockets in one place; clients without a password; readiness nobody can ask for."""
        yield from super().conflicts()
        admin = ("admin", "address")
        taken: list[tuple[Key, Address]] = [(admin, self.admin.address)] if self.admin.address else []
        for n, listener in enumerate(self.listeners):
            key = ("listeners", n, "address")
            yield from _clashes(key, listener.address, taken)
            taken.append((key, listener.address))
            if self.cluster.secret and self.clients.protected_mode and is_open(self, listener):
                secrets = [(one, name) for one in ("cluster", "clients") for name in ("password", "password_file")]
                reason = "open to other machines: clients.password is needed, or clients.protected_mode: false"
                yield Conflict(key, reason, (*secrets, ("clients", "protected_mode")))
        if self.ready.partial and self.admin.address is None:
            reason = "nobody can ask for readiness while admin.address is off"
            yield Conflict(("ready", "partial"), reason, (admin,))


def load(path: str | Path) -> Settings:
    """Reads, merges and checks the file; ConfigFaults with everything that is wrong."""
    return settings_of(read(Path(path)), Path(path).parent)


def from_seeds(seeds: Iterable[str]) -> Settings:
    """Defaults against these host:port seeds; ConfigFaults as load."""
    return settings_of(Source(COMMAND_LINE, {"cluster": {"seeds": list(seeds)}}), Path())


def settings_of(
    source: Source, folder: Path, further: Callable[[Settings], Iterable[Conflict]] = lambda settings: ()
) -> Settings:
    """Checks what was read; ConfigFaults as load. folder: of password files. further: finds more conflicts."""
    context = {"folder": folder}
    return checked(Settings, source, context, _STAND_IN, lambda settings: [*settings.conflicts(), *further(settings)])


def effective(settings: Settings) -> str:
    """The whole configuration as YAML, defaults included, secrets masked."""
    return str(yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, width=120))


def schema() -> dict[str, Any]:
    """JSON Schema of the file, for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Settings.model_json_schema()}


def is_open(settings: Settings, listener: Listener) -> bool:
    """Whether clients on other machines can use the listener without a password; a name is taken for theirs."""
    if listener.address.path or settings.clients.secret:
        return False
    try:
        return not ip_address(listener.address.host).is_loopback
    except ValueError:
        return listener.address.host.lower() != "localhost"


def _clashes(key: Key, address: Address, taken: Iterable[tuple[Key, Address]]) -> Iterator[Conflict]:
    """Why it cannot be listened at as well."""
    for other_key, other in taken:
        if address.overlaps(other):
            overlaps = "" if address == other else f"overlaps {other}, which "
            yield Conflict(key, f"{address} {overlaps}is listened on already", (other_key,))
        elif address == other and other_key[0] == key[0]:  # port 0 can be had twice, but listeners must differ
            yield Conflict(key, f"{address} is given twice", (other_key,))
        else:
            continue
            return
