"""docs/compatibility.md: what was tried, in which version, and what came out.

Called by: run.py. The page is its own memory: a run of a few programs replaces their lines and keeps the others.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

HEAD = """# What has been tried with the proxy

Written by `make test-clients` (tests/clients; ARGS="--only NAME" tries one again). Each program is unmodified, knows
nothing of Cluster, and talks to the proxy in front of 3 primaries and 3 replicas of {server}; checks compare values.
`-` in a column of numbers is 0.

"""
COLUMNS = "| name | of | version | passed | failed | not tried | remarks |\n|---|---|---|---|---|---|---|\n"
PLACES = {"client": "## Clients", "framework": "## Frameworks", "tool": "## Tools and test suites"}
FAILURES = "## What fails"
DIALOGUE = "not on PyPI, npm or Debian; what it says is replayed by tests/integration/test_client_dialogues.py"
ONE_NODE = (
    "; it takes the answer to CLUSTER NODES for a cluster of one node, and refuses keys of several slots in one "
    "command, and databases but 0, itself, unless its configuration takes that command away ($CLUSTER=)"
)
# What no registry carries for `make test-clients`: kind -> (name, of, why).
ELSEWHERE = {
    "client": [
        ("Jedis", "Java", DIALOGUE),
        ("Lettuce", "Java", DIALOGUE),
        ("Redisson", "Java", DIALOGUE),
        ("go-redis", "Go", DIALOGUE),
        ("StackExchange.Redis", ".NET", DIALOGUE + ONE_NODE),
    ],
    "tool": [("ioredis's own test suite", "Node", "its npm tarball carries none, and Debian has no ioredis")],
}


@dataclass
class Outcome:
    """Of one program. checks: (name, True, False or None for not tried, detail)."""

    name: str
    kind: str
    language: str
    version: str = ""
    checks: list[tuple[str, bool | None, str]] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    missing: str = ""

    def count(self, ok: bool | None) -> int:
        return sum(result is ok for _, result, _ in self.checks)

    def row(self) -> str:
        numbers = [str(self.count(ok) or "-") for ok in (True, False, None)]
        if self.missing:
            numbers = ["-", "-", "all"]
        skipped = [f"{name}: {detail}" for name, ok, detail in self.checks if ok is None]
        remarks = "; ".join([*([self.missing] if self.missing else []), *self.remarks, *skipped])
        return "| " + " | ".join(map(_cell, [self.name, self.language, self.version, *numbers, remarks])) + " |"

    def failures(self) -> list[str]:
        return [f"- **{self.name}**, {name}: {_cell(detail)}" for name, ok, detail in self.checks if ok is False]


def write(page: Path, outcomes: Iterable[Outcome], known: dict[str, str], server: str) -> None:
    """Lays the outcomes over the page. known: the programs there are, name -> kind; lines of others are dropped."""
    text = page.read_text() if page.exists() else ""
    rows = {found[1]: found[0] for found in re.finditer(r"^\| (.+?) \| .*\|$", text, re.MULTILINE)}
    failures = {name: [] for name in known}
    for found in re.finditer(r"^- \*\*(.+?)\*\*, .*$", text, re.MULTILINE):
        failures.setdefault(found[1], []).append(found[0])
    for outcome in outcomes:
        rows[outcome.name] = outcome.row()
        failures[outcome.name] = outcome.failures()
    parts = [HEAD.format(server=server)]
    for kind, title in PLACES.items():
        lines = [rows[name] for name in sorted(known, key=str.lower) if known[name] == kind and name in rows]
        lines += [f"| {name} | {of} |  | - | - | all | {why} |" for name, of, why in ELSEWHERE.get(kind, [])]
        if lines:
            parts.append(f"{title}\n\n{COLUMNS}" + "\n".join(lines) + "\n\n")
    failed = [line for name in sorted(known, key=str.lower) for line in failures.get(name, [])]
    parts.append(f"{FAILURES}\n\n" + ("\n".join(failed) if failed else "Nothing.") + "\n")
    page.parent.mkdir(exist_ok=True)
    page.write_text("".join(parts))


def shortened(text: str) -> str:
    """One line of at most 300 characters."""
    return re.sub(r"\s+", " ", text).strip()[:300]


def _cell(text: str) -> str:
    return shortened(text).replace("|", "\\|")
