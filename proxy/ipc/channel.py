"""A socketpair that carries typed messages and descriptors between two processes of the proxy.

Why: supervisor and worker share nothing (DESIGN 2); what one tells the other goes through here, client sockets
included (SCM_RIGHTS, unix(7)). Called by proxy.supervisor and proxy.worker.

Invariants:
- Nothing here blocks: what the kernel does not take is queued and goes on when it does; `backlog` says how much waits.
- A descriptor given to send() belongs to the channel from then on and is closed here once sent, or with the channel;
  one given to on_message belongs to the receiver.
- Messages come in the order they were sent, each once; one that cannot be read ends the channel. The other side's end
  is found by reading, behind its last message. on_end comes once, and not after close(). What on_message raises goes to
  the loop's exception handler; the next message comes all the same.
- A process that has no room for descriptors gets the message with those that found room, be it none: what that means is
  for the receiver to say.

A frame is its length (4 bytes, little-endian), the number of its descriptors (1 byte) and the message in msgpack. The
descriptors travel with its first byte. The kernel may give a reader several frames at once, but stops at the bytes that
came with descriptors (unix_stream_read_generic): one recvmsg yields the descriptors of one frame at most, so groups of
descriptors and frames that have some pair up in order.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

MAX_DESCRIPTORS = 253  # SCM_MAX_FD: more in one message is EINVAL
_HEAD = 5
_READ = 1 << 18
_WEIGHT = 1024
_RETRY_S = 0.02
_GONE = (errno.EPIPE, errno.ECONNRESET)  # unix(7)
_ANCILLARY = socket.CMSG_SPACE(MAX_DESCRIPTORS * array("i").itemsize)

OnMessage = Callable[[Any, list[int]], None]

_encoder = msgspec.msgpack.Encoder()


def encode(message: msgspec.Struct) -> bytes:
    """A message ready for send_encoded(), on any number of channels."""
    return _encoder.encode(message)


class Channel:
    """One end. decoder: of the messages that come in; on_message(message, descriptors); on_end(reason).

    Needs start() before anything is received. sock: a connected Unix stream socket, owned by the channel.
    """

    def __init__(
        self,
        sock: socket.socket,
        decoder: msgspec.msgpack.Decoder[Any],
        on_message: OnMessage,
        on_end: Callable[[str], None],
    ) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._decoder = decoder
        self._on_message = on_message
        self._on_end = on_end
        self._loop: asyncio.AbstractEventLoop | None = None
        self._in = bytearray()
        self._groups: deque[list[int]] = deque()  # the descriptors of one frame each
        self._out: deque[tuple[memoryview, list[int]]] = deque()
        self.backlog = 0  # bytes the kernel has not taken yet, a descriptor counted as _WEIGHT of them
        self._retry: asyncio.TimerHandle | None = None
        self.closed = False
        self._gone = False  # nobody takes anything any more, but something may be left to read

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begins to receive."""
        self._loop = loop
        loop.add_reader(self._sock.fileno(), self._readable)
        if self._out:
            loop.add_writer(self._sock.fileno(), self._flush)

    def hear_out(self) -> None:
        """Delivers what the other side, which is no more, had still said, and closes; on_end does not come."""
        self._on_end = lambda reason: None
        while not self.closed and self._readable():
            pass
        self.close()

    def send(self, message: msgspec.Struct, descriptors: Sequence[int] = ()) -> None:
        """Sends, now or as soon as the kernel takes it; on a closed channel only closes the descriptors."""
        self.send_encoded(_encoder.encode(message), descriptors)

    def send_encoded(self, body: bytes, descriptors: Sequence[int] = ()) -> None:
        """send() of a message that is encoded already."""
        if self.closed or self._gone:
            _close(descriptors)
            return
        frame = memoryview(len(body).to_bytes(4, "little") + bytes((len(descriptors),)) + body)
        self.backlog += len(frame) + _WEIGHT * len(descriptors)
        self._out.append((frame, list(descriptors)))
        if len(self._out) == 1:
            self._flush()

    def close(self) -> None:
        """Ends it: what was not sent or not received is given up, its descriptors with it."""
        if self.closed:
            return
        self.closed = True
        if self._retry is not None:
            self._retry.cancel()
        if self._loop is not None:
            self._loop.remove_reader(self._sock.fileno())
            self._loop.remove_writer(self._sock.fileno())
        self._sock.close()
        for group in self._groups:
            _close(group)
        self._groups.clear()
        self._drop_out()

    # -- out -----------------------------------------------------------------------------------------------------

    def _flush(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        while self._out:
            frame, descriptors = self._out[0]
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", descriptors))] if descriptors else []
            try:
                sent = self._sock.sendmsg([frame], rights, socket.MSG_NOSIGNAL)
            except (BlockingIOError, InterruptedError):
                if self._loop is not None:
                    self._loop.add_writer(self._sock.fileno(), self._flush)
                return
            except OSError as error:
                if error.errno == errno.ETOOMANYREFS and self._loop is not None:
                    # As many of the user's descriptors are on their way as it may have open; nobody tells when not.
                    self._loop.remove_writer(self._sock.fileno())
                    if self._retry is None:
                        self._retry = self._loop.call_later(_RETRY_S, self._flush)
                    return
                if error.errno in _GONE and self._loop is not None:
                    self._give_up_sending()
                else:
                    self._fail(error.strerror or str(error))
                return
            self.backlog -= sent + _WEIGHT * len(descriptors)
            _close(descriptors)
            if sent < len(frame):
                self._out[0] = (frame[sent:], [])
            else:
                self._out.popleft()
        if self._loop is not None:
            self._loop.remove_writer(self._sock.fileno())

    def _give_up_sending(self) -> None:
        """The other side is gone, but what it had said is not."""
        self._gone = True
        self._drop_out()
        if self._loop is not None:
            self._loop.remove_writer(self._sock.fileno())

    def _drop_out(self) -> None:
        for _, descriptors in self._out:
            _close(descriptors)
        self._out.clear()
        self.backlog = 0

    # -- in ------------------------------------------------------------------------------------------------------

    def _readable(self) -> bool:
        """Delivers what is there; whether there was something."""
        try:
            data, ancillary, flags, _ = self._sock.recvmsg(_READ, _ANCILLARY, socket.MSG_CMSG_CLOEXEC)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            self._fail(error.strerror or str(error))
            return False
        group = [
            number
            for level, kind, rights in ancillary
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS
            for number in array("i", rights[: len(rights) - len(rights) % array("i").itemsize])
        ]
        if group or flags & socket.MSG_CTRUNC:
            self._groups.append(group)
        if not data:
            self._fail("closed by the other side")
            return False
        self._in += data
        self._deliver()
        return True

    def _deliver(self) -> None:
        """Every whole frame; what is left is the beginning of the next one."""
        done = 0
        try:
            while not self.closed and len(self._in) - done >= _HEAD:
                end = done + _HEAD + int.from_bytes(self._in[done : done + 4], "little")
                if len(self._in) < end:
                    break
                body, count, done = self._in[done + _HEAD : end], self._in[done + 4], end
                self._deliver_one(body, count)
        finally:
            del self._in[:done]

    def _deliver_one(self, body: bytearray, count: int) -> None:
        if count and not self._groups:
            self._fail("a message without its descriptors")
            return
        try:
            message = self._decoder.decode(body)
        except msgspec.MsgspecError as error:
            self._fail(f"a message that cannot be read: {error}")
            return
        try:
            self._on_message(message, self._groups.popleft() if count else [])
        except Exception as error:
            assert self._loop is not None  # nothing is received before start()
            context = {"message": f"obeying {type(message).__name__}", "exception": error}
            self._loop.call_exception_handler(context)

    def _fail(self, reason: str) -> None:
        if not self.closed:
            self.close()
            self._on_end(reason)


def pair() -> tuple[socket.socket, socket.socket]:
    """The two ends of a new channel, for two processes."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)


def _close(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
