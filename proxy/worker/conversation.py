"""One worker's life: what the main process says over the channel, done; what happens here, said.

Why: worker.worker knows nothing of processes and messages, and can be driven without either. Called by worker.main.

Invariants: the worker never serves without a main process. An exception while Start is obeyed ends the process, for
there is nothing to go on with; any other is a fault (system.faults) that nobody's connection ends for.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import socket
import sys
from collections.abc import Coroutine
from typing import Any, Final

import uvloop

from proxy.ipc import messages
from proxy.ipc.channel import Channel
from proxy.system import log as logs
from proxy.system.faults import Faults
from proxy.worker.worker import Worker

EXIT_FAILED: Final = 1
STATUS_S: Final = 1.0
_LAST_WORDS_S: Final = 0.5  # what the main process may take to read what was still to be said

log = logs.get("worker")


def converse(sock: socket.socket, number: int) -> int:
    """Works for whoever holds the other end of the socket, a channel; the exit code when that is over."""
    logs.setup("info", "logfmt", worker=number)  # until the settings are here
    logs.log_uncaught()
    try:
        return uvloop.run(Conversation(sock).run())
    except Exception:
        log.exception("worker failed")
        return EXIT_FAILED


class Conversation:
    """See the module."""

    def __init__(self, sock: socket.socket) -> None:
        self._channel = Channel(sock, messages.TO_WORKER, self._heard, self._cut)
        self._faults = Faults()
        self._worker: Worker | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop
        self._end: asyncio.Future[int]

    async def run(self) -> int:
        """Until the end; the exit code."""
        self._loop = asyncio.get_running_loop()
        self._end = self._loop.create_future()
        self._loop.set_exception_handler(self._uncaught)
        sys.unraisablehook = self._unraisable
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

    # -- what the main process says ------------------------------------------------------------------------------

    def _heard(self, message: messages.ToWorker, descriptors: list[int]) -> None:
        if self._end.done():
            for descriptor in descriptors:
                os.close(descriptor)
        elif isinstance(message, messages.Stop):
            self._finish(0)
        elif self._worker is not None:
            self._obey(self._worker, message, descriptors)
        else:
            try:
                self._begin(message, descriptors)
            except Exception:
                log.exception("cannot start")
                self._finish(EXIT_FAILED)

    def _begin(self, start: messages.ToWorker, descriptors: list[int]) -> None:
        if not isinstance(start, messages.Start):
            raise RuntimeError("nothing comes before Start")
        (descriptor,) = descriptors
        memory = mmap.mmap(descriptor, 0)
        os.close(descriptor)
        channel = self._channel
        self._worker = Worker(start, self._loop, channel.send, self._faults, memory, lambda: channel.backlog)
        self._worker.apply_log()
        self._worker.start(start)
        self._channel.send(messages.Started())
        self._timer = self._loop.call_later(STATUS_S, self._tell_status, self._worker)

    def _obey(self, worker: Worker, message: messages.ToWorker, descriptors: list[int]) -> None:
        match message:
            case messages.Take(listener, first_id, clients):
                worker.take(listener, descriptors, first_id, clients)
            case messages.Topology():
                worker.publish(message)
            case messages.Commands():
                worker.use_commands(message)
            case messages.NodeFacts():
                worker.learn(message)
            case messages.Configure(number, settings, keep):
                try:
                    error = worker.apply(settings, keep)
                except Exception as fault:  # it goes on with whatever it was; the main process has to know
                    self._faults("applying new settings", fault)
                    error = repr(fault)
                self._channel.send(messages.Applied(number, error))
            case messages.Ask(number):
                self._channel.send(worker.status.status(number))
            case messages.Others(figures):
                worker.status.others = figures
            case messages.ScriptBody(sha, body):
                worker.scripts.answered(sha, body)
            case messages.ForgetScripts(number, generation):
                worker.scripts.forget(generation)
                self._channel.send(messages.Forgotten(number))
            case messages.ScriptsFlushed(number):
                worker.scripts.flushed(number)
            case messages.Query(number, kind, body):
                worker.inquiries.query(number, kind, body)
            case messages.Found(number, body, last, missing, refused):
                worker.inquiries.found(number, body, last, missing, refused)
            case messages.ShowOthers(wanted):
                worker.monitors.wanted_elsewhere(wanted)
            case messages.Shown():
                worker.monitors.shown(message)
            case messages.Drain(spread_s, timeout_s):
                self._go(self._leave(worker.leaving.drain(spread_s, timeout_s)))
            case messages.Retire():
                self._go(self._leave(worker.leaving.empty()))
            case messages.Reopen():
                logs.reopen()

    async def _leave(self, leaving: Coroutine[Any, Any, None]) -> None:
        await leaving
        if self._worker is not None and not self._end.done():
            self._channel.send(self._worker.status.status(0))  # what the nodes have answered since the last one counts
            self._channel.send(messages.Bye())
            self._finish(0)

    def _go(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._gone)

    def _gone(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._faults("leaving", error)

    def _tell_status(self, worker: Worker) -> None:
        self._timer = self._loop.call_later(STATUS_S, self._tell_status, worker)
        if not self._channel.backlog:  # else the main process is behind, and has older ones to read
            self._channel.send(worker.status.status(0))

    # -- the end -------------------------------------------------------------------------------------------------

    async def _flush(self) -> None:
        """Waits for the main process to take what was said, within reason."""
        deadline_s = self._loop.time() + _LAST_WORDS_S
        while self._channel.backlog and self._loop.time() < deadline_s:
            await asyncio.sleep(0.005)

    def _finish(self, code: int) -> None:
        if not self._end.done():
            self._end.set_result(code)

    def _cut(self, reason: str) -> None:
        """The channel has ended."""
        if not self._end.done():
            log.error("the main process cannot be heard any more, ending", reason=reason)
            self._finish(EXIT_FAILED)

    # -- faults --------------------------------------------------------------------------------------------------

    def _uncaught(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """The loop's exception handler."""
        what = context.get("message", "")
        self._faults(what, context.get("exception") or RuntimeError(what))

    def _unraisable(self, unraisable: Any) -> None:
        """What the data path could not raise, in the log instead of bare on stderr."""
        what = unraisable.err_msg or repr(unraisable.object)
        self._faults(what, unraisable.exc_value or RuntimeError(what))
