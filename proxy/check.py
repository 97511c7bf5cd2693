"""What a configuration meets on this machine: what a start could not open, and what an operator should know.

Why: a faulty log folder or a host name of another machine shows itself at the start only, and some mistakes not even
then. Called by cli: conflicts() for `redis-proxy check` alone, warnings() for that and for the
start; by reload: command_warnings().

Invariants: nothing stays and nobody is disturbed: no file is made, no port of a listener is bound, no connection is
made. A port or a socket file in use is no fault: the running proxy, or systemd, has it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from proxy.commands.dispositions import OWN_ROWS, full_names, is_listed, unknown_names
from proxy.commands.table import ROWS
from proxy.config.faults import Conflict
from proxy.config.file import read
from proxy.config.models import Address, Settings, is_open
from proxy.system.cpus import granted
from proxy.system.limits import lowered

SOMAXCONN: Final = Path("/proc/sys/net/core/somaxconn")
# Allowed by name, each of them harms everybody at once.
_PERILOUS: Final = frozenset({"shutdown", "replicaof", "slaveof"})
_LOOPBACK: Final = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}


def conflicts(settings: Settings) -> Iterator[Conflict]:
    """What a start could not open, each with its option."""
    if settings.log.file and (reason := _file_fault(settings.log.file)):
        yield Conflict(("log", "file"), reason)
    for n, listener in enumerate(settings.listeners):
        address = listener.address
        if reason := _unix_fault(address.path) if address.path else _host_fault(address):
            yield Conflict(("listeners", n, "address"), reason)
    if settings.admin.address and (reason := _host_fault(settings.admin.address)):
        yield Conflict(("admin", "address"), reason)


def warnings(settings: Settings, path: str | Path | None = None) -> list[str]:
    """What should be changed although the proxy can run, one sentence each.

    path: the file the settings came from, read once more to see who else can read it and what it includes; None: there
    is no file.
    """
    found = []
    secrets = (settings.cluster.password, settings.clients.password, settings.clients.admin_password)
    written = any(secret.get_secret_value() for secret in secrets)
    for file in sorted(read(Path(path)).with_secrets) if path is not None and written else []:
        if mode := _readable_by_others(file):
            found.append(f"{file} has a password in it and can be read by other users (mode {mode:04o})")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    workers = granted() if settings.workers == "auto" else settings.workers
    if sentence := lowered(settings.clients.max_clients, workers, hard):
        found.append(sentence)
    found += command_warnings(settings)
    most = _somaxconn()
    for listener in settings.listeners:
        if most is not None and listener.backlog > most:
            found.append(
                f"the backlog of {listener.address} is {listener.backlog}, but the kernel's net.core.somaxconn allows"
                f" {most}"
            )
        if is_open(settings, listener):
            found.append(f"{listener.address} can be used from other machines without a password")
    return found


def command_warnings(settings: Settings) -> list[str]:
    """Those of commands.allow and commands.deny, one sentence each; a reload gives them, too."""
    commands, found = settings.commands, []
    for option, names in (("allow", commands.allow), ("deny", commands.deny)):
        for name in unknown_names(names, (*ROWS, *OWN_ROWS)):
            found.append(f"commands.{option}: no command or category known here is called {name}")
    denied = full_names(commands.deny)
    rows = {row.name: row for row in ROWS}
    if settings.clients.password.get_secret_value():
        taken = [name for name in ("auth", "hello") if is_listed(rows[name], denied)]
        if taken:
            found.append(
                f"commands.deny takes away {' and '.join(taken)}, by which clients give the password (clients.password)"
            )
    allowed = full_names(commands.allow)
    for name in commands.allow:
        if name.strip().startswith("@"):
            found.append(f"commands.allow: {name} is a whole category, with commands that can stop or empty servers")
    for name in sorted(allowed & _PERILOUS):
        found.append(f"commands.allow: any client can stop a server, or break the cluster, with {name}")
    return found


def _readable_by_others(file: str) -> int:
    """The file's mode when group or others may read it, else 0."""
    with contextlib.suppress(OSError):
        mode = stat.S_IMODE(os.stat(file).st_mode)
        return mode if mode & (stat.S_IRGRP | stat.S_IROTH) else 0
    return 0


def _somaxconn() -> int | None:
    try:
        return int(SOMAXCONN.read_text())
    except (OSError, ValueError):
        return None


def _file_fault(file: str) -> str:
    """Why a file cannot be appended to; a file that is not there is not made."""
    if not os.path.lexists(file):
        return _folder_fault(os.path.dirname(file) or ".")
    try:
        # Not os.O_CREAT; not blocking, for it may be a pipe that nobody reads.
        os.close(os.open(file, os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError as error:
        return f"cannot be opened for append: {error.strerror}"
    return ""


def _unix_fault(path: str) -> str:
    """Why a socket cannot be made at the path; one that is there is somebody's, or is replaced at the start."""
    with contextlib.suppress(OSError):
        return "" if stat.S_ISSOCK(os.lstat(path).st_mode) else "there is a file that is no socket"
    return _folder_fault(os.path.dirname(path))


def _folder_fault(folder: str) -> str:
    try:
        if not stat.S_ISDIR(os.stat(folder).st_mode):
            return f"{folder} is no folder"
    except FileNotFoundError:
        return f"the folder {folder} does not exist"
    except OSError as error:
        return f"the folder {folder} cannot be used: {error.strerror}"
    allowed = os.access(folder, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids)
    return "" if allowed else f"the folder {folder} cannot be written to"


def _host_fault(address: Address) -> str:
    """Why the host cannot be listened on: all addresses of a name are needed, but for a family the machine lacks."""
    try:
        found = socket.getaddrinfo(address.host, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        return f"the host {address.host} is not known: {getattr(error, 'strerror', None) or error}"
    lacking = 0
    places = dict.fromkeys((family, where) for family, _, _, _, where in found)
    for family, where in places:
        try:
            _bind(family, where)
        except OSError as error:
            if _lacks(family, error):
                lacking += 1
            elif error.errno == errno.EADDRNOTAVAIL:
                return f"{where[0]} is not an address of this machine"
            else:
                return f"{where[0]} cannot be listened on: {error.strerror}"
    return f"this machine has no addresses of the kind of {address.host}" if lacking == len(places) else ""


def _bind(family: int, where: tuple[object, ...]) -> None:
    """Binds to a free port of the address, for a moment."""
    with socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as sock:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((where[0], 0, *where[2:]))


def _lacks(family: int, error: OSError) -> bool:
    """Whether the machine has no such addresses at all, as where IPv6 is switched off."""
    if error.errno == errno.EADDRNOTAVAIL and family in _LOOPBACK:
        try:
            _bind(family, (_LOOPBACK[socket.AddressFamily(family)], 0))
        except OSError:
            return True
        return False
    return error.errno == errno.EAFNOSUPPORT
