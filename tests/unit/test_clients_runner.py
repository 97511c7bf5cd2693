"""The runner of `make test-clients`: programs are read, bounded, and their lines on the page kept or replaced."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import pytest

from tests.clients import run
from tests.clients.table import Outcome, write

ENV = dict(os.environ)


def test_every_program_says_what_it_is() -> None:
    names = []
    for folder, meta in run.programs():
        assert meta["kind"] in ("client", "framework", "tool"), folder
        assert meta["language"]
        assert meta["run"]
        names.append(meta["name"])
    assert len(set(names)) == len(names)


def test_reads_reports_and_nothing_else() -> None:
    outcome = Outcome("a", "client", "C")
    reports = [
        {"client": "a", "version": "1.2"},
        {"check": "x", "ok": True},
        {"check": "y", "ok": False, "detail": "no"},
        {"check": "z", "ok": None, "detail": "cannot"},
        {"remark": "odd"},
    ]
    run.read("\n".join(["{not json", "noise", *map(json.dumps, reports)]), outcome)
    assert outcome.version == "1.2"
    assert outcome.checks == [("x", True, ""), ("y", False, "no"), ("z", None, "cannot")]
    assert outcome.row() == "| a | C | 1.2 | 1 | 1 | 1 | odd; z: cannot |"
    assert outcome.failures() == ["- **a**, y: no"]


def test_output_and_exit_code(tmp_path: Path) -> None:
    program = [sys.executable, "-c", "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"]
    said, code = run.output_of(program, tmp_path, ENV, 20)
    assert sorted(said.split()) == ["err", "out"]
    assert code == 3


@pytest.mark.parametrize("holds", ["time.sleep(60)", "os.fork() or time.sleep(60)"], ids=["itself", "a child"])
def test_nothing_outlives_the_limit(holds: str, tmp_path: Path) -> None:
    """Nor does a child that keeps the pipe open hold the runner."""
    program = [sys.executable, "-c", f"import os, time; print('begun', flush=True); {holds}"]
    started = time.monotonic()
    said, code = run.output_of(program, tmp_path, ENV, 1.5)
    assert said == "begun\n"
    assert code in (0, "killed after 1.5 s")
    assert time.monotonic() - started < 20


def test_a_run_of_some_keeps_the_lines_of_the_others(tmp_path: Path) -> None:
    page = tmp_path / "docs" / "page.md"
    known = {"one": "client", "two": "framework", "gone": "client"}
    first = [Outcome(name, kind, "C", "1", [("x", False, f"bad {name}")]) for name, kind in known.items()]
    write(page, first, known, "Valkey")
    del known["gone"]
    write(page, [Outcome("one", "client", "C", "2", [("x", True, "")])], known, "Valkey")
    text = page.read_text()
    assert "| one | C | 2 | 1 | - | - |  |" in text
    assert "| two | C | 1 | - | 1 | - |  |" in text
    assert "**two**, x: bad two" in text
    assert "bad one" not in text
    assert "gone" not in text
