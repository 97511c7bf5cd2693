"""What a command answered by the proxy itself may see: the client that asked, and the proxy it asked.

Why: the real client is a compiled class of the data path and the real context is put together by the worker; both are
spelt here, in plain Python, so that every module of proxy.serve and its tests say the same thing about them.
Who calls it: proxy.worker (builds one ServeContext per event loop), proxy.serve.* (reads it), proxy.forward (fits
ClientLike).

Invariants: a context's attributes may be replaced at any time between two commands (slots_covered, server_version);
nothing here awaits, and nothing here is called per forwarded command.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

import msgspec

from proxy.commands.rows import Row
from proxy.forward.ask import Ask, Later
from proxy.forward.backend import Backend
from proxy.forward.tracking import Tracking
from proxy.serve.command_catalogs import CommandCatalogs
from proxy.serve.node_infos import NodeInfos

Proto = Literal[2, 3]
# Ready bytes; or what to ask the servers; or that the answer comes from elsewhere; or None: not before all that the
# client has under way is answered, ask again.
Answer = bytes | Ask | Later | None


class ClientLike(Protocol):
    """One client's connection as proxy.serve sees it.

    Strings are text of the proxy's own; bytes are what the client sent. Times are time.time() seconds.
    """

    @property
    def id(self) -> int: ...  # positive, never given twice by one proxy
    @property
    def proto(self) -> int: ...  # 2 or 3; changed with set_proto
    @property
    def address(self) -> str: ...  # "ip:port", "[ip6]:port" or "unix:path"
    @property
    def local_address(self) -> str: ...  # of the listener's side, spelt like address
    @property
    def age_s(self) -> float: ...  # since it connected; never negative
    @property
    def last_active_s(self) -> float: ...
    @property
    def last_command(self) -> str: ...  # "get", "client|info"; "" before the first
    @property
    def pending(self) -> int: ...  # commands not answered yet, this one included or not
    @property
    def output_bytes(self) -> int: ...  # reply bytes held for the client now
    @property
    def query_bytes(self) -> int: ...  # bytes of unfinished commands held now
    @property
    def total_commands(self) -> int: ...
    @property
    def fd(self) -> int: ...
    @property
    def reads(self) -> str: ...  # read policy in force; changed with set_reads
    @property
    def listener_reads(self) -> str: ...  # read policy of the listener it came by
    @property
    def blocked(self) -> bool: ...  # it waits for the reply to a blocking command
    @property
    def killed(self) -> bool: ...  # it is as good as closed
    @property
    def subscriptions(self) -> tuple[int, int, int]: ...  # channels, patterns, shard channels
    @property
    def held_back(self) -> bool: ...  # its next command waits for the end of a CLIENT PAUSE

    db: int
    authenticated: bool
    no_evict: bool  # these three: as the client said, without an effect
    no_touch: bool
    redirects: bool
    monitoring: bool
    cached: bool  # it has said CLIENT CACHING, and that holds for the next command
    user: str
    name: bytes  # b"" = none
    lib_name: bytes
    lib_ver: bytes
    watching: int  # the slot of the keys it watches, -1 = none
    asking: bool  # ... on a node that is importing that slot

    @property
    def lease(self) -> Backend | None: ...  # the connection that watches them; None: it was lost
    def queue(self, words: list[bytes], /) -> bool:
        """Queues a command for EXEC; False when the transaction is too long, and therefore lost."""

    def spoil(self) -> None:
        """EXEC is to fail."""

    def lease_slot(self, slot: int, /) -> str:
        """Leases a connection to the slot's primary; why not: "busy", "uncovered", "unknown"; "" = done."""

    def lease_redirected(self, line: bytes, slot: int, /) -> str:
        """Leases one to the node that a MOVED or ASK of the leased connection names; why not: "busy", "unknown"."""

    def lease_tuned(self) -> None:
        """The leased connection has been told the client's protocol and database."""

    def leased_at(self, slot: int, /) -> bool:
        """Whether the leased connection still leads to where the slot's commands are carried out."""

    def release(self, executed: bool = False) -> None:
        """Gives the connection back. executed: EXEC has ended there what was watched, else it is told to."""

    def forfeit(self) -> None:
        """Closes the connection; what was watched counts as changed."""

    def unblock(self, error: bool, told: Callable[[bool], object], /) -> None:
        """CLIENT UNBLOCK; told(whether that ended a blocking command) is called once, within some seconds."""

    @property
    def tracking(self) -> Tracking | None: ...  # what it wants tracked
    def track(self, tracking: Tracking | None, /) -> bool:
        """Changes what is tracked, when nothing is under way; False (nothing is tracked) when there is no room."""

    def set_proto(self, proto: int, /) -> None: ...
    def set_reads(self, name: str, /) -> None: ...
    def set_reply(self, mode: str, /) -> None: ...  # on, off, or skip: for the command after the present one
    def push(self, frame: bytes, behind: bool = False, /) -> None:
        """Send something between two replies; behind: not before those that have come for it already."""

    def close_after_reply(self) -> None:
        """Send the answer at hand and what precedes it, then close; whatever else the client sent is ignored."""

    def kill(self) -> None:
        """Close it at once."""

    def kill_after_reply(self) -> None:
        """The same as soon as the answer at hand is sent."""

    def reset(self) -> None:
        """Forget the state of RESET that only the data path holds (a transaction, a subscription, CLIENT REPLY OFF).

        local.answer itself puts back proto, db, name, reads and authentication, before it calls this.
        """


class PubSubLike(Protocol):
    """The clients' subscriptions; worker.subscriptions. kind: proxy.forward.hub.CHANNELS, PATTERNS, SHARDS.

    A client that subscribes or parts has nothing else under way.
    """

    def subscribe(self, client: Any, kind: int, names: list[bytes], /) -> bytes | Later: ...
    def unsubscribe(self, client: Any, kind: int, names: list[bytes] | None, /) -> bytes | Later: ...  # None: all
    def forget(self, client: Any, reply: bytes, /) -> bytes | Later: ...  # from all, then the reply
    def closed(self, client: Any, /) -> None: ...  # the client is
    def names(self, kind: int, /) -> list[bytes]: ...  # that clients or the worker itself are subscribed to
    def figures(self, kind: int, name: bytes, /) -> tuple[int, int]: ...  # clients, connections of the worker's own
    def places(self, kind: int, name: bytes, /) -> list[str]: ...  # nodes that the latter lead to


class NodeState(NamedTuple):
    """One server of the cluster, for the Nodes section of INFO."""

    address: str  # "host:port"
    role: str  # "primary" or "replica"
    up: bool
    connections: int
    pending: int  # commands sent and not answered
    id: str = ""  # as the cluster calls it; "" = not told
    paused: bool = False  # PROXY PAUSE holds what is for it


class ScriptsLike(Protocol):
    """What the proxy remembers of scripts; worker.scripts."""

    def body(self, sha: bytes, /) -> bytes | None: ...  # if this worker has it; sha: 40 lower-case hex digits
    def loaded(self, body: bytes, /) -> None: ...  # on the servers, by a client
    def flush(self, ask: Callable[[], Ask], /) -> Later: ...  # nobody knows any; then what is asked of the servers


class NodePause(msgspec.Struct, array_like=True, frozen=True):
    """What PROXY PAUSE says, or PROXY RESUME (until_ns 0), of one node or of all.

    subject: what it is known by: the node's id, or its label where it has none; "" = all nodes.
    """

    subject: str
    label: str  # "host:port", as it was then
    until_ns: int  # time.monotonic_ns(), which is the same in all processes of a machine
    who: str  # address of the client that asked for it
    given_ns: int  # when it did: RESUME ends what was paused before it was given, however late it is obeyed


class NodePausesLike(Protocol):
    """PROXY PAUSE in this worker; worker.node_pauses. subject: see NodePause."""

    @property
    def present(self) -> Collection[NodePause]: ...  # in force
    def obey(self, pause: NodePause, /) -> None: ...
    def fate(self, pause: NodePause, /) -> str: ...  # "" = it is in force, else a clause: "was ended by ..."
    def pending(self, subject: str, /) -> int: ...  # commands sent to the nodes that are not answered
    def prepare(self, subject: str, /) -> Iterator[None]: ...  # for the end of it; ends when done, or it takes too long


class MonitorsLike(Protocol):
    """Clients that are shown what passes through the proxy; worker.monitors."""

    def add(self, client: ClientLike, /) -> None: ...  # as soon as begin() is called
    def begin(self, client: ClientLike, /) -> None: ...
    def remove(self, client: ClientLike, /) -> None: ...


@dataclass(frozen=True, slots=True)
class Inquiry:
    """A question to all workers: ANSWERERS of this kind answer it, each for its own clients.

    merge(pieces of the answers, in the order they came; how many workers' are missing, -1: those of all others) is
    called once, for everybody who waits for this answer. shared: askers of the same kind and body may get the same one.
    everyone: it is an order rather than a question, in the same order for all workers, and the last one of its kind and
    subject holds for those to come. lasting: see ipc.messages.Question; when it is refused everybody who waits is told,
    and nothing is merged.
    """

    kind: str
    body: bytes
    merge: Callable[[list[bytes], int], Any]
    shared: bool = False
    everyone: bool = False
    subject: str = ""
    lasting: bool = False


# Called with the command's words, its name included. It raises for no input of a client.
Handler = Callable[["ServeContext", ClientLike, list[bytes]], Answer]
# name or "name|subcommand" -> (arity as COMMAND gives it, handler)
Commands = Mapping[bytes, tuple[int, Handler]]


# Pieces of one worker's share of an answer, made with little work between two of them; b"": nothing to say yet.
# None: nothing before something else has happened.
Answerer = Callable[[bytes], Iterator[bytes | None]]
Answerers = Mapping[str, Callable[["ServeContext", bytes], Iterator[bytes | None]]]


def _no_clients() -> Collection[ClientLike]:
    return ()


def _nobody(inquiry: Inquiry, reply: Callable[[Any], bytes | Ask]) -> Answer:
    return reply(inquiry.merge([], 0))


def _no_figures() -> Mapping[str, int | float]:
    return {}


def _no_owners() -> Sequence[tuple[int, int, str]]:
    return ()


def _no_nodes() -> Sequence[NodeState]:
    return ()


def _no_connections() -> list[Backend]:
    return []


@dataclass(slots=True)
class ServeContext:
    """The proxy as its clients may know it.

    client_password: the password of the one user `default`; None = no authentication. Not in the repr.
    admin_password: that of the user `admin`, to whom PROXY answers; None = there is no such user. Not in the repr.
    node_pauses: what PROXY PAUSE holds in this worker.
    server_version: `redis_version` of the servers; until one has answered, that of the built-in command table.
    server_name, valkey_version: as the servers' INFO has them; "redis" and "" when it has none.
    run_id: 40 hex digits; the same in all workers of one proxy, another after a restart.
    process_id: of the proxy, whichever of its processes answers; 0 = this one's.
    shards, slots_covered, epoch: of the topology; shards None = not seen yet, epoch below 0 = the nodes would not say.
    databases: numbered databases a client may SELECT; 1 = database 0 alone.
    unix_endpoint: (host, port) of a TCP listener to name to a cluster-aware client that came by a Unix socket; None =
        there is none.
    owners: (first slot, last slot, label of its primary), ascending; slots without a known primary are left out.
    key_counts: (database, label of a primary) -> its keys when SCAN last saw them; kept small by SCAN.
    spare_connections: a RESP2 connection to each primary on which no client's command runs, for what must get through
        to a node that is busy with a script.
    rows: the command table, by name ("get", "config|get"). refused: names of what is not let through; another object
        whenever either of them changes.
    infos: the nodes' INFO documents; catalogs: of the servers' commands; None = nobody to ask.
    scripts: what is remembered of scripts; None = nothing.
    clients: of this worker; one of them may be closed (fd below 0) by the time it is looked at.
    inquire: asks all workers; reply makes the answer of what Inquiry.merge has made. An error at once: not asked.
    pubsub: the clients' subscriptions; None = there can be none. keyspace_events: a client has set
        notify-keyspace-events to this on all nodes but these ("host:port") that have not confirmed it.
    pause: sets what CLIENT PAUSE holds in this worker (0 nothing, 1 what may write, 2 all; until this
        time.monotonic_ns(); for the log: the address of who wants it so); paused: what is held now, (0, 0) = nothing.
    unpaused_ns: when the last CLIENT UNPAUSE that was obeyed here was given (time.monotonic_ns()); 0 = there was none.
    monitors: the clients that are shown everything that passes through the proxy.
    stats: figures of the whole proxy under the names INFO gives them (connected_clients, maxclients,
        total_connections_received, total_commands_processed, instantaneous_ops_per_sec, total_net_input_bytes,
        total_net_output_bytes, rejected_connections; proxy_client_memory and proxy_client_memory_max, in bytes); what
        is missing is left out of INFO; other names beginning with `proxy_` go to the Proxy section as they are.
    """

    client_password: str | None = field(repr=False)
    server_version: str
    proxy_version: str
    started_s: float
    run_id: str
    process_id: int = 0
    server_name: str = "redis"
    valkey_version: str = ""
    shards: int | None = None
    slots_covered: int = 0
    epoch: int = -1
    databases: int = 1
    unix_endpoint: tuple[str, int] | None = None
    stats: Callable[[], Mapping[str, int | float]] = _no_figures
    nodes: Callable[[], Sequence[NodeState]] = _no_nodes
    owners: Callable[[], Sequence[tuple[int, int, str]]] = _no_owners
    key_counts: dict[tuple[int, str], int] = field(default_factory=dict)
    rows: Mapping[bytes, Row] = field(default_factory=dict)
    spare_connections: Callable[[], list[Backend]] = _no_connections
    refused: frozenset[bytes] = frozenset()
    infos: NodeInfos | None = None
    catalogs: CommandCatalogs | None = None
    scripts: ScriptsLike | None = None
    clients: Callable[[], Collection[ClientLike]] = _no_clients
    inquire: Callable[[Inquiry, Callable[[Any], bytes | Ask]], Answer] = _nobody
    pubsub: PubSubLike | None = None
    keyspace_events: Callable[[bytes, list[str]], None] = lambda value, unconfirmed: None
    pause: Callable[[int, int, str], None] = lambda level, until_ns, who: None
    paused: Callable[[], tuple[int, int]] = lambda: (0, 0)
    unpaused_ns: int = 0
    monitors: MonitorsLike | None = None
    admin_password: str | None = field(default=None, repr=False)
    node_pauses: NodePausesLike | None = None
