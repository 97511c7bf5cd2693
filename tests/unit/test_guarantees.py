"""docs/guarantees.md names tests that exist, and every line of its tables names one."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
GUARANTEES = TESTS.parent / "docs" / "guarantees.md"
NAMED = re.compile(r"`((?:unit|integration|daemon|chaos|differential)/[\w/]+\.py)(?:::(test_\w+))?`")


def rows() -> list[str]:
    """The lines of all tables, without their heads."""
    lines = GUARANTEES.read_text().splitlines()
    return [line for line in lines if line.startswith("|") and not re.match(r"\|---|\| (promise|when) \|", line)]


def test_each_line_names_a_test() -> None:
    assert len(rows()) > 20
    assert [line for line in rows() if not NAMED.search(line)] == []


def test_the_tests_are_there() -> None:
    named = NAMED.findall(GUARANTEES.read_text())
    missing = [
        f"{file}::{name}"
        for file, name in named
        if not (TESTS / file).is_file() or (name and f"def {name}(" not in (TESTS / file).read_text())
    ]
    assert missing == []
