"""What takes longest: the usual run tries it on Valkey only, `-m long` on Redis as well.

On both kinds in any case: the exact words of errors, the protocol, handshakes and where keys stand.
"""

from __future__ import annotations

import pytest

ON_ONE_KIND = {
    "test_fan_out",
    "test_command_info",
    "test_client_modes",
    "test_blocking",
    "test_client_dialogues",
    "test_cluster_view",
    "test_data_types",
    "test_info",
    "test_limits",
    "test_monitoring",
    "test_order",
    "test_pause",
    "test_pubsub",
    "test_reads",
    "test_scan",
    "test_scripts",
    "test_split",
    "test_tools",
    "test_tracking",
    "test_transactions",
    "test_trust",
}


@pytest.hookimpl(tryfirst=True)  # before `-m` is obeyed
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        callspec = getattr(item, "callspec", None)
        if item.path.stem in ON_ONE_KIND and callspec is not None and callspec.params.get("server") == "redis":
            item.add_marker(pytest.mark.long)
