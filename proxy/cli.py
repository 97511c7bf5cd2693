"""The command line: `redis-proxy -c proxy.yaml`, `redis-proxy HOST:PORT ...`, `redis-proxy demo`, `redis-proxy schema`.

Why: turns words into Settings, faults into sentences and exit codes, and runs one Worker until a signal.
Called by the `redis-proxy` command and `python -m proxy.cli`.

Exit codes: 0 clean, 1 start-up failure (cannot bind), 2 usage, 78 bad configuration (sysexits EX_CONFIG).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import signal
import sys
from collections.abc import Sequence

import uvloop

from proxy import __version__
from proxy import log as logs
from proxy.config import ConfigFaults, Settings, effective, from_seeds, load, schema
from proxy.sockets import ListenError, Listening, open_listener
from proxy.worker import Worker

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_CONFIG = 78
# Besides its clients the process holds connections to nodes, listeners, epoll instances, logs.
_OTHER_DESCRIPTORS = 512

log = logs.get("proxy")


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
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["demo"]:
        from proxy import demo  # only here: it needs what the daemon itself does not

        return demo.main(words[1:])
    if words[:1] == ["schema"]:
        print(json.dumps(schema(), indent=2))
        return 0
    p = parser()
    options = p.parse_args(words)
    if bool(options.config) == bool(options.seeds):
        p.error("give either -c FILE or the HOST:PORT of at least one node")
    try:
        settings = load(options.config) if options.config else from_seeds(options.seeds)
    except ConfigFaults as faults:
        print(faults, file=sys.stderr)
        return EXIT_CONFIG
    if options.print_config:
        print(effective(settings), end="")
    if options.check:
        if not options.print_config:
            print(f"{options.config or 'command line'}: ok")
        return 0
    if options.print_config:
        return 0
    return run(settings)


def run(settings: Settings) -> int:
    """Runs the proxy until SIGTERM or SIGINT; returns the exit code."""
    # Noted until the loop has its own handlers; asyncio's runner would turn SIGINT into a cancellation of whatever
    # the start-up is waiting for.
    early: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: early.append(number))
    try:
        logs.setup(settings.log.level, settings.log.format, settings.log.file)
    except OSError as error:
        print(f"redis-proxy: cannot write the log {settings.log.file}: {error.strerror}", file=sys.stderr)
        return EXIT_FAILED
    raise_descriptor_limit(settings.clients.max_clients + _OTHER_DESCRIPTORS)
    listening: list[Listening] = []
    try:
        for listener in settings.listeners:
            listening.append(open_listener(listener))
        return uvloop.run(serve(settings, listening, early))
    except (ListenError, OSError) as error:
        print(f"redis-proxy: {error}", file=sys.stderr)
        return EXIT_FAILED
    finally:
        for one in listening:
            one.close()


async def serve(settings: Settings, listening: Sequence[Listening], early: Sequence[int]) -> int:
    """One worker, from start to the signal that ends it. early: signals that came before there was a loop."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    if early:
        ended.set()
    loop.add_signal_handler(signal.SIGUSR1, logs.reopen)
    worker = Worker(settings, listening, loop)
    try:
        await worker.start()
        log.info("started", version=__version__)
        await ended.wait()
        log.info("stopping")
    finally:
        await worker.stop()
    return 0


def raise_descriptor_limit(wanted: int) -> None:
    """Raises the soft file-descriptor limit as far as it may; warns when that is not enough."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
        if limit < wanted:
            log.warning(
                "the file descriptor limit is too low for clients.max_clients",
                limit=limit,
                wanted=wanted,
                missing=wanted - limit,
            )


if __name__ == "__main__":
    sys.exit(main())
