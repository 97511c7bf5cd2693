"""The command line: `redis-proxy -c proxy.yaml`, `redis-proxy HOST:PORT ...`, `redis-proxy demo`, `redis-proxy schema`.

Why: turns words into Settings, faults into sentences and exit codes; proxy.run does the rest. Called by the
`redis-proxy` command and `python -m proxy.cli`.

Exit codes: 0 clean, 1 start-up failure (cannot bind), 2 usage, 78 bad configuration (sysexits EX_CONFIG).
"""

from __future__ import annotations

import argparse
import functools
import json
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from proxy import __version__

if TYPE_CHECKING:
    from proxy.config.models import Settings

EXIT_CONFIG = 78


def parser() -> argparse.ArgumentParser:
    """The options of running; demo and schema are words of their own, seen before."""
    p = argparse.ArgumentParser(
        prog="redis-proxy",
        description="One endpoint for a Redis or Valkey Cluster.",
        epilog="Also: redis-proxy demo [--exit] (an embedded cluster and the proxy), redis-proxy schema (the"
        " configuration's JSON Schema).",
    )
    p.add_argument("seeds", nargs="*", metavar="HOST:PORT", help="nodes of the cluster, with defaults for the rest")
    p.add_argument("-c", "--config", metavar="FILE", help="the configuration (YAML)")
    p.add_argument(
        "-t", "--check", action="store_true", help="check the configuration and exit (0, or 78 with its faults)"
    )
    p.add_argument("--print-config", action="store_true", help="print the effective configuration, secrets masked")
    p.add_argument("--version", action="version", version=f"redis-proxy {__version__}")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    # Until proxy.run has its handlers there is nothing to clean up, and a KeyboardInterrupt in the middle of an import
    # can be lost. For the same reason what takes long to import comes after this.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["demo"]:
        from proxy import demo  # only here: it needs what the daemon itself does not

        return demo.main(words[1:])
    if words[:1] == ["schema"]:
        from proxy.config.models import schema

        print(json.dumps(schema(), indent=2))
        return 0
    p = parser()
    options = p.parse_args(words)
    if bool(options.config) == bool(options.seeds):
        p.error("give either -c FILE or the HOST:PORT of at least one node")
    return _check(options) if options.check or options.print_config else _run(options)


def _load(options: argparse.Namespace) -> Settings:
    from proxy.config.models import from_seeds, load

    return load(options.config) if options.config else from_seeds(options.seeds)


def _check(options: argparse.Namespace) -> int:
    from proxy.config.models import ConfigFaults, effective

    try:
        settings = _load(options)
    except ConfigFaults as faults:
        print(faults, file=sys.stderr)
        return EXIT_CONFIG
    print(effective(settings) if options.print_config else f"{options.config or 'command line'}: ok\n", end="")
    return 0


def _run(options: argparse.Namespace) -> int:
    # They wait until proxy.run has handlers for them: a reload is no reason to die while the file is still being read.
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2))
    from proxy.supervisor.forks import Forks

    forks = Forks()
    forks.start()  # first of all: it imports what the workers need while this process imports what it needs itself
    try:
        from proxy.config.models import ConfigFaults
        from proxy.run import run

        try:
            settings = _load(options)
        except ConfigFaults as faults:
            print(faults, file=sys.stderr)
            return EXIT_CONFIG
        return run(settings, forks, functools.partial(_load, options) if options.config else None)
    finally:
        forks.abandon()


if __name__ == "__main__":
    sys.exit(main())
