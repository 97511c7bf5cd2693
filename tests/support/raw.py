"""A client that shows bytes as they are: what was sent, which frames came back, whether the connection was closed.

Why: most of what the proxy promises is exact bytes, and every client library hides some of them.
"""

from __future__ import annotations

import contextlib
import select
import socket
from collections.abc import Iterable
from types import TracebackType

Word = bytes | str | int | float


def encode(*words: Word) -> bytes:
    """One command as a RESP array of bulk strings."""
    parts = [word if isinstance(word, bytes) else str(word).encode() for word in words]
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)


def bulk(value: bytes) -> bytes:
    """A bulk string frame."""
    return b"$%d\r\n%s\r\n" % (len(value), value)


def array(*frames: bytes) -> bytes:
    """An array frame of ready frames."""
    return b"*%d\r\n" % len(frames) + b"".join(frames)


class Closed(Exception):
    """The other side closed before a whole frame came; args[0]: the bytes of it that came."""


class RawClient:
    """One blocking connection; every read ends after timeout_s with TimeoutError."""

    def __init__(self, address: tuple[str, int] | str, timeout_s: float = 10.0, receive_buffer: int = 0) -> None:
        family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        self.sock = socket.socket(family, socket.SOCK_STREAM)
        if receive_buffer:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.sock.settimeout(timeout_s)
        try:
            self.sock.connect(address)
        except OSError:
            self.sock.close()
            raise
        if family == socket.AF_INET:
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = bytearray()
        self._taken = 0

    def __enter__(self) -> RawClient:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self.sock.close()

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def command(self, *words: Word) -> bytes:
        """Sends one command and returns its reply frame, bytes as they came."""
        self.send(encode(*words))
        return self.frame()

    def frames(self, count: int) -> list[bytes]:
        return [self.frame() for _ in range(count)]

    def frame(self) -> bytes:
        """The next whole reply frame, nested ones and attributes included."""
        start = self._taken
        try:
            self._skip()
        except Closed:
            raise Closed(bytes(self._buffer[start:])) from None
        except TimeoutError:
            self._taken = start  # it is read again as a whole
            raise
        frame = bytes(self._buffer[start : self._taken])
        if self._taken > 1 << 20 or self._taken == len(self._buffer):
            del self._buffer[: self._taken]
            self._taken = 0
        return frame

    def exchange(self, pieces: Iterable[bytes]) -> None:
        """Sends the pieces one by one, taking in meanwhile what comes back, so that neither side waits for ever."""
        for piece in pieces:
            view = memoryview(piece)
            while view:
                readable, writable, _ = select.select([self.sock], [self.sock], [], self.sock.gettimeout())
                if not readable and not writable:
                    raise TimeoutError("neither readable nor writable")
                if readable:
                    self._more()
                if writable:
                    view = view[self.sock.send(view, socket.MSG_DONTWAIT) :]

    def rest_or_frame(self) -> bytes:
        """The next frame, or what came before the other side closed."""
        try:
            return self.frame()
        except (Closed, ConnectionError) as closed:
            return bytes(closed.args[0]) if isinstance(closed, Closed) else b""

    def rest(self) -> bytes:
        """Everything until the other side closes; TimeoutError when it does not."""
        with contextlib.suppress(Closed, ConnectionResetError):
            while True:
                self._more()
        data = bytes(self._buffer[self._taken :])
        self._buffer.clear()
        self._taken = 0
        return data

    def _skip(self) -> None:
        line = self._line()
        kind = line[:1]
        if kind in b"+-:_#,(":
            return
        count = int(line[1:])
        if kind in b"$=!":
            if count >= 0:
                self._take(count + 2)
            return
        if kind not in b"*~>%|":
            raise AssertionError(f"not a RESP frame: {line!r}")
        for _ in range(count * (2 if kind in b"%|" else 1)):
            self._skip()
        if kind == b"|":
            self._skip()

    def _line(self) -> bytes:
        start = at = self._taken
        while (end := self._buffer.find(b"\r\n", at)) < 0:
            at = max(start, len(self._buffer) - 1)
            self._more()
        self._taken = end + 2
        return bytes(self._buffer[start:end])

    def _take(self, count: int) -> None:
        while len(self._buffer) - self._taken < count:
            self._more()
        self._taken += count

    def _more(self) -> None:
        data = self.sock.recv(1 << 18)
        if not data:
            raise Closed
        self._buffer += data
