"""Chaos takes minutes: the usual run breaks Valkey clusters, each kind of trouble once; `-m long` does the rest."""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).parent
# Left to `-m long`: another test of the usual run, or a scenario of the bench, goes the same way through the proxy.
AT_LENGTH = (
    "test_addresses.py::test_a_rolling_restart_with_new_addresses",
    "test_blocking.py::test_a_failover_ends_the_wait_or_takes_it_along",
    "test_blocking.py::test_a_killed_node_ends_the_wait",
    "test_dead_shard.py::TestPipelines::test_of_a_cluster_that_is_down",
    "test_dead_shard.py::TestReadiness::test_one_for_longer_than_commands_are_held",
    "test_dead_shard.py::test_blocked_clients_dial_no_dead_node",
    "test_failover.py::test_a_node_that_comes_back_on_another_port",
    "test_failover.py::test_a_node_that_is_back_is_read_from[valkey-a killed replica]",
    "test_failover.py::test_a_shard_that_stays_dead",
    "test_failover.py::test_all_addresses_change_at_once",
    "test_hang.py::test_a_replica_goes_on_alone[valkey-pause]",
    "test_hang.py::test_a_primary_that_hangs_under_load[valkey-stopped]",
    "test_hang.py::test_reads_that_prefer_replicas[valkey-primary-kill]",
    "test_hang.py::test_reads_that_prefer_replicas[valkey-replica-kill]",
    "test_hang.py::test_reads_that_prefer_replicas[valkey-replica-pause]",
    "test_order.py::test_one_clients_order_across_moves[valkey-2]",
    "test_order.py::test_one_clients_order_across_moves_with_refreshes",
    "test_process_events.py::test_a_reload",
    "test_process_events.py::test_an_upgrade",
    "test_pubsub.py::test_a_node_that_restarts_sends_events_again",
    "test_pubsub.py::test_nothing_is_doubled_and_all_is_heard_again[valkey-move]",
    "test_pubsub.py::test_nothing_is_doubled_and_all_is_heard_again[valkey-pause]",
    "test_resharding.py::test_a_slot_left_half_moved_is_served",
    "test_resharding.py::test_both_at_once",
    "test_tracking.py::test_a_slot_that_moves_in_order",
    "test_tracking.py::test_no_stale_value_lasts[valkey-connections]",
    "test_tracking.py::test_no_stale_value_lasts[valkey-kill]",
)


@pytest.hookimpl(tryfirst=True)  # before `-m` is obeyed
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE not in item.path.parents:
            continue
        callspec = getattr(item, "callspec", None)
        other = callspec is not None and callspec.params.get("server") == "redis"
        name = f"{item.path.name}::{item.nodeid.partition('::')[2]}"
        if other or any(name == one or name.startswith(f"{one}[") for one in AT_LENGTH):
            item.add_marker(pytest.mark.long)
