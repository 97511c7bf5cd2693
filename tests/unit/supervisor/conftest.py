"""Fixtures of the supervisor's tests."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterator

import pytest

from tests.unit.supervisor.pool_stage import Play, player


@pytest.fixture
def few_descriptors() -> Iterator[Callable[[int | None], None]]:
    """few_descriptors(n): from now on n more can be opened; None: as many as before."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    def limit(more: int | None) -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        if more is None:
            return
        next_ones = [os.dup(0) for _ in range(more + 1)]
        for descriptor in next_ones:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (next_ones[-1], hard))

    yield limit
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Play:
    """See pool_stage.player."""
    return player(monkeypatch)
