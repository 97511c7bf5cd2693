"""The workers: started, watched, replaced, asked, told, ended.

Why: a worker that dies is replaced, and nobody but its own clients notices (DESIGN 2). Called by supervisor and reload;
acceptor hands clients to the workers.

Invariants:
- Wanted and present workers are compared once a second, and at once when one ends: none can be missing for good. After
  a death the next one is started at once, with backoff after several.
- A worker that says nothing for SILENT_S is ended, with its stack in the log, and replaced.
- A worker's counters are read from memory that outlives it, and handed to on_gone when it is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Final

import msgspec

from proxy import __version__
from proxy.forward.counters import COUNTERS_SIZE, Counters
from proxy.ipc import EXIT_VERSION
from proxy.ipc.channel import Channel, encode, pair
from proxy.ipc.messages import (
    FROM_WORKER,
    Applied,
    Ask,
    Bye,
    Configure,
    Drain,
    FromWorker,
    Others,
    Reopen,
    Report,
    Retire,
    Start,
    Started,
    Status,
    Stop,
    Take,
)
from proxy.ipc.settings import WorkerSettings
from proxy.system.log import get, warn_limited

SILENT_S: Final = 10.0  # a worker tells its status every second
ABORT_S: Final = 2.0  # for the stack to be written, and for a process to end after its channel
BACKOFF_MIN_S: Final = 0.1
BACKOFF_MAX_S: Final = 5.0
STEADY_S: Final = 10.0  # a worker that lived so long owes its death to nothing that will recur at once
STILLBORN: Final = 3  # failures in a row before the first start that make the start of the proxy fail
_TICK_S: Final = 1.0
_CHANNEL: Final = 3  # the descriptor of a worker's end
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)

log = get("supervisor.worker_pool")


class PoolError(Exception):
    """No worker can be brought up; the text is a sentence."""


class Worker:
    """One process. `given` counts the clients it was handed."""

    def __init__(self, number: int, pid: int, pidfd: int, counters: Counters) -> None:
        self.number = number
        self.pid = pid
        self.pidfd = pidfd
        self.counters = counters
        self.channel: Channel
        self.status: Status | None = None
        self.given = 0
        self.since_s = self.heard_s = time.monotonic()
        self.started = False
        self.leaving = False  # told to end: its end is no loss
        self.present = True  # its channel has not ended
        self.answers: dict[int, asyncio.Future[Any]] = {}

    @property
    def clients(self) -> int:
        """Connections it has, or is about to have."""
        return max(0, self.given - self.counters.gone)

    @property
    def backlog(self) -> int:
        """Bytes on their way to it that the kernel has not taken."""
        return self.channel.backlog

    def take(self, listener: str, first_id: int, descriptors: list[int]) -> None:
        """Hands clients over, with their descriptors."""
        self.given += len(descriptors)
        self.channel.send(Take(listener, first_id, len(descriptors)), descriptors)

    def silent_s(self) -> float:
        """Seconds since it was heard of."""
        return time.monotonic() - self.heard_s

    def kill(self, number: signal.Signals) -> None:
        """Sends a signal; by its pidfd, so never to another process that has got its number."""
        with contextlib.suppress(OSError):
            signal.pidfd_send_signal(self.pidfd, number)


class WorkerPool:
    """See the module.

    start: makes the first message of worker n. own_figures: what the main process itself counts, under INFO's names.
    metrics: which command has which index in the counters; may grow.
    on_change(): workers came or went. on_report(report): one has seen something. on_status(old, new): it tells a new
    status. on_gone(worker): it is gone, `counters` and `status` are its last. on_ended(pid, cpu_s): so is its process.
    on_other_version(): the program on disk is not the one that runs, so no worker can be started.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        start: Callable[[int], Start],
        *,
        own_figures: Callable[[], Mapping[str, int]],
        metrics: dict[str, int],
        on_change: Callable[[], None],
        on_report: Callable[[Report], None],
        on_status: Callable[[Status, Status], None],
        on_gone: Callable[[Worker], None],
        on_ended: Callable[[int, float], None],
        on_other_version: Callable[[], None],
    ) -> None:
        self.loop = loop
        self.wanted = 0
        self.workers: dict[int, Worker] = {}  # by number: those that serve or will
        self.processes: dict[int, Worker] = {}  # by pid: all that have not ended
        self.restarts = 0
        self._start = start
        self._own_figures = own_figures
        self._metrics = metrics
        self._on_change = on_change
        self._on_report = on_report
        self._on_status = on_status
        self._on_gone = on_gone
        self._on_ended = on_ended
        self._on_other_version = on_other_version
        self._failures: dict[int, int] = {}
        self._due_s: dict[int, float] = {}  # by number, when the next attempt may be made
        self._heard_s: dict[int, float] = {}  # by number, whichever worker has it
        self._first: asyncio.Future[None] = loop.create_future()
        self._first.add_done_callback(lambda first: first.exception())  # nobody may be waiting any more
        self._nobody = asyncio.Event()
        self._asked = 0
        self._ticked_s = 0.0
        self._ending = False
        self._timer: asyncio.TimerHandle | None = None

    # -- life --------------------------------------------------------------------------------------------------------

    def begin(self, wanted: int) -> None:
        """Starts so many workers; see first()."""
        self.resize(wanted)
        self._tick()

    async def first(self) -> None:
        """Until every worker has started, or PoolError when one of them cannot."""
        await asyncio.shield(self._first)

    def resize(self, wanted: int) -> None:
        """More workers at once; of fewer, the last take no more clients and end when theirs have left."""
        self.wanted = wanted
        for number in [number for number in self.workers if number >= wanted]:
            worker = self.workers.pop(number)
            worker.leaving = True
            worker.channel.send(Retire())
            log.info("worker retires", worker=number, pid=worker.pid, clients=worker.clients)
        for numbers in (self._failures, self._due_s, self._heard_s):
            for number in [number for number in numbers if number >= wanted]:
                del numbers[number]
        self._compare()

    async def configure(self, settings: WorkerSettings) -> list[str]:
        """New settings for every worker; the errors of those that could not take them."""
        asked = {
            worker: self._ask(worker, number := self._number(), Configure(number, settings)) for worker in self.present
        }
        errors = []
        for worker, answer in asked.items():
            try:
                async with asyncio.timeout(SILENT_S):
                    error = await answer
            except TimeoutError:
                error = "does not answer"
            except PoolError:
                continue  # gone; the next one is started with the new settings
            if error:
                errors.append(f"worker {worker.number}: {error}")
        return errors

    def tell(self, message: msgspec.Struct, workers: Iterable[Worker] | None = None) -> None:
        """Sends a message to these workers, or to all."""
        body = encode(message)
        for worker in self.present if workers is None else workers:
            worker.channel.send_encoded(body)

    async def drain(self, spread_s: float, timeout_s: float) -> None:
        """Has every worker part with its clients and end."""
        await self._end(Drain(spread_s, timeout_s), timeout_s + ABORT_S)

    async def stop(self) -> None:
        """Ends all workers at once."""
        await self._end(Stop(), ABORT_S)

    def reopen(self) -> None:
        """Has every worker open its log file anew."""
        self.tell(Reopen())

    # -- what is known of them ---------------------------------------------------------------------------------------

    @property
    def present(self) -> list[Worker]:
        """All that can be talked to, those that are about to leave included."""
        return [worker for worker in self.processes.values() if worker.present]

    def candidates(self) -> list[Worker]:
        """Those that take clients."""
        return [worker for worker in self.workers.values() if worker.started]

    @property
    def clients(self) -> int:
        """Clients of all workers."""
        return sum(worker.clients for worker in self.present)

    def silences(self) -> dict[int, float]:
        """Number of each worker there should be -> seconds since it, or the last of its number, was heard of."""
        now_s = time.monotonic()
        return {number: now_s - self._heard_s.get(number, now_s) for number in range(self.wanted)}

    async def ask(self, timeout_s: float) -> None:
        """Has the workers renew their `status`; those that do not answer in time keep their last one."""
        asked = [
            self._ask(worker, number := self._number(), Ask(number))
            for worker in self.present
            if worker.started and not worker.backlog
        ]
        if asked:
            await asyncio.wait(asked, timeout=timeout_s)

    # -- starting ----------------------------------------------------------------------------------------------------

    def _compare(self) -> None:
        """Starts what is wanted, not present, and due."""
        if self._ending:
            return
        now_s = time.monotonic()
        for number in range(self.wanted):
            if number not in self.workers and self._due_s.get(number, 0.0) <= now_s:
                self._heard_s.setdefault(number, now_s)
                try:
                    self._spawn(number)
                except OSError as error:
                    reason = error.strerror or str(error)
                    warn_limited(log, "spawn", "cannot start a worker", worker=number, reason=reason)
                    self._failed(number)
        self._on_change()

    def _spawn(self, number: int) -> None:
        """Starts a process; OSError, and nothing left behind, when it cannot be."""
        with contextlib.ExitStack() as undo:
            ours, theirs = pair()
            undo.callback(ours.close)
            with theirs:
                memory = os.memfd_create(f"redis-proxy-{number}", os.MFD_CLOEXEC)
                undo.callback(os.close, memory)
                os.ftruncate(memory, COUNTERS_SIZE)
                counters = Counters(mmap.mmap(memory, COUNTERS_SIZE))
                counters.metrics = self._metrics
                pid = _exec(number, theirs)
            try:
                pidfd = os.pidfd_open(pid)
            except OSError:
                os.kill(pid, signal.SIGKILL)  # ours, and not waited for yet: the number cannot be anybody else's
                os.waitpid(pid, 0)
                raise
            undo.pop_all()
        worker = Worker(number, pid, pidfd, counters)
        worker.channel = Channel(ours, FROM_WORKER, partial(self._heard, worker), partial(self._lost, worker))
        self.workers[number] = self.processes[pid] = worker
        self.loop.add_reader(pidfd, self._ended, worker)
        worker.channel.start(self.loop)
        worker.channel.send(self._start(number), [memory])
        log.debug("worker begun", worker=number, pid=pid)

    def _failed(self, number: int) -> float:
        """Counts a failure; seconds to wait before the next attempt."""
        failures = self._failures[number] = self._failures.get(number, 0) + 1
        if failures >= STILLBORN and not self._first.done():
            self._first.set_exception(PoolError(f"worker {number} does not start, see the log"))
        delay_s = min(BACKOFF_MIN_S * 2.0 ** (failures - 2), BACKOFF_MAX_S) if failures > 1 else 0.0
        self._due_s[number] = time.monotonic() + delay_s
        self.loop.call_later(delay_s, self._compare)
        return delay_s

    # -- hearing -----------------------------------------------------------------------------------------------------

    def _heard(self, worker: Worker, message: FromWorker, descriptors: list[int]) -> None:
        worker.heard_s = time.monotonic()
        if self.workers.get(worker.number) is worker:
            self._heard_s[worker.number] = worker.heard_s
        match message:
            case Status():
                if worker.status is not None:
                    self._on_status(worker.status, message)
                worker.status = message
                self._answer(worker, message.number, message)
            case Report():
                self._on_report(message)
            case Applied(number, error):
                self._answer(worker, number, error)
            case Started():
                worker.started = True
                worker.since_s = time.monotonic()
                log.info("worker started", worker=worker.number, pid=worker.pid)
                if not self._first.done() and len(self.candidates()) == self.wanted:
                    self._first.set_result(None)
                self._on_change()
            case Bye():
                worker.leaving = True

    def _lost(self, worker: Worker, reason: str) -> None:
        """Its channel has ended, and so has the process, or it will in a moment."""
        worker.present = False
        for answer in worker.answers.values():
            if not answer.done():
                answer.set_exception(PoolError("the worker is gone"))
        self.loop.call_later(ABORT_S, worker.kill, signal.SIGKILL)
        self._on_gone(worker)
        if self.workers.get(worker.number) is worker:
            del self.workers[worker.number]
            if not (worker.leaving or self._ending):
                self._replace(worker, reason)
        self._forget(worker)
        self._on_change()

    def _replace(self, worker: Worker, reason: str) -> None:
        self.restarts += 1
        if worker.started and time.monotonic() - worker.since_s >= STEADY_S:
            self._failures[worker.number] = 0
        delay_s = self._failed(worker.number)
        log.error(
            "worker lost, another is started",
            worker=worker.number,
            pid=worker.pid,
            clients=worker.clients,
            reason=reason,
            after_s=round(delay_s, 2),
        )

    def _ended(self, worker: Worker) -> None:
        """Its process has ended."""
        _, status, usage = os.wait4(worker.pid, 0)
        self.loop.remove_reader(worker.pidfd)
        os.close(worker.pidfd)
        worker.pidfd = -1
        self._on_ended(worker.pid, usage.ru_utime + usage.ru_stime)
        code = os.waitstatus_to_exitcode(status)
        if code < 0:
            log.error("worker was ended by a signal", pid=worker.pid, signal=signal.Signals(-code).name)
        elif code == EXIT_VERSION:
            log.error("the program on disk is of another version, no worker can be started", running=__version__)
            self._on_other_version()
        elif code > 0:
            log.error("worker failed", pid=worker.pid, code=code)
        self._forget(worker)

    def _forget(self, worker: Worker) -> None:
        """Once both its channel and its process have ended."""
        if not worker.present and worker.pidfd < 0:
            del self.processes[worker.pid]
            if not self.processes:
                self._nobody.set()

    # -- inside ------------------------------------------------------------------------------------------------------

    def _number(self) -> int:
        self._asked += 1
        return self._asked

    def _ask(self, worker: Worker, number: int, message: msgspec.Struct) -> asyncio.Future[Any]:
        answer: asyncio.Future[Any] = self.loop.create_future()
        worker.answers[number] = answer
        answer.add_done_callback(lambda done: (worker.answers.pop(number, None), done.cancelled() or done.exception()))
        worker.channel.send(message)
        return answer

    def _answer(self, worker: Worker, number: int, value: object) -> None:
        answer = worker.answers.get(number)
        if answer is not None and not answer.done():
            answer.set_result(value)

    async def _end(self, message: Drain | Stop, timeout_s: float) -> None:
        """From now on nobody is replaced. Until all have ended; those that have not in time are killed."""
        self._ending = True
        if self._timer is not None:
            self._timer.cancel()
        for worker in self.present:
            worker.leaving = True
        self.tell(message)
        self._nobody.clear()
        if not self.processes:
            return
        try:
            async with asyncio.timeout(timeout_s):
                await self._nobody.wait()
        except TimeoutError:
            for worker in self.processes.values():
                log.error("worker does not end and is killed", worker=worker.number, pid=worker.pid)
                worker.kill(signal.SIGKILL)
            await self._nobody.wait()

    def _tick(self) -> None:
        """Once a second: who has fallen silent, who is missing, and what the others count, for INFO."""
        now_s = time.monotonic()
        if self._ticked_s and now_s - self._ticked_s > 2 * _TICK_S:
            # It was this process that did not run (stopped, or its machine was): what they said is still to be read.
            for worker in self.present:
                worker.heard_s = now_s
            self._heard_s = dict.fromkeys(self._heard_s, now_s)
        self._ticked_s = now_s
        self._timer = self.loop.call_later(_TICK_S, self._tick)
        for worker in self.present:
            if worker.silent_s() >= SILENT_S + ABORT_S:
                worker.kill(signal.SIGKILL)
            elif worker.silent_s() >= SILENT_S:
                log.error("worker is silent and is ended", worker=worker.number, pid=worker.pid)
                worker.kill(signal.SIGABRT)
        self._compare()
        figures = {worker: figures_of(worker) for worker in self.present if worker.started}
        for worker in figures:
            others = [self._own_figures(), *(values for other, values in figures.items() if other is not worker)]
            if not worker.backlog:
                names = {name for one in others for name in one}
                worker.channel.send(Others({name: sum(one.get(name, 0) for one in others) for name in names}))


def _exec(number: int, channel: socket.socket) -> int:
    """Starts a worker's process with its end of the channel; its process id. OSError."""
    # It finds modules where this process has found them, and no signal ends it before it ignores those of the group.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    return os.posix_spawn(
        sys.executable,
        [sys.executable, "-P", "-m", "proxy.worker.main", str(_CHANNEL), str(number), __version__],
        environment,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, channel.fileno(), _CHANNEL),
        ],
        setsigmask=_SIGNALS,
    )


def figures_of(worker: Worker) -> Mapping[str, int]:
    """What one worker has counted, under INFO's names."""
    totals = worker.counters.snapshot()
    status = worker.status
    return {
        "connected_clients": worker.clients,
        "total_connections_received": totals["accepted"],
        "total_commands_processed": sum(command["calls"] for command in totals["commands"].values()),
        "total_net_input_bytes": totals["client_in"],
        "total_net_output_bytes": totals["client_out"],
        "rejected_connections": totals["rejected"],
        "proxy_commands_in_flight": totals["inflight"],
        "proxy_requests_waiting": status.waiting if status is not None else 0,
        "proxy_client_memory": status.client_memory if status is not None else 0,
    }
