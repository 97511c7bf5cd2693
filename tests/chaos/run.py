"""The chaos bench: every scenario once, and a table of what came out.

    python -m tests.chaos.run [--short] [--only kill-primary,stalls] [--list] [--seed N] [--server redis] [--write FILE]
    python -m tests.chaos.run --soak 600
    python -m tests.chaos.run --short --sanitizers

Each scenario has a cluster, a proxy and clients of its own, and is given up after a time. docs/chaos.md is written
(--write) after a run of all of them. Exit status: 0 nothing was violated; 1 something was, or a scenario could not be
played. Nothing that it started outlives it.

Called by: `make chaos`.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import pickle
import random
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from tests.chaos import report
from tests.chaos.scenarios import SCENARIOS, Scenario
from tests.chaos.soak import compare, random_faults
from tests.chaos.stage import Result, Stage
from tests.support import sanitizers
from tests.support.cluster import servers
from tests.support.proxyd import ROOT

SOAK_PACE = 4.0  # slower clients: every operation is remembered
SHOWN = 12  # violations of one scenario


class TooLate(Exception):
    """A scenario took longer than it may."""


@contextmanager
def bounded(seconds: float) -> Any:
    """TooLate in this thread after so many seconds."""

    def late(signum: int, frame: FrameType | None) -> None:
        faulthandler.dump_traceback()
        raise TooLate(f"not over after {seconds:.0f} s")

    signal.signal(signal.SIGALRM, late)
    signal.alarm(int(seconds))
    try:
        yield
    finally:
        signal.alarm(0)


def play(scenario: Scenario, options: argparse.Namespace, prefix: Sequence[str]) -> Result:
    """One scenario; raises when it cannot be played."""
    with bounded(scenario.bound_s), _stage(options, prefix) as stage:
        if options.sanitizers:
            assert all(map(sanitizers.in_use, stage.daemon.worker_pids())), "the workers run another build"
        scenario.play(stage)
        return stage.finish(scenario.name)


def soak(options: argparse.Namespace, prefix: Sequence[str]) -> Result:
    """Random faults for so many seconds, and then the same memory, descriptors and sockets as before."""
    with bounded(options.soak + 180), _stage(options, prefix) as stage:
        stage.fault(0, 1, 2)
        faults = random_faults(stage, options.soak)
        print(f"{len(faults)} faults", flush=True)
        result = stage.finish("soak")
        result.trouble += compare(result.before, result.after)
        if result.after.processes != result.before.processes:
            result.trouble.append(f"{result.before.processes} processes have become {result.after.processes}")
        return result


def _stage(options: argparse.Namespace, prefix: Sequence[str]) -> Stage:
    run = f"c{random.randrange(1 << 24):x}"
    pace = SOAK_PACE if options.soak else 1.0
    return Stage(server=servers()[options.server], prefix=prefix, seed=options.seed, run=run, pace=pace)


def tell(result: Result, took_s: float) -> None:
    """The result on the terminal."""
    print(f"{'ok  ' if result.good else 'BAD '} {report.line(result)} ({took_s:.0f} s)", flush=True)
    for kind, what in result.verdict.violations[:SHOWN]:
        print(f"       {kind}: {what}", flush=True)
    if len(result.verdict.violations) > SHOWN:
        print(f"       and {len(result.verdict.violations) - SHOWN} more", flush=True)
    if result.notes and not result.good:
        print(f"       what was done: {', '.join(result.notes)}", flush=True)
    for trouble in result.trouble:
        print(f"       {trouble}", flush=True)


def write(results: Sequence[Result], options: argparse.Namespace) -> None:
    """The table, where it is wanted."""
    if options.write and results:
        about = {scenario.name: scenario.about for scenario in SCENARIOS}
        options.write.write_text(report.document(results, about, options.server, options.seed, ROOT))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tests.chaos.run", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--short", action="store_true", help="a few scenarios, in about 40 s")
    parser.add_argument("--only", help="scenarios, separated by commas")
    parser.add_argument("--list", action="store_true", help="the scenarios")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 16), help="of what is random in them")
    parser.add_argument("--soak", type=float, metavar="SECONDS", help="random faults for so long instead")
    parser.add_argument("--sanitizers", action="store_true", help="the proxy under address and undefined behaviour")
    parser.add_argument("--server", choices=sorted(servers()), default="valkey")
    parser.add_argument("--write", type=Path, help="the table as a file, e.g. docs/chaos.md")
    parser.add_argument("--logs", type=Path, help="folder for the proxy's log and the result of each scenario")
    parser.add_argument("--collect", type=Path, help="no scenario is played: --write what such a folder has")
    return parser.parse_args(arguments)


def chosen(options: argparse.Namespace) -> list[Scenario]:
    if not options.only:
        possible = [scenario for scenario in SCENARIOS if scenario.server in ("", options.server)]
        return [scenario for scenario in possible if scenario.short or not options.short]
    by_name = {scenario.name: scenario for scenario in SCENARIOS}
    if unknown := set(options.only.split(",")) - set(by_name):
        sys.exit(f"no scenario {', '.join(sorted(unknown))}; --list shows them")
    return [by_name[name] for name in options.only.split(",")]


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    if options.collect:
        paths = [options.collect / f"{scenario.name}.result" for scenario in SCENARIOS]
        write([pickle.loads(path.read_bytes()) for path in paths if path.exists()], options)
        return 0
    if options.list:
        print("\n".join(f"{scenario.name:28} {scenario.about}" for scenario in SCENARIOS))
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unwinds, and so ends what was started
    prefix = sanitizers.prefix() if options.sanitizers else []
    began = time.monotonic()
    print(f"seed {options.seed}", flush=True)
    results: list[Result] = []
    failed: list[str] = []
    scenarios = [Scenario("soak", "", lambda stage: None)] if options.soak else chosen(options)
    for scenario in scenarios:
        started = time.monotonic()
        try:
            result = soak(options, prefix) if options.soak else play(scenario, options, prefix)
        except Exception as failure:
            failed.append(scenario.name)
            print(f"FAIL {scenario.name}: {type(failure).__name__}: {failure}", flush=True)
            continue
        results.append(result)
        tell(result, time.monotonic() - started)
        if options.logs:
            options.logs.mkdir(parents=True, exist_ok=True)
            (options.logs / f"{scenario.name}.log").write_text(result.log)
            (options.logs / f"{scenario.name}.result").write_bytes(pickle.dumps(result))
            (options.logs / f"{scenario.name}.json").write_text(
                json.dumps({"violations": result.verdict.violations, "samples": result.samples})
            )
    print(f"{len(results)} played in {time.monotonic() - began:.0f} s", flush=True)
    write(results, options)
    return 0 if not failed and all(result.good for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
