"""Commands that speak to a running proxy: `redis-proxy healthcheck`, `status`, `reload`, `upgrade`.

Why: a signal has no answer; these wait for the outcome and say it, by sentence and exit code. They ask the proxy's
administration address (GET /livez, GET /api/state) and send signals. Called by proxy.cli.

Invariants:
- A signal is sent only to a process that is proven to be the proxy that answered: its pid has the start time it tells
  (field 22 of /proc/PID/stat), which a process of another machine, container or time has not.
- `healthcheck`, which is started every few seconds, imports nothing beyond the standard library's sockets.
- What comes from the proxy is shown in printable characters only.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NoReturn

if TYPE_CHECKING:
    import argparse

EXIT_CONFIG: Final = 78  # as of cli
HOST: Final = "127.0.0.1"
PORT: Final = 9617
LIMIT_S: Final = 2.0  # for one question
STEADY_S: Final = 1.2  # see system.successor
POLL_S: Final = 0.05
_MOST_BYTES: Final = 16 << 20

State = dict[str, Any]


class Unanswered(Exception):
    """Nobody answers, or something else than a proxy; the text is one sentence."""


class Failed(Exception):
    """What was asked for did not happen; the text is one sentence or more, a line each."""


class BadFile(ValueError):
    """The configuration cannot be read, or has no address to ask at; a line for each fault, as of `check`."""


class Where:
    """Where the running proxy is asked: at first `--admin`, else admin.address of a configuration, else the default."""

    def __init__(self, admin: str | None = None, file: str | None = None) -> None:
        """ValueError, a sentence, when that is no address; BadFile."""
        self.file = file
        self.host, self.port = _host_and_port(admin) if admin is not None else (HOST, PORT)
        if admin is None:
            self.refresh()

    def refresh(self) -> None:
        """Takes the address that is in the file now, if there is a file; ValueError when that is not possible."""
        if self.file is not None:
            self.host, self.port = _from_file(self.file)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def main(command: str, options: argparse.Namespace, usage: Callable[[str], NoReturn]) -> int:
    """Runs one of the commands; returns the exit code. usage: ends the process with a sentence, for a wrong address."""
    try:
        where = Where(options.admin, options.config)
    except BadFile as faults:
        print(faults, file=sys.stderr)
        return EXIT_CONFIG if command != "healthcheck" else 1
    except ValueError as error:
        usage(str(error))
    if command == "healthcheck":
        return healthcheck(where)
    try:
        if command == "status":
            return _status(where, as_json=options.json)
        if command == "reload":
            return _reload(where, options.timeout)
        return _upgrade(where, options.timeout)
    except (Unanswered, Failed) as error:
        hint = ""
        if isinstance(error, Unanswered) and options.config and not options.admin:
            hint = f" (if admin.address in {options.config} is new, say with --admin where the proxy answers now)"
        print(f"redis-proxy: {error}{hint}", file=sys.stderr)
        return 1


def healthcheck(where: Where) -> int:
    """0 when /livez answers 200 within LIMIT_S, else 1; one line on stderr says which."""
    try:
        status, body = get(where, "/livez", most=1 << 16)
    except Unanswered as error:
        status, reason = 0, str(error)
    else:
        reason = (
            f"{where} answers {status}{': ' if body.strip() else ''}{_plain(body.decode(errors='replace').strip())}"
        )
    print(f"redis-proxy: {'alive' if status == 200 else 'not alive'}: {reason}", file=sys.stderr)
    return 0 if status == 200 else 1


def get(where: Where, path: str, limit_s: float = LIMIT_S, most: int = _MOST_BYTES) -> tuple[int, bytes]:
    """Status and body of an HTTP answer; Unanswered when there is none within limit_s."""
    deadline = time.monotonic() + limit_s
    try:
        with socket.create_connection((where.host, where.port), limit_s) as sock:
            # HTTP/1.0: the answer is neither chunked nor followed by another.
            sock.sendall(f"GET {path} HTTP/1.0\r\nHost: {where}\r\nConnection: close\r\n\r\n".encode())
            answer = bytearray()
            while not _whole(answer):
                sock.settimeout(max(deadline - time.monotonic(), 0.001))
                received = sock.recv(65536)
                if not received or len(answer) > most:
                    break
                if time.monotonic() > deadline:
                    raise TimeoutError
                answer += received
    except TimeoutError:
        raise Unanswered(f"nobody answers at {where} within {limit_s:g} s") from None
    except (OSError, UnicodeError) as error:
        raise Unanswered(f"nobody answers at {where}: {getattr(error, 'strerror', None) or error}") from None
    head, _, body = bytes(answer).partition(b"\r\n\r\n")
    words = head.split(b" ", 2)
    if not head.startswith(b"HTTP/1.") or len(words) < 2 or not words[1].isdigit() or not _whole(answer, at_end=True):
        raise Unanswered(f"what answers at {where} is no proxy")
    return int(words[1]), body


def state(where: Where) -> State:
    """What /api/state tells; Unanswered when nobody does."""
    import json  # not for healthcheck

    status, body = get(where, "/api/state")
    try:
        found = json.loads(body) if status == 200 else None
    except ValueError:
        found = None
    sections = ("proxy", "workers", "clients", "topology", "reload", "upgrade", "log")
    if isinstance(found, dict) and "proxy" in found and all(isinstance(found.get(name, {}), dict) for name in sections):
        return found
    raise Unanswered(f"what answers at {where} tells no state (HTTP status {status})")


def _status(where: Where, *, as_json: bool) -> int:
    if as_json:
        state(where)  # that it is one
        sys.stdout.write(get(where, "/api/state")[1].decode())
    else:
        from proxy.status_page import page

        print(page(state(where), time.time()))
    return 0


def _reload(where: Where, timeout_s: float) -> int:
    before = state(where)
    requests = before.get("reload", {}).get("requests", 0)
    begun_s = time.monotonic()
    pid = _signalled(before, signal.SIGHUP)
    successor = 0

    def outcome(now: State) -> State | None:
        nonlocal successor
        answers, found = now["proxy"].get("pid"), now.get("reload", {})
        if answers == pid:
            return found if found.get("covered", 0) > requests else None  # not one that somebody else has asked for
        if now["proxy"].get("predecessor") != pid:
            raise Failed(f"another process answers at {where} meanwhile: pid {_plain(answers)}")
        successor = answers  # of an upgrade that was under way: the request is passed on to it
        return found if found.get("begun_s", 0) > begun_s else None

    reload = _poll(where, pid, outcome, timeout_s, "the reload")
    if successor:
        print(f"redis-proxy: an upgrade was under way, its successor answers: pid {_plain(successor)}", file=sys.stderr)
    faults = [_plain(fault) for fault in reload.get("faults") or []]
    if faults or reload.get("error") or not reload.get("successful"):
        for fault in faults:
            print(fault, file=sys.stderr)
        how = "reloaded, but not everywhere" if reload.get("partly") else "not reloaded"
        raise Failed(f"{how}: {_plain(reload.get('error') or 'the log says why')}")
    print("reloaded")
    for change in reload.get("changes") or []:
        print(f"  {_plain(change)}")
    return 0


def _upgrade(where: Where, timeout_s: float) -> int:
    before = state(where)
    attempts = before.get("upgrade", {}).get("attempts", 0)
    pid = _signalled(before, signal.SIGUSR2)

    def outcome(now: State) -> State | None:
        if now["proxy"].get("pid") != pid:
            return now
        upgrade = now.get("upgrade", {})
        if upgrade.get("state") == "failed" and upgrade.get("attempts", 0) > attempts:
            raise Failed(f"not upgraded: {_plain(upgrade.get('error') or 'the log says why')}")
        return None

    # The old process may end before the new one has answered.
    _poll(where, None, outcome, timeout_s, "the upgrade")
    time.sleep(STEADY_S)  # for a moment both answer, and the old one goes on if the new one dies
    proxy = _poll(where, None, outcome, timeout_s, "the upgrade")["proxy"]
    print(f"upgraded: pid {_plain(proxy.get('pid'))}, version {_plain(proxy.get('version'))}")
    return 0


def _signalled(now: State, number: signal.Signals) -> int:
    """Sends the signal to the process that answered; its pid. Failed when it is not proven to be that process."""
    pid, ticks = now["proxy"].get("pid"), now["proxy"].get("start_ticks")
    if not isinstance(pid, int) or pid <= 0 or not isinstance(ticks, int) or start_ticks(pid) != ticks:
        raise Failed(
            f"the proxy that answers has pid {_plain(pid)} where it runs, and here that is not its process: run this"
            " command on its machine, or in its container"
        )
    try:
        os.kill(pid, number)
    except PermissionError:
        raise Failed(f"no permission to signal the proxy (pid {pid}): run this command as its user") from None
    except ProcessLookupError:
        raise Failed(f"the proxy (pid {pid}) has just ended") from None
    return pid


def start_ticks(pid: int) -> int | None:
    """When a process of this machine was started, in clock ticks since the boot; None: there is none."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            # The name, field 2, may hold spaces and parentheses.
            return int(file.read().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None


def _poll(
    where: Where, pid: int | None, outcome: Callable[[State], State | None], timeout_s: float, what: str
) -> State:
    """Asks until there is an outcome; Failed after timeout_s, or when pid is no more."""
    deadline = time.monotonic() + timeout_s
    unanswered = ""
    while True:
        alive = pid is None or start_ticks(pid) is not None
        try:
            found = outcome(state(where))
            unanswered = ""
        except Unanswered as error:
            found, unanswered = None, str(error)
            try:
                where.refresh()  # the address may have been changed by the reload
            except ValueError as fault:
                unanswered = str(fault)
        if found is not None:
            return found
        if not alive and unanswered:  # else its successor is at it
            raise Failed(f"the proxy (pid {pid}) has ended")
        if time.monotonic() > deadline:
            raise Failed(f"{what} has no outcome within {timeout_s:g} s" + (f": {unanswered}" if unanswered else ""))
        time.sleep(POLL_S)


def _whole(answer: bytearray, *, at_end: bool = False) -> bool:
    """Whether that is all of an HTTP answer; one without a length ends with the connection."""
    head, end, _ = bytes(answer[:65536]).partition(b"\r\n\r\n")
    if not end:
        return False
    for line in head.lower().split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name == b"content-length" and value.strip().isdigit():
            return len(answer) - len(head) - 4 >= int(value)
    return at_end


def _host_and_port(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not host or not (port.isascii() and port.isdigit()) or not 0 < int(port) < 65536:
        raise ValueError(f"the administration address is HOST:PORT, not '{text}'")
    return host, int(port)


def _from_file(file: str) -> tuple[str, int]:
    """admin.address of a configuration; other faults in it do not matter here."""
    from pathlib import Path

    from proxy.config.file import ConfigFaults, read

    source = read(Path(file))
    if source.incomplete:
        raise BadFile(str(ConfigFaults(source.faults)))
    admin = source.values.get("admin") or {}
    written = admin.get("address", f"{HOST}:{PORT}") if isinstance(admin, dict) else admin
    if written is False or written in ("", "off"):
        raise ValueError(f"{file}: admin.address is off, so that the proxy cannot be asked")
    try:
        return _host_and_port(str(written))
    except ValueError as error:
        source.fault(("admin", "address"), str(error))
        raise BadFile(str(source.faults[-1])) from None


def _plain(value: object) -> str:
    return "".join(one if one.isprintable() else "?" for one in str(value))
