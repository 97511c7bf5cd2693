"""Listening sockets: inherited from the service manager or a predecessor, or opened; changed, and closed again.

Why: binding can fail for reasons only the operator can mend, and each has its own sentence. Called by run, the
supervisor, admin and, for a successor's sockets, system.successor.

Invariants:
- A socket is bound when open_listener returns, and one of our own begins to listen only with `listen`.
- A name that has several addresses is listened on at all of them or at none, but for a family the machine lacks.
- The file of a Unix socket is replaced only when nobody listens on it, and removed only by whom it belongs to: the
  service manager keeps its sockets while the proxy is restarted, a predecessor gives its files away (`disown`).
- Such a file is nobody's but ours until it has its owner and mode, and what is changed is never another file.

Nothing here needs an event loop, and open_listener may wait for the resolver (getaddrinfo): where a loop runs, call it
in a thread (loop.run_in_executor), and leave `given` alone meanwhile.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from proxy.system import log as logs
from proxy.system.address import Address, format_address
from proxy.system.process import PREDECESSOR, is_predecessor

log = logs.get(__name__)

# What the sockets of a predecessor are called, in LISTEN_FDNAMES:
LISTENER: Final = "listener"  # a listener's, the proxy's own: so is the file of a Unix socket
SYSTEMD: Final = "systemd"  # a listener's, from the service manager, whose file it is
ADMIN: Final = "admin:"  # the admin HTTP server's; its address as configured follows

FIRST_INHERITED: Final = 3  # SD_LISTEN_FDS_START, sd_listen_fds(3)
_SOMAXCONN: Final = Path("/proc/sys/net/core/somaxconn")
_ATTEMPTS: Final = 10  # to find a port that is free at all addresses of a name
_LOOPBACK: Final = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}

FileId = tuple[int, int]  # device and inode
Place = tuple[int, tuple[object, ...]]  # family and socket address


class ListenError(Exception):
    """An address cannot be listened on; the text is one sentence for the operator."""


class FileOwner(Protocol):
    """Whom a Unix socket's file belongs to: as configured (empty: the proxy's user), and the ids, -1 = as it is."""

    @property
    def written(self) -> str: ...
    @property
    def uid(self) -> int: ...
    @property
    def gid(self) -> int: ...


class ListenerOptions(Protocol):
    """What is needed of a listener's configuration (config.models.Listener). mode: of a Unix socket's file, octal."""

    @property
    def address(self) -> Address: ...
    @property
    def backlog(self) -> int: ...
    @property
    def mode(self) -> str: ...
    @property
    def owner(self) -> FileOwner: ...


@dataclass(eq=False, slots=True)
class Inherited:
    """A listening socket this process was started with. name: LISTENER, SYSTEMD, or ADMIN and an address."""

    sock: socket.socket
    name: str


@dataclass(eq=False)
class Listening:
    """A bound socket and the listener it was opened for.

    origin: LISTENER or SYSTEMD when it was inherited under that name, "" when it was opened here.
    """

    sock: socket.socket
    listener: ListenerOptions
    file: FileId | None = None  # of a Unix socket, when it is ours
    origin: str = ""
    label: str = field(init=False)  # where it listens, with the port the kernel chose

    def __post_init__(self) -> None:
        self.label = format_address(self.sock.getsockname(), self.listener.address)

    @property
    def name(self) -> str:
        """What a successor is told that this is: LISTENER or SYSTEMD."""
        return SYSTEMD if self.origin == SYSTEMD else LISTENER

    def listen(self) -> None:
        """Begins to take connections, or goes on with the listener's present backlog; ListenError.

        The file of a predecessor's Unix socket gets its mode and owner now.
        """
        with _sentence(self.listener.address):
            if self.file is not None and self.origin == LISTENER:
                _set_file_options(self.listener, self.file)
            self.sock.listen(self.listener.backlog)

    def update(self, listener: ListenerOptions) -> None:
        """Follows the new options of its listener: backlog, and mode and owner of a file of ours.

        ListenError when the file cannot be changed so; then everything is as it was.
        """
        old = self.listener
        if self.file is not None and (listener.mode, listener.owner) != (old.mode, old.owner):
            # Who is no longer named gives the file back to the process.
            uid = os.geteuid() if old.owner.uid != -1 else -1
            gid = os.getegid() if old.owner.gid != -1 else -1
            with _sentence(listener.address, "cannot change"):
                _set_file_options(listener, self.file, uid, gid)
        self.listener = listener
        if listener.backlog != old.backlog and self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            self.listen()

    def disown(self) -> bool:
        """Leaves a Unix socket's file to somebody else: close() will not remove it. Whether there was one of ours.

        Called by the predecessor once its successor serves, and by a successor that ends before that for all that it
        has inherited (`origin`).
        """
        ours = self.file is not None
        self.file = None
        return ours

    def close(self) -> None:
        """Stops listening; removes the file of a Unix socket unless it is somebody else's, or has become so."""
        if self.file is not None and self.sock.fileno() >= 0:
            path = self.listener.address.path
            with contextlib.suppress(OSError):
                # While the socket is open, its inode cannot be another file's.
                if _identity(os.lstat(path)) == self.file:
                    os.unlink(path)
        self.sock.close()


def inherited() -> list[Inherited]:
    """The listening sockets this process was started with, in their order (sd_listen_fds(3)).

    They are meant for this process when LISTEN_PID says so, as a service manager does, or when a
    predecessor has started it (system.successor), which cannot know the pid beforehand. Every socket of a service
    manager is called SYSTEMD here, whatever the unit calls it, and so is one of a name this version does not know: it
    may be used, and its file is not ours.

    Takes the variables out of the environment and the sockets away from children. What is passed along but is no
    listening stream socket, such as the connection of a socket unit with Accept=yes, is named in a warning and closed.
    """
    count, pid = os.environ.pop("LISTEN_FDS", ""), os.environ.pop("LISTEN_PID", "")
    names = os.environ.pop("LISTEN_FDNAMES", "").split(":")
    succeeds = is_predecessor(os.environ.pop(PREDECESSOR, "")) and not pid
    if not (succeeds or pid == str(os.getpid())) or not (count.isascii() and count.isdigit()):
        return []
    found = []
    for place in range(int(count)):
        descriptor = FIRST_INHERITED + place
        name = names[place] if place < len(names) else ""
        if succeeds:
            name = name.replace("%3A", ":").replace("%25", "%")
        try:
            sock = socket.socket(fileno=descriptor)
        except OSError as error:
            log.warning(
                "inherited descriptor not used: no socket", name=name, descriptor=descriptor, reason=_reason(error)
            )
            with contextlib.suppress(OSError):
                os.close(descriptor)
            continue
        if sock.type != socket.SOCK_STREAM or not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            log.warning("inherited socket not used: it does not listen", name=name, address=_label(sock))
            sock.close()
            continue
        sock.set_inheritable(False)
        log.info("inherited", name=name, address=_label(sock))
        known = succeeds and (name == LISTENER or name.startswith(ADMIN))
        found.append(Inherited(sock, name if known else SYSTEMD))
    return found


def joined_names(names: Iterable[str]) -> str:
    """Names for a successor's LISTEN_FDNAMES, which a colon separates: one inside a name is `%3A`."""
    return ":".join(name.replace("%", "%25").replace(":", "%3A") for name in names)


def take_named(given: list[Inherited], name: str) -> list[socket.socket]:
    """Takes the sockets of this name out of the list; for the admin HTTP server's (ADMIN and its address)."""
    found = [one.sock for one in given if one.name == name]
    given[:] = [one for one in given if one.name != name]
    return found


def unwanted(given: list[Inherited]) -> list[Listening]:
    """Takes a predecessor's sockets that no listener took out of the list.

    To be closed when this process serves, which removes the files of Unix sockets: until then the predecessor may have
    to go on as if nothing had been. Close them after disown() if it comes to that.
    """
    left = []
    for sock in take_named(given, LISTENER):
        where = sock.getsockname()
        unix = isinstance(where, str)
        file = _socket_file(where) if unix else None
        left.append(Listening(sock, _Unwanted(Address(path=where) if unix else Address(*where[:2])), file, LISTENER))
    return left


def close_unused(given: list[Inherited]) -> None:
    """Closes what nobody took, and warns where that is the service manager's; after unwanted() and take_named().

    An admin socket is closed without a word: the predecessor has it as well, and the admin server may move.
    """
    while given:
        one = given.pop(0)
        if not one.name.startswith(ADMIN):
            log.warning("inherited socket not used: no listener has its address", address=_label(one.sock))
        one.sock.close()


def open_listener(listener: ListenerOptions, given: list[Inherited] | None = None) -> list[Listening]:
    """Listens at the listener's address, or at each of those its name has; ListenError when that cannot be.

    May wait for the resolver; needs no loop. Inherited sockets with the address are taken out of given (but for those
    of the admin server); the others are bound. One of the service manager keeps the options it came with, and so does
    its file, which stays the service manager's. The file of a predecessor's is ours from now on, with the listener's
    mode and owner: as long as this process does not serve, disown() comes before close().
    """
    address = listener.address
    given = [] if given is None else given
    with _sentence(address):
        if address.path:
            opened = [_unix(listener, given)]
        else:
            opened = [Listening(sock, listener, None, origin) for sock, origin in _tcp(address, given)]
    for one in opened:
        one.sock.setblocking(False)
    return opened


def warn_somaxconn(one: Listening) -> None:
    """Warns when the kernel cuts the listener's backlog, listen(2)."""
    try:
        most = int(_SOMAXCONN.read_text())
    except (OSError, ValueError):
        return
    if most < one.listener.backlog:
        log.warning(
            "the kernel's net.core.somaxconn is below the listener's backlog",
            address=one.label,
            backlog=one.listener.backlog,
            somaxconn=most,
        )


@contextlib.contextmanager
def _sentence(address: Address, what: str = "cannot listen on") -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ListenError(f"{what} {address}: {_reason(error)}") from error


def _reason(error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return "the address is in use; is another proxy running?"
    if error.errno == errno.EACCES:
        return "permission denied"
    return error.strerror or str(error)


def _label(sock: socket.socket) -> str:
    where = sock.getsockname()
    known = sock.family in (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6)
    return format_address(where) if known else str(where)


def _take(wanted: tuple[int, object], given: list[Inherited]) -> Inherited | None:
    for place, one in enumerate(given):
        if not one.name.startswith(ADMIN) and (one.sock.family, one.sock.getsockname()) == wanted:
            return given.pop(place)
    return None


@dataclass(frozen=True, slots=True)
class _NoOwner:
    written: str = ""
    uid: int = -1
    gid: int = -1


@dataclass(frozen=True, slots=True)
class _Unwanted:
    """In place of the configuration that a socket has none of."""

    address: Address
    backlog: int = 0
    mode: str = "0600"
    owner: _NoOwner = _NoOwner()


# TCP


def _tcp(address: Address, given: list[Inherited]) -> list[tuple[socket.socket, str]]:
    """Sockets at all the places of the address, each with its origin."""
    found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    places: list[Place] = list(dict.fromkeys((family, where) for family, _, _, _, where in found))
    for _ in range(_ATTEMPTS if not address.port else 1):
        try:
            return _all(address, places, given)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            taken = error
    raise taken


def _all(address: Address, places: list[Place], given: list[Inherited]) -> list[tuple[socket.socket, str]]:
    """A socket at each place; port 0: at the same port, EADDRINUSE when the one chosen is taken at another place."""
    opened: list[tuple[socket.socket, str]] = []
    lacking: OSError | None = None
    try:
        for family, where in places:
            if taken := _take((family, where), given):
                opened.append((taken.sock, taken.name))
                continue
            port = address.port or (opened[0][0].getsockname()[1] if opened else 0)
            try:
                opened.append((_bound(family, (where[0], port, *where[2:])), ""))
            except OSError as error:
                if not _lacks(family, error):
                    raise
                lacking = error
                text = format_address(where)
                log.info("address not used: the machine lacks its family", address=text, listener=str(address))
        if not opened and lacking is not None:
            raise lacking
    except OSError:
        for sock, _ in opened:
            sock.close()
        raise
    return opened


def _bound(family: int, where: tuple[object, ...]) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(where)
    except OSError:
        sock.close()
        raise
    return sock


def _lacks(family: int, error: OSError) -> bool:
    """Whether it failed because the machine has no such addresses at all, as where IPv6 is switched off."""
    if error.errno == errno.EADDRNOTAVAIL and family in _LOOPBACK:
        try:
            _bound(family, (_LOOPBACK[socket.AddressFamily(family)], 0)).close()
        except OSError:
            return True
        return False
    return error.errno == errno.EAFNOSUPPORT


# Unix sockets


def _unix(listener: ListenerOptions, given: list[Inherited]) -> Listening:
    path = listener.address.path
    taken = _take((socket.AF_UNIX, path), given)
    if taken is None:
        return _new_unix(listener)
    if taken.name == SYSTEMD:
        return Listening(taken.sock, listener, None, SYSTEMD)
    if file := _socket_file(path):
        return Listening(taken.sock, listener, file, LISTENER)  # changed by listen(): the predecessor may have to go on
    taken.sock.close()  # its file is gone: nobody can reach it
    return _new_unix(listener)


def _new_unix(listener: ListenerOptions) -> Listening:
    path = listener.address.path
    _clear(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    file = None
    try:
        os.fchmod(sock.fileno(), 0o600)  # on Linux the file will have the mode of the socket, less the umask
        sock.bind(path)
        file = _socket_file(path)
        if file is None:
            raise OSError(errno.ENOENT, "its file has vanished")
        _set_file_options(listener, file)
        sock.listen(listener.backlog)  # at once, or another instance takes the file for one that was left behind
        return Listening(sock, listener, file)
    except OSError:
        if file is not None:
            Listening(sock, listener, file).close()
        sock.close()
        raise


def _clear(path: str) -> None:
    """Removes what a process that is gone has left behind; OSError when somebody listens, or it is something else."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            raise OSError(errno.EEXIST, "a file that is no socket is in the way")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)  # a stopped process with a full backlog would keep us waiting
            outcome = probe.connect_ex(path)
        if outcome == errno.ECONNREFUSED:
            os.unlink(path)
        elif outcome in (0, errno.EAGAIN):
            raise OSError(errno.EADDRINUSE, "in use")
        else:
            raise OSError(outcome, os.strerror(outcome))


def _socket_file(path: str) -> FileId | None:
    with contextlib.suppress(OSError):
        found = os.lstat(path)
        if stat.S_ISSOCK(found.st_mode):
            return _identity(found)
    return None


def _identity(found: os.stat_result) -> FileId:
    return found.st_dev, found.st_ino


def _set_file_options(listener: ListenerOptions, file: FileId, uid: int = -1, gid: int = -1) -> None:
    """Gives the listener's file its mode and owner; uid and gid for what the listener does not say (-1: as it is).

    OSError with everything as it was. Nobody gets in meanwhile who may in neither before nor after.
    """
    owner = listener.owner
    mode = int(listener.mode, 8)
    uid, gid = (owner.uid if owner.uid != -1 else uid), (owner.gid if owner.gid != -1 else gid)
    # Held fast: in a folder that others may write to, the name could be a link to any file a moment later.
    pin = os.open(listener.address.path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        was = os.fstat(pin)
        if _identity(was) != file:
            raise OSError(errno.EEXIST, "its file has been replaced")
        held, old = f"/proc/self/fd/{pin}", stat.S_IMODE(was.st_mode)
        try:
            if old & ~mode:
                os.chmod(held, old & mode)
            if uid not in (-1, was.st_uid) or gid not in (-1, was.st_gid):
                _chown(held, uid, gid, owner.written)
            if mode & ~old:
                os.chmod(held, mode)
        except OSError:
            with contextlib.suppress(OSError):
                os.chown(held, was.st_uid, was.st_gid)
            with contextlib.suppress(OSError):
                os.chmod(held, old)
            raise
    finally:
        os.close(pin)


def _chown(file: str, uid: int, gid: int, owner: str) -> None:
    try:
        os.chown(file, uid, gid)
    except OSError as error:
        whom = f"to '{owner}'" if owner else "back to the proxy's user"
        hint = " (root may do that, others may give it to groups of their own)" if error.errno == errno.EPERM else ""
        raise OSError(error.errno, f"its file cannot be given {whom}: {error.strerror}{hint}") from error
