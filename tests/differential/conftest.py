"""The usual run compares each kind of server in one or two ways, `-m long` in all of them."""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).parent
USUAL = {("valkey", (1, "primary")), ("valkey", (2, "prefer_replica")), ("redis", (1, "primary"))}


@pytest.hookimpl(tryfirst=True)  # before `-m` is obeyed
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        params = getattr(getattr(item, "callspec", None), "params", {})
        if HERE in item.path.parents and "pair" in params and (params.get("server"), params["pair"]) not in USUAL:
            item.add_marker(pytest.mark.long)
