"""Both formats as text, read back by prometheus_client's parsers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from prometheus_client.registry import Collector

from proxy.admin.exposition import Family, counter, gauge, histogram, media_type, render

EMPTY = CollectorRegistry()
TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8; escaping=underscores"
NASTY = 'a"b\\c\nd,e="f"}\u00e9'


def text(*families: Family, accept: str = "") -> str:
    return render(families, EMPTY, accept)[0].decode()


def test_text_format_letter_for_letter() -> None:
    assert (
        text(
            counter("x_total", "All x.", ("kind",), [(("a",), 3), (("b",), 0)]),
            gauge("y", "Now.", (), [((), 0.25)]),
            histogram("z_seconds", "Time.", ("c",), ("0.1", "+Inf"), [(("get",), [2, 1], 1.5)]),
            gauge("none", "Nothing.", ("l",), []),
        )
        == """\
# HELP x_total All x.
# TYPE x_total counter
x_total{kind="a"} 3.0
x_total{kind="b"} 0.0
# HELP y Now.
# TYPE y gauge
y 0.25
# HELP z_seconds Time.
# TYPE z_seconds histogram
z_seconds_bucket{c="get",le="0.1"} 2.0
z_seconds_bucket{c="get",le="+Inf"} 3.0
z_seconds_count{c="get"} 3.0
z_seconds_sum{c="get"} 1.5
# HELP none Nothing.
# TYPE none gauge
"""
    )


def test_openmetrics_tells_a_counter_from_a_gauge_of_the_same_name() -> None:
    families = [counter("x_total", "All x.", (), [((), 3)]), gauge("x", "Now.", (), [((), 1)])]
    found = {
        family.name: (family.type, [(sample.name, sample.value) for sample in family.samples])
        for family in parse_openmetrics(text(*families, accept="application/openmetrics-text"))
    }
    assert found == {"x_total": ("unknown", [("x_total", 3)]), "x": ("gauge", [("x", 1)])}


@pytest.mark.parametrize(
    ("accept", "parse"),
    [("", parse_text), ("application/openmetrics-text; version=1.0.0", parse_openmetrics)],
    ids=["text", "openmetrics"],
)
def test_label_values_may_be_anything(accept: str, parse: Callable[[str], list[Metric]]) -> None:
    written = text(
        gauge("y", "Now.", ("a", "b"), [((NASTY, "plain"), 1)]),
        histogram("z", "Time.", ("a",), ("+Inf",), [((NASTY,), [1], 0.5)]),
        accept=accept,
    )
    labels = [sample.labels for family in parse(written) for sample in family.samples]
    assert labels == [{"a": NASTY, "b": "plain"}, {"a": NASTY, "le": "+Inf"}, {"a": NASTY}, {"a": NASTY}]


@pytest.mark.parametrize("value", [0, 1, 2**63, 1700000000.25, 1e-7, 1e22, 0.1])
def test_values_are_read_back_as_they_are(value: float) -> None:
    for accept, parse in (("", parse_text), ("application/openmetrics-text", parse_openmetrics)):
        (family,) = parse(text(gauge("y", "Now.", (), [((), value)]), accept=accept))
        assert family.samples[0].value == value


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("", TEXT),
        ("*/*", TEXT),
        ("text/plain", TEXT),
        ("application/json", TEXT),
        ("text/plain;version=0.0.4;q=0.2,*/*;q=0.1", TEXT),
        ("application/openmetrics-text", "application/openmetrics-text; version=1.0.0; charset=utf-8"),
        ("application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.2,*/*;q=0.1", OPENMETRICS),
        # What Prometheus 3 sends.
        (
            "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,"
            "application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,"
            "text/plain;version=0.0.4;q=0.2,/;q=0.1",
            OPENMETRICS,
        ),
        ("application/openmetrics-text; version=1.0.0; escaping=values", OPENMETRICS),
        ("text/plain; version=1.0.0; escaping=dots", "text/plain; version=1.0.0; charset=utf-8; escaping=underscores"),
        ("application/openmetrics-text; version=x", TEXT),
        # Each would be a media type of its own, and so a scrape of its own.
        ("application/openmetrics-text; version=1.0.1", OPENMETRICS),
        ("application/openmetrics-text; version=77.0", OPENMETRICS),
        ("text/plain; version=9.9.9", "text/plain; version=1.0.0; charset=utf-8; escaping=underscores"),
        ('text/plain; version="1.0.0"', TEXT),
        (";;,=,", TEXT),
    ],
)
def test_negotiation(accept: str, content_type: str) -> None:
    body, given = render([gauge("a_b", "Now.", (), [((), 1)])], EMPTY, accept)
    assert given == media_type(accept) == content_type
    assert b"\na_b 1.0\n" in body
    assert body.endswith(b"# EOF\n") == content_type.startswith("application/openmetrics-text")


def test_families_of_prometheus_client_come_after_ours() -> None:
    class One(Collector):
        def collect(self) -> list[Metric]:
            return [CounterMetricFamily("theirs", "Theirs.", value=2)]

    registry = CollectorRegistry()
    registry.register(One())
    ours = [counter("ours_total", "Ours.", (), [((), 1)])]
    for accept, parse in (("", parse_text), ("application/openmetrics-text", parse_openmetrics)):
        body, _ = render(ours, registry, accept)
        assert [family.name for family in parse(body.decode())] == ["ours", "theirs"]


def test_buckets_and_bounds_must_agree() -> None:
    for buckets in ([1], [1, 1, 1]):
        with pytest.raises(ValueError, match="zip"):
            histogram("z", "Time.", (), ("0.1", "+Inf"), [((), buckets, 0.0)])
