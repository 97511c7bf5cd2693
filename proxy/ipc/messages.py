"""What the main process and its workers say to each other; ipc.channel carries it.

Why: the whole conversation in one place, typed, so that a message of the wrong shape is a fault where it is read, not
three calls later. Both ends are the same version of the program: a worker of another one does not start (worker.main).

```
main process                                            worker
   Start (settings, topology, commands, ...)   ------>   connects, serves
                                               <------   Started
   Take (a listener's clients, descriptors)    ------>
   Topology, Commands, NodeFacts, Configure    ------>   (Configure is answered with Applied)
                                               <------   Report (moved, lost, ...: the topology may have changed)
                                               <------   KeyspaceEvents (CONFIG SET, remembered for nodes to come)
                                               <------   ScriptSeen, ScriptWanted (answered with ScriptBody),
   ForgetScripts                               ------>   Forgotten
                                               <------   FlushScripts (answered with ScriptsFlushed)
   Ask                                         ------>   Status, also once a second unasked
                                               <------   Question (to the other workers)
   Query (somebody's question)                 ------>   Answer, in pieces
   Found (the others' answers, in pieces)      ------>
                                               <------   Monitoring (how many clients do)
   ShowOthers (somebody monitors elsewhere)    ------>
   Shown (what the others' clients did)        <----->   Shown
   Retire | Drain | Stop                       ------>   Bye, and the process ends
```
"""

from __future__ import annotations

from typing import Final

import msgspec

from proxy.commands.rows import Row
from proxy.ipc.settings import WorkerSettings

# INFO's names for Status.topics. A channel that clients of several workers are subscribed to is counted for each: to
# count it once, workers would have to tell each other their names, half a million of them, for every INFO. PUBSUB does.
TOPIC_STATS: Final = ("pubsub_channels", "pubsub_patterns", "pubsubshard_channels")

# -- values ----------------------------------------------------------------------------------------------------------


class NodeEntry(msgspec.Struct, array_like=True):
    """A node of the published topology. hosts, announced_port: how other nodes may name it in a redirection."""

    host: str
    port: int
    replica: bool
    usable: bool  # a replica that may be read from; True for a primary
    announced_port: int
    hosts: tuple[str, ...]
    failing: bool = False  # the cluster has voted it failed
    stale: bool = False  # a replica that may not be read from only because it has lost touch with its primary
    id: str = ""  # as the nodes call it; "" = not told


class Topology(msgspec.Struct, tag=True, array_like=True):
    """The topology, ready for the data path: nothing is built, compared or parsed by a worker.

    shards: (index into nodes of the primary, or -1; those of its replicas). owners: 16,384 little-endian uint16, the
    index into shards of each slot's owner, 0xFFFF = nobody. names: str(Address) of every host and port a redirection
    may say, mapped ones included -> index into nodes. epoch: -1 = the nodes would not say.
    """

    nodes: list[NodeEntry]
    shards: list[tuple[int, tuple[int, ...]]]
    owners: bytes
    names: dict[str, int]
    epoch: int
    covered: int  # slots that have a primary


class Commands(msgspec.Struct, tag=True, array_like=True):
    """The command table: the servers' rows laid over the built-in ones, and what INFO and HELLO say of the servers.

    metrics: which command has which index in the counters; the main process gives the indexes out, so that it can read
    the counters of every worker.
    """

    rows: tuple[Row, ...]
    source: str
    metrics: dict[str, int]
    server_name: str
    redis_version: str
    valkey_version: str  # "" = the servers are no Valkey


class NodeFacts(msgspec.Struct, tag=True, array_like=True):
    """What was learnt about single nodes since the topology was published; both by "host:port".

    usable: replicas that may, or may no longer, be read from. limits: (proto-max-bulk-len, client-query-buffer-limit),
    0 = not told. databases: numbered ones that all nodes have; 0 = not told. stale: of replicas in `usable` that may
    not: whether only because they have lost touch with their primary.
    """

    usable: dict[str, bool] = {}
    limits: dict[str, tuple[int, int]] = {}
    databases: int = 0
    stale: dict[str, bool] = {}


class NodeStatus(msgspec.Struct, array_like=True):
    """One node as a worker has to do with it. buckets: round trips per duration bucket, not cumulative."""

    role: str  # "primary" or "replica"
    up: bool
    connections: dict[tuple[str, str], int]  # (purpose, state) -> connections
    connect_failures: int
    pending: int  # commands sent and not answered
    buckets: list[int]
    sum_s: float
    owner: bool = False  # it owns slots
    down_s: float = 0.0  # for how long its breaker has been open; 0 = it is closed, or the node is paused
    breakers: int = 0  # workers whose breaker is open
    held: int = 0  # commands held for it, or for others of its shard
    held_bytes: int = 0
    paused: bool = False  # PROXY PAUSE holds what is for it
    trouble: str = ""  # why the last attempt to connect to it has failed, while it is not up
    outdated: bool = False  # it has connections of before the last reload, for none has been made since


# -- to a worker -----------------------------------------------------------------------------------------------------


class Start(msgspec.Struct, tag=True, array_like=True):
    """The first message, with one descriptor: the shared memory of the worker's counters."""

    worker: int  # its number: 0, 1, ...; a replacement has its predecessor's
    settings: WorkerSettings
    run_id: str  # the proxy's, for INFO, as the following two
    started_s: float  # time.time()
    process_id: int
    commands: Commands
    facts: NodeFacts
    topology: Topology | None  # None: not known yet
    script_generation: int = 1


class Take(msgspec.Struct, tag=True, array_like=True):
    """Clients to serve, one descriptor each, in this order; accepted at the listener of that address.

    With fewer descriptors than `clients` the kernel has dropped some, for want of room in the worker's table.
    """

    listener: str  # str(address)
    first_id: int  # CLIENT ID of the first; the others' follow
    clients: int


class Configure(msgspec.Struct, tag=True, array_like=True):
    """New settings, already checked. Answered with Applied of the same number.

    keep: "host:port" of the nodes that refuse the new credentials: connections to them are not renewed, for new ones
    could not be made.
    """

    number: int
    settings: WorkerSettings
    keep: list[str] = []


class Ask(msgspec.Struct, tag=True, array_like=True):
    """Answered with Status of the same number."""

    number: int


class Others(msgspec.Struct, tag=True, array_like=True):
    """What the other workers count, for INFO: to be added to the worker's own figures of these names."""

    figures: dict[str, int]


class ScriptBody(msgspec.Struct, tag=True, array_like=True):
    """The answer to ScriptWanted. None: nobody has seen it."""

    sha: bytes
    body: bytes | None


class ForgetScripts(msgspec.Struct, tag=True, array_like=True):
    """All scripts are forgotten, up to this generation; 0: some, so that all that is seen is to be told again.

    Answered with Forgotten of the same number.
    """

    number: int
    generation: int


class ScriptsFlushed(msgspec.Struct, tag=True, array_like=True):
    """The answer to FlushScripts: every worker has forgotten."""

    number: int


class Query(msgspec.Struct, tag=True, array_like=True):
    """A question of some worker. Answered with Answer of the same number, which 0 does not want."""

    number: int
    kind: str
    body: bytes


class Found(msgspec.Struct, tag=True, array_like=True):
    """A piece of somebody's answer to the Question of that number. With the last one: how many workers' are missing.

    refused: why nobody was asked; then it is the only one.
    """

    number: int
    body: bytes
    last: bool
    missing: int
    refused: str = ""


class ShowOthers(msgspec.Struct, tag=True, array_like=True):
    """Whether another worker has monitors, which are to be shown what this one's clients do."""

    wanted: bool


class Shown(msgspec.Struct, tag=True, array_like=True):
    """What clients of a worker did, for the monitors of the others: lines of MONITOR, each with its CRLF.

    dropped: lines that were not passed on before these.
    """

    lines: bytes
    count: int
    dropped: int


class Drain(msgspec.Struct, tag=True, array_like=True):
    """Part with every client: spread over spread_s; what is under way may take until timeout_s. Then Bye, and end."""

    spread_s: float
    timeout_s: float


class Retire(msgspec.Struct, tag=True, array_like=True):
    """One worker too many: no client comes any more, and when the last has left: Bye, and end."""


class Reopen(msgspec.Struct, tag=True, array_like=True):
    """Open the log file by its name again."""


class Stop(msgspec.Struct, tag=True, array_like=True):
    """Close everything and end, at once."""


# -- from a worker ---------------------------------------------------------------------------------------------------


class Started(msgspec.Struct, tag=True, array_like=True):
    """Clients may come."""


class Report(msgspec.Struct, tag=True, array_like=True):
    """What only a worker sees, coalesced: signs that the topology has changed, and replicas that refused reads.

    signs, each once: moved, readonly, clusterdown, uncovered, unknown (of the data path), lost, connect (of the
    connector), paused (while PROXY PAUSE holds a node, for nothing that goes there would tell); unfit, by "host:port":
    a replica not used from that moment until NodeFacts or a Topology says otherwise; silent: nodes that owe replies and
    say nothing; unreached: primaries that close connections or take none; both told again while that is so.
    """

    signs: list[str]
    unfit: dict[str, str] = {}  # "host:port" -> why
    silent: list[str] = []  # "host:port"
    unreached: list[str] = []


class Question(msgspec.Struct, tag=True, array_like=True):
    """For all other workers; everyone: for this one too and for those that start later, in the same order for all.

    Of those to everyone the last one of each kind and subject holds for workers to come. Answered with Found of the
    same number, the last of which comes within a bounded time. lasting: it begins something that the whole proxy has to
    keep, so it is refused while this main process is not the only one, or about to end.
    """

    number: int
    kind: str
    body: bytes
    everyone: bool
    subject: str = ""
    lasting: bool = False


class Answer(msgspec.Struct, tag=True, array_like=True):
    """To the Query of that number. In pieces, none much above 64 KB and one a second at least, until the last."""

    number: int
    body: bytes
    last: bool


class Status(msgspec.Struct, tag=True, array_like=True):
    """Every second unasked (number 0), and as the answer to Ask."""

    number: int
    waiting: int  # requests parked
    output_bytes: int  # reply bytes held for clients
    client_memory: int  # bytes held for all clients, replies included
    event_loop_lag_s: float
    log_dropped: int  # lines of its log that were dropped since its start
    nodes: dict[str, NodeStatus]  # by "host:port"
    subscriptions: tuple[int, int, int] = (0, 0, 0)  # of clients: to channels, patterns, shard channels
    topics: tuple[int, int, int] = (0, 0, 0)  # different channels, patterns, shard channels of these
    messages_waiting: int = 0  # bytes of messages that are being given out
    interrupted: bool = False  # subscriptions that were in force are not
    tracking_clients: int = 0  # that have said CLIENT TRACKING ON
    monitors: int = 0  # that have said MONITOR
    held: int = 0  # clients whose next command waits for the end of a pause
    clients_paused: bool = False  # by CLIENT PAUSE


class Applied(msgspec.Struct, tag=True, array_like=True):
    """What came of Configure; an error is a fault of ours, for the settings had been checked."""

    number: int
    error: str = ""


class ScriptSeen(msgspec.Struct, tag=True, array_like=True):
    """A client runs this script, or has loaded it. generation: up to which this worker has forgotten."""

    generation: int
    sha: bytes  # 40 lower-case hex digits
    body: bytes
    loaded: bool


class ScriptWanted(msgspec.Struct, tag=True, array_like=True):
    """A node lacks this script, and so does the worker."""

    sha: bytes


class FlushScripts(msgspec.Struct, tag=True, array_like=True):
    """A client flushes all scripts. Answered with ScriptsFlushed of the same number."""

    number: int


class Forgotten(msgspec.Struct, tag=True, array_like=True):
    """What came of ForgetScripts."""

    number: int


class Monitoring(msgspec.Struct, tag=True, array_like=True):
    """So many of its clients have said MONITOR."""

    monitors: int


class Bye(msgspec.Struct, tag=True, array_like=True):
    """The worker has ended what it was told to end; the process follows."""


class KeyspaceEvents(msgspec.Struct, tag=True, array_like=True):
    """A client has set notify-keyspace-events to this on some node at least: so it is to be on all.

    whole: all nodes have confirmed it.
    """

    value: bytes
    whole: bool = True


ScriptNews = ScriptSeen | ScriptWanted | FlushScripts

ToWorker = (
    Start
    | Take
    | Topology
    | Commands
    | NodeFacts
    | Configure
    | Ask
    | Others
    | ScriptBody
    | ForgetScripts
    | ScriptsFlushed
    | Query
    | Found
    | ShowOthers
    | Shown
    | Drain
    | Retire
    | Reopen
    | Stop
)
FromWorker = (
    Started
    | Report
    | KeyspaceEvents
    | Status
    | Applied
    | ScriptSeen
    | ScriptWanted
    | FlushScripts
    | Forgotten
    | Question
    | Answer
    | Monitoring
    | Shown
    | Bye
)

TO_WORKER: Final = msgspec.msgpack.Decoder(ToWorker)
FROM_WORKER: Final = msgspec.msgpack.Decoder(FromWorker)
