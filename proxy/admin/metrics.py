"""/metrics: the counters of the data path as Prometheus families.

Why: the data path counts in C arrays and knows nothing of Prometheus; this module asks for one snapshot per scrape and
spells it in the names of the operations guide.
Who calls it: proxy.worker builds the registry, proxy.admin.http renders it.

Invariants:
- A family exists from the first scrape on. Labels whose values are known beforehand are there at 0; what would cost
  thousands of empty series is not: command_duration_seconds has the commands that were called, command_errors_total the
  pairs that occurred, the node families the nodes of the present topology.
- Labels are a closed set: names of commands (others are `other`), error words, nodes; never a key or a user's text.
- Seconds and bytes; every name begins with `redis_proxy_`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import TypedDict

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, UnknownMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector as BaseCollector

PREFIX = "redis_proxy_"


class CommandValues(TypedDict):
    """One command's counts since the start."""

    calls: int  # answered, errors included
    errors: Mapping[str, int]  # error word -> answers that began with it
    buckets: Sequence[int]  # answers per duration bucket, not cumulative: one more than there are bounds
    sum_s: float  # of all durations
    split: int  # calls that were split by slot


class CounterValues(TypedDict):
    """What proxy.forward.counters.Counters.snapshot() gives."""

    commands: Mapping[str, CommandValues]  # every command of the table, and `other`
    closed: Mapping[str, int]  # why clients were closed -> clients
    redirections: Mapping[str, int]  # kind -> replies
    retries: Mapping[tuple[str, str], int]  # (reason, outcome) -> requests
    accepted: int  # client connections ever
    rejected: int  # client connections refused for max_clients
    client_in: int  # bytes
    client_out: int
    backend_in: int
    backend_out: int
    inflight: int  # commands not answered yet
    output_bytes: int  # reply bytes held for clients


class NodeValues(TypedDict):
    """One server of the present topology."""

    role: str  # "primary" or "replica"
    up: bool
    connections: Mapping[tuple[str, str], int]  # (purpose, state) -> connections
    connect_failures: int
    pending: int  # commands sent and not answered
    buckets: Sequence[int]  # round trips per duration bucket, as CommandValues.buckets
    sum_s: float


class TopologyValues(TypedDict):
    """What is known of the cluster."""

    slots_covered: int
    epoch: int
    last_success_s: float | None  # time.time() of the last refresh that worked; None = never
    refreshes: Mapping[tuple[str, str], int]  # (trigger, outcome) -> refreshes


class Snapshot(TypedDict):
    """Everything a scrape shows, taken at one moment."""

    version: str  # of the proxy
    connections: int  # open client connections
    event_loop_lag_s: float
    counters: CounterValues
    nodes: Mapping[str, NodeValues]  # "host:port" -> values
    topology: TopologyValues


class Collector(BaseCollector):
    """Turns snapshots into families, one snapshot per scrape.

    snapshot: called on each collect(). bounds_s: upper bounds of the duration buckets in seconds, ascending, without
    the last, unbounded one.
    """

    def __init__(self, snapshot: Callable[[], Snapshot], bounds_s: Sequence[float]) -> None:
        self._snapshot = snapshot
        self._bounds = [*(repr(float(bound)) for bound in bounds_s), "+Inf"]

    def collect(self) -> Iterator[Metric]:
        """All families, in a fixed order."""
        snapshot = self._snapshot()
        yield _gauge("build_info", "The proxy's version; always 1.", ("version",), [((snapshot["version"],), 1)])
        yield from self._clients(snapshot)
        yield from self._commands(snapshot["counters"])
        yield from self._nodes(snapshot["nodes"])
        yield from self._topology(snapshot["topology"])
        yield _gauge(
            "event_loop_lag_seconds", "How late the event loop ran its timer.", (), [((), snapshot["event_loop_lag_s"])]
        )

    def _clients(self, snapshot: Snapshot) -> Iterator[Metric]:
        counters = snapshot["counters"]
        yield _gauge("client_connections", "Open client connections.", (), [((), snapshot["connections"])])
        yield _counter("client_connections", "Client connections accepted.", (), [((), counters["accepted"])])
        yield _counter(
            "client_connections_rejected",
            "Client connections refused.",
            ("reason",),
            [(("max_clients",), counters["rejected"])],
        )
        yield _counter(
            "client_disconnects",
            "Client connections closed, and why.",
            ("reason",),
            [((reason,), count) for reason, count in counters["closed"].items()],
        )
        yield _gauge("output_buffer_bytes", "Reply bytes held for clients.", (), [((), counters["output_bytes"])])
        yield _counter(
            "bytes",
            "Bytes received and sent.",
            ("side", "direction"),
            [
                (("client", "in"), counters["client_in"]),
                (("client", "out"), counters["client_out"]),
                (("backend", "in"), counters["backend_in"]),
                (("backend", "out"), counters["backend_out"]),
            ],
        )

    def _commands(self, counters: CounterValues) -> Iterator[Metric]:
        commands = counters["commands"]
        yield _gauge("inflight_commands", "Commands not answered yet.", (), [((), counters["inflight"])])
        yield _counter(
            "commands",
            "Commands answered.",
            ("command",),
            [((name,), values["calls"]) for name, values in commands.items()],
        )
        yield _counter(
            "command_errors",
            "Commands answered with an error, by its word.",
            ("command", "kind"),
            [((name, kind), count) for name, values in commands.items() for kind, count in values["errors"].items()],
        )
        yield self._histogram(
            "command_duration_seconds",
            "Whole time of a command in the proxy.",
            ("command",),
            [((name,), values["buckets"], values["sum_s"]) for name, values in commands.items() if values["calls"]],
        )
        yield _counter(
            "split_commands",
            "Commands split by slot.",
            ("command",),
            [((name,), values["split"]) for name, values in commands.items() if values["split"] or name in _SPLIT],
        )
        yield _counter(
            "redirections",
            "Replies that named another node or asked to wait.",
            ("kind",),
            [((kind,), count) for kind, count in counters["redirections"].items()],
        )
        yield _counter(
            "retries",
            "Requests that had to be sent again, and what came of it.",
            ("reason", "outcome"),
            [(labels, count) for labels, count in counters["retries"].items()],
        )

    def _nodes(self, nodes: Mapping[str, NodeValues]) -> Iterator[Metric]:
        yield _gauge(
            "node_up",
            "1 when the node answers.",
            ("node", "role"),
            [((node, values["role"]), int(values["up"])) for node, values in nodes.items()],
        )
        yield _gauge(
            "backend_connections",
            "Connections to the node.",
            ("node", "purpose", "state"),
            [
                ((node, *labels), count)
                for node, values in nodes.items()
                for labels, count in values["connections"].items()
            ],
        )
        yield _counter(
            "backend_connect_failures",
            "Attempts to connect to the node that failed.",
            ("node",),
            [((node,), values["connect_failures"]) for node, values in nodes.items()],
        )
        yield _gauge(
            "backend_pending",
            "Commands sent to the node and not answered.",
            ("node",),
            [((node,), values["pending"]) for node, values in nodes.items()],
        )
        yield self._histogram(
            "backend_duration_seconds",
            "Time from queueing to the node's reply.",
            ("node", "role"),
            [((node, values["role"]), values["buckets"], values["sum_s"]) for node, values in nodes.items()],
        )

    def _topology(self, topology: TopologyValues) -> Iterator[Metric]:
        yield _gauge("slots_covered", "Hash slots with a primary.", (), [((), topology["slots_covered"])])
        yield _gauge("topology_epoch", "Newest configuration epoch seen.", (), [((), topology["epoch"])])
        yield _gauge(
            "topology_last_success_timestamp_seconds",
            "Last refresh that worked; 0 = never.",
            (),
            [((), topology["last_success_s"] or 0.0)],
        )
        yield _counter(
            "topology_refreshes",
            "Refreshes of the topology.",
            ("trigger", "outcome"),
            [(labels, count) for labels, count in topology["refreshes"].items()],
        )

    def _histogram(
        self,
        name: str,
        text: str,
        labels: Sequence[str],
        series: Iterable[tuple[Sequence[str], Sequence[int], float]],
    ) -> Metric:
        family = HistogramMetricFamily(PREFIX + name, text, labels=labels)
        for values, buckets, sum_s in series:
            family.add_metric(values, list(zip(self._bounds, accumulate(buckets), strict=True)), sum_s)
        return family


# The commands of COMMANDS.md's class `split`: theirs is a closed set, so it is there from the start.
_SPLIT = frozenset({"mget", "mset", "del", "unlink", "exists", "touch"})

_Series = Iterable[tuple[Sequence[str], float]]


def _gauge(name: str, text: str, labels: Sequence[str], series: _Series) -> Metric:
    family = GaugeMetricFamily(PREFIX + name, text, labels=labels)
    for values, value in series:
        family.add_metric(values, value)
    return family


def _counter(name: str, text: str, labels: Sequence[str], series: _Series) -> Metric:
    """name without `_total`, which prometheus_client adds."""
    family = CounterMetricFamily(PREFIX + name, text, labels=labels)
    for values, value in series:
        family.add_metric(values, value)
    return family


def build_registry(snapshot: Callable[[], Snapshot], bounds_s: Sequence[float]) -> CollectorRegistry:
    """A registry of its own with the proxy's families and the standard process_* and python_* ones."""
    registry = CollectorRegistry()
    registry.register(Collector(snapshot, bounds_s))
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    return registry


def render(registry: BaseCollector | CollectorRegistry, accept: str) -> tuple[bytes, str]:
    """One scrape: (body, Content-Type), in OpenMetrics when the Accept header asks for it, else in the text format."""
    encoder, content_type = choose_encoder(accept)
    source: BaseCollector | CollectorRegistry = registry
    if content_type.startswith("application/openmetrics-text"):
        source = _OpenMetricsView(registry)
    return encoder(source), content_type


class _OpenMetricsView(BaseCollector):
    """The same families without two of one name.

    In OpenMetrics a counter's family is named without `_total`, so client_connections_total (a counter) and
    client_connections (a gauge) would be one family of two types. There the counter goes as a family of unknown type
    that carries its sample's name; samples are the same in both formats.
    """

    def __init__(self, source: BaseCollector | CollectorRegistry) -> None:
        self._source = source

    def collect(self) -> Iterator[Metric]:
        families = list(self._source.collect())
        taken = {family.name for family in families if family.type != "counter"}
        for family in families:
            if family.type == "counter" and family.name in taken:
                unknown = UnknownMetricFamily(f"{family.name}_total", family.documentation)
                unknown.samples = family.samples
                family = unknown
            yield family
