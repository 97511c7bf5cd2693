"""Questions to all workers, as one worker sees them: asked, shared, bounded, answered in slices."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from proxy.forward.ask import Later
from proxy.ipc.messages import Answer, Question
from proxy.serve.context import Inquiry
from proxy.worker import inquiries as module
from proxy.worker.inquiries import Inquiries
from tests.unit.worker.scene import until

ENDED = b"-ERR the proxy is shutting down\r\n"


class Scene:
    """One worker's inquiries; the test is the main process, and what Laters are answered with is noted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sent: list[Any] = []
        self.raised: list[tuple[str, BaseException]] = []
        self.expected: list[type[BaseException]] = []
        self.behind = self.looked = 0
        self.happened = False
        self.said: dict[int, bytes] = {}
        self.asked: list[bytes] = []
        self._laters: list[NotedLater] = []
        monkeypatch.setattr(module, "Later", self._later)
        self.inquiries = Inquiries(
            asyncio.get_running_loop(),
            self.sent.append,
            {"echo": self.echo, "long": self.long, "bad": self.bad, "later": self.later},
            backlog=lambda: self.behind,
            on_raised=lambda what, error: self.raised.append((what, error)),
        )

    def _later(self, barrier: bool = False) -> NotedLater:
        assert barrier
        self._laters.append(NotedLater())
        return self._laters[-1]

    def ask(self, body: bytes = b"q", kind: str = "echo", reply: Callable[[Any], bytes] = bytes, **options: Any) -> Any:
        inquiry = Inquiry(kind, body, lambda parts, missing: b"+".join([*sorted(parts), b"%d" % missing]), **options)
        return self.inquiries.inquire(inquiry, reply)

    def questions(self) -> list[Question]:
        return [message for message in self.sent if isinstance(message, Question)]

    def answers(self) -> list[Answer]:
        return [message for message in self.sent if isinstance(message, Answer)]

    def echo(self, body: bytes) -> Iterator[bytes]:
        self.asked.append(body)
        yield b"own " + body

    def long(self, body: bytes) -> Iterator[bytes]:
        for n in range(int(body)):
            end_s = time.thread_time() + 0.00002
            while time.thread_time() < end_s:
                pass
            yield b"%07d" % n

    def later(self, body: bytes) -> Iterator[bytes | None]:
        while not self.happened:
            self.looked += 1
            yield None
        yield b"then"

    def bad(self, body: bytes) -> Iterator[bytes]:
        yield b"half"
        raise RuntimeError("bad")


class NotedLater:
    """A Later without a client."""

    made: bytes | None = None
    wanted = True

    def answer(self, made: bytes) -> None:
        assert self.made is None
        self.made = made


Play = Callable[[Callable[[Scene], Coroutine[Any, Any, None]]], None]


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Play:
    def run(act: Callable[[Scene], Coroutine[Any, Any, None]]) -> None:
        async def body() -> None:
            scene = Scene(monkeypatch)
            try:
                await act(scene)
            finally:
                scene.inquiries.stop()
            assert [type(error) for _, error in scene.raised] == scene.expected
            assert all(later.made is not None for later in scene._laters)

        asyncio.run(body())

    return run


def test_the_answer_is_everybodys(play: Play) -> None:
    async def act(scene: Scene) -> None:
        later = scene.ask()
        (question,) = scene.questions()
        assert question == Question(question.number, "echo", b"q", False)
        scene.inquiries.found(question.number, b"other", False, 0)
        scene.inquiries.found(question.number, b"more", True, 1)
        assert scene.asked == []  # not within the command: what the client is doing is not noted of it yet
        await until(lambda: later.made)
        assert later.made == b"more+other+own q+1"
        scene.inquiries.found(question.number, b"late", True, 0)

    play(act)


def test_an_order_that_is_refused(play: Play) -> None:
    """Its answer is why; nothing is merged."""

    async def act(scene: Scene) -> None:
        later = scene.ask(everyone=True, lasting=True)
        (question,) = scene.questions()
        assert question.lasting
        scene.inquiries.found(question.number, b"", True, 0, "not now")
        await until(lambda: later.made)
        assert later.made == b"-ERR not now\r\n"
        assert scene.asked == []

    play(act)


def test_an_order_comes_back_to_who_gave_it(play: Play) -> None:
    async def act(scene: Scene) -> None:
        later = scene.ask(everyone=True)
        (question,) = scene.questions()
        assert question.everyone
        await asyncio.sleep(0.01)
        assert scene.asked == []
        scene.inquiries.query(9, "echo", b"q")
        assert scene.asked == [b"q"]  # at once: before what the channel brings next
        await until(scene.answers)
        assert scene.answers() == [Answer(9, b"own q", True)]
        scene.inquiries.query(0, "echo", b"obeyed")
        await until(lambda: len(scene.asked) == 2)
        await asyncio.sleep(0.01)
        assert scene.asked == [b"q", b"obeyed"]
        assert len(scene.answers()) == 1
        scene.inquiries.found(question.number, b"own q", True, 0)
        await until(lambda: later.made)
        assert later.made == b"own q+0"

    play(act)


def test_few_are_under_way_and_equal_ones_share(play: Play) -> None:
    """A thousand clients in a loop: as many questions as may be, and one for all the others."""

    async def act(scene: Scene) -> None:
        laters = [scene.ask(shared=True) for _ in range(1000)]
        assert len(scene.questions()) == module.MOST
        for question in scene.questions():
            scene.inquiries.found(question.number, b"", True, 0)
        await until(lambda: len(scene.questions()) > module.MOST)
        assert len(scene.questions()) == module.MOST + 1
        scene.inquiries.found(scene.questions()[-1].number, b"", True, 0)
        await until(lambda: all(later.made for later in laters))
        assert {later.made for later in laters} == {b"own q+0"}

    play(act)


@pytest.mark.parametrize("shared", [True, False])
def test_what_is_not_equal_waits_for_its_turn(play: Play, shared: bool) -> None:
    async def act(scene: Scene) -> None:
        bodies = [b"%d" % n if shared else b"q" for n in range(20)]
        laters = [scene.ask(body, shared=shared) for body in bodies]
        answered = 0
        while answered < 20:
            assert len(scene.questions()) - answered <= module.MOST
            for question in scene.questions()[answered:]:
                scene.inquiries.found(question.number, b"", True, 0)
                answered += 1
            await asyncio.sleep(0.005)
        await until(lambda: all(later.made for later in laters))
        assert [later.made for later in laters] == [b"own " + body + b"+0" for body in bodies]

    play(act)


def test_long_work_is_done_in_slices(play: Play) -> None:
    """Ten thousand pieces of 20 us, twice at a time: nobody waits for more than a slice or two."""

    async def act(scene: Scene) -> None:
        later = scene.ask(b"5000", "long")
        (question,) = scene.questions()
        scene.inquiries.found(question.number, b"", True, 0)
        scene.inquiries.query(3, "long", b"5000")
        worst_s, waits = 0.0, 0
        while later.made is None or not any(answer.last for answer in scene.answers()):
            begun_s = time.thread_time()  # what other processes take does not count
            await asyncio.sleep(0)
            worst_s = max(worst_s, time.thread_time() - begun_s)
            waits += 1
        assert waits > 100
        assert worst_s < 0.1  # without slices it is longer
        assert len(later.made) >= 35_000
        whole = b"".join(answer.body for answer in scene.answers())
        assert whole == b"".join(b"%07d" % n for n in range(5000))
        assert [answer.last for answer in scene.answers()][-1]

    play(act)


def test_what_waits_for_something_else_holds_nobody_up(play: Play) -> None:
    """It is looked at now and then, the main process hears that it is alive, and other work goes on."""

    async def act(scene: Scene) -> None:
        scene.inquiries.query(1, "later", b"")
        later = scene.ask()
        begun_s = time.monotonic()
        await asyncio.sleep(0.05)
        await until(lambda: scene.looked > 2)
        assert scene.looked <= (time.monotonic() - begun_s) / module.PAUSE_S + 2
        scene.inquiries.found(1, b"other", True, 0)
        await until(lambda: later.made)
        assert later.made == b"other+own q+0"
        assert [answer for answer in scene.answers() if answer.body or answer.last] == []
        scene.happened = True
        await until(lambda: any(answer.last for answer in scene.answers()))
        assert [answer for answer in scene.answers() if answer.body] == [Answer(1, b"then", True)]

    play(act)


def test_pieces_are_of_a_moderate_size(play: Play) -> None:
    async def act(scene: Scene) -> None:
        scene.inquiries.query(1, "long", b"20000")
        await until(lambda: any(answer.last for answer in scene.answers()))
        assert len(scene.answers()) >= 3
        assert max(len(answer.body) for answer in scene.answers()) < module.CHUNK + 100

    play(act)


def test_who_is_at_work_says_so(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ALIVE_S", 0.01)

    async def act(scene: Scene) -> None:
        scene.inquiries.query(1, "long", b"2000")
        await until(lambda: any(answer.last for answer in scene.answers()))
        assert len(scene.answers()) > 2

    play(act)


def test_no_answer_goes_on_while_the_main_process_is_behind(play: Play) -> None:
    async def act(scene: Scene) -> None:
        scene.behind = module.BEHIND + 1
        scene.inquiries.query(1, "long", b"100")
        await asyncio.sleep(0.05)
        assert scene.answers() == []
        scene.behind = 0
        await until(scene.answers)

    play(act)


def test_a_silent_main_process(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SILENT_S", 0.1)

    async def act(scene: Scene) -> None:
        later, order = scene.ask(), scene.ask(everyone=True)
        scene.inquiries.found(scene.questions()[0].number, b"some", False, 0)
        await until(lambda: later.made and order.made)
        assert (later.made, order.made) == (b"own q+some+-1", b"-1")

    play(act)


def test_faults_are_told(play: Play) -> None:
    async def act(scene: Scene) -> None:
        scene.expected += [RuntimeError, KeyError, TypeError]
        laters = [scene.ask(kind="bad"), scene.ask(kind="nosuch"), scene.ask(reply=lambda merged: bytes(merged, "x"))]
        for question in scene.questions():
            scene.inquiries.found(question.number, b"", True, 0)
        await until(lambda: all(later.made for later in laters))
        assert [later.made for later in laters] == [b"half+0", b"0", b"-ERR internal error\r\n"]
        scene.raised.sort(key=lambda pair: [RuntimeError, KeyError, TypeError].index(type(pair[1])))

    play(act)


def test_a_merge_that_raises(play: Play) -> None:
    async def act(scene: Scene) -> None:
        scene.expected.append(ZeroDivisionError)
        later = scene.inquiries.inquire(Inquiry("echo", b"", lambda parts, missing: 1 // 0), bytes)
        scene.inquiries.found(scene.questions()[0].number, b"", True, 0)
        await until(lambda: later.made)  # type: ignore[attr-defined]
        assert later.made == b"-ERR internal error\r\n"  # type: ignore[attr-defined]

    play(act)


def test_what_waits_is_bounded(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "QUEUED", 100_000)

    async def act(scene: Scene) -> None:
        asked = [scene.ask(b"%060000d" % n) for n in range(module.MOST + 4)]
        assert asked[-2:] == [b"-ERR too many questions to all workers are waiting\r\n"] * 2  # at once: nobody waits
        laters = asked[:-2]
        assert not any(later.made for later in laters)
        for _ in range(2):
            for question in scene.questions():
                scene.inquiries.found(question.number, b"", True, 0)
            await until(lambda: len(scene.questions()) == module.MOST + 2)
        await until(lambda: all(later.made for later in laters))
        assert scene.ask(b"next").made is None

    play(act)


def test_the_end(play: Play) -> None:
    """Whoever waits is told, and so is who comes then."""

    async def act(scene: Scene) -> None:
        laters = [scene.ask(b"%d" % n) for n in range(module.MOST + 3)]
        scene.inquiries.stop()
        assert {later.made for later in laters} == {ENDED}
        assert scene.ask() == ENDED
        scene.inquiries.query(1, "echo", b"q")
        await asyncio.sleep(0.01)

    play(act)


def test_what_nobody_waits_for_any_more_is_not_asked(play: Play) -> None:
    """A client that was killed before its CLIENT KILL had its turn kills nobody."""

    async def act(scene: Scene) -> None:
        laters = [scene.ask(b"%d" % n) for n in range(module.MOST + 3)]
        laters[-2].wanted = False
        for question in scene.questions():
            scene.inquiries.found(question.number, b"", True, 0)
        await until(lambda: len(scene.questions()) == module.MOST + 2)
        assert b"%d" % (module.MOST + 1) not in [question.body for question in scene.questions()]
        assert laters[-2].made is not None

    play(act)


def test_a_later_without_a_client_holds_nothing() -> None:
    later = Later(barrier=True)
    assert later.wanted
    later.answer(b"+OK\r\n")
