"""Writes the lines of the log in a thread of its own, so that whoever logs never waits for whoever reads.

Why: the reader of stderr may stall (a container's log driver, `| less`) and a disk may hang; a write on an event loop
would then stall every client. Called by system.log only.

Invariants:
- put() returns at once: it queues the line, or drops and counts it when LINES or BYTES of them wait already.
- Lines, reopening and a change of the file happen in the order they were asked for.
- Nothing raises in the thread and nothing makes it spin: a line that cannot be written is dropped and counted, and when
  writing works again one line says how many were lost.
- A line is never torn: what follows a line that was cut off, as by a full disk, begins on a new line.
"""

from __future__ import annotations

import os
import queue
import select
import signal
import threading
import time
from collections.abc import Callable
from typing import Final, NamedTuple

LINES: Final = 4096  # waiting to be written, at most
BYTES: Final = 4 << 20
# Lines written with one write(2): as many as a pipe takes whole, for several processes write to the same one, pipe(7).
BATCH: Final = select.PIPE_BUF
_PAUSE_S: Final = 0.01  # after a descriptor would have blocked although it said that it is writable

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
        self._queue: queue.SimpleQueue[bytes | _Step | None] = queue.SimpleQueue()
        self.closed = False
        # Each counter is changed on one side only, so that none needs a lock: here by put() ...
        self._put_lines = self._put_bytes = 0
        self._refused = dropped
        self._gap = False  # lines were dropped since the last one that was queued
        # ... and here by the thread.
        self._done_lines = self._done_bytes = 0
        self._failed = 0
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
        self._queue.put(lambda: self._switch(target))

    def reopen(self) -> None:
        """Opens the file by its name again; on failure keeps the old one and says so in it."""
        if not self._reopening:  # or the one that waits its turn does for both
            self._reopening = True
            self._queue.put(self._reopen)

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
        if self._target.file:
            os.close(self._target.descriptor)

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
        while True:
            try:
                return os.write(self._target.descriptor, data)
            except BlockingIOError:
                # stderr may be non-blocking because whoever shares it has made it so.
                waiting = select.poll()
                waiting.register(self._target.descriptor, select.POLLOUT)
                waiting.poll()
                time.sleep(_PAUSE_S)

    def _tell_lost(self) -> None:
        lost = self.dropped - self._told
        if lost > 0:
            failed = self._failed
            if self._write([self._target.describe("warning", "log lines were lost", {"lost": lost})]):
                self._told += lost
            self._failed = failed  # this line is told again

    def _switch(self, target: Target) -> None:
        old, self._target = self._target, target
        self._torn, self.trouble = False, ""
        if old.file:
            os.close(old.descriptor)

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
        # The number stays the same: others know it (faulthandler).
        os.dup2(new, target.descriptor, inheritable=False)
        os.close(new)
        self._torn = False
