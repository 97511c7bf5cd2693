"""What the control plane is told of the configuration: Settings in, the settings of its modules out.

Why: an option is read in one place, at the start as at a reload. Called by control_plane.
"""

from __future__ import annotations

from proxy.cluster.topology import Address
from proxy.config.models import Settings
from proxy.control.node_client import NodeClientSettings
from proxy.control.node_health import HealthSettings
from proxy.control.topology_refresh import RefreshSettings


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


def node_client_settings(settings: Settings) -> NodeClientSettings:
    """For asking a node for its commands and limits."""
    cluster = settings.cluster
    return NodeClientSettings(cluster.username, cluster.secret, cluster.refresh_timeout)
