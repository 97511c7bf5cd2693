"""Writes the lines of the log in a thread of its own, so that whoever logs never waits for whoever reads.

Why: the reader of stderr may stall (a container's log driver, `| less`) and a disk may hang; a write on an event loop
would then stall every client. Called by system.log only.

Invariants:
- put() returns at once: it queues the line, or drops and counts it when LINES or BYTES of them wait already.
- Lines, reopening and a change of the file happen in the order they were asked for, and what leads away from a file
  happens though nobody takes its lines: those that are not taken within GRACE_S are dropped and counted.
- Nothing raises in the thread and nothing makes it spin: a line that cannot be written is dropped and counted, and when
  writing works again one line says how many were lost.
- A line is never torn: what follows a line that was cut off, as by a full disk, begins on a new line.
"""

from __future__ import annotations

import errno
import os
import queue
import select
import signal
import socket
import stat
import threading
import time
from collections.abc import Callable
from typing import Final, NamedTuple

LINES: Final = 4096  # waiting to be written, at most
BYTES: Final = 4 << 20
# Lines written with one write(2): as many as a pipe takes whole, for several processes write to the same one, pipe(7).
BATCH: Final = select.PIPE_BUF
GRACE_S: Final = 0.2  # for whoever reads slowly to take the last lines, before others are written elsewhere
_PAUSE_S: Final = 0.01  # after a descriptor would have blocked although it said that it is writable
_LOOK_S: Final = 0.1  # while nobody reads: how often it is looked whether lines are to go elsewhere

_Step = Callable[[], object]


def _nothing() -> None:
    """A step without effect."""


class Target(NamedTuple):
    """Where lines go. describe: makes a line of (level, message, fields) as this target has them.

    descriptor: -1 = nowhere, every line is dropped. file: its path, and the descriptor is the writer's to close; empty:
    it is somebody else's, as stderr.
    """

    descriptor: int
    file: str
    describe: Callable[[str, str, dict[str, object]], bytes]


def open_file(file: str) -> int:
    """A descriptor that appends to the file, which is made if need be; OSError.

    Non-blocking, which is for a FIFO: without a reader it cannot be opened, instead of stopping the whole process.
    """
    return os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, 0o666)


class LogWriter:
    """One queue and one thread. dropped: lines that an earlier writer of this process has dropped, and told.

    RuntimeError when the thread cannot be started.
    """

    def __init__(self, target: Target, dropped: int = 0) -> None:
        self._target = target
        self._outlet = _Outlet(target)
        self._queue: queue.SimpleQueue[bytes | _Step | None] = queue.SimpleQueue()
        self.closed = False
        # Each counter is changed on one side only, so that none needs a lock: here by put() ...
        self._put_lines = self._put_bytes = 0
        self._refused = dropped
        self._gap = False  # lines were dropped since the last one that was queued
        self._file = target.file  # where lines go that are put now; the thread may not be so far
        self._moves = 0  # asked for: from one file to another, or to the new one of its name
        self._patience_until_s = 0.0  # so long the reader of the old one is waited for
        # ... and here by the thread.
        self._done_lines = self._done_bytes = 0
        self._failed = self._moved = 0
        self.trouble = ""  # why the last thing that was to be written could not be; "" = it could
        self._told = dropped
        self._torn = False  # the last thing written is not the end of a line
        self._reopening = False
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """Lines lost so far: the queue was full, or they could not be written."""
        return self._refused + self._failed

    def put(self, line: bytes) -> None:
        """Queues a line, with its end. By one caller at a time."""
        lines, size = self._put_lines - self._done_lines, self._put_bytes - self._done_bytes
        if self.closed or lines >= LINES or size + len(line) > BYTES:
            self._refused += 1
            self._gap = True
            return
        if self._gap:
            self._gap = False
            self._queue.put(self._tell_lost)  # here is where lines are missing
        self._put_lines += 1
        self._put_bytes += len(line)
        self._queue.put(line)

    def switch(self, target: Target) -> None:
        """Lines that are put from now on go there; then the old file is closed."""
        moves = bool(target.file or self._file)  # not from stderr to stderr: there is nobody else to read
        self._file = target.file
        if moves:
            self._move(lambda: self._switch(target))
        else:
            self._queue.put(lambda: self._switch(target))

    def reopen(self) -> None:
        """Opens the file by its name again; on failure keeps the old one and says so in it."""
        if self._file and not self._reopening:  # or the one that waits its turn does for both
            self._reopening = True
            self._move(self._reopen)

    def _move(self, step: _Step) -> None:
        self._patience_until_s = time.monotonic() + GRACE_S
        self._moves += 1
        self._queue.put(lambda: self._moving(step))

    def flush(self, timeout_s: float) -> bool:
        """Waits until all that was queued has been dealt with; whether it has."""
        if self.closed:
            return not self._thread.is_alive()
        done = threading.Event()
        self._queue.put(done.set)
        return done.wait(timeout_s)

    def close(self, timeout_s: float) -> bool:
        """Writes what is queued, but gives up after that time; whether all was dealt with. Then put() only counts."""
        if not self.closed:
            self.closed = True
            self._queue.put(None)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    # -- the thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        # Signals are the main thread's: one that comes when its handlers have gone must not end the process here.
        signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
        step = self._next()
        while step is not None:
            if isinstance(step, bytes):
                lines, step = self._gathered(step)
                self._write(lines)
                self._done_bytes += sum(map(len, lines))
                self._done_lines += len(lines)
            else:
                step()
                step = self._next()
        self._tell_lost()
        self._outlet.close()

    def _next(self) -> bytes | _Step | None:
        """What is to be done; when nothing is left to do, tells what was lost and waits."""
        try:
            return self._queue.get_nowait()
        except queue.Empty:
            self._tell_lost()
            return self._queue.get()

    def _gathered(self, first: bytes) -> tuple[list[bytes], bytes | _Step | None]:
        """This line and what fits into one write with it; what comes next."""
        lines, size = [first], len(first)
        while True:
            try:
                step = self._queue.get_nowait()
            except queue.Empty:
                return lines, _nothing
            if not isinstance(step, bytes) or size + len(step) > BATCH:
                return lines, step
            lines.append(step)
            size += len(step)

    def _write(self, lines: list[bytes]) -> bool:
        """Writes all of them, or counts those that are lost; whether none is."""
        data = memoryview(b"\n" * self._torn + b"".join(lines))
        begun = 0
        try:
            while begun < len(data):
                begun += self._write_some(data[begun:])
            self.trouble = ""
        except OSError as error:
            self.trouble = error.strerror or str(error)
        if begun:
            self._torn = data[begun - 1] != ord("\n")
        left = len(data) - begun
        for line in reversed(lines):
            if left <= 0:
                break
            left -= len(line)
            self._failed += 1
        return begun == len(data)

    def _write_some(self, data: memoryview) -> int:
        """Waits until some of it is taken, how much; TimeoutError when lines are to go elsewhere meanwhile."""
        waiting = self._outlet.waiting()
        while True:
            moves = self._moves != self._moved
            left_s = self._patience_until_s - time.monotonic() if moves else _LOOK_S
            if waiting.poll(max(0.0, left_s) * 1000):
                try:
                    return self._outlet.write(data)
                except BlockingIOError:
                    time.sleep(_PAUSE_S)
            if moves and left_s <= 0:
                raise TimeoutError(errno.ETIMEDOUT, "nobody takes the lines")

    def _tell_lost(self) -> None:
        lost = self.dropped - self._told
        if lost > 0:
            failed = self._failed
            if self._write([self._target.describe("warning", "log lines were lost", {"lost": lost})]):
                self._told += lost
            self._failed = failed  # this line is told again

    def _moving(self, step: _Step) -> None:
        self._moved += 1  # first: for what the step itself writes there is time
        step()

    def _switch(self, target: Target) -> None:
        old, self._target = self._target, target
        self._torn, self.trouble = self._torn and target.file == old.file, ""
        self._outlet.close()
        self._outlet = _Outlet(target)

    def _reopen(self) -> None:
        self._reopening = False
        target = self._target
        if not target.file:
            return
        try:
            new = open_file(target.file)
        except OSError as error:
            fields: dict[str, object] = {"file": target.file, "reason": error.strerror}
            self._write([target.describe("error", "cannot reopen the log file", fields)])
            return
        self._torn = self._torn and os.path.sameopenfile(new, target.descriptor)
        # The number stays the same: others know it (faulthandler).
        os.dup2(new, target.descriptor, inheritable=False)
        os.close(new)


class _Outlet:
    """Writes to a target and never waits, although it must not make the descriptor non-blocking for all who share it.

    A pipe or a terminal is opened once more for that. Where that is forbidden, as it may be in a pipe of another user,
    a write waits only when it is of a long line, or another process comes first to the room that there is.
    """

    def __init__(self, target: Target) -> None:
        self._descriptor = target.descriptor
        self._ours = bool(target.file)  # then it does not block
        self._socket: socket.socket | None = None
        try:
            mode = 0 if self._ours else os.fstat(target.descriptor).st_mode
            if stat.S_ISSOCK(mode):
                self._socket = socket.socket(fileno=os.dup(target.descriptor))
            elif stat.S_ISFIFO(mode) or os.isatty(target.descriptor):
                self._descriptor = open_file(f"/proc/self/fd/{target.descriptor}")
                self._ours = True
        except OSError:
            pass  # closed, or without a reader: writing will tell

    def waiting(self) -> select.poll:
        """Tells when something can be written, or never will be; OSError when there is nothing to write to."""
        if self._descriptor < 0:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        waiting = select.poll()
        waiting.register(self._descriptor, select.POLLOUT)
        return waiting

    def write(self, data: memoryview) -> int:
        """How much of it was taken; BlockingIOError: nothing can be at the moment. OSError."""
        if self._socket is not None:
            return self._socket.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        return os.write(self._descriptor, data)

    def close(self) -> None:
        """Closes what is ours to close."""
        if self._socket is not None:
            self._socket.close()
        if self._ours:
            os.close(self._descriptor)
