"""A worker as a process: what the supervisor says over the channel, done; what happens here, said.

Why: proxy.worker.worker knows nothing of processes and messages, and can be driven without either. main() is called by
proxy.worker.forkserver in a process that was forked for it.

Invariants:
- Signals that are meant for the supervisor do nothing here.
- The end of the channel is the end of the worker: it never serves without a supervisor.
- A fault of ours that nobody caught is in the log with its trace and ends the process with code 1: another worker is
  there in some 50 ms, while one that is half dead would be there until somebody noticed.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import mmap
import os
import pickle
import resource
import signal
import socket
import struct
import sys
from collections.abc import Coroutine
from typing import Any, Final

import uvloop

from proxy.config.models import Settings
from proxy.control.tasks import background
from proxy.ipc.channel import Channel
from proxy.ipc.messages import (
    TO_WORKER,
    Applied,
    Apply,
    Ask,
    Bye,
    Drain,
    Left,
    Names,
    Others,
    Reopen,
    Retire,
    Start,
    Started,
    State,
    Stop,
    Take,
    ToWorker,
)
from proxy.system import log as logs
from proxy.worker.worker import Worker

STATE_S: Final = 1.0
EXIT_FAILED: Final = 1
_IGNORED: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_LAST_WORDS_S: Final = 0.5  # what the supervisor may take to read what was still to be said

log = logs.get("worker")


def main(sock: socket.socket) -> int:
    """Works for whoever holds the other end of the socket, a channel; the exit code when that is over.

    0: it was told to end, and did. 1: the channel ended, or a fault of ours. Takes possession of the whole process.
    """
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    # The supervisor ends a worker that hangs with SIGABRT: then the stack says where. Not without a stderr.
    with contextlib.suppress(OSError, RuntimeError, ValueError):
        faulthandler.enable()
    logs.setup("info", "logfmt")  # until the settings are here
    sys.unraisablehook = _unraisable
    try:
        return uvloop.run(Conversation(sock).run())
    except Exception:
        log.exception("worker failed")
        return EXIT_FAILED


class Conversation:
    """One worker's life as its supervisor has it. Also the WorkerPort of its worker."""

    def __init__(self, sock: socket.socket) -> None:
        self._process_id = _creator(sock)
        self._channel = Channel(sock, TO_WORKER, self._heard, self._cut)
        self._worker: Worker | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop
        self._end: asyncio.Future[int]

    async def run(self) -> int:
        """Until the end; the exit code."""
        self._loop = asyncio.get_running_loop()
        self._end = self._loop.create_future()
        self._loop.set_exception_handler(self._fault)
        self._channel.start(self._loop)
        try:
            return await self._end
        finally:
            if self._timer is not None:
                self._timer.cancel()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            if self._worker is not None:
                await self._worker.stop()
            await self._flush()
            self._channel.close()

    # -- what the supervisor says --------------------------------------------------------------------------------

    def _heard(self, message: ToWorker, descriptors: list[int]) -> None:
        if self._end.done():
            for descriptor in descriptors:
                os.close(descriptor)
            return
        try:
            if isinstance(message, Stop):
                self._finish(0)
            elif isinstance(message, Start):
                self._begin(message, *descriptors)
            else:
                self._obey(self._present(), message, descriptors)
        except Exception:
            log.exception("a message could not be obeyed", message=type(message).__name__)
            self._finish(EXIT_FAILED)

    def _present(self) -> Worker:
        if self._worker is None:
            raise RuntimeError("nothing comes before Start")
        return self._worker

    def _begin(self, start: Start, descriptor: int) -> None:
        memory = mmap.mmap(descriptor, 0)
        os.close(descriptor)
        with contextlib.suppress(OSError), open("/proc/self/comm", "w", encoding="ascii") as comm:
            comm.write(f"redis-proxy:{start.worker}")  # how top and ps show it, 15 characters of it
        settings: Settings = pickle.loads(start.settings)
        try:
            logs.setup(settings.log.level, settings.log.format, settings.log.file, worker=start.worker)
        except OSError as error:
            logs.setup(settings.log.level, settings.log.format, worker=start.worker)
            log.error("cannot write the log, it goes to stderr", file=settings.log.file, error=error.strerror)
        self._worker = Worker(
            settings,
            self._loop,
            self,
            number=start.worker,
            run_id=start.run_id,
            started_s=start.started_s,
            process_id=self._process_id,
            memory=memory,
        )
        self._timer = self._loop.call_later(STATE_S, self._tell_state)
        self._go(self._start(self._worker))

    def _obey(self, worker: Worker, message: ToWorker, descriptors: list[int]) -> None:
        match message:
            case Take(listener, first_id):
                worker.take(listener, descriptors, first_id)
            case Apply(number, settings):
                self._apply(worker, number, settings)
            case Ask(number):
                self._channel.send(State(number, worker.figures.state()))
            case Others(figures, max_clients):
                worker.figures.others = figures
                worker.figures.max_clients = max_clients
            case Drain(spread_s, timeout_s):
                self._go(self._leave(worker.drain(spread_s, timeout_s)))
            case Retire():
                self._go(self._leave(worker.retire()))
            case Reopen():
                logs.reopen()

    async def _start(self, worker: Worker) -> None:
        await worker.start()
        self.ready_changed()
        self._channel.send(Started())

    def _apply(self, worker: Worker, number: int, settings: bytes) -> None:
        """A fault here leaves the worker as it is, serving: the supervisor hears of it."""
        try:
            error = worker.apply(pickle.loads(settings))
        except Exception as fault:
            log.exception("the new settings could not be applied")
            error = repr(fault)
        self._channel.send(Applied(number, error))

    async def _leave(self, leaving: Coroutine[Any, Any, None]) -> None:
        await leaving
        if not self._end.done():
            self._channel.send(Bye())
            self._finish(0)

    # -- what is said to it --------------------------------------------------------------------------------------

    def names(self, metrics: dict[str, int]) -> None:
        """See WorkerPort."""
        self._channel.send(Names(metrics))

    def left(self, clients: int) -> None:
        """See WorkerPort."""
        self._channel.send(Left(clients))

    def ready_changed(self) -> None:
        """See WorkerPort."""
        self._channel.send(State(0, self._present().figures.state()))

    def _tell_state(self) -> None:
        self._timer = self._loop.call_later(STATE_S, self._tell_state)
        if not self._channel.backlog:  # else the supervisor is behind, and has older ones to read
            self.ready_changed()

    async def _flush(self) -> None:
        """Waits for the supervisor to take what was said, within reason."""
        deadline_s = self._loop.time() + _LAST_WORDS_S
        while self._channel.backlog and self._loop.time() < deadline_s:
            await asyncio.sleep(0.005)

    # -- the end -------------------------------------------------------------------------------------------------

    def _go(self, work: Coroutine[Any, Any, None]) -> None:
        task = background(work, name="worker-life")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _finish(self, code: int) -> None:
        if not self._end.done():
            self._end.set_result(code)

    def _cut(self, reason: str) -> None:
        """The channel has ended."""
        if self._end.done():
            return
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        used = len(os.listdir("/proc/self/fd"))
        log.error("the supervisor cannot be heard any more, ending", reason=reason, descriptors=used, limit=limit)
        self._finish(EXIT_FAILED)

    def _fault(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """The loop's exception handler. Callbacks are ours, so what they raise is; transports' errors are the net's."""
        error = context.get("exception")
        log.error("uncaught exception", where=context.get("message", ""), exc_info=error)
        if error is not None and "handle" in context:
            self._finish(EXIT_FAILED)


def _creator(sock: socket.socket) -> int:
    """Process id of whoever made the socketpair: the supervisor (SO_PEERCRED, unix(7))."""
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", credentials)[0])


def _unraisable(unraisable: Any) -> None:
    """What the data path could not raise, in the log instead of bare on stderr."""
    error = unraisable.exc_value
    log.error("uncaught exception", where=unraisable.err_msg or repr(unraisable.object), exc_info=error)


__all__ = ["EXIT_FAILED", "STATE_S", "Conversation", "main"]
