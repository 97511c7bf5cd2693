"""The real daemon as a process, driven from outside: config in, signals in; bytes, exit codes, log and metrics out.

Called by: tests/conftest.py (shared daemons) and by tests that need one with their own config.

Invariants: ready means that it answered, never that time has passed; stop() asserts exit code 0 on SIGTERM, that no
process of its session is left and that its log shows no traceback.
"""

from __future__ import annotations

import contextlib
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

from proxy.embedded import HOST, die_with_parent, free_port, wait_for, wait_or_none
from tests.support.raw import Closed, RawClient

START_S = 20.0
STOP_S = 20.0
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
    return subprocess.run(
        [*COMMAND, *arguments],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        cwd=ROOT,
        preexec_fn=die_with_parent(),
    )


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """A copy of base with over's values, nested sections merged."""
    merged = copy.deepcopy(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def session_members(session: int) -> list[int]:
    """Live (not zombie) processes of a session id; empty where there is no /proc."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state, _, _, sid = entry.joinpath("stat").read_text().rpartition(")")[2].split()[:4]
            if int(sid) == session and state != "Z":
                found.append(int(entry.name))
    return found


class ProxyDaemon:
    """One daemon in front of `seeds`, with `config` laid over a minimal one.

    wait: "serving" (every third of the slots answers), "listening" (PING answers) or "" (not at all).
    inherited: sockets it is started with, as by systemd; `port` is that of the first TCP one.
    """

    def __init__(
        self,
        seeds: list[str],
        config: dict[str, Any] | None = None,
        *,
        wait: str = "serving",
        unix: bool = False,
        inherited: Sequence[socket.socket] = (),
    ) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="redis-proxy-test-"))
        self.process: subprocess.Popen[bytes] | None = None
        self.port = self.admin_port = 0
        self.unix_path = str(self.folder / "proxy.sock")
        self._seeds = seeds
        self._extra = config or {}
        self._wait = wait
        self._unix = unix
        self._inherited = inherited

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
            if "in use" not in self.log or attempt == 4:
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
        assert self.process is not None
        assert session_members(self.process.pid) == []

    def terminate(self, signum: int = signal.SIGTERM) -> int:
        """Sends the signal and returns the exit code; a daemon that stays is killed and failed."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signum)
        try:
            return self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"still running {STOP_S} s after signal {signum}\n{self.log}") from None

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def remove(self) -> None:
        """Ends what still runs and removes the folder."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

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
        assert self.process is not None
        total = 0
        for pid in session_members(self.process.pid):
            with contextlib.suppress(OSError):
                match = re.search(rf"{field}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
                total += int(match[1]) * 1024 if match else 0
        return total

    def reset_peak_memory(self) -> None:
        """Makes VmHWM start again from now."""
        assert self.process is not None
        for pid in session_members(self.process.pid):
            Path(f"/proc/{pid}/clear_refs").write_text("5")

    # Inside

    def _spawn(self) -> None:
        tcp = [sock for sock in self._inherited if sock.family == socket.AF_INET]
        self.port, self.admin_port = tcp[0].getsockname()[1] if tcp else free_port(), free_port()
        passed = [sock.fileno() for sock in self._inherited]
        activate = [sys.executable, "-c", ACTIVATE, str(len(passed)), *map(str, passed)] if passed else []
        listeners = [{"address": f"{HOST}:{self.port}"}]
        if self._unix:
            listeners.append({"address": f"unix:{self.unix_path}"})
        base: dict[str, Any] = {
            "listeners": listeners,
            "cluster": {"seeds": self._seeds},
            "admin": {"address": f"{HOST}:{self.admin_port}"},
        }
        extra = copy.deepcopy(self._extra)
        for listener, over in zip(listeners, extra.pop("listeners", []), strict=False):
            listener.update(over)
        path = self.folder / "proxy.yaml"
        path.write_text(json.dumps(merge(base, extra)))  # JSON is YAML
        with open(self.folder / "log", "wb") as log:
            self.process = subprocess.Popen(
                [*activate, *COMMAND, "-c", str(path)],
                pass_fds=passed,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
                start_new_session=True,
                preexec_fn=die_with_parent(),
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


def occupied_port() -> tuple[socket.socket, int]:
    """A listening socket and its port, for tests of a port in use; close the socket afterwards."""
    sock = socket.socket()
    sock.bind((HOST, 0))
    sock.listen()
    return sock, sock.getsockname()[1]
