"""The acceptor on real sockets and uvloop; its workers keep what they are given."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from proxy.config.models import Listener
from proxy.ipc.channel import Channel, pair
from proxy.ipc.messages import FROM_WORKER, Take
from proxy.resp.errors import MAX_CLIENTS
from proxy.supervisor import acceptor as module
from proxy.system import log as logs
from proxy.system.sockets import Listening
from tests.unit.supervisor.stage import Stage, answer, names, open_descriptors, peers, play, until


@pytest.fixture(autouse=True)
def _no_warning_was_shown_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_limited", {})


# -- who gets whom -------------------------------------------------------------------------------------------------


def test_one_batch_goes_to_those_with_the_fewest_in_one_group_each() -> None:
    async def scene(stage: Stage) -> None:
        one = stage.listening()
        clients = stage.connect(one, 7)
        stage.acceptor.open(one)
        await until(lambda: stage.workers.taken == 7)
        assert [worker.clients for worker in stage.workers.present] == [5, 5]
        (long,), (short,) = (worker.takes for worker in stage.workers.present)
        assert long[0] == short[0] == str(one.listener.address)
        assert (len(long[2]), len(short[2])) == (2, 5)
        firsts = {first_id: len(group) for _, _, first_id, group in stage.workers.takes}
        assert firsts in ({1: 5, 6: 2}, {1: 2, 3: 5})
        served = [peers(long[2]), peers(short[2])]
        assert sorted(served[0] + served[1]) == sorted(names(clients))
        for group in served:  # ids ascend in the order of acceptance
            assert group == [name for name in names(clients) if name in group]

    play(scene, workers=(3, 0))


def test_equals_have_their_turns() -> None:
    async def scene(stage: Stage) -> None:
        one = stage.listening()
        stage.acceptor.open(one)
        for turn in range(6):
            stage.connect(one)
            await until(lambda: stage.workers.taken > turn)  # noqa: B023
            stage.workers.takes[-1][0].left()
        assert [len(worker.takes) for worker in stage.workers.present] == [2, 2, 2]
        assert [take[2] for take in stage.workers.takes] == [1, 2, 3, 4, 5, 6]

    play(scene, workers=(0, 0, 0))


def test_a_worker_that_misses_more_primaries_gets_nobody_while_there_is_a_better_one() -> None:
    async def scene(stage: Stage) -> None:
        one = stage.listening()
        stage.acceptor.open(one)
        cut, half, well = stage.workers.present
        cut.missed, half.missed = ["a:1", "b:1"], ["b:1"]
        stage.connect(one, 5)
        await until(lambda: stage.workers.taken == 5)
        assert (cut.clients, half.clients, well.clients) == (0, 5, 15)
        well.clients = 20  # it has no room: the next best one
        stage.connect(one, 3)
        await until(lambda: stage.workers.taken == 8)
        assert (cut.clients, half.clients, well.clients) == (0, 8, 20)
        well.clients, well.backlog = 15, module.BEHIND + 1  # nor is one waited for that is stuck
        stage.connect(one)
        await until(lambda: stage.workers.taken == 9)
        assert (cut.clients, half.clients) == (0, 9)
        half.missed = ["a:1", "c:1"]  # as many as the other one
        stage.connect(one, 3)
        await until(lambda: stage.workers.taken == 12)
        assert (cut.clients, half.clients) == (3, 9)

    play(scene, workers=(0, 5, 10), per_worker=20)


def test_a_silent_worker_gets_nobody_while_another_one_speaks() -> None:
    async def scene(stage: Stage) -> None:
        one = stage.listening()
        stage.acceptor.open(one)
        stopped, well = stage.workers.present
        stopped.silence_s = module.QUIET_S
        well.missed = ["a:1"]
        stage.connect(one, 5)
        await until(lambda: stage.workers.taken == 5)
        assert (stopped.clients, well.clients) == (0, 15)
        well.clients = 20  # its clients would hang: they wait until it speaks, or for the one that replaces it
        woken = stage.wakeups
        stage.connect(one)
        await until(lambda: stage.wakeups >= woken + 2)
        assert (stage.workers.taken, stage.acceptor.rejected) == (5, 0)
        well.silence_s = module.QUIET_S  # all are: that says nothing of any
        await until(lambda: stage.workers.taken == 6)
        assert (stopped.clients, well.clients) == (1, 20)

    play(scene, workers=(0, 10), per_worker=20)


def test_a_crowd_at_one_listener_does_not_starve_another() -> None:
    async def scene(stage: Stage) -> None:
        crowded, quiet = stage.listening(), stage.listening()
        stage.connect(crowded, 200)
        stage.connect(quiet)
        stage.acceptor.open(crowded)
        stage.acceptor.open(quiet)
        assert stage.acceptor.listening == [crowded.label, quiet.label]
        await until(lambda: stage.workers.taken == 201)
        listeners = [take[1] for take in stage.workers.takes]
        assert listeners.index(str(quiet.listener.address)) <= 2  # two workers share the crowd's first batch
        assert sum(len(take[3]) for take in stage.workers.takes[:2]) <= 64
        ids = sorted(id for _, _, first, group in stage.workers.takes for id in range(first, first + len(group)))
        assert ids == list(range(1, 202))

    play(scene)


def test_unix_clients(tmp_path: Path) -> None:
    async def scene(stage: Stage) -> None:
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(str(tmp_path / "sock"))
        sock.setblocking(False)
        stage.acceptor.open(Listening(sock, Listener.model_validate({"address": f"unix:{tmp_path}/sock"})))
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(tmp_path / "sock"))
            await until(lambda: stage.workers.taken == 1)
            assert stage.workers.takes[0][1] == f"unix:{tmp_path}/sock"

    play(scene)


# -- nobody to serve them ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("told", [True, False], ids=["told", "not told"])
def test_without_a_worker_connections_wait_in_the_kernel(told: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(stage: Stage) -> None:
        one, later = stage.listening(), stage.listening()
        stage.workers.serving = False
        stage.acceptor.open(one)
        stage.connect(one, 3)
        before = open_descriptors()
        await until(lambda: stage.wakeups)
        woken, begun_s = stage.wakeups, time.monotonic()
        await asyncio.sleep(0.3)
        assert stage.wakeups - woken <= (time.monotonic() - begun_s) / 0.05 + 1  # it does not spin
        assert open_descriptors() == before
        stage.acceptor.open(later)
        stage.connect(later)
        if told:  # at once, not when the pause ends
            monkeypatch.setattr(module, "_LOOK_S", 60.0)
            await asyncio.sleep(0.1)  # the pause under way is a long one now
        stage.workers.serving = True
        if told:
            stage.acceptor.workers_changed()
        await until(lambda: stage.workers.taken == 4)
        assert stage.acceptor.rejected == 0

    play(scene)


def test_a_worker_that_is_behind_gets_nobody_until_it_reads_again() -> None:
    async def scene(stage: Stage) -> None:
        loop = asyncio.get_running_loop()
        ours, theirs = pair()
        channel = Channel(ours, FROM_WORKER, lambda message, descriptors: None, lambda reason: None)
        channel.start(loop)
        one = stage.listening()
        behind, other = stage.workers.present
        try:
            while channel.backlog <= module.BEHIND:
                channel.send(Take("x" * 10_000, 1, 0))
            behind.backlog = channel.backlog
            stage.acceptor.open(one)
            stage.connect(one, 5)
            await until(lambda: stage.workers.taken == 5)
            assert (behind.clients, other.clients) == (0, 5)
            other.backlog = module.BEHIND + 1
            woken, begun_s = stage.wakeups, time.monotonic()
            stage.connect(one, 2)
            await asyncio.sleep(10 * module.PATIENCE_S)
            await until(lambda: stage.wakeups - woken >= 3)  # it is looked at again, and not without end
            assert stage.wakeups - woken <= (time.monotonic() - begun_s) / 0.05 + 2
            assert (stage.workers.taken, stage.acceptor.rejected) == (5, 0)
            theirs.setblocking(False)
            while channel.backlog:
                await loop.sock_recv(theirs, 1 << 20)
            behind.backlog = channel.backlog
            await until(lambda: stage.workers.taken == 7)
            assert (behind.clients, other.clients) == (2, 5)
        finally:
            channel.close()
            theirs.close()

    play(scene)


def test_while_connections_are_accepted_a_change_of_workers_costs_nothing() -> None:
    async def scene(stage: Stage) -> None:
        stage.acceptor.open(stage.listening())
        for _ in range(100):
            stage.acceptor.workers_changed()
        await asyncio.sleep(0.05)
        assert stage.wakeups == 0

    play(scene)


# -- accept fails --------------------------------------------------------------------------------------------------


class Counting(socket.socket):
    """Counts the attempts."""

    attempts = 0
    errors: tuple[OSError, ...] = ()

    def _accept(self) -> Any:
        self.attempts += 1
        if self.attempts <= len(self.errors):
            raise self.errors[self.attempts - 1]
        return super()._accept()  # type: ignore[misc]


def test_out_of_descriptors(few_descriptors: Callable[[int | None], None], caplog: pytest.LogCaptureFixture) -> None:
    async def scene(stage: Stage) -> None:
        one = stage.listening(Counting)
        assert isinstance(one.sock, Counting)
        stage.connect(one, 5)
        few_descriptors(2)
        begun_s = time.monotonic()
        stage.acceptor.open(one)
        await until(lambda: stage.workers.taken == 2)
        await asyncio.sleep(0.35)
        await until(lambda: one.sock.attempts >= 4)  # type: ignore[attr-defined]
        assert stage.workers.taken == 2
        assert one.sock.attempts <= 3 + 1 + (time.monotonic() - begun_s) / 0.1  # the pause is 100 ms
        assert [record.message for record in caplog.records if record.levelname == "WARNING"] == [
            "cannot accept a connection"
        ]
        while stage.workers.present[0].held:
            stage.workers.present[0].left()
        await until(lambda: stage.workers.taken == 3)

    play(scene)


def test_a_connection_that_is_already_gone_is_no_trouble(caplog: pytest.LogCaptureFixture) -> None:
    class Aborting(Counting):
        errors = (ConnectionAbortedError(103, "x"), OSError(71, "x"))

    async def scene(stage: Stage) -> None:
        one = stage.listening(Aborting)
        stage.connect(one, 2)
        stage.acceptor.open(one)
        await until(lambda: stage.workers.taken)
        assert stage.workers.taken == 2
        assert "cannot accept a connection" not in caplog.text

    play(scene)


# -- opened and closed ---------------------------------------------------------------------------------------------


def test_a_closed_listener_has_served_its_queue() -> None:
    async def scene(stage: Stage) -> None:
        one, other = stage.listening(), stage.listening()
        stage.acceptor.open(one)
        stage.acceptor.open(other)
        where = one.sock.getsockname()
        stage.connect(one, 100)
        stage.acceptor.close(one)
        assert stage.workers.taken == 100
        assert stage.acceptor.listening == [other.label]
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(where)
        stage.connect(other)
        await until(lambda: stage.workers.taken == 101)

    play(scene)


def test_a_socket_another_process_holds_too_keeps_its_queue() -> None:
    async def scene(stage: Stage) -> None:
        one = stage.listening()
        successor = one.sock.dup()
        stage.spare.append(successor)
        stage.acceptor.open(one)
        stage.connect(one)
        await until(lambda: stage.workers.taken == 1)
        stage.acceptor.close(one, accept=False)
        client = stage.connect(replace(one, sock=successor))[0]
        woken = stage.wakeups
        await asyncio.sleep(0.05)
        assert (stage.workers.taken, stage.wakeups) == (1, woken)  # its events are not ours any more
        accepted, where = successor.accept()
        accepted.close()
        assert where == client.getsockname()

    play(scene)


@pytest.mark.parametrize("behind", [False, True])
def test_when_all_are_closed_the_queues_are_served_first(behind: bool) -> None:
    async def scene(stage: Stage) -> None:
        listeners = [stage.listening(), stage.listening()]
        for worker in stage.workers.present:
            worker.backlog = module.BEHIND + 1 if behind else 0
        clients = []
        for one in listeners:
            stage.acceptor.open(one)
            clients += stage.connect(one, 150)
        addresses = [one.sock.getsockname() for one in listeners]
        stage.acceptor.close_all(accept=True)
        assert stage.workers.taken == 290
        assert [await answer(client) for client in clients[290:]] == [MAX_CLIENTS] * 10
        assert stage.acceptor.rejected == 10
        assert stage.acceptor.listening == []
        for where in addresses:
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(where)

    play(scene, max_clients=290)


def test_closing_gives_no_worker_more_than_its_share() -> None:
    """Those that have caught up are served first, then those that are behind; who is left is refused."""

    async def scene(stage: Stage) -> None:
        one = stage.listening()
        ready, behind = stage.workers.present
        behind.backlog = module.BEHIND + 1
        stage.acceptor.open(one)
        clients = stage.connect(one, 12)
        stage.acceptor.close_all(accept=True)
        assert (ready.clients, behind.clients) == (5, 5)
        assert peers(ready.held + behind.held) == names(clients[:10])
        assert [await answer(client) for client in clients[10:]] == [MAX_CLIENTS] * 2

    play(scene, per_worker=5)


def test_closing_ends_though_clients_come_without_end() -> None:
    class Endless(Counting):
        def _accept(self) -> Any:
            stage_of[0].connect(stage_of[1])
            return super()._accept()

    stage_of: list[Any] = []

    async def scene(stage: Stage) -> None:
        one = stage.listening(Endless, backlog=20)
        stage_of.extend((stage, one))
        stage.acceptor.open(one)
        stage.acceptor.close_all(accept=True)
        assert stage.workers.taken == 21

    play(scene)


def test_who_waits_at_the_limit_when_all_is_closed_gets_the_last_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """From a worker that is behind if need be."""
    monkeypatch.setattr(module, "PATIENCE_S", 20.0)

    async def scene(stage: Stage) -> None:
        one = stage.listening()
        (worker,) = stage.workers.present
        stage.acceptor.open(one)
        stage.connect(one)
        await until(lambda: stage.workers.taken == 1)
        woken = stage.wakeups
        waiting = stage.connect(one, 2)
        await until(lambda: stage.wakeups > woken)
        worker.backlog = module.BEHIND + 1
        worker.left()
        assert stage.workers.taken == 1
        stage.acceptor.close_all(accept=True)
        assert peers(stage.workers.takes[-1][3]) == names(waiting[:1])
        assert await answer(waiting[1]) == MAX_CLIENTS

    play(scene, workers=(0,), max_clients=1)


def test_closed_at_once() -> None:
    """As at a second SIGTERM: who waits is cut off, and no timer comes back."""

    async def scene(stage: Stage) -> None:
        one = stage.listening()
        stage.acceptor.open(one)
        before = open_descriptors()
        (waiting,) = stage.connect(one)
        await until(lambda: stage.wakeups)
        stage.acceptor.close_all(accept=False)
        with pytest.raises(ConnectionResetError):
            await answer(waiting)
        woken = stage.wakeups
        await asyncio.sleep(0.05)
        assert (stage.workers.taken, stage.acceptor.rejected, stage.wakeups) == (0, 0, woken)
        assert open_descriptors() == before  # a client less one listener

    play(scene, max_clients=0)
