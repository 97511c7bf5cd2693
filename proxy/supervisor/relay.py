"""Questions of one worker to all others, passed on; their answers, passed back.

Why: what concerns the clients of all workers (CLIENT LIST, KILL, PAUSE) is known to each worker of its own clients
alone, and workers do not know each other. Called by worker_pool, with what workers say.

Invariants:
- Nothing of an answer is kept here: each piece is passed on as it comes.
- Whoever has answered nothing for SILENT_S is not waited for any longer, and neither is anybody after LONGEST_S: the
  last piece comes to the asker in any case, and says how many answers are missing.
- A question to `everyone` reaches all workers in the same order, the asker too, and those that start later.
- Nothing lasting begins while another main process serves clients, too (an upgrade), or this one is about to end: it
  would hold for a part of the clients, and for how long, nobody could say.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final, Protocol

import msgspec

from proxy.ipc.messages import Answer, Found, Query, Question

SILENT_S: Final = 1.0
LONGEST_S: Final = 10.0
BEHIND: Final = 1 << 16  # bytes that a worker has not taken: only what concerns everyone is put on top of them
QUIET_S: Final = 3.0  # a worker that was not heard of for so long is asked, but not waited for
MOST: Final = 64  # of one worker at a time; it keeps to less by itself


class Channel(Protocol):
    """Takes messages to a worker."""

    def send(self, message: msgspec.Struct) -> None:
        """Now, or as soon as the kernel takes it."""


class Worker(Protocol):
    """As much of a worker as is needed here."""

    @property
    def channel(self) -> Channel: ...
    @property
    def started(self) -> bool: ...
    @property
    def backlog(self) -> int:
        """Bytes its channel has not taken yet."""

    def silent_s(self) -> float:
        """Seconds since it was heard of."""


class _Inquiry:
    """One question under way. heard_s: when each that is waited for has said something of it last."""

    def __init__(self, asker: Worker, number: int, begun_s: float) -> None:
        self.asker = asker
        self.number = number
        self.begun_s = begun_s
        self.heard_s: dict[Worker, float] = {}
        self.missing = 0
        self.timer: asyncio.TimerHandle | None = None


class Relay:
    """See the module. workers: those whose channel has not ended. passing(): why nothing lasting may begin; "" = it
    may."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        workers: Callable[[], Sequence[Worker]],
        passing: Callable[[], str] = lambda: "",
    ) -> None:
        self._loop = loop
        self._workers = workers
        self._passing = passing
        self._asked = 0
        self._open: dict[int, _Inquiry] = {}
        self._standing: dict[tuple[str, str], bytes] = {}  # (kind, subject) -> the last question to everyone, in order

    def question(self, asker: Worker, question: Question) -> None:
        """A worker asks."""
        if question.lasting and (reason := self._passing()):
            asker.channel.send(Found(question.number, b"", True, 0, reason))
            return
        if question.everyone:
            about = question.kind, question.subject
            self._standing.pop(about, None)
            self._standing[about] = question.body
        self._asked += 1
        number = self._asked
        inquiry = _Inquiry(asker, question.number, self._loop.time())
        asked = [one for one in self._workers() if one.started and (one is not asker or question.everyone)]
        if sum(one.asker is asker for one in self._open.values()) >= MOST:
            inquiry.missing, asked = len(asked), []
        for worker in asked:
            if worker.backlog > BEHIND and not question.everyone:
                inquiry.missing += 1
                continue
            if worker.silent_s() < QUIET_S:
                inquiry.heard_s[worker] = inquiry.begun_s
            else:
                inquiry.missing += 1
            worker.channel.send(Query(number, question.kind, question.body))
        self._open[number] = inquiry
        self._look(number)

    def answer(self, worker: Worker, answer: Answer) -> None:
        """A worker answers, or has a piece of its answer."""
        inquiry = self._open.get(answer.number)
        if inquiry is None or worker not in inquiry.heard_s:
            return  # too late
        if answer.last:
            del inquiry.heard_s[worker]
        else:
            inquiry.heard_s[worker] = self._loop.time()
        if not inquiry.heard_s:
            self._close(answer.number, answer.body)
        elif answer.body:
            inquiry.asker.channel.send(Found(inquiry.number, answer.body, False, 0))

    def started(self, worker: Worker) -> None:
        """A worker has started: what was said to everyone holds for it too. To be called before it gets clients."""
        for (kind, _), body in self._standing.items():
            worker.channel.send(Query(0, kind, body))

    def gone(self, worker: Worker) -> None:
        """A worker's channel has ended."""
        for number, inquiry in list(self._open.items()):
            if inquiry.asker is worker:
                self._close(number)
            elif inquiry.heard_s.pop(worker, None) is not None:
                inquiry.missing += 1
                self._look(number)

    def _look(self, number: int) -> None:
        """Gives up who says nothing; ends the question when nobody is left, else looks again when somebody may be."""
        inquiry = self._open.get(number)
        if inquiry is None:
            return
        now_s, end_s = self._loop.time(), inquiry.begun_s + LONGEST_S
        for worker, heard_s in list(inquiry.heard_s.items()):
            if now_s >= min(heard_s + SILENT_S, end_s):
                del inquiry.heard_s[worker]
                inquiry.missing += 1
        if not inquiry.heard_s:
            self._close(number)
            return
        if inquiry.timer is not None:
            inquiry.timer.cancel()
        due_s = min(min(inquiry.heard_s.values()) + SILENT_S, end_s)
        inquiry.timer = self._loop.call_at(due_s + 0.001, self._look, number)

    def _close(self, number: int, body: bytes = b"") -> None:
        inquiry = self._open.pop(number)
        if inquiry.timer is not None:
            inquiry.timer.cancel()
        inquiry.asker.channel.send(Found(inquiry.number, body, True, inquiry.missing))
