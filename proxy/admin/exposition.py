"""Families of prometheus_client out of plain values, and a scrape in the format that is asked for.

Why: prometheus_client writes both of Prometheus's formats; this module gives it our values and works around two of its
faults. Called by proxy.admin.metrics and, for media_type, by http. Writing takes 5 to 8 us per line, some ten ms
for a proxy that has seen many commands: it is done in a thread.

Invariant: a sample has the same name, labels and value in both formats; only the heads of families differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, UnknownMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

Family = Metric
Series = Iterable[tuple[Sequence[str], float]]  # (label values, value)

_OPENMETRICS = "application/openmetrics-text"


def gauge(name: str, text: str, labels: tuple[str, ...], series: Series) -> Family:
    """A family of values that go up and down."""
    family = GaugeMetricFamily(name, text, labels=labels)
    for values, value in series:
        family.add_metric(values, value)
    return family


def counter(name: str, text: str, labels: tuple[str, ...], series: Series) -> Family:
    """A family of values that only go up; name ends in `_total`."""
    family = CounterMetricFamily(name, text, labels=labels)
    for values, value in series:
        family.add_metric(values, value)
    return family


def histogram(
    name: str,
    text: str,
    labels: tuple[str, ...],
    bounds: tuple[str, ...],
    series: Iterable[tuple[Sequence[str], Sequence[int], float]],
) -> Family:
    """A family of distributions.

    bounds: upper bounds as labels, the last one `+Inf`; series: (label values, counts per bucket, sum of all values).
    ValueError when there are not as many buckets as bounds.
    """
    family = HistogramMetricFamily(name, text, labels=labels)
    for values, buckets, total in series:
        family.add_metric(values, list(zip(bounds, accumulate(buckets), strict=True)), total)
    return family


def media_type(accept: str) -> str:
    """The Content-Type of a scrape asked for by this Accept header; one of a few, whatever the header says."""
    return _negotiate(accept)[1]


def render(families: Iterable[Family], others: CollectorRegistry, accept: str) -> tuple[bytes, str]:
    """One scrape: (body, Content-Type), in OpenMetrics when the Accept header asks for it, else in the text format.

    others: families that come after these.
    """
    encoder, content_type = _negotiate(accept)
    page = _Page([*families, *others.collect()], openmetrics=content_type.startswith(_OPENMETRICS))
    return encoder(page), content_type


class _Page(Collector):
    """Families to be written.

    In OpenMetrics a counter's family is named without `_total`, so client_connections_total (a counter) and
    client_connections (a gauge) would be one family of two types. There the counter goes as a family of unknown type
    that carries its sample's name.
    """

    def __init__(self, families: list[Family], *, openmetrics: bool) -> None:
        self._families = families
        self._openmetrics = openmetrics

    def collect(self) -> Iterator[Metric]:
        taken = {family.name for family in self._families if family.type != "counter"} if self._openmetrics else set()
        for family in self._families:
            if family.type == "counter" and family.name in taken:
                unknown = UnknownMetricFamily(f"{family.name}_total", family.documentation)
                unknown.samples = family.samples
                family = unknown
            yield family


def _negotiate(accept: str) -> tuple[Callable[[Collector], bytes], str]:
    """(encoder, Content-Type) as prometheus_client chooses them; the text format for what it does not understand."""
    # Without the escaping asked for: some of them write plain names such as ours in another way.
    plain = ",".join(
        ";".join(part for part in media.split(";") if not part.strip().startswith("escaping="))
        for media in accept.split(",")
    )
    try:
        encoder, content_type = choose_encoder(plain)
    except (TypeError, ValueError):  # a version that is none, in prometheus_client 0.26
        return choose_encoder("")
    if content_type.startswith(_OPENMETRICS) and "version=1.0.0;" not in content_type:
        return choose_encoder(f"{_OPENMETRICS}; version=1.0.0")  # the newest there is; it would repeat any later one
    return encoder, content_type
