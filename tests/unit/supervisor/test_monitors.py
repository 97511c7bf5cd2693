"""The lines of MONITOR between workers: sent to who wants them, and only while somebody does."""

from __future__ import annotations

from typing import Any

from proxy.ipc.messages import Monitoring, Shown, ShowOthers
from proxy.supervisor.monitors import BEHIND, MonitorRelay


class FakeWorker:
    """Keeps what it is sent."""

    def __init__(self) -> None:
        self.channel = self
        self.started = True
        self.backlog = 0
        self.got: list[Any] = []

    def silent_s(self) -> float:
        return 0.0

    def send(self, message: Any) -> None:
        self.got.append(message)

    def take(self) -> list[Any]:
        got, self.got = self.got, []
        return got


def test_the_others_are_told_when_the_first_comes_and_the_last_goes() -> None:
    one, two, three = workers = [FakeWorker() for _ in range(3)]
    relay = MonitorRelay(lambda: workers)
    relay.heard(one, Monitoring(1))
    assert (one.take(), two.take(), three.take()) == ([], [ShowOthers(True)], [ShowOthers(True)])
    relay.heard(one, Monitoring(2))
    assert not any(worker.got for worker in workers)
    relay.heard(two, Monitoring(1))
    assert (one.take(), two.take(), three.take()) == ([ShowOthers(True)], [], [])
    relay.heard(one, Monitoring(0))
    assert (one.take(), two.take(), three.take()) == ([], [ShowOthers(False)], [])
    relay.heard(two, Monitoring(0))
    assert (one.take(), two.take(), three.take()) == ([ShowOthers(False)], [], [ShowOthers(False)])


def test_lines_go_to_workers_with_monitors_and_not_back() -> None:
    one, two, three = workers = [FakeWorker() for _ in range(3)]
    relay = MonitorRelay(lambda: workers)
    relay.heard(one, Monitoring(1))
    relay.heard(two, Monitoring(1))
    for worker in workers:
        worker.take()
    relay.heard(one, Shown(b"a\r\n", 1, 0))
    assert (one.take(), two.take(), three.take()) == ([], [Shown(b"a\r\n", 1, 0)], [])


def test_who_is_behind_is_told_how_much_it_missed() -> None:
    one, two = workers = [FakeWorker() for _ in range(2)]
    relay = MonitorRelay(lambda: workers)
    relay.heard(one, Monitoring(1))
    one.backlog = BEHIND + 1
    relay.heard(two, Shown(b"a\r\nb\r\n", 2, 0))
    relay.heard(two, Shown(b"c\r\n", 1, 0))
    assert one.take() == []
    one.backlog = 0
    relay.heard(two, Shown(b"d\r\n", 1, 0))
    relay.heard(two, Shown(b"e\r\n", 1, 0))
    assert one.take() == [Shown(b"d\r\n", 1, 3), Shown(b"e\r\n", 1, 0)]


def test_workers_that_come_and_go() -> None:
    one, two = FakeWorker(), FakeWorker()
    workers = [one, two]
    relay = MonitorRelay(lambda: workers)
    two.started = False
    relay.heard(one, Monitoring(1))
    assert two.take() == []  # it does not listen yet
    two.started = True
    relay.started(two)
    assert two.take() == [ShowOthers(True)]
    workers.remove(one)
    relay.gone(one)
    assert two.take() == [ShowOthers(False)]
    relay.heard(two, Shown(b"a\r\n", 1, 0))
    assert one.take() == []
