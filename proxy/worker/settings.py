"""What each part of a worker is told of the configuration: Settings in, the parts' own settings out.

Why: an option is read in one place, whether a worker is put together with it or is given it by a reload. Called by
proxy.worker.worker.
"""

from __future__ import annotations

from typing import TypedDict

from proxy.cluster.topology import Address
from proxy.config.models import Listener, Settings
from proxy.control.node_client import UpstreamSettings
from proxy.control.node_health import HealthSettings
from proxy.control.topology_refresh import RefreshSettings
from proxy.worker.connector import PoolSettings

_WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}


class ClientLimits(TypedDict):
    """Arguments of proxy.forward.datapath.ClientSettings: the same for the clients of all listeners."""

    password: bool
    max_pending: int
    max_pending_bytes: int
    soft_output: int
    hard_output: int
    max_query: int
    max_bulk: int
    max_arguments: int
    timeout_ns: int


def ns(seconds: float) -> int:
    """Seconds as the data path's nanoseconds."""
    return round(seconds * 1e9)


def client_limits(settings: Settings) -> ClientLimits:
    """What holds for every client, whichever listener it came by."""
    clients = settings.clients
    return {
        "password": bool(clients.secret),
        "max_pending": clients.max_pending,
        "max_pending_bytes": clients.max_pending_bytes,
        "soft_output": clients.output_soft_limit,
        "hard_output": clients.output_hard_limit,
        "max_query": clients.max_query,
        "max_bulk": clients.max_bulk,
        "max_arguments": clients.max_arguments,
        "timeout_ns": ns(settings.requests.timeout),
    }


def listeners(settings: Settings) -> dict[str, Listener]:
    """The listeners by the name that supervisor and workers have for them."""
    return {str(listener.address): listener for listener in settings.listeners}


def pool_settings(settings: Settings) -> PoolSettings:
    """For the connections to the nodes."""
    backends, cluster = settings.backends, settings.cluster
    return PoolSettings(
        connect_timeout_s=backends.connect_timeout,
        backoff_min_s=backends.backoff_min,
        backoff_max_s=backends.backoff_max,
        keepalive_s=backends.keepalive,
        client_name=backends.client_name,
        username=cluster.username,
        password=cluster.secret,
    )


def connection_settings(settings: Settings) -> tuple[object, ...]:
    """What a connection to a node keeps for its life: when this changes, connections must be renewed."""
    pool = pool_settings(settings)
    return pool.username, pool.password, pool.client_name, pool.keepalive_s, settings.backends.connections


def refresh_settings(settings: Settings) -> RefreshSettings:
    """For learning the topology."""
    cluster = settings.cluster
    return RefreshSettings(
        seeds=tuple(Address(seed.host, seed.port) for seed in cluster.seeds),
        refresh_interval_s=cluster.refresh_interval,
        min_gap_s=cluster.refresh_min_gap,
        timeout_s=cluster.refresh_timeout,
        username=cluster.username,
        password=cluster.secret,
        address_map=cluster.address_map,
        endpoint=cluster.endpoint,
    )


def health_settings(settings: Settings) -> HealthSettings:
    """For probing the replicas."""
    return HealthSettings(
        health_interval_s=settings.backends.health_interval,
        timeout_s=settings.backends.connect_timeout,
        username=settings.cluster.username,
        password=settings.cluster.secret,
    )


def upstream_settings(settings: Settings) -> UpstreamSettings:
    """For asking a node for its commands."""
    cluster = settings.cluster
    return UpstreamSettings(cluster.username, cluster.secret, cluster.refresh_timeout)


def tcp_endpoint(settings: Settings) -> tuple[str, int] | None:
    """(host, port) a cluster-aware client that came by a Unix socket can use; None without a TCP listener.

    A port the kernel chose is not known here.
    """
    for listener in settings.listeners:
        host, port = listener.address.host, listener.address.port
        if port:
            return _WILDCARDS.get(host, host), port
    return None
