"""What several tests of proxy.admin use."""

from __future__ import annotations

import pytest

from proxy.admin import http


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A callback that hangs, and a connection nobody uses, are given up soon."""
    monkeypatch.setattr(http, "ANSWER_S", 0.1)
    monkeypatch.setattr(http, "_GRACE_S", 0.1)
