"""The command line: `redis-proxy -c proxy.yaml`, `redis-proxy HOST:PORT ...`, `redis-proxy COMMAND ...`.

Why: turns words into Settings, and faults into sentences and exit codes; proxy.run runs the daemon, proxy.remote speaks
to one that runs. Called by the `redis-proxy` command and `python -m proxy.cli`.

Exit codes: 0 clean, 1 failure (cannot bind; the running proxy refuses), 2 usage, 78 bad configuration (sysexits
EX_CONFIG).

Invariant: importing this module is cheap; each command imports what it needs (`healthcheck` is started every few
seconds).
"""

from __future__ import annotations

import argparse
import functools
import gc
import os
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from proxy import __version__

if TYPE_CHECKING:
    from proxy.options import Configuration

Outcome = int | Callable[[], int]  # the exit code, or what is still to be run for it

EXIT_FAILED = 1
EXIT_CONFIG = 78
DEFAULT_FILE = "/etc/redis-proxy/proxy.yaml"
STDIN = "-"
USAGE = """redis-proxy [run] [-c FILE | HOST:PORT ...] [options]
       redis-proxy COMMAND [options]"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code. argv: None = that of this process, which a daemon's end ends."""
    # Until proxy.run has its handlers there is nothing to clean up, and a KeyboardInterrupt in the middle of an import
    # can be lost. For the same reason what takes long to import comes after this.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if argv is None:
        # Until a daemon has started (supervisor): what is imported stays, and looking for garbage in it again and again
        # took a third of the start. Commands end before there is much.
        gc.disable()
    _open_standard_descriptors()
    outcome = _printing(lambda: _command(list(sys.argv[1:] if argv is None else argv)))
    if isinstance(outcome, int):
        return outcome
    code = outcome()
    if argv is None:
        from proxy.system.process import end

        end(code)
    return code


def _open_standard_descriptors() -> None:
    """Gives what is closed of stdin, stdout and stderr to /dev/null, or the next socket would get its number."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
            os.set_inheritable(descriptor, True)


def _printing(command: Callable[[], Outcome]) -> Outcome:
    """Runs a command that prints; a reader that has left (`| head -1`) is no reason for a traceback."""
    try:
        try:
            return command()
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return EXIT_FAILED


def _command(words: list[str]) -> Outcome:
    """Does what the words say; the exit code, or the daemon to be run."""
    if words[:1] == ["demo"]:
        from proxy import demo  # only here: it needs what the daemon itself does not

        gc.enable()
        return demo.main(words[1:])
    top, commands = parsers()
    if words and words[0] in ("-h", "--help", "--version"):
        top.parse_args(words)
    if words and words[0] not in commands and words[0].replace("-", "").isalpha() and words[0][0] != "-":
        commands["run"].error(f"'{words[0]}' is neither a command nor HOST:PORT{_nearest(words[0], commands)}")
    command = words.pop(0) if words and words[0] in commands else "run"
    p = commands[command]
    options = p.parse_intermixed_args(words)  # not by the top parser: options may stand between the seeds
    if command == "schema":
        return _schema()
    if command in ("run", "check"):
        return _configured(p, options)
    from proxy import remote

    return remote.main(command, options, p.error)


def _nearest(word: str, known: Iterable[str]) -> str:
    import difflib  # only here: seldom needed

    close = difflib.get_close_matches(word, list(known), n=1)
    return f", did you mean '{close[0]}'?" if close else ""


def parsers() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """The parser of the whole, which prints the help, and those of the commands."""
    top = argparse.ArgumentParser(
        prog="redis-proxy",
        usage=USAGE,
        description="One endpoint for a Redis or Valkey Cluster.",
        epilog="`redis-proxy COMMAND --help` tells the options of a command, also of run.",
    )
    top.add_argument("--version", action="version", version=f"redis-proxy {__version__}")
    subparsers = top.add_subparsers(prog="redis-proxy", metavar="COMMAND")
    commands: dict[str, argparse.ArgumentParser] = {}

    def add(name: str, text: str) -> argparse.ArgumentParser:
        commands[name] = subparsers.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        return commands[name]

    for name, text in (
        ("run", "run the proxy (also without this word)"),
        ("check", "check the configuration, and what a start would open; exit 0, or 78 with every fault"),
    ):
        _add_configuration(add(name, text), check=name == "check")
    add("schema", "print the configuration's JSON Schema")
    add("demo", "start an embedded cluster and the proxy in front of it")
    for name, text, timeout_s in (
        ("reload", "have the running proxy read its configuration again, and wait for the outcome", 30.0),
        ("upgrade", "have the running proxy start its successor and hand over, and wait for the outcome", 60.0),
        ("status", "show what the running proxy does", 0.0),
        ("healthcheck", "exit 0 when the running proxy is alive (/livez), else 1", 0.0),
    ):
        _add_remote(add(name, text), timeout_s)
    commands["status"].add_argument("--json", action="store_true", help="as JSON, as it came")
    return top, commands


def _add_configuration(p: argparse.ArgumentParser, *, check: bool) -> None:
    p.add_argument(
        "seeds", nargs="*", metavar="HOST:PORT", help="nodes of the cluster, or redis://user:password@host:port"
    )
    p.add_argument(
        "-c", "--config", metavar="FILE", help=f"the configuration (YAML); - = standard input; {DEFAULT_FILE}"
    )
    p.add_argument("--listen", action="append", default=[], metavar="ADDRESS", help="where clients connect; repeatable")
    p.add_argument("--admin", metavar="ADDRESS", help="the administration address; off = none")
    p.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="an option: clients.max_clients=5")
    p.add_argument("--password-file", metavar="FILE", help="the cluster's password; else that in $REDIS_PROXY_PASSWORD")
    p.add_argument("-t", "--check", action="store_true", default=check, help="as the command check")
    p.add_argument("--print-config", action="store_true", help="print the effective configuration, secrets masked")
    p.add_argument("--version", action="version", version=f"redis-proxy {__version__}")


def _add_remote(p: argparse.ArgumentParser, timeout_s: float) -> None:
    p.add_argument("--admin", metavar="HOST:PORT", help="its administration address (default 127.0.0.1:9617)")
    p.add_argument("-c", "--config", metavar="FILE", help="read that address from the configuration")
    if timeout_s:
        p.add_argument("--timeout", type=float, default=timeout_s, metavar="SECONDS", help="default %(default)g")


def _schema() -> int:
    import json

    from proxy.config.models import schema

    print(json.dumps(schema(), indent=2))
    return 0


def _configured(p: argparse.ArgumentParser, options: argparse.Namespace) -> Outcome:
    daemon = not options.check and not options.print_config
    if daemon:
        # They wait until proxy.run has handlers for them: a reload is no reason to die while the file is being read.
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2))
    if options.config and options.seeds:
        p.error("give either -c FILE or the HOST:PORT of nodes, not both")
    file = options.config or ("" if options.seeds else DEFAULT_FILE)
    if not options.config and file and not os.path.exists(file):
        p.error(f"give -c FILE or the HOST:PORT of at least one node ({DEFAULT_FILE} does not exist)")
    from proxy.options import Configuration, Usage

    data = None
    if file == STDIN:
        data = sys.stdin.buffer.read() if sys.stdin is not None else b""
    try:
        configuration = Configuration(
            file=file,
            data=data,
            seeds=options.seeds,
            listen=options.listen,
            admin=options.admin,
            settings=options.set,
            password_file=options.password_file,
        )
    except Usage as usage:
        p.error(str(usage))
    return _daemon(configuration) if daemon else _check(configuration, print_it=options.print_config)


def _check(configuration: Configuration, *, print_it: bool) -> int:
    from proxy.check import conflicts, warnings
    from proxy.config.models import ConfigFaults, effective

    try:
        settings = configuration.load() if print_it else configuration.load(conflicts)
    except ConfigFaults as faults:
        print(faults, file=sys.stderr)
        return EXIT_CONFIG
    if print_it:
        print(effective(settings), end="")
        return 0
    for sentence in warnings(settings, configuration.path):
        print(f"warning: {sentence}", file=sys.stderr)
    print(f"{configuration.place}: ok")
    return 0


def _daemon(configuration: Configuration) -> Outcome:
    from proxy.check import warnings
    from proxy.config.models import ConfigFaults

    try:
        settings = configuration.load()
    except ConfigFaults as faults:
        print(faults, file=sys.stderr)
        return EXIT_CONFIG
    from proxy.run import run

    no_upgrade = ""
    if configuration.data is not None:
        no_upgrade = "the configuration was read from standard input, which a successor cannot read again"
    start: Callable[..., int] = run
    return functools.partial(
        start,
        settings,
        source=configuration.place,
        load=configuration.load if configuration.path else None,
        no_upgrade=no_upgrade,
        warnings=warnings(settings, configuration.path),
    )


if __name__ == "__main__":
    sys.exit(main())
