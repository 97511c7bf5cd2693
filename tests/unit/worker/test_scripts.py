"""What a worker remembers of scripts, tells the main process, and asks it for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from proxy.commands.script_memory import sha1_of
from proxy.forward.ask import Ask
from proxy.forward.scripts import Scripts
from proxy.ipc.messages import FlushScripts, ScriptSeen, ScriptWanted
from proxy.resp.encode import encode_command
from proxy.worker import scripts as module
from proxy.worker.scripts import WorkerScripts

BODY = b"return 1"
SHA = sha1_of(BODY)


class Clock:
    """As much of a loop as is asked for."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.timers: list[tuple[float, Callable[..., object], tuple[Any, ...]]] = []

    def time(self) -> float:
        return self.now_s

    def call_later(self, delay_s: float, call: Callable[..., object], *args: Any) -> None:
        self.timers.append((self.now_s + delay_s, call, args))

    def go(self, seconds: float) -> None:
        self.now_s += seconds
        due = [timer for timer in self.timers if timer[0] <= self.now_s]
        self.timers = [timer for timer in self.timers if timer[0] > self.now_s]
        for _, call, args in due:
            call(*args)


class Parking:
    def __init__(self) -> None:
        self.answers: list[tuple[bytes, bool]] = []

    def script_answered(self, sha: bytes, known: bool) -> None:
        self.answers.append((sha, known))


class Bench:
    """One worker's scripts and all around them."""

    def __init__(self, limit: int = 16 << 20) -> None:
        self.clock, self.parking, self.sent = Clock(), Parking(), []
        self.seen = Scripts()
        self.scripts = WorkerScripts(
            self.clock,  # type: ignore[arg-type]
            self.sent.append,
            self.seen,
            self.parking,  # type: ignore[arg-type]
            lambda what, error: None,
            limit=limit,
            generation=3,
        )

    sent: list[Any]


@pytest.fixture
def bench() -> Bench:
    return Bench()


def load(body: bytes) -> bytes:
    return encode_command("SCRIPT", "LOAD", body)


def test_what_it_has_seen_itself(bench: Bench) -> None:
    assert bench.seen.keeper is bench.scripts
    assert bench.scripts.seen(BODY, True) == SHA
    assert bench.sent == [ScriptSeen(3, SHA, BODY, False)]
    assert bench.scripts.load(SHA) == load(BODY)
    assert bench.scripts.body(SHA) == BODY
    bench.scripts.loaded(b"return 2")
    assert bench.sent[1:] == [ScriptSeen(3, sha1_of(b"return 2"), b"return 2", True)]


def test_only_named(bench: Bench) -> None:
    assert bench.scripts.seen(BODY, False) == SHA
    assert (bench.sent, bench.scripts.body(SHA)) == ([], None)


def test_asked_for_once(bench: Bench) -> None:
    assert bench.scripts.load(SHA) is False
    assert bench.scripts.load(SHA) is False
    assert bench.sent == [ScriptWanted(SHA)]
    bench.scripts.answered(SHA, BODY)
    assert bench.parking.answers == [(SHA, True)]
    assert bench.scripts.load(SHA) == load(BODY)
    bench.clock.go(10)
    assert bench.parking.answers == [(SHA, True)]


def test_nobody_knows_it(bench: Bench) -> None:
    assert bench.scripts.load(SHA) is False
    bench.scripts.answered(SHA, None)
    assert bench.parking.answers == [(SHA, False)]
    assert bench.scripts.load(SHA) is False  # by now somebody may


def test_a_main_process_that_does_not_answer(bench: Bench) -> None:
    """Who waits is answered in time, others are not kept waiting, and it is asked again."""
    assert bench.scripts.load(SHA) is False
    bench.clock.go(module.ANSWER_S + 0.01)
    assert bench.parking.answers == [(SHA, False)]
    assert bench.scripts.load(SHA) is None
    bench.clock.go(module.ANSWER_S)
    assert bench.scripts.load(SHA) is False
    assert bench.sent == [ScriptWanted(SHA)] * 2


def test_questions_are_bounded(bench: Bench) -> None:
    answers = [bench.scripts.load(sha1_of(b"%d" % n)) for n in range(5000)]
    assert answers.count(False) == len(bench.sent) <= module.ASKED_MAX
    bench.clock.go(5)
    assert bench.scripts.load(SHA) is False
    for sha in [message.sha for message in bench.sent]:
        bench.scripts.answered(sha, None)
    before = len(bench.sent)
    for n in range(20_000):
        sha = sha1_of(b"x%d" % n)
        if bench.scripts.load(sha) is False:
            bench.scripts.answered(sha, None)
    assert len(bench.sent) - before <= 2 * module.BYTES_PER_S // module.QUESTION


def test_what_is_told_is_bounded_by_bytes(bench: Bench) -> None:
    bodies = [b"return %d" % n + b" " * 500_000 for n in range(100)]
    for body in bodies:
        bench.scripts.loaded(body)
    assert sum(len(message.body) for message in bench.sent) <= 2 * module.BYTES_PER_S
    told = len(bench.sent)
    bench.clock.go(1)
    bench.scripts.loaded(BODY)
    assert len(bench.sent) == told + 1


def test_a_repair_that_does_not_help_is_not_tried_for_ever(bench: Bench) -> None:
    bench.scripts.seen(BODY, True)
    for _ in range(module.VAIN_MAX):
        assert bench.scripts.load(SHA)
        bench.scripts.in_vain(SHA)
    assert bench.scripts.load(SHA) is None
    bench.clock.go(module.VAIN_S)
    assert bench.scripts.load(SHA)
    bench.scripts.in_vain(SHA)
    assert bench.scripts.load(SHA)


def test_all_is_forgotten(bench: Bench) -> None:
    bench.scripts.seen(BODY, True)
    bench.scripts.forget(0)
    assert bench.scripts.body(SHA) == BODY
    bench.scripts.forget(4)
    assert bench.scripts.body(SHA) is None
    bench.scripts.seen(BODY, True)
    assert bench.sent[-1] == ScriptSeen(4, SHA, BODY, False)


def test_a_flush_goes_to_the_servers_when_all_have_forgotten(bench: Bench) -> None:
    asked: list[Ask] = []

    def ask() -> Ask:
        asked.append(Ask([("any", b"*1\r\n$4\r\nPING\r\n", 0)]))
        return asked[-1]

    bench.scripts.flush(ask)
    assert (bench.sent, asked) == ([FlushScripts(1)], [])
    bench.scripts.flushed(1)
    bench.scripts.flushed(1)
    assert len(asked) == 1
    bench.scripts.flush(ask)
    bench.clock.go(module.FLUSH_S)  # the main process is stopped
    assert len(asked) == 2


def test_nothing_is_remembered_with_a_limit_of_0() -> None:
    bench = Bench(limit=0)
    assert bench.scripts.seen(BODY, True) == SHA
    assert bench.scripts.load(SHA) is None
    assert bench.sent == []


def test_another_limit(bench: Bench) -> None:
    bench.scripts.seen(BODY, True)
    bench.scripts.resize(0)
    assert bench.scripts.body(SHA) is None
