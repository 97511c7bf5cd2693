"""The relay: questions of one worker to the others, whoever of them is stuck, behind or gone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any

import pytest

from proxy.ipc.messages import Answer, Found, Query, Question
from proxy.supervisor import relay as module
from proxy.supervisor.relay import Relay


class Clock:
    """As much of a loop as the relay asks for; time passes when the test lets it."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.due: list[tuple[float, Callable[..., object], tuple[Any, ...]]] = []

    def time(self) -> float:
        return self.now_s

    def call_at(self, when_s: float, call: Callable[..., object], *args: Any) -> SimpleNamespace:
        timer = when_s, call, args
        self.due.append(timer)
        return SimpleNamespace(cancel=lambda: self.due.remove(timer) if timer in self.due else None)

    def pass_by(self, seconds: float) -> None:
        self.now_s += seconds
        for timer in [timer for timer in self.due if timer[0] <= self.now_s]:
            self.due.remove(timer)
            timer[1](*timer[2])


class FakeWorker:
    """Keeps what it is sent."""

    def __init__(self) -> None:
        self.channel = self
        self.started = True
        self.backlog = 0
        self.silence_s = 0.0
        self.got: list[Any] = []

    def silent_s(self) -> float:
        return self.silence_s

    def send(self, message: Any) -> None:
        self.got.append(message)

    def take(self) -> list[Any]:
        got, self.got = self.got, []
        return got


Scene = Callable[[Relay, list[FakeWorker]], Coroutine[Any, Any, None]]


def play(scene: Scene, workers: int = 3, clock: Clock | None = None) -> None:
    async def body() -> None:
        everybody = [FakeWorker() for _ in range(workers)]
        relay = Relay(clock or asyncio.get_running_loop(), lambda: everybody)  # type: ignore[arg-type, return-value]
        await scene(relay, everybody)
        assert relay._open == {}

    asyncio.run(body())


def test_asked_of_the_others_and_passed_back_in_pieces() -> None:
    async def scene(relay: Relay, workers: list[FakeWorker]) -> None:
        asker, one, other = workers
        relay.question(asker, Question(7, "k", b"q", False))
        assert asker.take() == []
        ((query,), (same,)) = one.take(), other.take()
        assert query == same == Query(query.number, "k", b"q")
        relay.answer(one, Answer(query.number, b"1", False))
        relay.answer(other, Answer(query.number, b"2", True))
        relay.answer(one, Answer(query.number, b"", False))  # nothing to say yet
        relay.answer(one, Answer(query.number, b"3", True))
        assert asker.take() == [Found(7, b"1", False, 0), Found(7, b"2", False, 0), Found(7, b"3", True, 0)]
        relay.answer(one, Answer(query.number, b"late", True))
        assert asker.take() == []

    play(scene)


def test_nobody_else() -> None:
    async def scene(relay: Relay, workers: list[FakeWorker]) -> None:
        relay.question(workers[0], Question(1, "k", b"q", False))
        assert workers[0].take() == [Found(1, b"", True, 0)]

    play(scene, workers=1)


def test_everyone_is_the_asker_too_and_those_to_come() -> None:
    async def scene(relay: Relay, workers: list[FakeWorker]) -> None:
        asker, other, newer = workers
        newer.started = False
        relay.question(asker, Question(1, "k", b"old", True))
        relay.question(other, Question(1, "k", b"q", True))
        orders = [[query.body for query in worker.got if isinstance(query, Query)] for worker in (asker, other)]
        assert orders == [[b"old", b"q"]] * 2
        for worker in (asker, other):
            for query in worker.take():
                relay.answer(worker, Answer(query.number, b"", True))
        assert (asker.take(), other.take()) == ([Found(1, b"", True, 0)],) * 2
        assert newer.take() == []
        newer.started = True
        relay.started(newer)
        assert newer.take() == [Query(0, "k", b"q")]

    play(scene)


def test_one_that_ends_in_the_middle(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(relay: Relay, workers: list[FakeWorker]) -> None:
        asker, one, other = workers
        relay.question(asker, Question(1, "k", b"q", False))
        (query,) = one.take()
        relay.answer(other, Answer(query.number, b"2", True))
        relay.answer(one, Answer(query.number, b"1", False))
        workers.remove(one)
        relay.gone(one)
        assert asker.take() == [Found(1, b"2", False, 0), Found(1, b"1", False, 0), Found(1, b"", True, 1)]
        # the asker itself
        relay.question(asker, Question(2, "k", b"q", False))
        workers.remove(asker)
        relay.gone(asker)
        asker.take()
        (_, query) = other.take()
        relay.answer(other, Answer(query.number, b"2", True))
        assert asker.take() == []

    play(scene)


def test_one_that_says_nothing() -> None:
    clock = Clock()

    async def scene(relay: Relay, workers: list[FakeWorker]) -> None:
        asker, slow, _ = workers
        relay.question(asker, Question(1, "k", b"q", False))
        (query,) = slow.take()
        for _ in range(6):  # at work, and it says so
            relay.answer(slow, Answer(query.number, b"", False))
            clock.pass_by(module.SILENT_S / 2)
        assert asker.take() == []
        clock.pass_by(module.SILENT_S / 2 + 0.01)
        assert asker.take() == [Found(1, b"", True, 2)]

    play(scene, clock=clock)


def test_nobody_is_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LONGEST_S", 0.2)

    async def scene(relay: Relay, workers: list[FakeWorker]) -> None:
        asker, one = workers
        relay.question(asker, Question(1, "k", b"q", False))
        (query,) = one.take()
        while not any(isinstance(found, Found) and found.last for found in asker.got):
            relay.answer(one, Answer(query.number, b"x", False))
            await asyncio.sleep(0.01)
        assert asker.take()[-1] == Found(1, b"", True, 1)

    play(scene, workers=2)


def test_one_that_is_stuck_is_not_waited_for() -> None:
    async def scene(relay: Relay, workers: list[FakeWorker]) -> None:
        asker, stuck, behind = workers
        stuck.silence_s, behind.backlog = module.QUIET_S, module.BEHIND + 1
        relay.question(asker, Question(1, "k", b"q", False))
        assert asker.take() == [Found(1, b"", True, 2)]
        assert len(stuck.take()) == 1  # it is told all the same, ...
        assert behind.take() == []  # unless it has too much to read already
        relay.question(asker, Question(2, "k", b"q", True))
        (order,) = asker.take()
        relay.answer(asker, Answer(order.number, b"", True))
        (query,) = behind.take()  # an order is for everybody
        relay.answer(behind, Answer(query.number, b"", True))
        assert asker.take() == [Found(2, b"", True, 1)]

    play(scene)


def test_one_worker_cannot_ask_without_end() -> None:
    async def scene(relay: Relay, workers: list[FakeWorker]) -> None:
        asker, other = workers
        for number in range(module.MOST + 1):
            relay.question(asker, Question(number, "k", b"q", False))
        assert asker.take() == [Found(module.MOST, b"", True, 1)]
        assert len(other.got) == module.MOST
        relay.gone(other)
        assert len(asker.take()) == module.MOST

    play(scene, workers=2)


def test_nothing_lasting_begins_while_this_process_passes() -> None:
    """Nobody is asked, nor is anybody who starts later; what ends something is never refused."""

    async def scene(relay: Relay, workers: list[FakeWorker]) -> None:
        asker, other = workers
        relay._passing = lambda: "not now"
        relay.question(asker, Question(4, "k", b"begin", True, "s", lasting=True))
        assert (asker.take(), other.take()) == ([Found(4, b"", True, 0, "not now")], [])
        relay.started(other)
        assert other.take() == []
        relay.question(asker, Question(5, "k", b"end", True, "s"))
        (query,), (same,) = asker.take(), other.take()
        assert query == same == Query(query.number, "k", b"end")
        for worker in workers:
            relay.answer(worker, Answer(query.number, b"", True))
        relay._passing = lambda: ""
        asker.take()
        relay.question(asker, Question(6, "k", b"begin", True, "s", lasting=True))
        (query,), (same,) = asker.take(), other.take()
        assert query == same
        relay.gone(other)
        relay.answer(asker, Answer(query.number, b"", True))

    play(scene, workers=2)


def test_answers_to_nothing() -> None:
    async def scene(relay: Relay, workers: list[FakeWorker]) -> None:
        relay.answer(workers[0], Answer(5, b"x", True))
        relay.question(workers[0], Question(1, "k", b"q", False))
        (query,) = workers[1].take()
        relay.answer(workers[0], Answer(query.number, b"x", True))  # who was not asked
        relay.answer(workers[1], Answer(query.number, b"1", True))
        relay.answer(workers[1], Answer(query.number, b"2", True))  # twice
        relay.answer(workers[2], Answer(query.number, b"3", True))
        assert workers[0].take() == [Found(1, b"1", False, 0), Found(1, b"3", True, 0)]

    play(scene)


def test_of_each_subject_the_last_order_holds_and_in_the_order_they_came() -> None:
    async def scene(relay: Relay, workers: list[FakeWorker]) -> None:
        asker, other, newer = workers
        newer.started = False
        for number, (subject, body) in enumerate([("a", b"1"), ("", b"2"), ("b", b"3"), ("a", b"4"), ("", b"5")]):
            relay.question(asker, Question(number, "k", body, True, subject))
            for worker in (asker, other):
                relay.answer(worker, Answer(worker.take()[-1].number, b"", True))
        relay.started(newer)
        assert newer.take() == [Query(0, "k", body) for body in (b"3", b"4", b"5")]

    play(scene)
