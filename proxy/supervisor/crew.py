"""The workers as the supervisor knows them: started, watched, replaced, asked, told, ended.

Why: DESIGN 2: a worker that dies is replaced, and nobody but its own clients notices. Called by proxy.supervisor.life;
doors hands clients to the members.

Invariants:
- Every number below `wanted` has a member, or one on its way: at once after a death, with backoff after several.
- A member counts the clients it was given and has not yet let go of. What a dead one had counted is kept (`dead`).
- A worker that says nothing for SILENT_S is ended, with its stack in the log, and replaced.
"""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import os
import pickle
import signal
import socket
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Final

from proxy.admin.snapshot import CounterValues, WorkerState
from proxy.config.models import Settings
from proxy.forward.counters import COUNTERS_SIZE, Counters
from proxy.ipc.channel import Channel, pair
from proxy.ipc.messages import (
    TO_SUPERVISOR,
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
    ToSupervisor,
    ToWorker,
)
from proxy.supervisor.forks import Ended, ForkError, Forks, Process
from proxy.system import log as logs

log = logs.get("supervisor.crew")

SILENT_S: Final = 10.0  # a worker tells its state every second
ABORT_S: Final = 2.0  # for the stack to be written
BACKOFF_MIN_S: Final = 0.1
BACKOFF_MAX_S: Final = 5.0
STEADY_S: Final = 10.0  # a worker that lived so long owes its death to nothing that will recur at once
STILLBORN: Final = 3  # attempts in a row, none of which started, that make the start-up fail
_TICK_S: Final = 1.0


class CrewError(Exception):
    """No worker can be brought up; the text is a sentence."""


class Member:
    """One worker. See doors for what `clients`, `backlog` and take() are for."""

    def __init__(self, number: int, process: Process, memory: mmap.mmap) -> None:
        self.number = number
        self.process = process
        self.counters = Counters(memory)
        self.state: WorkerState | None = None
        self.clients = 0
        self.since_s = self.heard_s = time.monotonic()
        self.started = False
        self.leaving = False  # told to end: its end is no loss
        self.channel: Channel
        self.answers: dict[int, asyncio.Future[WorkerState | str]] = {}

    @property
    def pid(self) -> int:
        """Of its process."""
        return self.process.pid

    @property
    def backlog(self) -> int:
        """Bytes on their way to it that the kernel has not taken."""
        return self.channel.backlog

    def take(self, listener: str, first_id: int, descriptors: list[int]) -> None:
        """Hands clients over, with their descriptors."""
        self.channel.send(Take(listener, first_id), descriptors)

    def silent_s(self) -> float:
        """Seconds since it was heard of."""
        return time.monotonic() - self.heard_s


class Crew:
    """See the module.

    on_change(): members came, went, or had clients leave. on_state(old, new): one tells a new state.
    on_dead(counters, state): a member is gone, with what it had counted. on_ended(pid, cpu_s): so is its process, with
    the CPU seconds it had used.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        forks: Forks,
        settings: Settings,
        *,
        run_id: str,
        started_s: float,
        on_change: Callable[[], None],
        on_state: Callable[[WorkerState, WorkerState], None],
        on_dead: Callable[[CounterValues, WorkerState | None], None],
        on_ended: Callable[[int, float], None],
    ) -> None:
        self.loop = loop
        self.forks = forks
        self.settings = settings
        self.wanted = 0
        self.members: dict[int, Member] = {}  # by number: those that serve or will
        self.leaving: set[Member] = set()
        self.restarts = 0
        self.rejected = 0  # clients that doors turned away, for INFO
        self._run_id = run_id
        self._started_s = started_s
        self._on_change = on_change
        self._on_state = on_state
        self._on_dead = on_dead
        self._on_process_ended = on_ended
        self._failures: dict[int, int] = {}
        self._heard_s: dict[int, float] = {}  # by number, whichever worker bears it
        self._starting: dict[int, asyncio.Task[None]] = {}
        self._first: asyncio.Future[None] = loop.create_future()
        self._first.add_done_callback(lambda first: first.exception())  # nobody may be waiting any more
        self._burials: set[asyncio.Task[None]] = set()
        self._empty = asyncio.Event()
        self._numbers = 0
        self._ticked_s = 0.0
        self._ending = False
        self._timer: asyncio.TimerHandle | None = None
        forks.on_ended = self._process_ended
        forks.attach(loop)

    # -- life ----------------------------------------------------------------------------------------------------

    def begin(self, wanted: int) -> None:
        """Starts so many workers; see first()."""
        self.resize(wanted)
        self._tick()

    async def first(self) -> None:
        """Until every worker has started, or CrewError when one of them cannot."""
        await asyncio.shield(self._first)

    def resize(self, wanted: int) -> None:
        """More workers at once; of fewer, the last take no more clients and end when theirs have left."""
        self.wanted = wanted
        for number in range(wanted):
            if number not in self.members and number not in self._starting:
                self._failures[number] = 0
                self._heard_s[number] = time.monotonic()
                self._launch(number, 0.0)
        for number in [number for number in self.members if number >= wanted]:
            member = self.members.pop(number)
            member.leaving = True
            self.leaving.add(member)
            member.channel.send(Retire())
            log.info("worker retires", worker=number, pid=member.pid, clients=member.clients)
        for number, task in list(self._starting.items()):
            if number >= wanted:
                task.cancel()
        self._on_change()

    async def apply(self, settings: Settings) -> list[str]:
        """New settings for everybody, those to come included; the errors of those that could not take them."""
        self.settings = settings
        body = pickle.dumps(settings)
        asked = {
            member: self._ask(member, number := self._number(), Apply(number, body)) for member in self._everybody()
        }
        errors = []
        for member, answer in asked.items():
            try:
                async with asyncio.timeout(SILENT_S):
                    error = await answer
            except TimeoutError:
                error = "does not answer"
            except CrewError:
                continue  # gone; its successor is born with the new settings
            if error:
                errors.append(f"worker {member.number}: {error}")
        return errors

    async def drain(self, spread_s: float, timeout_s: float) -> None:
        """Has every worker part with its clients and end."""
        self._end()
        for member in self._everybody():
            member.leaving = True
            member.channel.send(Drain(spread_s, timeout_s))
        await self._gone(timeout_s + ABORT_S)

    async def stop(self) -> None:
        """Ends all workers at once."""
        self._end()
        for member in self._everybody():
            member.leaving = True
            member.channel.send(Stop())
        await self._gone(ABORT_S)
        await asyncio.gather(*self._starting.values(), *self._burials, return_exceptions=True)

    def reopen(self) -> None:
        """Has every worker open its log file anew."""
        for member in self._everybody():
            member.channel.send(Reopen())

    # -- figures -------------------------------------------------------------------------------------------------

    def candidates(self) -> list[Member]:
        """Those that take clients."""
        return [member for member in self.members.values() if member.started]

    @property
    def pids(self) -> list[int]:
        """Of all workers."""
        return [member.pid for member in self._everybody()]

    @property
    def clients(self) -> int:
        """Clients of all workers."""
        return sum(member.clients for member in self._everybody())

    def everybody(self) -> list[Member]:
        """All members that live, those that are about to leave included."""
        return self._everybody()

    def silences(self) -> dict[int, float]:
        """Number of each worker there should be -> seconds since it, or the last of its number, was heard of."""
        now_s = time.monotonic()
        return {number: now_s - self._heard_s.get(number, now_s) for number in range(self.wanted)}

    async def ask(self, timeout_s: float) -> None:
        """Has the members renew their `state`; those that do not answer in time keep their last one."""
        asked = [
            self._ask(member, number := self._number(), Ask(number))
            for member in self._everybody()
            if member.started and not member.channel.backlog
        ]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await asyncio.gather(*asked, return_exceptions=True)

    # -- starting ------------------------------------------------------------------------------------------------

    def _launch(self, number: int, delay_s: float) -> None:
        task = self.loop.create_task(self._start(number, delay_s), name=f"start-worker-{number}")
        self._starting[number] = task

    async def _start(self, number: int, delay_s: float) -> None:
        try:
            while True:
                if delay_s:
                    await asyncio.sleep(delay_s)
                ours, theirs = pair()
                try:
                    process = await self.forks.fork(theirs)
                except (ForkError, OSError) as error:
                    ours.close()
                    logs.warn_limited(log, "fork", "cannot start a worker", worker=number, reason=str(error))
                    delay_s = self._failed(number)
                    continue
                except BaseException:
                    ours.close()
                    raise
                self._welcome(number, process, ours)
                return
        finally:
            if self._starting.get(number) is asyncio.current_task():
                del self._starting[number]

    def _welcome(self, number: int, process: Process, sock: socket.socket) -> None:
        descriptor = os.memfd_create(f"redis-proxy-{number}", os.MFD_CLOEXEC)
        os.ftruncate(descriptor, COUNTERS_SIZE)
        member = Member(number, process, mmap.mmap(descriptor, COUNTERS_SIZE))
        member.channel = Channel(sock, TO_SUPERVISOR, partial(self._heard, member), partial(self._lost, member))
        self.members[number] = member
        member.channel.start(self.loop)
        member.channel.send(Start(number, pickle.dumps(self.settings), self._run_id, self._started_s), [descriptor])
        log.debug("worker forked", worker=number, pid=member.pid)

    def _failed(self, number: int) -> float:
        """Counts a failure; seconds to wait before the next attempt."""
        failures = self._failures[number] = self._failures.get(number, 0) + 1
        if failures >= STILLBORN and not self._first.done():
            self._first.set_exception(CrewError(f"worker {number} does not start, see the log"))
        return min(BACKOFF_MIN_S * 2.0 ** (failures - 2), BACKOFF_MAX_S) if failures > 1 else 0.0

    # -- hearing -------------------------------------------------------------------------------------------------

    def _heard(self, member: Member, message: ToSupervisor, descriptors: list[int]) -> None:
        member.heard_s = time.monotonic()
        if self.members.get(member.number) is member:
            self._heard_s[member.number] = member.heard_s
        match message:
            case Left(clients):
                member.clients -= clients
                self._on_change()
            case State(number, state):
                if member.state is not None:
                    self._on_state(member.state, state)
                member.state = state
                self._answer(member, number, state)
            case Names(metrics):
                member.counters.metrics = metrics
            case Applied(number, error):
                self._answer(member, number, error)
            case Started():
                member.started = True
                member.since_s = time.monotonic()
                log.info("worker started", worker=member.number, pid=member.pid)
                if not self._first.done() and len(self.candidates()) == self.wanted:
                    self._first.set_result(None)
                self._on_change()
            case Bye():
                member.leaving = True
        for descriptor in descriptors:
            os.close(descriptor)

    def _lost(self, member: Member, reason: str) -> None:
        """Its channel has ended, and so has the process, or it will in a moment."""
        for answer in member.answers.values():
            if not answer.done():
                answer.set_exception(CrewError("the worker is gone"))
        self._on_dead(member.counters.snapshot(), member.state)
        del member.counters  # and with them the memory and its descriptor
        expected = member.leaving or self._ending
        self.leaving.discard(member)
        if self.members.get(member.number) is member:
            del self.members[member.number]
            if not expected:
                self._replace(member, reason)
        burial = self.loop.create_task(self._bury(member), name=f"bury-worker-{member.number}")
        self._burials.add(burial)
        burial.add_done_callback(self._burials.discard)
        if not self._everybody():
            self._empty.set()
        self._on_change()

    def _replace(self, member: Member, reason: str) -> None:
        self.restarts += 1
        if member.started and time.monotonic() - member.since_s >= STEADY_S:
            self._failures[member.number] = 0
        delay_s = self._failed(member.number)
        log.error(
            "worker lost, another is started",
            worker=member.number,
            pid=member.pid,
            clients=member.clients,
            reason=reason,
            after_s=round(delay_s, 2),
        )
        self._launch(member.number, delay_s)

    async def _bury(self, member: Member) -> None:
        """Sees its process out: one that lost its channel and does not go is killed."""
        pidfd = member.process.pidfd
        ended = asyncio.Event()
        self.loop.add_reader(pidfd, ended.set)
        try:
            async with asyncio.timeout(ABORT_S):
                await ended.wait()
        except TimeoutError:
            member.process.kill(signal.SIGKILL)
            await ended.wait()
        finally:
            self.loop.remove_reader(pidfd)
            os.close(pidfd)

    def _process_ended(self, ended: Ended) -> None:
        self._on_process_ended(ended.pid, ended.cpu_s)
        if ended.code < 0:
            log.error("worker was ended by a signal", pid=ended.pid, signal=signal.Signals(-ended.code).name)
        elif ended.code > 0:
            log.error("worker failed", pid=ended.pid, code=ended.code)

    # -- inside --------------------------------------------------------------------------------------------------

    def _everybody(self) -> list[Member]:
        return [*self.members.values(), *self.leaving]

    def _number(self) -> int:
        self._numbers += 1
        return self._numbers

    def _ask(self, member: Member, number: int, message: ToWorker) -> asyncio.Future[WorkerState | str]:
        answer = member.answers[number] = self.loop.create_future()
        answer.add_done_callback(lambda _: member.answers.pop(number, None))
        member.channel.send(message)
        return answer

    def _answer(self, member: Member, number: int, value: WorkerState | str) -> None:
        answer = member.answers.get(number)
        if answer is not None and not answer.done():
            answer.set_result(value)

    def _end(self) -> None:
        """From now on nobody is replaced."""
        self._ending = True
        for task in self._starting.values():
            task.cancel()
        if self._timer is not None:
            self._timer.cancel()

    async def _gone(self, timeout_s: float) -> None:
        """Until all are gone; those that are not in time are killed."""
        if not self._everybody():
            return
        self._empty.clear()
        try:
            async with asyncio.timeout(timeout_s):
                await self._empty.wait()
        except TimeoutError:
            for member in self._everybody():
                log.error("worker does not end and is killed", worker=member.number, pid=member.pid)
                member.process.kill(signal.SIGKILL)
            await self._empty.wait()

    def _tick(self) -> None:
        """Once a second: who has fallen silent, and what the others count, for INFO."""
        now_s = time.monotonic()
        if self._ticked_s and now_s - self._ticked_s > 2 * _TICK_S:
            # It was this process that did not run (stopped, or its machine was): what they said is still to be read.
            for member in self._everybody():
                member.heard_s = now_s
            self._heard_s = dict.fromkeys(self._heard_s, now_s)
        self._ticked_s = now_s
        self._timer = self.loop.call_later(_TICK_S, self._tick)
        for member in self._everybody():
            if member.silent_s() >= SILENT_S + ABORT_S:
                member.process.kill(signal.SIGKILL)
            elif member.silent_s() >= SILENT_S:
                log.error("worker is silent and is ended", worker=member.number, pid=member.pid)
                member.process.kill(signal.SIGABRT)
        self._tell_others(self._everybody())

    def _tell_others(self, members: Iterable[Member]) -> None:
        figures = {member: own_figures(member) for member in members}
        for member in figures:
            others: dict[str, int] = {"rejected_connections": self.rejected}
            for other, values in figures.items():
                if other is not member:
                    for name, value in values.items():
                        others[name] = others.get(name, 0) + value
            member.channel.send(Others(others, self.settings.clients.max_clients))


def own_figures(member: Member) -> dict[str, int]:
    """What one worker has counted, under INFO's names."""
    totals = member.counters.snapshot()
    return {
        "connected_clients": member.clients,
        "total_connections_received": totals["accepted"],
        "total_commands_processed": sum(command["calls"] for command in totals["commands"].values()),
        "total_net_input_bytes": totals["client_in"],
        "total_net_output_bytes": totals["client_out"],
        "proxy_commands_in_flight": totals["inflight"],
        "proxy_requests_waiting": member.state["waiting"] if member.state is not None else 0,
    }
