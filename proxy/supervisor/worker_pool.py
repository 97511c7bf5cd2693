"""The workers: started, watched, replaced, asked, told, ended.

Why: a worker that dies is replaced, and nobody but its own clients notices (DESIGN 2). Called by supervisor and reload;
acceptor hands clients to the workers.

Invariants:
- Wanted and present workers are compared once a second, and at once when one ends: none can be missing for good. After
  a death the next one is started at once, with backoff after several.
- A worker that says nothing for SILENT_S is ended, with its stack in the log, and replaced.
- A worker's counters are read from memory that outlives it, and handed to on_gone when it is gone.
- After drain() or stop() no process, descriptor or timer is left.
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
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

import msgspec

from proxy import __version__
from proxy.admin.merge import missed_primaries, reaches_none
from proxy.forward.counters import COUNTERS_SIZE, Counters
from proxy.ipc import EXIT_VERSION, messages
from proxy.ipc.channel import Channel, encode, pair
from proxy.ipc.settings import WorkerSettings
from proxy.supervisor.figures import Figures
from proxy.supervisor.monitors import MonitorRelay
from proxy.supervisor.relay import Relay
from proxy.system.log import get, warn_limited

SILENT_S: Final = 10.0  # a worker tells its status every second
ABORT_S: Final = 2.0  # for the stack to be written, and for a process to end after its channel
PARTING_S: Final = 5.0  # after a drain's time, for thousands of blocked clients to be unblocked (worker.drain)
FORGET_S: Final = 1.0  # for all workers to forget scripts
BACKOFF_MIN_S: Final = 0.1
BACKOFF_MAX_S: Final = 5.0
STEADY_S: Final = 10.0  # a worker that lived so long owes its death to nothing that will recur at once
STILLBORN: Final = 3  # failures in a row before the first start that make the start of the proxy fail
_TICK_S: Final = 1.0
_CHANNEL: Final = 3  # the descriptor of a worker's end
_SECRETS: Final = ("REDIS_PROXY_PASSWORD", "REDIS_PROXY_CLIENT_PASSWORD")  # a worker is told what it needs
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)

log = get("supervisor.worker_pool")


class PoolError(Exception):
    """No worker can be brought up; the text is a sentence."""


class Place:
    """A worker that is wanted, by its number, whichever process it is at present."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.worker: Worker | None = None
        self.failures = 0  # in a row
        self.due_s = self.heard_s = time.monotonic()  # due: when it may be started


class Worker:
    """One process. `given` counts the clients it was handed."""

    def __init__(self, place: Place, pid: int, pidfd: int, counters: Counters) -> None:
        self.place = place
        self.number = place.number
        self.pid = pid
        self.pidfd = pidfd
        self.counters = counters
        self.channel: Channel
        self.status: messages.Status | None = None
        self.told_s = 0.0  # when it told its status
        self.reaches = True  # any primary, as far as it has told
        self.lacks = False  # any primary
        self.missed: list[str] = []  # primaries that it does not reach although another worker does
        self.given = 0
        self.since_s = self.heard_s = time.monotonic()
        self.started = False
        self.leaving = False  # told to end: its end is no loss
        self.present = True  # its channel has not ended
        self.aborted = False
        self.cut = ""  # why its channel has ended
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
        self.channel.send(messages.Take(listener, first_id, len(descriptors)), descriptors)

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
    on_change(): workers came or went. on_report(report): one has seen something. on_script(message, say): it
    says something about scripts, and say() answers. on_status(old, new): it tells a new
    status. on_gone(worker): `counters` and `status` are its last. on_ended(pid, cpu_s): its process has ended.
    on_other_version(): the program on disk is not the one that runs, so no worker can be started. passing: see Relay.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        start: Callable[[int], messages.Start],
        *,
        own_figures: Callable[[], Mapping[str, int]],
        on_change: Callable[[], None],
        on_report: Callable[[messages.Report | messages.KeyspaceEvents], None],
        on_script: Callable[[messages.ScriptNews, Callable[[msgspec.Struct], None]], None],
        on_status: Callable[[messages.Status, messages.Status], None],
        on_gone: Callable[[Worker], None],
        on_ended: Callable[[int, float], None],
        on_other_version: Callable[[], None],
        passing: Callable[[], str] = lambda: "",
    ) -> None:
        self.loop = loop
        self.processes: dict[int, Worker] = {}  # by pid: all that have not ended
        self.restarts = 0
        self.relay = Relay(loop, lambda: self.present, passing)
        self.monitors = MonitorRelay(lambda: self.present)
        self._figures = Figures()
        self._start = start
        self._own_figures = own_figures
        self._on_change = on_change
        self._on_report = on_report
        self._on_script = on_script
        self._on_status = on_status
        self._on_gone = on_gone
        self._on_ended = on_ended
        self._on_other_version = on_other_version
        self._places: list[Place] = []
        self._first: asyncio.Future[None] = loop.create_future()
        self._first.add_done_callback(lambda first: first.exception())  # nobody may be waiting any more
        self._nobody = asyncio.Event()
        self._nobody.set()
        self._asked = 0
        self._ticked_s = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._ending = False

    # -- life --------------------------------------------------------------------------------------------------------

    def begin(self, wanted: int) -> None:
        """Starts so many workers; see first()."""
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, as some launchers leave it, exit codes would be lost
        self.resize(wanted)

    async def first(self) -> None:
        """Until every worker has started, or PoolError when one of them cannot."""
        await asyncio.shield(self._first)

    def resize(self, wanted: int) -> None:
        """More workers at once; of fewer, the last take no more clients and end when theirs have left."""
        for place in self._places[wanted:]:
            if worker := place.worker:
                worker.leaving = True
                worker.channel.send(messages.Retire())
                log.info("worker retires", worker=worker.number, pid=worker.pid, clients=worker.clients)
        self._places = self._places[:wanted] + [Place(number) for number in range(len(self._places), wanted)]
        self._tick()

    async def configure(self, settings: WorkerSettings, keep: Sequence[str] = ()) -> list[str]:
        """New settings for every worker; the errors of those that could not take them. keep: see messages.Configure."""
        asked = [
            (worker, self._ask(worker, lambda number: messages.Configure(number, settings, list(keep))))
            for worker in self.present
        ]
        if asked:
            await asyncio.wait([answer for _, answer in asked], timeout=SILENT_S)
        told = [(worker, answer.result() if answer.done() else "does not answer") for worker, answer in asked]
        return [f"worker {worker.number}: {error}" for worker, error in told if error]

    async def forget_scripts(self, generation: int) -> None:
        """Until every worker has forgotten its scripts (see messages.ForgetScripts), for a while at most."""
        asked = [
            self._ask(worker, lambda number: messages.ForgetScripts(number, generation)) for worker in self.present
        ]
        if asked:
            await asyncio.wait(asked, timeout=FORGET_S)

    def tell(self, message: msgspec.Struct) -> None:
        """Sends a message to all."""
        body = encode(message)
        for worker in self.present:
            worker.channel.send_encoded(body)

    def reopen(self) -> None:
        """Has every worker open its log file anew."""
        self.tell(messages.Reopen())

    async def drain(self, spread_s: float, timeout_s: float) -> None:
        """Has every worker part with its clients and end."""
        await self._end(messages.Drain(spread_s, timeout_s), timeout_s + PARTING_S)

    async def stop(self) -> None:
        """Ends all workers at once."""
        await self._end(messages.Stop(), ABORT_S)

    async def _end(self, message: messages.Drain | messages.Stop, timeout_s: float) -> None:
        """From now on nobody is replaced. Until all have ended; those that have not in time are killed."""
        self._ending = True
        for worker in self.processes.values():
            worker.leaving = True
        self.tell(message)
        try:
            async with asyncio.timeout(timeout_s):
                await self._nobody.wait()
        except TimeoutError:
            for worker in self.processes.values():
                log.error("worker does not end and is killed", worker=worker.number, pid=worker.pid)
                worker.kill(signal.SIGKILL)
            await self._nobody.wait()
        finally:
            if self._timer is not None:
                self._timer.cancel()

    # -- what is known of them ---------------------------------------------------------------------------------------

    @property
    def wanted(self) -> int:
        """How many workers there should be."""
        return len(self._places)

    @property
    def present(self) -> list[Worker]:
        """All that can be talked to, those that are about to leave included."""
        return [worker for worker in self.processes.values() if worker.present]

    def candidates(self) -> list[Worker]:
        """Those that take clients."""
        return [place.worker for place in self._places if place.worker is not None and place.worker.started]

    @property
    def clients(self) -> int:
        """Clients of all workers."""
        return sum(worker.clients for worker in self.processes.values())

    def silences(self) -> dict[int, float]:
        """Number of each worker there should be -> seconds since it, or the last of its number, was heard of."""
        now_s = time.monotonic()
        return {place.number: now_s - place.heard_s for place in self._places}

    async def ask(self, timeout_s: float) -> None:
        """Has the workers renew their `status`; those that do not answer in time keep their last one."""
        able = [worker for worker in self.present if worker.started and not worker.backlog]
        if able:
            await asyncio.wait([self._ask(worker, messages.Ask) for worker in able], timeout=timeout_s)

    def _ask(self, worker: Worker, question: Callable[[int], msgspec.Struct]) -> asyncio.Future[Any]:
        """Its answer, None when it goes without one."""
        self._asked += 1
        number = self._asked
        answer = worker.answers[number] = self.loop.create_future()
        answer.add_done_callback(lambda _: worker.answers.pop(number, None))
        worker.channel.send(question(number))
        return answer

    # -- once a second, and when a worker has ended or is due --------------------------------------------------------

    def _tick(self) -> None:
        now_s = time.monotonic()
        if self._ticked_s and now_s - self._ticked_s > 2 * _TICK_S:
            # It was this process that did not run (stopped, or its machine was): what they said is still to be read.
            for worker in self.processes.values():
                worker.heard_s = now_s
            for place in self._places:
                place.heard_s = now_s
        self._ticked_s = now_s
        for worker in self.processes.values():
            self._watch(worker)
        for place in self._places:
            if place.worker is None and place.due_s <= now_s and not self._ending:
                try:
                    self._spawn(place)
                except Exception as error:  # a fault of ours must not keep the other workers from being started
                    reason = getattr(error, "strerror", None) or repr(error)
                    warn_limited(log, "spawn", "cannot start a worker", worker=place.number, reason=reason)
                    self._failed(place)
        self._tell_others()
        self._tick_again()
        self._on_change()

    def _tick_again(self) -> None:
        """Sets the timer."""
        if self._timer is not None:
            self._timer.cancel()
        due_s = min((place.due_s for place in self._places if place.worker is None), default=float("inf"))
        pause_s = min(_TICK_S, max(0.0, due_s - time.monotonic()))
        self._timer = self.loop.call_later(_TICK_S if self._ending else pause_s, self._tick)

    def _watch(self, worker: Worker) -> None:
        """Ends one that is silent, or does not end although its channel has."""
        silent_s = worker.silent_s()
        if silent_s >= (SILENT_S + ABORT_S if worker.present else ABORT_S):
            worker.kill(signal.SIGKILL)
        elif silent_s >= SILENT_S and not worker.aborted:
            log.error("worker is silent and is ended", worker=worker.number, pid=worker.pid)
            worker.aborted = True
            worker.kill(signal.SIGABRT)

    def _tell_others(self) -> None:
        """Tells each worker what the others count, for INFO."""
        for worker, others in self._figures.others(self._own_figures(), self.processes.values()).items():
            if worker.started and not worker.backlog:
                worker.channel.send(messages.Others(others))

    def _spawn(self, place: Place) -> None:
        """Starts a process; when it cannot be (OSError), nothing is left behind."""
        start = self._start(place.number)
        first_message = encode(start)
        with contextlib.ExitStack() as undo:
            ours, theirs = pair()
            undo.callback(ours.close)
            with theirs:
                memory = os.memfd_create(f"redis-proxy-{place.number}", os.MFD_CLOEXEC)
                undo.callback(os.close, memory)
                os.ftruncate(memory, COUNTERS_SIZE)
                counters = Counters(mmap.mmap(memory, COUNTERS_SIZE))
                counters.metrics = start.commands.metrics  # grows as commands become known
                pid = _exec(place.number, theirs)
                undo.callback(os.waitpid, pid, 0)
                undo.callback(os.kill, pid, signal.SIGKILL)  # not waited for yet: the number can be nobody else's
                pidfd = os.pidfd_open(pid)
            undo.pop_all()
        worker = place.worker = self.processes[pid] = Worker(place, pid, pidfd, counters)
        worker.channel = Channel(ours, messages.FROM_WORKER, partial(self._heard, worker), partial(self._cut, worker))
        self._nobody.clear()
        self.loop.add_reader(pidfd, self._ended, worker)
        worker.channel.start(self.loop)
        worker.channel.send_encoded(first_message, [memory])
        log.debug("worker begun", worker=place.number, pid=pid)

    def _failed(self, place: Place) -> float:
        """Counts a failure; seconds to wait before the next attempt."""
        place.failures += 1
        if place.failures >= STILLBORN and not self._first.done():
            self._first.set_exception(PoolError(f"worker {place.number} does not start, see the log"))
        doublings = min(place.failures - 2, 10)
        delay_s = min(BACKOFF_MIN_S * 2**doublings, BACKOFF_MAX_S) if doublings >= 0 else 0.0
        place.due_s = time.monotonic() + delay_s
        return delay_s

    # -- what they say, and their end --------------------------------------------------------------------------------

    def _heard(self, worker: Worker, message: messages.FromWorker, descriptors: list[int]) -> None:
        worker.heard_s = worker.place.heard_s = time.monotonic()
        match message:
            case messages.Status():
                if worker.status is not None:
                    self._on_status(worker.status, message)
                worker.status = message
                worker.reaches, worker.told_s = not reaches_none(message.nodes), worker.heard_s
                worker.lacks = any(node.owner and node.down_s for node in message.nodes.values())
                if any(one.lacks or one.missed for one in self.present):
                    self._compare()
                self._answered(worker, message.number, message)
            case messages.Report() | messages.KeyspaceEvents():
                self._on_report(message)
            case messages.ScriptSeen() | messages.ScriptWanted() | messages.FlushScripts():
                self._on_script(message, worker.channel.send)
            case messages.Forgotten(number):
                self._answered(worker, number, True)
            case messages.Applied(number, error):
                self._answered(worker, number, error)
            case messages.Question():
                self.relay.question(worker, message)
            case messages.Answer():
                self.relay.answer(worker, message)
            case messages.Monitoring() | messages.Shown():
                self.monitors.heard(worker, message)
            case messages.Started():
                worker.started = True
                worker.since_s = worker.heard_s
                log.info("worker started", worker=worker.number, pid=worker.pid)
                self.relay.started(worker)
                self.monitors.started(worker)
                self._tell_others()  # before it has a client that asks
                if not self._first.done() and len(self.candidates()) == self.wanted:
                    self._first.set_result(None)
                self._on_change()
            case messages.Bye():
                pass  # only a worker that was told to end says so

    def _compare(self) -> None:
        told = [(worker, worker.status.nodes) for worker in self.present if worker.status is not None]
        for (worker, _), missed in zip(told, missed_primaries([(one.told_s, at) for one, at in told]), strict=True):
            worker.missed = missed

    def _answered(self, worker: Worker, number: int, value: object) -> None:
        answer = worker.answers.get(number)
        if answer is not None and not answer.done():
            answer.set_result(value)

    def _cut(self, worker: Worker, reason: str) -> None:
        """Its channel has ended: so has its process, or it will in a moment."""
        worker.present = worker.started = False
        worker.cut = reason
        worker.heard_s = time.monotonic()
        for number in list(worker.answers):
            self._answered(worker, number, None)
        self.relay.gone(worker)
        self.monitors.gone(worker)
        self._on_gone(worker)

    def _ended(self, worker: Worker) -> None:
        """Its process has ended."""
        self.loop.remove_reader(worker.pidfd)
        os.close(worker.pidfd)
        worker.channel.hear_out()  # its last words, what it had counted among them
        _, status, usage = os.wait4(worker.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        reason = f"exit code {code}" if code >= 0 else f"signal {-code} ({signal.strsignal(-code)})"
        worker.place.worker = None
        del self.processes[worker.pid]
        self._figures.ended(worker.counters)
        if not self.processes:
            self._nobody.set()
        if not worker.leaving:
            if worker.cut:
                reason += f", the channel had ended before: {worker.cut}"
            self.restarts += 1
            if time.monotonic() - worker.since_s >= STEADY_S:
                worker.place.failures = 0
            more: dict[str, Any] = {"reason": reason, "after_s": round(self._failed(worker.place), 2)}
            more["clients"] = worker.clients
            log.error("worker lost, another is started", worker=worker.number, pid=worker.pid, **more)
        elif code:
            log.error("worker failed as it ended", worker=worker.number, pid=worker.pid, reason=reason)
        self._tick_again()
        if worker.present:
            self._cut(worker, reason)
        self._on_ended(worker.pid, usage.ru_utime + usage.ru_stime)
        if code == EXIT_VERSION:
            log.error("the program on disk is of another version, no worker can be started", running=__version__)
            self._on_other_version()
        del worker.counters  # and with them the memory and its descriptor
        self._on_change()


def _exec(number: int, channel: socket.socket) -> int:
    """Starts a worker's process with its end of the channel; its process id. OSError."""
    # It finds modules where this process has found them, and no signal ends it before it ignores those of the group.
    environment = {name: value for name, value in os.environ.items() if name not in _SECRETS}
    environment |= {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_DUP2, channel.fileno(), _CHANNEL),
    ]
    return os.posix_spawn(sys.executable, _command(number), environment, file_actions=actions, setsigmask=_SIGNALS)


def _command(number: int) -> list[str]:
    return [sys.executable, "-P", "-m", "proxy.worker.main", str(_CHANNEL), str(number), __version__]
