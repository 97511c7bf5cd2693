"""Every option reaches the part it is meant for."""

from __future__ import annotations

import msgspec
import pytest

from proxy.forward.datapath import ClientSettings
from proxy.worker.settings import client_limits, ns, of_a_connection
from tests.unit.worker.scene import configured

CLIENTS = {
    "password": "s3cret",
    "max_pending": 1,
    "max_pending_bytes": 2,
    "output_soft_limit": 3,
    "output_hard_limit": 4,
    "max_query": 5,
    "max_bulk": 6,
    "max_arguments": 7,
}


def test_limits_of_clients() -> None:
    limits = client_limits(configured(clients=CLIENTS, requests={"timeout": 0.011}))
    assert limits == {
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
    ClientSettings(**limits).update(**limits)


@pytest.mark.parametrize(
    ("option", "value", "renews"),
    [
        ("username", "alice", True),
        ("password", "other", True),
        ("client_name", "", True),
        ("keepalive", 0.0, True),
        ("connections", 3, True),
        ("connect_timeout", 9.0, False),
        ("batch_pause", 0.0, False),
        ("backoff_max", 9.0, False),
    ],
)
def test_what_renews_the_connections(option: str, value: object, renews: bool) -> None:
    backends = configured().backends
    changed = msgspec.structs.replace(backends, **{option: value})
    assert (of_a_connection(changed) != of_a_connection(backends)) is renews


def test_no_secret_is_shown() -> None:
    settings = configured(clients={"password": "s3cret"}, backends={"password": "s3cret"})
    assert "s3cret" not in repr(settings)


def test_nanoseconds() -> None:
    assert ns(0.00005) == 50_000
