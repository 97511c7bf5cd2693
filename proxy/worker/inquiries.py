"""Questions to all workers: those that this one has, and its own share of everybody's answers.

Why: a command about all clients of the proxy (CLIENT LIST, KILL, PAUSE) has to be answered by every worker for its own
ones; supervisor.relay passes questions and answers on. Called by proxy.serve (as ServeContext.inquire) and by
worker.conversation.

Invariants:
- Whatever is looked up, closed or put together here is done in slices of SLICE_S with pauses of PAUSE_S between them:
  ten thousand clients listed in a loop take a fifth of the worker's time at most, and nobody waits longer than a slice.
- At most MOST questions are under way; others wait, QUEUED bytes of them, and those that may share an answer (shared)
  with one that waits do. A client has one at a time (its Later is a barrier), so there are never more than clients.
- Every question is answered: with what has come when the main process is silent for SILENT_S.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import msgspec

from proxy.forward.ask import Ask, Later
from proxy.ipc.messages import Answer, Question
from proxy.resp import errors
from proxy.serve.context import Answerer, Inquiry

SLICE_S: Final = 0.0005
PAUSE_S: Final = 0.002
MOST: Final = 4
CHUNK: Final = 1 << 16  # bytes of an answer that are sent together
ALIVE_S: Final = 0.3  # ... or what there is of it, be it nothing, after so long: supervisor.relay.SILENT_S
SILENT_S: Final = 2.0
QUEUED: Final = 16 << 20  # bytes of questions that wait
BEHIND: Final = 1 << 18  # bytes that the main process has not taken: no answer goes on before it has
_ENDED: Final = errors.line("ERR the proxy is shutting down")
_FAILED: Final = errors.line("ERR internal error")
_TOO_MANY: Final = errors.line("ERR too many questions to all workers are waiting")


class _Asked:
    """A question of this worker, and all that wait for its answer."""

    def __init__(self, inquiry: Inquiry) -> None:
        self.inquiry = inquiry
        self.waiting: list[tuple[Later, Callable[[Any], bytes | Ask]]] = []
        self.parts: list[bytes] = []
        self.own = self.others = False  # whose answer is complete
        self.missing = 0
        self.refused = ""
        self.heard_s = 0.0


class Inquiries:
    """See the module. answerers: what kinds there are; backlog: bytes on their way to the main process."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        send: Callable[[msgspec.Struct], None],
        answerers: Mapping[str, Answerer],
        *,
        backlog: Callable[[], int] = lambda: 0,
        on_raised: Callable[[str, BaseException], None],
    ) -> None:
        self._loop = loop
        self._send = send
        self._answerers = answerers
        self._backlog = backlog
        self._on_raised = on_raised
        self._asked = 0
        self._queue: deque[_Asked] = deque()
        self._queued = 0  # bytes
        self._open: dict[int, _Asked] = {}
        self._work: deque[Iterator[bool]] = deque()
        self._turn: asyncio.Handle | None = None
        self._look: asyncio.TimerHandle | None = None
        self._ended = False

    # -- this worker asks ----------------------------------------------------------------------------------------

    def inquire(self, inquiry: Inquiry, reply: Callable[[Any], bytes | Ask]) -> Later | bytes:
        """ServeContext.inquire."""
        if self._ended:
            return _ENDED
        asked = self._shared(inquiry)
        if asked is None and self._queued > QUEUED:
            return _TOO_MANY
        later = Later(barrier=True)
        if asked is not None:
            asked.waiting.append((later, reply))
            return later
        asked = _Asked(inquiry)
        asked.waiting.append((later, reply))
        self._queue.append(asked)
        self._queued += len(inquiry.body)
        self._next()
        return later

    def _shared(self, inquiry: Inquiry) -> _Asked | None:
        """A question that waits and whose answer will do for this one, too."""
        if not inquiry.shared:
            return None
        question = inquiry.kind, inquiry.body
        return next((asked for asked in self._queue if question == (asked.inquiry.kind, asked.inquiry.body)), None)

    def _next(self) -> None:
        """Begins what there is room for."""
        while self._queue and len(self._open) < MOST:
            asked = self._queue.popleft()
            inquiry = asked.inquiry
            self._queued -= len(inquiry.body)
            if not any(later.wanted for later, _ in asked.waiting):  # a dead client's KILL is none
                for later, _ in asked.waiting:
                    later.answer(_ENDED)
                continue
            self._asked += 1
            self._open[self._asked] = asked
            asked.heard_s = self._loop.time()
            about = inquiry.everyone, inquiry.subject, inquiry.lasting
            self._send(Question(self._asked, inquiry.kind, inquiry.body, *about))
            if inquiry.everyone:
                asked.own = True  # it comes back with everybody else's
            else:
                self._do(self._answer(inquiry.kind, inquiry.body, self._own_share(self._asked, asked)))
            if self._look is None:
                self._look = self._loop.call_later(SILENT_S, self._look_for_silence)

    def _own_share(self, number: int, asked: _Asked) -> Callable[[bytes, bool], None]:
        def take(part: bytes, last: bool) -> None:
            asked.parts.append(part)
            asked.own = last
            self._look_whether_whole(number, asked)

        return take

    def found(self, number: int, part: bytes, last: bool, missing: int, refused: str = "") -> None:
        """What the others have answered, or why they were not asked."""
        if (asked := self._open.get(number)) is not None:
            asked.refused = refused
            asked.parts.append(part)
            asked.others, asked.missing, asked.heard_s = last, missing, self._loop.time()
            self._look_whether_whole(number, asked)

    def _look_whether_whole(self, number: int, asked: _Asked) -> None:
        if asked.own and asked.others and self._open.pop(number, None) is not None:
            self._do(self._finish(asked))
            self._next()

    def _look_for_silence(self) -> None:
        """Takes what there is when the main process says nothing more."""
        self._look = None
        now_s = self._loop.time()
        for number, asked in list(self._open.items()):
            if not asked.others and now_s - asked.heard_s >= SILENT_S:
                asked.others, asked.missing = True, -1
                self._look_whether_whole(number, asked)
        if self._open:
            self._look = self._loop.call_later(SILENT_S / 4, self._look_for_silence)

    def _finish(self, asked: _Asked) -> Iterator[bool]:
        """One answer of all parts, given to each that waits for it."""
        merged: Any = None
        try:
            if asked.refused:
                line = errors.line(f"ERR {asked.refused}")
                asked.waiting = [(later, lambda merged: line) for later, _ in asked.waiting]
            else:
                merged = asked.inquiry.merge([part for part in asked.parts if part], asked.missing)
        except Exception as error:
            self._on_raised("merge", error)
            asked.waiting = [(later, lambda merged: _FAILED) for later, _ in asked.waiting]
        for later, reply in asked.waiting:
            try:
                later.answer(reply(merged))
            except Exception as error:
                self._on_raised("reply", error)
                later.answer(_FAILED)
            yield True

    # -- everybody asks ------------------------------------------------------------------------------------------

    def query(self, number: int, kind: str, body: bytes) -> None:
        """Somebody's question, to be answered for this worker; number 0: to be obeyed only."""

        def put(part: bytes, last: bool) -> None:
            if number:
                self._send(Answer(number, part, last))

        work = self._answer(kind, body, put)
        if next(work, None) is not None:  # what is short is done at once, so before what the channel brings next
            self._do(work)

    def _answer(self, kind: str, body: bytes, put: Callable[[bytes, bool], None]) -> Iterator[bool]:
        """Gives the pieces of this worker's answer to put(part, whether it was the last). False: see Answerer, None."""
        chunk: list[bytes] = []
        size = 0
        told_s = time.monotonic()
        try:
            for part in self._answerers[kind](body):
                chunk.append(part or b"")
                size += len(part or b"")
                if size >= CHUNK or time.monotonic() - told_s >= ALIVE_S:
                    put(b"".join(chunk), False)
                    chunk, size, told_s = [], 0, time.monotonic()
                yield part is not None
        except Exception as error:
            self._on_raised(kind, error)
        put(b"".join(chunk), True)

    # -- slices --------------------------------------------------------------------------------------------------

    def _do(self, work: Iterator[bool]) -> None:
        self._work.append(work)
        if self._turn is None and not self._ended:
            self._turn = self._loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        """As much as a slice has time for, of one piece of work after the other."""
        self._turn = None
        until_s = time.perf_counter() + SLICE_S
        idle: list[Iterator[bool]] = []
        while self._work and time.perf_counter() < until_s and self._backlog() <= BEHIND:
            work = self._work.popleft()
            for _ in range(8):
                if (said := next(work, None)) is None:
                    break
                if not said:
                    idle.append(work)
                    break
            else:
                self._work.append(work)
        self._work += idle
        if self._work and self._turn is None:
            self._turn = self._loop.call_later(PAUSE_S, self._go_on)

    # -- the end -------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Nothing is asked or answered any more; whoever waits is told so."""
        self._ended = True
        for handle in (self._turn, self._look):
            if handle is not None:
                handle.cancel()
        for asked in [*self._open.values(), *self._queue]:
            for later, _ in asked.waiting:
                later.answer(_ENDED)
        self._open.clear()
        self._queue.clear()
        self._work.clear()
