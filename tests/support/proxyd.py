"""The real daemon as a process, driven from outside: config in, signals in; bytes, exit codes, log and metrics out.

Called by: tests/conftest.py (shared daemons) and by tests that need one with their own config.

Invariants: ready means that it answered, never that time has passed; stop() asserts exit code 0 on SIGTERM, that no
process of its session is left and that its log shows no traceback. Two workers and a drain of at most DRAIN_S unless a
test wants it otherwise.
"""

from __future__ import annotations

import copy
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import redis

from proxy.embedded import HOST, free_port, wait_for, wait_or_none
from proxy.system.child import start_mortal
from tests.support.processes import (
    alive,
    children,
    command_line,
    descriptors,
    kill_session,
    memory,
    session_members,
    tcp_inodes,
)
from tests.support.raw import Closed, RawClient

__all__ = ["COMMAND", "ROOT", "ProxyDaemon", "merge", "occupied_port", "run_cli", "session_members"]

START_S = 40.0
STOP_S = 20.0
WORKERS = 2
DRAIN_S = 2
SUCCESSOR = re.compile(r"the successor is ready, .* successor=(\d+)")
RELOAD_GOOD = "redis_proxy_config_last_reload_successful"
RELOADED_AT = "redis_proxy_config_last_reload_success_timestamp_seconds"
COMMAND = [sys.executable, "-m", "proxy.cli"]
# What systemd does before it starts a socket-activated service: the given descriptors become 3, 4, ... By way of high
# numbers, so that none overwrites another.
ACTIVATE = """
import fcntl, os, sys
count = int(sys.argv[1])
given = [int(fd) for fd in sys.argv[2 : 2 + count]]
moved = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 100) for fd in given]
for fd in given:
    os.close(fd)
for place, fd in enumerate(moved):
    os.dup2(fd, 3 + place)
os.environ |= {"LISTEN_FDS": str(count), "LISTEN_PID": str(os.getpid())}
os.execv(sys.argv[2 + count], sys.argv[2 + count :])
"""
ROOT = Path(__file__).parents[2]


def run_cli(*arguments: str, timeout_s: float = 30.0) -> subprocess.CompletedProcess[str]:
    """Runs the command line to its end; stdout and stderr as text."""
    words, piped = [*COMMAND, *arguments], subprocess.PIPE
    with start_mortal(words, stdout=piped, stderr=piped, cwd=ROOT) as process:
        try:
            said, complained = process.communicate(timeout=timeout_s)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(words, process.returncode, said.decode(), complained.decode())


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """A copy of base with over's values, nested sections merged."""
    merged = copy.deepcopy(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


class ProxyDaemon:
    """One daemon in front of `seeds`, with `config` laid over a minimal one.

    wait: "serving" (every third of the slots answers), "listening" (PING answers) or "" (not at all).
    inherited: sockets it is started with, as by systemd; `port` is that of the first TCP one.
    prefix: words in front of the command, of a program that ends by becoming it (taskset, prlimit).

    config's `listeners` are laid over the daemon's own, in order; None takes one away, further ones are added.
    """

    def __init__(
        self,
        seeds: list[str],
        config: dict[str, Any] | None = None,
        *,
        wait: str = "serving",
        unix: bool = False,
        inherited: Sequence[socket.socket] = (),
        workers: int | str = WORKERS,
        prefix: Sequence[str] = (),
    ) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="redis-proxy-test-"))
        self.file = self.folder / "proxy.yaml"
        self.process: subprocess.Popen[bytes] | None = None
        self.port = self.admin_port = 0
        self.unix_path = str(self.folder / "proxy.sock")
        self._seeds = seeds
        self._extra = config or {}
        self._wait = wait
        self._unix = unix
        self._inherited = inherited
        self._workers = workers
        self._prefix = prefix
        self._ports_given = False

    def __enter__(self) -> ProxyDaemon:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        try:
            if error is not None:
                self.show_log()
                self.kill()
            else:
                self.stop()
        finally:
            self.remove()

    # Life

    def start(self) -> ProxyDaemon:
        """Starts it on free ports and waits as asked; takes other ports when somebody was quicker to bind them."""
        for attempt in range(5):
            self._spawn()
            if not self._wait:
                return self
            try:
                wait_for(self._ready_or_dead, START_S, f"proxy is {self._wait}")
            except Exception:
                self.show_log()
                self.remove()
                raise
            if self.alive:
                return self
            if "in use" not in self.log or self._ports_given or attempt == 4:
                break
        log = self.log
        self.remove()
        raise AssertionError(f"the proxy does not start:\n{log}")

    def stop(self) -> None:
        """SIGTERM; asserts a clean end."""
        code = self.terminate()
        log = self.log
        assert code == 0, f"exit code {code} on SIGTERM\n{log}"
        assert "Traceback" not in log, log
        assert session_members(self.session) == []

    def terminate(self, signum: int = signal.SIGTERM) -> int:
        """Sends the signal and returns the exit code; a daemon that stays is killed and failed."""
        self.signal(signum)
        return self.exit_code(f"signal {signum}")

    def exit_code(self, after: str) -> int:
        """Waits for the end; a daemon that stays is killed and failed."""
        assert self.process is not None
        try:
            return self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"still running {STOP_S} s after {after}\n{self.log}") from None

    def keep_ports(self) -> None:
        """A further start() takes the ports of the last one, or fails."""
        self._ports_given = True

    def signal(self, signum: int) -> None:
        """To the main process, if it still runs."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signum)

    def kill(self) -> None:
        """SIGKILL to all of it."""
        if self.process is not None:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            kill_session(self.session)

    def kill_main(self) -> None:
        """SIGKILL to the main process alone."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def remove(self) -> None:
        """Ends what still runs and removes the folder."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def upgrade(self, config: dict[str, Any] | None = None) -> Successor:
        """Has it start its successor (SIGUSR2), with config in place of this one's; returns when that is ready."""
        if config is not None:
            self.configure(config)
        before = len(SUCCESSOR.findall(self.log))
        self.signal(signal.SIGUSR2)
        return self.successor(before)

    def successor(self, before: int = 0) -> Successor:
        """The successor that this one has started, or one before it, as soon as it is ready; before: earlier ones."""
        wait_for(lambda: len(SUCCESSOR.findall(self.log)) > before, START_S, f"upgraded: {self.log[-3000:]}")
        return Successor(self, int(SUCCESSOR.findall(self.log)[-1]))

    # Configuration

    def configure(self, config: dict[str, Any]) -> None:
        """Writes the file anew, with config in place of what the daemon was started with; no signal."""
        listeners: list[dict[str, Any] | None] = [{"address": f"{HOST}:{self.port}"}]
        if self._unix:
            listeners.append({"address": f"unix:{self.unix_path}"})
        extra = copy.deepcopy(config)
        for place, over in enumerate(extra.pop("listeners", [])):
            if place >= len(listeners):
                listeners.append(over)
            else:
                listeners[place] = None if over is None else {**(listeners[place] or {}), **over}
        base: dict[str, Any] = {
            "workers": self._workers,
            "listeners": [listener for listener in listeners if listener is not None],
            "cluster": {"seeds": self._seeds},
            "admin": {"address": f"{HOST}:{self.admin_port}"},
            "drain": {"timeout": f"{DRAIN_S}s"},
        }
        self.file.write_text(json.dumps(merge(base, extra)))  # JSON is YAML

    def reload(self, config: dict[str, Any], *, good: bool = True) -> None:
        """Writes config (see configure) and has it read; returns when it is in force, or else refused."""
        before = self.metric(RELOADED_AT)
        self.configure(config)
        self.signal(signal.SIGHUP)
        if not good:
            wait_for(lambda: self.metric(RELOAD_GOOD) == 0, 10, "the configuration is refused")
            assert self.metric(RELOADED_AT) == before
            return
        if moved := config.get("admin", {}).get("address"):
            self.admin_port = int(moved.rpartition(":")[2])
        wait_for(lambda: self._reloaded(before), 10, f"the configuration is in force: {self.log[-2000:]}")

    def _reloaded(self, before: float) -> bool:
        try:
            return self.metric(RELOADED_AT) > before and self.metric(RELOAD_GOOD) == 1
        except OSError:  # the admin address is just moving
            return False

    # Processes

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def pid(self) -> int:
        """The main process's."""
        assert self.process is not None
        return self.process.pid

    @property
    def session(self) -> int:
        """Of all its processes, and of those of its successors."""
        return self.pid

    def worker_pids(self) -> list[int]:
        """Live workers."""
        return [pid for pid in children(self.pid) if re.search(r"proxy\.worker\.main|: worker", command_line(pid))]

    def served_by(self) -> dict[int, int]:
        """TCP clients of the first listener: the client's own port -> pid of the process that holds its connection."""
        holders = {held: pid for pid in session_members(self.session) for held in descriptors(pid)}
        inodes = tcp_inodes(self.port).items()
        return {port: pid for port, inode in inodes if (pid := holders.get(f"socket:[{inode}]"))}

    def worker_of(self, client: RawClient) -> int:
        """Pid of the worker that serves this connection; it has been answered."""
        return self.served_by()[client.sock.getsockname()[1]]

    # Clients

    @property
    def address(self) -> tuple[str, int]:
        return (HOST, self.port)

    def raw(self, timeout_s: float = 10.0, receive_buffer: int = 0) -> RawClient:
        return RawClient(self.address, timeout_s, receive_buffer)

    def client(self, **options: Any) -> redis.Redis:
        """A plain redis-py client that never retries: the proxy must not need it to."""
        options = {"protocol": 2, "socket_timeout": 20, "decode_responses": True, "retry": None} | options
        return redis.Redis(host=HOST, port=self.port, **options)

    # Views

    @property
    def log(self) -> str:
        path = self.folder / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    def show_log(self) -> None:
        """Prints the log's end: pytest shows it with a failed test."""
        print(f"--- proxy log (end) ---\n{self.log[-6000:]}")

    def log_contains(self, pattern: str, timeout_s: float = 10.0) -> bool:
        """Whether a line matching the regular expression is there, or comes within timeout_s."""
        return bool(wait_or_none(lambda: re.search(pattern, self.log), timeout_s))

    def http(self, path: str) -> tuple[int, str]:
        """GET on the admin port: status and body."""
        connection = http.client.HTTPConnection(HOST, self.admin_port, timeout=10)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def metrics(self) -> dict[str, float]:
        """/metrics as sample (with its labels, as text) -> value."""
        status, body = self.http("/metrics")
        assert status == 200, body
        samples = (line.rsplit(" ", 1) for line in body.splitlines() if line and not line.startswith("#"))
        return {name: float(value) for name, value in samples}

    def metric(self, family: str, **labels: str) -> float:
        """Sum of the family's samples that carry these labels."""
        wanted = [f'{name}="{value}"' for name, value in labels.items()]
        return sum(
            value
            for sample, value in self.metrics().items()
            if re.match(rf"{family}(\{{|$)", sample) and all(label in sample for label in wanted)
        )

    def memory(self, field: str = "VmRSS") -> int:
        """Bytes of a field of /proc/<pid>/status, summed over the daemon's processes (VmHWM: peak)."""
        return sum(memory(pid, field) for pid in session_members(self.session))

    def reset_peak_memory(self) -> None:
        """Makes VmHWM start again from now."""
        for pid in session_members(self.session):
            Path(f"/proc/{pid}/clear_refs").write_text("5")

    # Inside

    def _spawn(self) -> None:
        if not self._ports_given:
            tcp = [sock for sock in self._inherited if sock.family == socket.AF_INET]
            self.port, self.admin_port = tcp[0].getsockname()[1] if tcp else free_port(), free_port()
        passed = [sock.fileno() for sock in self._inherited]
        activate = [sys.executable, "-c", ACTIVATE, str(len(passed)), *map(str, passed)] if passed else []
        self.configure(self._extra)
        with open(self.folder / "log", "wb") as log:
            self.process = start_mortal(
                [*self._prefix, *activate, *COMMAND, "-c", str(self.file)],
                pass_fds=passed,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
                start_new_session=True,
            )

    def _ready_or_dead(self) -> bool:
        if not self.alive:
            return True
        password = (self._extra.get("clients") or {}).get("password")
        try:
            with RawClient(self.address, timeout_s=2.0) as probe:
                if password and probe.command("AUTH", password) != b"+OK\r\n":
                    return False
                if probe.command("PING") != b"+PONG\r\n":
                    return False
                # a, b and c hash to slots 15495, 3300 and 7365: one in each third of the slots.
                return self._wait == "listening" or not any(
                    probe.command("EXISTS", key).startswith(b"-") for key in ("a", "b", "c")
                )
        except (OSError, Closed):
            return False


class Successor(ProxyDaemon):
    """A daemon that another one has started; no child of ours, so its exit code is not known.

    It has the folder, the log and the session of the first of them, which removes them.
    """

    def __init__(self, predecessor: ProxyDaemon, pid: int) -> None:
        self.__dict__.update(predecessor.__dict__)
        self._pid = pid
        self._session = predecessor.session

    @property
    def alive(self) -> bool:
        return alive(self._pid)

    @property
    def pid(self) -> int:
        return self._pid

    @property
    def session(self) -> int:
        return self._session

    def signal(self, signum: int) -> None:
        """To the main process, if it still runs."""
        if self.alive:
            os.kill(self._pid, signum)

    def exit_code(self, after: str) -> int:
        """Waits for the end; 0 when the log says that it came in order."""
        wait_for(lambda: not self.alive, STOP_S, f"ended after {after}: {self.log[-3000:]}")
        return 0 if self.log.rstrip().endswith("msg=stopped") else 1


def occupied_port() -> tuple[socket.socket, int]:
    """A listening socket and its port, for tests of a port in use; close the socket afterwards."""
    sock = socket.socket()
    sock.bind((HOST, 0))
    sock.listen()
    return sock, sock.getsockname()[1]
