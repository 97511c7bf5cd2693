"""A new instance takes the listening sockets over from the running one, through a Unix socket.

Why: an upgrade must not refuse a single connection, so the sockets never close: for a moment both instances have them,
and the old one lets go of them only when the new one serves. Called by proxy.run (take_over) and proxy.supervisor.life.

Invariants:
- Until the successor has said that it serves, nothing changes for the predecessor; if it never does, nothing happened.
- Both agree on the outcome: the predecessor gives up with SHUT_RD, after which the kernel takes nothing more from the
  successor; READY was sent before that, and counts, or is an error where it is sent.
- The socket of the hand-over is handed over like the others. Its file is there all the time, and who asks for the
  next hand-over meanwhile waits in its queue.
- Only root and the user of the process are talked to, in both directions.

The conversation, made to be understood by every later version: each line is JSON and begins as Greeting.
successor:    {"handover": 1, "version": "1.2.0"}
predecessor:  {"handover": 1, "version": "1.1.0", "sockets": [[kind, name], ...], "file": [device, inode]}
              and, for every _MOST of the sockets or fewer, one zero byte with their descriptors; the last of all is the
              hand-over's own, whose file that is. Or, at any time: {..., "error": "why not"}, and the end.
successor:    READY, and the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import struct
import time
from array import array
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from proxy import __version__
from proxy.config.models import Listener
from proxy.system.log import get, warn_limited
from proxy.system.sockets import FileId, Listening, open_listener

log = get("supervisor.handover")

PROTOCOL: Final = 1
READY: Final = b"ready\n"
PATIENCE_S: Final = 60.0  # for the successor to start its workers
GREETING_S: Final = 10.0  # for a connection to say what it wants
_MOST: Final = 253  # SCM_MAX_FD
_LINE: Final = 1 << 20  # bytes a line has at most
_ANCILLARY: Final = socket.CMSG_SPACE(_MOST * array("i").itemsize)
_GUESTS: Final = 16  # connections that have not greeted yet
_BACKLOG: Final = 16
_DYING_S: Final = 0.5  # a process that ends closes its descriptors one after the other


class HandoverError(Exception):
    """Somebody listens, but does not hand over; the text is one sentence for the operator."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"cannot take over from the process that listens at {path}: {reason}")


class Greeting(msgspec.Struct):
    """How every line begins."""

    handover: int
    version: str = ""
    error: str = ""


class Offer(Greeting, kw_only=True):
    """What the predecessor hands over."""

    sockets: list[tuple[str, str]]
    file: FileId


# -- the predecessor -----------------------------------------------------------------------------------------------


class HandoverServer:
    """Waits at the path for a successor. ListenError when it cannot be had.

    offer(): (kind, name, descriptor) of each listening socket, still the caller's. on_taken(): a successor serves; by
    then this server has closed and left path and file to it. taken: what this process has itself taken over, whose
    path this server goes on with; to be given after ready(). Nothing is talked about outside the loop.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        path: str,
        offer: Callable[[], Sequence[tuple[str, str, int]]],
        on_taken: Callable[[], None],
        *,
        taken: Taken | None = None,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._loop = loop
        self._offer = offer
        self._on_taken = on_taken
        self._patience_s = patience_s
        self._door = _door(path, taken)
        self._door.listen()  # also makes this process the one that SO_PEERCRED names
        self._talks: set[_Talk] = set()
        self._successor: _Talk | None = None
        self._pause: asyncio.TimerHandle | None = None
        self._open()

    @property
    def taking(self) -> bool:
        """Whether a successor has the sockets and has not yet said that it serves; what changes now, it will miss."""
        return self._successor is not None

    def close(self) -> None:
        """Gives the path up. A successor that has the sockets is left to itself, and then the file as well."""
        if self._successor is not None:
            self._door.disown()
        if self._pause is not None:
            self._pause.cancel()
        elif self._door.sock.fileno() >= 0:
            self._loop.remove_reader(self._door.sock.fileno())
        self._pause = self._successor = None
        self._door.close()
        for talk in list(self._talks):
            talk.end()

    def _open(self) -> None:
        self._pause = None
        self._loop.add_reader(self._door.sock.fileno(), self._accept)

    def _accept(self) -> None:
        try:
            sock, _ = self._door.sock.accept()
        except BlockingIOError:
            return
        except OSError as error:
            warn_limited(log, "accept", "cannot accept a connection", path=self._door.label, error=str(error))
            self._loop.remove_reader(self._door.sock.fileno())
            self._pause = self._loop.call_later(1.0, self._open)
            return
        talk = _Talk(sock, self._loop, self._heard, self._ended)
        self._talks.add(talk)
        if talk.uid not in (0, os.geteuid()):
            talk.refuse(f"only root and the user of the proxy may take over, not user {talk.uid}")
        elif len(self._talks) > _GUESTS:
            talk.refuse("too many connections")
        else:
            talk.listen(GREETING_S, "no greeting")

    def _heard(self, talk: _Talk, line: bytes) -> None:
        """A line came in."""
        if talk is self._successor:
            if line + b"\n" == READY:
                self._hand_over(talk)
            else:
                talk.refuse("not a word of this conversation")
            return
        try:
            greeting = msgspec.json.decode(line, type=Greeting)
        except msgspec.MsgspecError as error:
            talk.refuse(f"not a greeting: {error}")
            return
        if greeting.handover != PROTOCOL:
            talk.refuse(f"version {greeting.handover} of the hand-over is not spoken here, but {PROTOCOL}")
        elif self._successor is not None:
            talk.refuse(f"process {self._successor.pid} is about to take over")
        else:
            self._give(talk, greeting.version)

    def _give(self, talk: _Talk, version: str) -> None:
        offered = list(self._offer())
        descriptors = [descriptor for _, _, descriptor in offered] + [self._door.sock.fileno()]
        offer = Offer(
            handover=PROTOCOL,
            version=__version__,
            sockets=[(kind, name) for kind, name, _ in offered],
            file=self._door.file or (0, 0),
        )
        try:
            talk.send(msgspec.json.encode(offer) + b"\n")
            for first in range(0, len(descriptors), _MOST):
                talk.send(b"\0", descriptors[first : first + _MOST])
        except OSError as error:
            talk.end(f"the sockets cannot be sent: {error.strerror or error}")
            return
        log.info("a successor has the listening sockets", pid=talk.pid, version=version, sockets=len(descriptors))
        self._successor = talk
        talk.listen(self._patience_s, f"no word within {self._patience_s:g} s")

    def _hand_over(self, talk: _Talk) -> None:
        log.info("the successor serves", pid=talk.pid)
        self.close()
        self._on_taken()

    def _ended(self, talk: _Talk, reason: str) -> None:
        self._talks.discard(talk)
        if talk is self._successor:
            self._successor = None
            log.warning("the successor did not take over", pid=talk.pid, reason=reason)
        elif reason:
            log.info("no hand-over", pid=talk.pid, reason=reason)


class _Talk:
    """One connection, the predecessor's end. States: new -> listening <-> heard -> ended.

    on_line(talk, line without its end); on_end(talk, reason), once, also when we end it ("" then).
    """

    def __init__(
        self,
        sock: socket.socket,
        loop: asyncio.AbstractEventLoop,
        on_line: Callable[[_Talk, bytes], None],
        on_end: Callable[[_Talk, str], None],
    ) -> None:
        sock.setblocking(False)
        self.pid, self.uid = _credentials(sock)
        self._sock = sock
        self._loop = loop
        self._on_line = on_line
        self._on_end = on_end
        self._in = b""
        self._timer: asyncio.TimerHandle | None = None

    def listen(self, patience_s: float, else_: str) -> None:
        """Waits for the next line; refuses with those words when it does not come."""
        self._timer = self._loop.call_later(patience_s, self._late, else_)
        self._loop.add_reader(self._sock.fileno(), self._readable)

    def send(self, data: bytes, descriptors: Sequence[int] = ()) -> None:
        """Sends all of it, which the empty buffer of a new connection takes, or fails: OSError."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", descriptors))] if descriptors else []
        if self._sock.sendmsg([data], rights, socket.MSG_NOSIGNAL) < len(data):
            raise OSError("more than the connection takes at once")

    def refuse(self, reason: str) -> None:
        """Says why not, and ends."""
        with contextlib.suppress(OSError):
            self.send(msgspec.json.encode(Greeting(PROTOCOL, __version__, reason)) + b"\n")
        self.end(reason)

    def end(self, reason: str = "") -> None:
        """Closes it."""
        if self._sock.fileno() < 0:
            return
        self._quiet()
        self._sock.close()
        self._on_end(self, reason)

    def _quiet(self) -> None:
        self._loop.remove_reader(self._sock.fileno())
        if self._timer is not None:
            self._timer.cancel()

    def _readable(self) -> None:
        try:
            data = self._sock.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError as error:
            self.end(error.strerror or str(error))
            return
        self._in += data
        line, end, rest = self._in.partition(b"\n")
        if rest:
            self.refuse("out of turn")
        elif end:
            self._in = b""
            self._quiet()
            self._on_line(self, line)
        elif not data:
            self.end("it has gone")
        elif len(self._in) > _LINE:
            self.refuse("a line without end")

    def _late(self, reason: str) -> None:
        """The last moment: READY still counts when it was sent before the kernel closed this direction."""
        self._quiet()
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RD)
            self._in += self._sock.recv(1 << 16)
        if self._in == READY:
            self._on_line(self, self._in[:-1])
        else:
            self.refuse(reason)


def _door(path: str, taken: Taken | None) -> Listening:
    listener = Listener.model_validate({"address": f"unix:{path}", "mode": "0600", "backlog": _BACKLOG})
    if taken is not None and (kept := taken.take_door(path)) is not None:
        return Listening(kept, listener, taken.file)
    (door,) = open_listener(listener)
    return door


# -- the successor -------------------------------------------------------------------------------------------------


class Taken:
    """What a predecessor has handed over, while it goes on serving. Closed when it is not wanted; see close().

    sockets: (kind, name, socket), non-blocking, until of() has given them away. refused: see ready().
    """

    def __init__(self, connection: socket.socket, pid: int, offer: Offer, sockets: list[socket.socket]) -> None:
        *others, door = sockets
        self.pid = pid
        self.version = offer.version
        self.file = offer.file
        self.refused = False
        self.sockets = [(kind, name, sock) for (kind, name), sock in zip(offer.sockets, others, strict=True)]
        self._connection = connection
        self._door: socket.socket | None = door

    def of(self, kind: str) -> list[socket.socket]:
        """The sockets of that kind, in the predecessor's order; the caller's from now on."""
        found = [sock for its, _, sock in self.sockets if its == kind]
        self.sockets = [one for one in self.sockets if one[0] != kind]
        return found

    def ready(self) -> str | None:
        """Tells the predecessor that it may go, for clients are served here; does not block.

        None, or why it could not be told: it is gone, or (`refused`) it has given us up and goes on. Sockets that of()
        has not given away are closed: nobody would serve their queues.
        """
        trouble = None
        try:
            self._connection.send(READY, socket.MSG_NOSIGNAL)
        except OSError as error:
            said = self._last_words()
            self.refused = bool(said)
            trouble = f"the predecessor goes on: {said}" if said else f"the predecessor is gone: {error.strerror}"
        self._connection.close()
        self._close_sockets()
        return trouble

    def close(self) -> None:
        """Before ready(): the predecessor goes on as if nothing had been. Closes what has not been given away."""
        self._connection.close()
        self._close_sockets()
        if self._door is not None:
            self._door.close()
            self._door = None

    def take_door(self, path: str) -> socket.socket | None:
        """The socket of the hand-over, when the file at that path is its; for HandoverServer, whose it is then."""
        door, self._door = self._door, None
        if door is None:
            return None
        with contextlib.suppress(OSError):
            found = os.lstat(path)
            if not self.refused and (found.st_dev, found.st_ino) == self.file:
                return door
        door.close()
        return None

    def _close_sockets(self) -> None:
        for _, _, sock in self.sockets:
            sock.close()
        self.sockets = []

    def _last_words(self) -> str:
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            self._connection.setblocking(False)
            return msgspec.json.decode(self._connection.recv(_LINE), type=Greeting).error
        return ""


def take_over(path: str, timeout_s: float) -> Taken | None:
    """Asks the instance that listens at the path for its sockets; None when nobody does. HandoverError.

    Blocks, timeout_s at most (and a moment more when the other side dies meanwhile).
    """
    deadline = time.monotonic() + timeout_s
    connection = _connect(path, deadline)
    if connection is None:
        return None
    with contextlib.ExitStack() as on_failure:
        on_failure.callback(connection.close)
        try:
            taken = _receive(connection, path, deadline)
        except TimeoutError:
            raise HandoverError(path, "it does not answer") from None
        except (EOFError, ConnectionError):
            _await_end(path)
            return None
        except OSError as error:
            raise HandoverError(path, error.strerror or str(error)) from error
        on_failure.pop_all()
        return taken


def _await_end(path: str) -> None:
    """The other side ended the conversation: it has died, which may take a moment, or wants nothing to do with us."""
    deadline = time.monotonic() + _DYING_S
    while (probe := _connect(path, deadline)) is not None:
        probe.close()
        if time.monotonic() > deadline:
            raise HandoverError(path, "it ends the conversation")
        time.sleep(0.01)


def _connect(path: str, deadline: float) -> socket.socket | None:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    connection.setblocking(False)
    while error := connection.connect_ex(path):
        if error == errno.EAGAIN and time.monotonic() < deadline:  # its queue is full
            time.sleep(0.01)
            continue
        connection.close()
        if error in (errno.ENOENT, errno.ECONNREFUSED):
            return None
        raise HandoverError(path, "it does not answer" if error == errno.EAGAIN else os.strerror(error))
    return connection


def _receive(connection: socket.socket, path: str, deadline: float) -> Taken:
    pid, uid = _credentials(connection)
    if uid not in (0, os.geteuid()):
        raise HandoverError(path, f"it is another user's (uid {uid})")
    with contextlib.suppress(ConnectionError):  # it may have refused us already, and says why
        connection.send(msgspec.json.encode(Greeting(PROTOCOL, __version__)) + b"\n", socket.MSG_NOSIGNAL)
    data = b""
    descriptors: list[int] = []
    try:
        while b"\n" not in data:
            if len(data) > _LINE:
                raise HandoverError(path, "it does not speak our language: a line without end")
            data += _part(connection, descriptors, deadline)
        line, _, data = data.partition(b"\n")
        offer = _understood(line, path)
        count = len(offer.sockets) + 1
        while len(data) * _MOST < count:
            data += _part(connection, descriptors, deadline)
        if len(descriptors) != count:
            raise HandoverError(path, f"only {len(descriptors)} of {count} sockets have arrived")
        return Taken(connection, pid, offer, _sockets(descriptors, path))
    except BaseException:
        for descriptor in descriptors:
            os.close(descriptor)
        raise


def _part(connection: socket.socket, descriptors: list[int], deadline: float) -> bytes:
    """Some bytes; the descriptors that came with them are appended."""
    left_s = deadline - time.monotonic()
    if left_s <= 0:
        raise TimeoutError
    connection.settimeout(left_s)
    part, ancillary, _, _ = connection.recvmsg(1 << 16, _ANCILLARY, socket.MSG_CMSG_CLOEXEC)
    for level, kind, rights in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            numbers = array("i")
            numbers.frombytes(rights[: len(rights) - len(rights) % numbers.itemsize])
            descriptors += numbers
    if not part:
        raise EOFError
    return part


def _understood(line: bytes, path: str) -> Offer:
    try:
        greeting = msgspec.json.decode(line, type=Greeting)
        if greeting.error:
            raise HandoverError(path, greeting.error)
        if greeting.handover != PROTOCOL:
            raise HandoverError(path, f"it speaks version {greeting.handover} of the hand-over, not {PROTOCOL}")
        return msgspec.json.decode(line, type=Offer)
    except msgspec.MsgspecError as error:
        raise HandoverError(path, f"it does not speak our language: {error}") from error


def _sockets(descriptors: list[int], path: str) -> list[socket.socket]:
    """Takes the descriptors out of the list; HandoverError when one of them is no listening socket."""
    found: list[socket.socket] = []
    try:
        while descriptors:
            found.append(socket.socket(fileno=descriptors[0]))
            del descriptors[0]
            if not found[-1].getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                raise OSError(errno.EINVAL, "it does not listen")
            found[-1].setblocking(False)
    except OSError as error:
        for sock in found:
            sock.close()
        raise HandoverError(path, "it hands over something that does not listen") from error
    return found


def _credentials(sock: socket.socket) -> tuple[int, int]:
    """pid and uid of the process at the other end, as it was when it connected or began to listen."""
    pid, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return pid, uid
