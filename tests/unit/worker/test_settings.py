"""Every option reaches the part it is meant for."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.cluster.topology import Address
from proxy.control.node_client import UpstreamSettings
from proxy.control.node_health import HealthSettings
from proxy.control.topology_refresh import RefreshSettings
from proxy.forward.datapath import ClientSettings
from proxy.worker import settings as parts
from proxy.worker.connector import PoolSettings
from tests.unit.worker.scene import configured

SECTIONS: dict[str, Any] = {
    "cluster": {
        "username": "bob",
        "password": "s3cret",
        "address_map": {"a": "b"},
        "endpoint": "hostname",
        "refresh_interval": "31s",
        "refresh_min_gap": "32ms",
        "refresh_timeout": "33ms",
    },
    "backends": {
        "connections": 2,
        "connect_timeout": "21ms",
        "backoff_min": "22ms",
        "backoff_max": "23ms",
        "client_name": "name",
        "keepalive": "24s",
        "health_interval": "25s",
    },
    "requests": {"timeout": "11ms"},
    "clients": {
        "password": "door",
        "max_pending": 1,
        "max_pending_bytes": "2b",
        "output_soft_limit": "3b",
        "output_hard_limit": "4b",
        "max_query": "5b",
        "max_bulk": "6b",
        "max_arguments": 7,
    },
}
SETTINGS = configured(["n:1", "[::1]:2"], **SECTIONS)


def test_all_of_them() -> None:
    assert parts.client_limits(SETTINGS) == {
        "password": True,
        "max_pending": 1,
        "max_pending_bytes": 2,
        "soft_output": 3,
        "hard_output": 4,
        "max_query": 5,
        "max_bulk": 6,
        "max_arguments": 7,
        "timeout_ns": 11_000_000,
    }
    assert parts.pool_settings(SETTINGS) == PoolSettings(
        connect_timeout_s=0.021,
        backoff_min_s=0.022,
        backoff_max_s=0.023,
        keepalive_s=24.0,
        client_name="name",
        username="bob",
        password="s3cret",
    )
    assert parts.refresh_settings(SETTINGS) == RefreshSettings(
        seeds=(Address("n", 1), Address("::1", 2)),
        refresh_interval_s=31.0,
        min_gap_s=0.032,
        timeout_s=0.033,
        username="bob",
        password="s3cret",
        address_map={"a": "b"},
        endpoint="hostname",
    )
    assert parts.health_settings(SETTINGS) == HealthSettings(
        health_interval_s=25.0, timeout_s=0.021, username="bob", password="s3cret"
    )
    assert parts.upstream_settings(SETTINGS) == UpstreamSettings("bob", "s3cret", 0.033)


def test_limits_are_what_the_data_path_takes() -> None:
    limits = parts.client_limits(SETTINGS)
    ClientSettings(**limits).update(**limits)


@pytest.mark.parametrize(
    ("section", "option", "value", "renews"),
    [
        ("cluster", "username", "alice", True),
        ("cluster", "password", "other", True),
        ("backends", "client_name", "", True),
        ("backends", "keepalive", "0", True),
        ("backends", "connections", 3, True),
        ("backends", "connect_timeout", "9s", False),
        ("backends", "health_interval", "9s", False),
        ("cluster", "refresh_interval", "9s", False),
        ("clients", "password", "other", False),
    ],
)
def test_what_renews_the_connections(section: str, option: str, value: object, renews: bool) -> None:
    changed = configured(["n:1"], **(SECTIONS | {section: SECTIONS[section] | {option: value}}))
    assert (parts.connection_settings(changed) != parts.connection_settings(SETTINGS)) is renews


def test_listeners_by_name() -> None:
    listeners = [
        {"address": "127.0.0.1:0", "reads": "any"},
        {"address": "[::1]:7617"},
        {"address": "unix:/x"},
    ]
    found = parts.listeners(configured(["n:1"], listeners=listeners))
    assert {name: listener.reads for name, listener in found.items()} == {
        "127.0.0.1:0": "any",
        "[::1]:7617": "primary",
        "unix:/x": "primary",
    }


@pytest.mark.parametrize(
    ("addresses", "endpoint"),
    [
        (["127.0.0.1:7617"], ("127.0.0.1", 7617)),
        (["unix:/x", "[::1]:1", "127.0.0.1:2"], ("::1", 1)),
        (["0.0.0.0:3"], ("127.0.0.1", 3)),
        (["[::]:4"], ("::1", 4)),
        (["127.0.0.1:0", "localhost:5"], ("localhost", 5)),
        (["127.0.0.1:0", "unix:/x"], None),
    ],
)
def test_endpoint_for_unix_clients(addresses: list[str], endpoint: tuple[str, int] | None) -> None:
    settings = configured(["n:1"], listeners=[{"address": address} for address in addresses])
    assert parts.tcp_endpoint(settings) == endpoint
