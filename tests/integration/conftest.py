"""The modules with the most cases: the usual run tries them on Valkey only, `-m long` on Redis as well."""

from __future__ import annotations

import pytest

ON_ONE_KIND = {
    "test_fan_out",
    "test_command_info",
    "test_client_modes",
    "test_blocking",
    "test_limits",
    "test_monitoring",
    "test_pubsub",
    "test_tools",
    "test_tracking",
}


@pytest.hookimpl(tryfirst=True)  # before `-m` is obeyed
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        callspec = getattr(item, "callspec", None)
        if item.path.stem in ON_ONE_KIND and callspec is not None and callspec.params.get("server") == "redis":
            item.add_marker(pytest.mark.long)
