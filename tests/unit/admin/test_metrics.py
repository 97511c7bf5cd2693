"""The families by name, label and value, read back with Prometheus's own parsers."""

from __future__ import annotations

import os
from typing import Any

import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from proxy.admin.metrics import MetricsPage
from proxy.admin.processes import Processes
from proxy.admin.snapshot import Snapshot
from tests.unit.admin.snapshots import BOUNDS_S, snapshot

OPENMETRICS = "application/openmetrics-text; version=1.0.0,text/plain;q=0.5"

# OPERATIONS.md's list, as far as the features exist, and some more: family -> (type, labels).
FAMILIES = {
    "build_info": ("gauge", {"version"}),
    "workers": ("gauge", set()),
    "workers_configured": ("gauge", set()),
    "workers_without_primary": ("gauge", set()),
    "workers_missing_primaries": ("gauge", set()),
    "worker_restarts_total": ("counter", set()),
    "config_last_reload_successful": ("gauge", set()),
    "config_last_reload_success_timestamp_seconds": ("gauge", set()),
    "draining": ("gauge", set()),
    "log_lines_dropped_total": ("counter", set()),
    "background_failures_total": ("counter", {"task"}),
    "client_connections": ("gauge", set()),
    "client_connections_max": ("gauge", set()),
    "client_connections_total": ("counter", set()),
    "client_connections_rejected_total": ("counter", {"reason"}),
    "client_disconnects_total": ("counter", {"reason"}),
    "commands_total": ("counter", {"command"}),
    "command_errors_total": ("counter", {"command", "kind"}),
    "command_duration_seconds": ("histogram", {"command"}),
    "backend_duration_seconds": ("histogram", {"node", "role"}),
    "inflight_commands": ("gauge", set()),
    "blocked_clients": ("gauge", set()),
    "requests_waiting": ("gauge", set()),
    "held_clients": ("gauge", set()),
    "request_timeouts_total": ("counter", set()),
    "leases_refused_total": ("counter", set()),
    "monitor_lines_dropped_total": ("counter", set()),
    "internal_errors_total": ("counter", set()),
    "bytes_total": ("counter", {"side", "direction"}),
    "redirections_total": ("counter", {"kind"}),
    "holds_total": ("counter", {"reason"}),
    "refusals_total": ("counter", {"reason"}),
    "retries_total": ("counter", {"reason", "outcome"}),
    "subscriptions": ("gauge", {"kind"}),
    "messages_received_total": ("counter", set()),
    "messages_delivered_total": ("counter", set()),
    "messages_waiting_bytes": ("gauge", set()),
    "message_pauses_total": ("counter", set()),
    "workers_with_interrupted_subscriptions": ("gauge", set()),
    "subscriptions_interrupted_total": ("counter", set()),
    "subscriptions_interrupted_seconds_total": ("counter", set()),
    "backend_connections": ("gauge", {"node", "purpose", "state"}),
    "backend_connect_failures_total": ("counter", {"node"}),
    "backend_pending": ("gauge", {"node"}),
    "backend_breaker_open": ("gauge", {"node", "role"}),
    "backend_held": ("gauge", {"node"}),
    "backend_held_bytes": ("gauge", {"node"}),
    "node_up": ("gauge", {"node", "role"}),
    "node_paused": ("gauge", {"node"}),
    "node_outdated": ("gauge", {"node"}),
    "node_suspected": ("gauge", {"node"}),
    "cluster_down": ("gauge", set()),
    "slots_covered": ("gauge", set()),
    "topology_refreshes_total": ("counter", {"trigger", "outcome"}),
    "topology_last_success_timestamp_seconds": ("gauge", set()),
    "topology_epoch": ("gauge", set()),
    "split_commands_total": ("counter", {"command"}),
    "output_buffer_bytes": ("gauge", set()),
    "tracking_clients": ("gauge", set()),
    "monitors": ("gauge", set()),
    "client_memory_bytes": ("gauge", set()),
    "client_memory_max_bytes": ("gauge", set()),
    "event_loop_lag_seconds": ("gauge", set()),
}


def page(bounds_s: tuple[float, ...] = BOUNDS_S) -> MetricsPage:
    return MetricsPage(bounds_s, Processes(lambda: [os.getpid()]))


def families(accept: str = "", values: Snapshot | None = None) -> list[Metric]:
    body, content_type = page().render(values or snapshot(), accept)
    parse = parse_openmetrics if content_type.startswith("application/openmetrics-text") else parse_text
    return list(parse(body.decode()))


def samples(accept: str = "", values: Snapshot | None = None) -> dict[tuple[Any, ...], float]:
    """(name, label value, ...) -> value; label values in the order of their names."""
    return {
        (sample.name.removeprefix("redis_proxy_"), *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in families(accept, values)
        for sample in family.samples
    }


def test_families_are_those_of_the_operations_guide() -> None:
    text = page().render(snapshot(), "")[0].decode()
    declared = {}
    for line in text.splitlines():
        if line.startswith("# TYPE redis_proxy_"):
            name, kind = line.split()[2:]
            assert name.removeprefix("redis_proxy_") not in declared
            declared[name.removeprefix("redis_proxy_")] = kind
    assert declared == {name: kind for name, (kind, _) in FAMILIES.items()}


def test_labels_are_those_of_the_operations_guide() -> None:
    seen: dict[str, set[str]] = {}
    for family in families():
        if family.name.startswith("redis_proxy_"):
            name = family.name.removeprefix("redis_proxy_") + ("_total" if family.type == "counter" else "")
            seen[name] = {label for sample in family.samples for label in sample.labels} - {"le"}
    assert seen == {name: labels for name, (_, labels) in FAMILIES.items()}


@pytest.mark.parametrize("accept", ["", OPENMETRICS], ids=["text", "openmetrics"])
def test_values(accept: str) -> None:
    found = samples(accept)
    expected = {
        ("build_info", "0.1.0"): 1,
        ("workers",): 2,
        ("workers_configured",): 2,
        ("workers_without_primary",): 1,
        ("workers_missing_primaries",): 1,
        ("worker_restarts_total",): 5,
        ("config_last_reload_successful",): 1,
        ("config_last_reload_success_timestamp_seconds",): 1600000000.25,
        ("draining",): 0,
        ("client_connections",): 3,
        ("client_connections_max",): 10000,
        ("client_connections_total",): 10,
        ("client_connections_rejected_total", "max_clients"): 3,
        ("client_connections_rejected_total", "descriptors"): 2,
        ("client_disconnects_total", "client"): 4,
        ("client_disconnects_total", "idle"): 0,
        ("commands_total", "get"): 9,
        ("commands_total", "other"): 0,
        ("command_errors_total", "get", "WRONGTYPE"): 2,
        ("command_duration_seconds_sum", "get"): 2.5,
        ("command_duration_seconds_count", "get"): 9,
        ("inflight_commands",): 7,
        ("blocked_clients",): 5,
        ("requests_waiting",): 1,
        ("held_clients",): 25,
        ("request_timeouts_total",): 8,
        ("monitor_lines_dropped_total",): 3,
        ("internal_errors_total",): 9,
        ("bytes_total", "in", "client"): 100,
        ("bytes_total", "out", "client"): 200,
        ("bytes_total", "in", "backend"): 300,
        ("bytes_total", "out", "backend"): 400,
        ("redirections_total", "moved"): 6,
        ("retries_total", "retried", "moved"): 6,
        ("holds_total", "node_down"): 3,
        ("holds_total", "loading"): 0,
        ("refusals_total", "node_down"): 2,
        ("refusals_total", "too_many_held"): 0,
        ("subscriptions", "pattern"): 22,
        ("messages_delivered_total",): 12,
        ("subscriptions_interrupted_seconds_total",): 1.5,
        ("split_commands_total", "mget"): 1,
        ("split_commands_total", "del"): 0,
        ("node_up", "10.0.0.1:7000", "primary"): 1,
        ("node_up", "10.0.0.2:7000", "replica"): 0,
        ("node_paused", "10.0.0.1:7000"): 0,
        ("node_paused", "10.0.0.2:7000"): 0,
        ("backend_connections", "10.0.0.1:7000", "shared", "up"): 2,
        ("backend_connect_failures_total", "10.0.0.2:7000"): 9,
        ("backend_pending", "10.0.0.1:7000"): 5,
        ("backend_breaker_open", "10.0.0.1:7000", "primary"): 0,
        ("backend_breaker_open", "10.0.0.2:7000", "replica"): 1,
        ("backend_held", "10.0.0.1:7000"): 4,
        ("backend_held_bytes", "10.0.0.1:7000"): 400,
        ("backend_duration_seconds_count", "10.0.0.1:7000", "primary"): 4,
        ("slots_covered",): 16384,
        ("topology_epoch",): 12,
        ("topology_last_success_timestamp_seconds",): 1700000000.5,
        ("topology_refreshes_total", "changed", "start"): 1,
        ("output_buffer_bytes",): 4096,
        ("client_memory_bytes",): 10000,
        ("client_memory_max_bytes",): 1000000,
        ("log_lines_dropped_total",): 4,
        ("background_failures_total", "topology"): 1,
        ("background_failures_total", "health"): 0,
        ("event_loop_lag_seconds",): 0.002,
    }
    assert {key: found[key] for key in expected} == expected


def test_refused_clients_by_who_refused_them() -> None:
    values = snapshot()
    values["own"]["rejected"] = {"max_clients": 0}
    values["counters"]["rejected"] = 0
    found = samples(values=values)
    assert {key[1:]: value for key, value in found.items() if key[0] == "client_connections_rejected_total"} == {
        ("max_clients",): 0,
        ("descriptors",): 0,
    }
    values["own"]["rejected"] = {"max_clients": 1, "descriptors": 20}  # the main process may lack them, too
    values["counters"]["rejected"] = 300
    found = samples(values=values)
    assert found["client_connections_rejected_total", "max_clients"] == 1
    assert found["client_connections_rejected_total", "descriptors"] == 320


def test_a_bad_moment() -> None:
    values = snapshot()
    values["own"]["draining"] = True
    values["own"]["reload_successful"] = False
    found = samples(values=values)
    assert (found["draining",], found["config_last_reload_successful",]) == (1, 0)


@pytest.mark.parametrize("accept", ["", OPENMETRICS], ids=["text", "openmetrics"])
def test_buckets_are_cumulative(accept: str) -> None:
    get = [
        (sample.labels["le"], sample.value)
        for family in families(accept)
        for sample in family.samples
        if sample.name == "redis_proxy_command_duration_seconds_bucket" and sample.labels["command"] == "get"
    ]
    assert get == [("0.001", 5), ("0.01", 8), ("1.0", 8), ("+Inf", 9)]


def test_histograms_only_of_commands_that_were_called() -> None:
    found = samples()
    assert ("command_duration_seconds_count", "mget") in found
    assert ("command_duration_seconds_count", "del") not in found
    assert ("commands_total", "del") in found


def test_a_topology_never_seen() -> None:
    values = snapshot()
    values["own"]["topology"]["last_success_s"] = None
    values["nodes"] = {}
    found = samples(values=values)
    assert found["topology_last_success_timestamp_seconds",] == 0
    assert not [key for key in found if key[0] == "node_up"]


def test_a_page_shows_what_it_is_given_each_time() -> None:
    values = snapshot()
    one = page()
    for clients in (1, 2):
        values["clients"] = clients
        values["counters"]["commands"]["get"]["buckets"] = [clients, 0, 0, 0]
        body = one.render(values, "")[0]
        assert f"redis_proxy_client_connections {clients}.0\n".encode() in body
        assert f'redis_proxy_command_duration_seconds_count{{command="get"}} {clients}.0\n'.encode() in body


def test_standard_families_are_there() -> None:
    names = {key[0] for key in samples()}
    assert {
        "process_cpu_seconds_total",
        "process_resident_memory_bytes",
        "process_virtual_memory_bytes",
        "process_open_fds",
        "process_max_fds",
        "process_start_time_seconds",
        "python_info",
        "python_gc_collections_total",
    } <= names


def test_a_wrong_number_of_buckets_is_noticed() -> None:
    values = snapshot()
    values["nodes"]["10.0.0.1:7000"].buckets = [1, 2]
    with pytest.raises(ValueError, match="zip"):
        page().render(values, "")


def test_counters_of_the_data_path_fit() -> None:
    data_path = pytest.importorskip("proxy.forward.counters")
    values = snapshot()
    values["counters"] = data_path.Counters().snapshot()
    for node in values["nodes"].values():
        node.buckets = [0] * (len(data_path.BOUNDS_S) + 1)
    body = page(data_path.BOUNDS_S).render(values, "")[0]
    assert b'redis_proxy_commands_total{command="other"} 0.0\n' in body
    for reason in data_path.CLOSE_REASON_NAMES:
        assert f'redis_proxy_client_disconnects_total{{reason="{reason}"}} 0.0\n'.encode() in body
