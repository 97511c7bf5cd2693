"""Chaos takes minutes: the usual run breaks Valkey clusters only, `-m long` Redis ones as well."""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)  # before `-m` is obeyed
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        callspec = getattr(item, "callspec", None)
        if HERE in item.path.parents and callspec is not None and callspec.params.get("server") == "redis":
            item.add_marker(pytest.mark.long)
