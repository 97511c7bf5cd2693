"""Runs the programs of the clients and frameworks against the proxy, and writes docs/compatibility.md.

    python -m tests.clients.run                      # everything
    python -m tests.clients.run --list
    python -m tests.clients.run --only ioredis,bull  # these; the page keeps the lines of the others
    python -m tests.clients.run --plain              # one plain server in place of the proxy: are the programs right?
    python -m tests.clients.run --proxy host:port    # one that runs already; it is emptied only with --flush

Ends with 1 when a check fails. The page is written for the proxy that was started here, not for --plain or --proxy.
Called by: `make test-clients`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.clients import subject as subjects
from tests.clients.install import NotInstalled, install
from tests.clients.table import Outcome, shortened, write

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "compatibility.md"
TIME_LIMIT_S = 120.0
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "redis-proxy-test-clients"


def programs() -> Iterator[tuple[Path, dict[str, Any]]]:
    """Folder and settings of each; one with variants counts once for each of them."""
    for file in sorted(HERE.glob("*/meta.json")):
        meta = json.loads(file.read_text())
        for variant in meta.pop("variants", [{}]):
            name = " ".join(filter(None, [meta["name"], variant.get("name")]))
            env = meta.get("env", {}) | variant.get("env", {})
            yield file.parent, meta | variant | {"name": name, "env": env}


def chosen(only: str) -> list[tuple[Path, dict[str, Any]]]:
    """Those whose folder, name or kind is in `only` (comma-separated); all when it is empty."""
    wanted = [word.strip().lower() for word in only.split(",") if word.strip()]
    if only and not wanted:
        raise SystemExit(f"no name in --only {only!r}")
    called = [(folder, meta, {folder.name, meta["name"].lower(), meta["kind"]}) for folder, meta in programs()]
    unknown = [word for word in wanted if not any(word in names for _, _, names in called)]
    if unknown:
        raise SystemExit(f"no such program: {', '.join(unknown)} (--list shows them)")
    return [(folder, meta) for folder, meta, names in called if not wanted or names.intersection(wanted)]


def run(folder: Path, meta: dict[str, Any], control: subjects.Control, cache: Path, *, apt: bool) -> Outcome:
    """Installs and runs one; never raises for what the program does."""
    outcome = Outcome(meta["name"], meta["kind"], meta["language"], remarks=meta.get("remarks", []))
    try:
        installed = install(folder, meta, cache, apt=apt)
    except NotInstalled as missing:
        outcome.missing = f"not tried: {missing}"
        return outcome
    subject = control.subject
    subject.flush()
    env = {
        **os.environ,
        **installed.env,
        **meta["env"],
        "PROXY_HOST": subject.host,
        "PROXY_PORT": str(subject.port),
        "SUBJECT": subject.kind,
        "RESTART": control.command("restart"),
        "FAILOVER": control.command("failover"),
        "PYTHONUNBUFFERED": "1",
    }
    command = [word.format(**installed.words) for word in meta["run"]]
    started = time.monotonic()
    said, code = output_of(command, folder, env, meta.get("time_limit_s", TIME_LIMIT_S))
    took_s = time.monotonic() - started
    read(said, outcome)
    if code != 0:
        outcome.checks.append(("runs to its end", False, f"{code} after {took_s:.0f} s: {last_words(said)}"))
    elif not outcome.checks:
        outcome.checks.append(("has checks", False, last_words(said)))
    return outcome


def output_of(command: list[str], folder: Path, env: dict[str, str], limit_s: float) -> tuple[str, str | int]:
    """Its output, stderr included, and how it ended; past the limit it is killed with all it started."""
    try:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as error:
        return "", str(error)
    said = bytearray()
    deadline = time.monotonic() + limit_s
    with contextlib.ExitStack() as stack:
        stack.callback(kill_group, process.pid)
        pipe = stack.enter_context(process.stdout)  # type: ignore[arg-type]
        selector = stack.enter_context(selectors.DefaultSelector())
        selector.register(pipe, selectors.EVENT_READ)
        # What it started may outlive it and hold the pipe: its own end is what counts, and what was written by then.
        while time.monotonic() < deadline:
            ended = process.poll() is not None
            if selector.select(0 if ended else 0.2):
                chunk = os.read(pipe.fileno(), 1 << 16)
                said += chunk
                if chunk:
                    continue
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.0, deadline - time.monotonic()))
                break
            if ended:
                break
        code = process.poll()
    process.wait()
    return said.decode(errors="replace"), f"killed after {limit_s:g} s" if code is None else code


def kill_group(leader: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


def read(said: str, outcome: Outcome) -> None:
    """Takes in the lines of JSON that a program prints; other lines are its own."""
    for line in said.splitlines():
        if not line.startswith("{"):
            continue
        try:
            report = json.loads(line)
        except ValueError:
            continue
        if "version" in report:
            outcome.version = str(report["version"])
        if "remark" in report:
            outcome.remarks = [*outcome.remarks, str(report["remark"])]
        if "check" in report:
            outcome.checks.append((str(report["check"]), report.get("ok"), str(report.get("detail", ""))))


def last_words(said: str) -> str:
    return re.sub(r"\s+", " ", said[-300:])


def show(outcome: Outcome, *, verbose: bool) -> None:
    if outcome.missing:
        print(f"{outcome.name}: {outcome.missing}", flush=True)
        return
    numbers = [f"{outcome.count(ok)} {word}" for ok, word in ((True, "passed"), (False, "failed"), (None, "not tried"))]
    print(f"{outcome.name} {outcome.version}: {', '.join(numbers)}", flush=True)
    for name, ok, detail in outcome.checks:
        if verbose or ok is not True:
            print(f"    {'ok  ' if ok else 'FAIL' if ok is False else '-   '} {name}  {shortened(detail)}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="names, folders or kinds (client, framework, tool), with commas")
    parser.add_argument("--list", action="store_true", help="what there is")
    parser.add_argument("--plain", action="store_true", help="one plain server in place of the proxy")
    parser.add_argument("--proxy", metavar="HOST:PORT", help="an address that is served already")
    parser.add_argument("--flush", action="store_true", help="FLUSHALL before each program also with --proxy")
    parser.add_argument("--server", choices=["valkey", "redis"], default="valkey")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--cache", type=Path, default=CACHE, help="where packages are installed")
    parser.add_argument("--no-apt", action="store_true", help="install nothing of Debian's")
    parser.add_argument("--verbose", action="store_true", help="passed checks and the proxy's log too")
    options = parser.parse_args()
    todo = chosen(options.only)
    if options.list:
        for folder, meta in todo:
            print(f"{meta['name']:32} {meta['kind']:10} {meta['language']:10} {folder.name}")
        return 0

    from tests.support.cluster import servers

    options.cache.mkdir(parents=True, exist_ok=True)
    server = servers()[options.server]
    outcomes = []
    with contextlib.ExitStack() as stack:
        if options.proxy:
            subject = subjects.given(options.proxy, options.flush)
        elif options.plain:
            subject = stack.enter_context(subjects.plain(server))
        else:
            subject = stack.enter_context(subjects.proxied(server, options.workers))
        control = subjects.Control(subject)
        for folder, meta in todo:
            outcomes.append(run(folder, meta, control, options.cache.resolve(), apt=not options.no_apt))
            show(outcomes[-1], verbose=options.verbose)
        if options.verbose:
            print(subject.log())
        if "Traceback" in subject.log():
            outcomes.append(
                Outcome("the proxy", "tool", "Python", checks=[("no traceback", False, subject.log()[-2000:])])
            )
            show(outcomes[-1], verbose=True)
    if subject.kind == "proxy":
        write(PAGE, outcomes, {meta["name"]: meta["kind"] for _, meta in programs()}, options.server.capitalize())
    failed = sum(outcome.count(False) for outcome in outcomes)
    passed = sum(outcome.count(True) for outcome in outcomes)
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
