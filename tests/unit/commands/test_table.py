"""The committed table: generated, whole, and still what the server says."""

from __future__ import annotations

from pathlib import Path

import pytest

from proxy.commands import table
from proxy.commands.generate import ask, render
from proxy.commands.rows import Row
from proxy.commands.table import ROWS, SOURCE
from tests.support.cluster import Standalone

ALL = {r.name: r for top in ROWS for r in (top, *top.subcommands)}


def test_nobody_edited_the_table() -> None:
    assert render(SOURCE, ROWS) == Path(table.__file__).read_text()


def test_rows_are_sorted_and_named_once() -> None:
    names = [r.name for r in ROWS]
    assert names == sorted(set(names))
    assert len(ALL) == sum(1 + len(r.subcommands) for r in ROWS)
    assert all(s.name.startswith(r.name + "|") for r in ROWS for s in r.subcommands)


def test_the_table_says_what_the_server_says(standalone: Standalone) -> None:
    server = ask(f"127.0.0.1:{standalone.port}")
    if not server.title.startswith("valkey"):
        pytest.skip("the table follows the newest server it was made from")
    told = {r.name: r for top in server.rows for r in (top, *top.subcommands)}

    def alone(r: Row) -> Row:
        return r._replace(subcommands=())

    stale = {name for name, r in told.items() if name not in ALL or alone(ALL[name]) != alone(r)}
    assert stale == set(), f"run python -m proxy.commands.generate: {server.title} differs from {SOURCE}"


def test_every_server_is_known(standalone: Standalone) -> None:
    server = ask(f"127.0.0.1:{standalone.port}")
    if server.title not in SOURCE.split(", "):
        pytest.skip(f"the table was not made from {server.title}")
    told = {r.name for top in server.rows for r in (top, *top.subcommands)}
    assert told - set(ALL) == set()
