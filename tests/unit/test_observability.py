"""config/grafana and config/alerts.yaml against what proxy.admin.metrics renders, and promtool's own opinion of them.

A query that names a family, a label or a label's value that does not exist shows an empty panel, or an alert that never
fires: Prometheus calls neither an error. So every selector is held against a scrape that has all there can be in it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from itertools import combinations, count
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from proxy.admin.metrics import MetricsPage
from proxy.admin.processes import Processes
from proxy.admin.snapshot import Snapshot
from proxy.commands.table import ROWS
from proxy.config.models import Cluster
from proxy.control.topology_refresh import OUTCOMES, TRIGGERS
from proxy.forward.backend import STATE_NAMES
from proxy.forward.counters import BOUNDS_S, ERROR_KINDS, Counters
from tests.unit.admin.snapshots import command, snapshot

CONFIG = Path(__file__).parents[2] / "config"
ALERTS = CONFIG / "alerts.yaml"
ALERTS_TEST = CONFIG / "alerts_test.yaml"
DASHBOARDS = sorted(CONFIG.glob("grafana/*.json"))

# What Prometheus itself adds to a scrape.
TARGET_LABELS = {"instance", "job"}
OWN_FAMILIES = {"up": [{}]}

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not on PATH (Debian: apt-get install prometheus)"
)


def busy() -> Snapshot:
    """Every label value the data path and control can produce, by their own lists of them."""
    values = snapshot()
    counters = Counters().snapshot()
    called = [1] * (len(BOUNDS_S) + 1)
    names = ["other", *(row.name for row in ROWS)]
    counters["commands"] = {name: command(called, errors=dict.fromkeys(ERROR_KINDS, 1)) for name in names}
    values["counters"] = counters
    for node in values["nodes"].values():
        node.connections = {("shared", state): 1 for state in STATE_NAMES}
        node.buckets = called
    values["own"]["topology"]["refreshes"] = {(trigger, outcome): 1 for trigger in TRIGGERS for outcome in OUTCOMES}
    return values


def scrape() -> str:
    return MetricsPage(BOUNDS_S, Processes(lambda: [os.getpid()])).render(busy(), "")[0].decode()


def all_series() -> dict[str, list[dict[str, str]]]:
    """Name as a query has it (with _bucket, _sum, _count) -> the label sets under it."""
    series: dict[str, list[dict[str, str]]] = {}
    for family in text_string_to_metric_families(scrape()):
        for sample in family.samples:
            series.setdefault(sample.name, []).append(sample.labels)
    return series | OWN_FAMILIES


SERIES = all_series()


# ---- PromQL, as much of it as is used here

SELECTOR = re.compile(r"(?<![\w.$])([a-zA-Z_:][\w:]*)\b(?!\s*\()(?:\s*\{([^}]*)\})?")
MATCHER = re.compile(r'\s*(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"\s*')
GROUPING = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
RANGE = re.compile(r"\[(?:\d+[smhd]|\$__\w+)\]")
WORDS = {"and", "or", "unless", "bool", "offset"}


def selectors(expr: str) -> list[tuple[str, list[tuple[str, str, str]]]]:
    """(name, [(label, operator, value)]) of every series the expression selects."""
    found = []
    for name, braces in SELECTOR.findall(RANGE.sub("", GROUPING.sub("", expr))):
        if name in WORDS:
            continue
        matchers = [MATCHER.fullmatch(part) for part in braces.split(",") if part.strip()]
        assert all(matchers), f"matchers not understood: {braces}"
        found.append((name, [match.groups() for match in matchers if match]))
    return found


def grouping_labels(expr: str) -> set[str]:
    return {label.strip() for labels in GROUPING.findall(expr) for label in labels.split(",") if label.strip()}


def faults(expr: str, shown: str = "") -> Iterator[str]:
    """What the expression asks for and no scrape has; shown: a legend or an annotation to go with it."""
    known = set(TARGET_LABELS)
    chosen = selectors(expr)
    if not chosen:
        yield "selects nothing"
    for name, matchers in chosen:
        if name not in SERIES:
            yield f"no family {name}"
            continue
        labels = set().union(*SERIES[name])
        known |= labels
        for label, operator, value in matchers:
            if label not in labels | TARGET_LABELS:
                yield f"{name} has no label {label}"
            elif label not in TARGET_LABELS and not value.startswith("$"):
                # Each alternative: a misspelt one hides among the others.
                for one in value.split("|") if "~" in operator else [re.escape(value)]:
                    if not any(re.fullmatch(one, labels[label]) for labels in SERIES[name]):
                        yield f"{name} never has {label}={one}"
    for label in grouping_labels(expr) - known:
        yield f"grouped by {label}, which nothing has"
    # A legend can show what the aggregations leave.
    left = grouping_labels(expr) if GROUPING.search(expr) else known
    for label in set(re.findall(r"\{\{\s*(?:\$labels\.)?([a-z]\w*)\s*\}\}", shown)) - (left & known):
        yield f"shows {label}, which the result has not"


@pytest.mark.parametrize(
    ("expr", "shown", "fault"),
    [
        ("rate(redis_proxy_command_total[5m])", "", "no family redis_proxy_command_total"),
        ("slots_covered < 16384", "", "no family slots_covered"),
        ("sum(redis_proxy_command_duration_seconds)", "", "no family redis_proxy_command_duration_seconds"),
        ('redis_proxy_node_up{nodes="a"}', "", "redis_proxy_node_up has no label nodes"),
        ('redis_proxy_node_up{role="master"}', "", "redis_proxy_node_up never has role=master"),
        (
            'redis_proxy_backend_connections{state=~"up|open"}',
            "",
            "redis_proxy_backend_connections never has state=open",
        ),
        ("sum by (nod) (redis_proxy_node_up)", "", "grouped by nod, which nothing has"),
        ("sum by (role) (redis_proxy_node_up)", "{{node}}", "shows node, which the result has not"),
        ('redis_proxy_node_up{role="primary"} > 0 unless up == 0', "{{ $labels.node }} {{role}}", None),
        ('sum(rate(redis_proxy_commands_total{command=~"$command"}[$__rate_interval])) or vector(0)', "", None),
        ("time()", "", "selects nothing"),
    ],
)
def test_this_check_sees_faults(expr: str, shown: str, fault: str | None) -> None:
    assert list(faults(expr, shown)) == ([fault] if fault else [])


# ---- dashboards


@pytest.fixture(params=DASHBOARDS, ids=lambda path: path.stem)
def dashboard(request: pytest.FixtureRequest) -> dict[str, Any]:
    return json.loads(request.param.read_text())


def test_the_dashboards_are_there_and_distinct() -> None:
    assert [path.stem for path in DASHBOARDS] == ["overview", "per_command", "per_node"]
    boards = [json.loads(path.read_text()) for path in DASHBOARDS]
    assert len({board["uid"] for board in boards}) == len({board["title"] for board in boards}) == len(boards)


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_dashboards_are_small(path: Path) -> None:
    assert path.read_text().count("\n") < 500


def test_panel_ids_are_unique(dashboard: dict[str, Any]) -> None:
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids) > 0


def test_the_datasource_is_a_variable(dashboard: dict[str, Any]) -> None:
    variables = {one["name"]: one for one in dashboard["templating"]["list"]}
    assert (variables["datasource"]["type"], variables["datasource"]["query"]) == ("datasource", "prometheus")
    wanted = {"type": "prometheus", "uid": "${datasource}"}
    users = [*dashboard["panels"], *(one for one in variables.values() if one["type"] == "query")]
    assert all(one["datasource"] == wanted for one in users)


def test_variables_are_filled_and_used(dashboard: dict[str, Any]) -> None:
    queries = json.dumps([panel["targets"] for panel in dashboard["panels"]])
    names = {one["name"] for one in dashboard["templating"]["list"]}
    used = set(re.findall(r"\$([a-z]\w*)", queries))
    assert used == names - {"datasource"}
    for one in dashboard["templating"]["list"]:
        if one["type"] == "query":
            selector, label = re.fullmatch(r"label_values\((.+), (\w+)\)", one["query"]).groups()
            assert list(faults(f"sum by ({label}) ({selector})", "{{" + label + "}}")) == []


def test_panels_say_what_they_show(dashboard: dict[str, Any]) -> None:
    for panel in dashboard["panels"]:
        title = panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], title
        assert re.fullmatch(r"[A-Z][^\n]*[^.]\.", panel["description"]), title
        assert ". " not in panel["description"], f"{title}: one sentence"
        assert all(target["legendFormat"] for target in panel["targets"]), title
        if panel["type"] == "timeseries":
            assert panel["options"]["legend"]["displayMode"] != "hidden", title
        refs = [target["refId"] for target in panel["targets"]]
        assert len(set(refs)) == len(refs) > 0, title


def test_panels_do_not_overlap(dashboard: dict[str, Any]) -> None:
    places = [(panel["title"], panel["gridPos"]) for panel in dashboard["panels"]]
    assert all(at["x"] >= 0 and at["x"] + at["w"] <= 24 for _, at in places)
    for (one, a), (other, b) in combinations(places, 2):
        apart_x = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        apart_y = a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]
        assert apart_x or apart_y, f"{one} and {other}"


def test_dashboards_ask_for_what_exists(dashboard: dict[str, Any]) -> None:
    found = {
        f"{panel['title']} {target['refId']}": list(faults(target["expr"], target["legendFormat"]))
        for panel in dashboard["panels"]
        for target in panel["targets"]
    }
    assert {panel: wrong for panel, wrong in found.items() if wrong} == {}


# ---- alerts


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_alerts_ask_for_what_exists(rule: dict[str, Any]) -> None:
    assert list(faults(rule["expr"], " ".join(rule["annotations"].values()))) == []


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_alerts_say_how_bad_and_what_it_means(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert set(rule["annotations"]) == {"summary", "description"}


def test_every_alert_has_a_case_that_fires_and_one_that_does_not() -> None:
    fires: dict[str, set[bool]] = {}
    for case in yaml.safe_load(ALERTS_TEST.read_text())["tests"]:
        for one in case["alert_rule_test"]:
            fires.setdefault(one["alertname"], set()).add(bool(one.get("exp_alerts")))
    assert fires == {rule["alert"]: {True, False} for rule in rules()}


def test_thresholds_follow_the_defaults() -> None:
    thresholds = {rule["alert"]: rule["expr"].split()[-1] for rule in rules()}
    assert int(thresholds["RedisProxyTopologyStale"]) == 3 * Cluster(seeds=["10.0.0.1:6379"]).refresh_interval


# ---- promtool


def promtool(*arguments: str | Path, stdin: str | None = None) -> str:
    """What it says; the test fails when it is not content."""
    done = subprocess.run(["promtool", *arguments], input=stdin, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@needs_promtool
def test_promtool_checks_the_alerts() -> None:
    assert f"{len(rules())} rules found" in promtool("check", "rules", ALERTS)


@needs_promtool
def test_promtool_runs_the_alerts() -> None:
    assert "SUCCESS" in promtool("test", "rules", ALERTS_TEST)


@needs_promtool
def test_promtool_checks_the_queries(dashboard: dict[str, Any], tmp_path: Path) -> None:
    number = count()
    queries = [
        {"record": f"panel:{panel['id']}:{next(number)}", "expr": re.sub(r"\$__\w+", "5m", target["expr"])}
        for panel in dashboard["panels"]
        for target in panel["targets"]
    ]
    path = tmp_path / "queries.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": queries}]}))
    assert f"{len(queries)} rules found" in promtool("check", "rules", path)


@needs_promtool
def test_promtool_has_no_complaint_about_the_metrics() -> None:
    assert promtool("check", "metrics", stdin=scrape()) == ""
