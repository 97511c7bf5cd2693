"""The stage on which these tests play their dialogues."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.support.datapath import Play, Stage


@pytest.fixture
def play() -> Iterator[Play]:
    """Makes stages (same arguments) and closes them, which asserts that nothing is left of any request."""
    with ExitStack() as stack:

        def make(*args: Any, **options: Any) -> Stage:
            stage = Stage(*args, **options)
            stack.callback(stage.close)
            return stage

        yield make
