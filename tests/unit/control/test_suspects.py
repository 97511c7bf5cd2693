"""Which primaries may hang: who is asked, what begins a suspicion, and what ends it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from proxy.cluster.topology import Address
from proxy.control.node_health import HealthSettings
from proxy.control.suspects import Suspects
from proxy.embedded import HOST, free_port, wait_for
from tests.support.fake_node import SILENCE, Cut, FakeNode
from tests.support.refresher import at, closed, until

Told = list[frozenset[Address]]
Scene = Callable[[Suspects, Told], Awaitable[None]]


def run(scene: Scene, *, clock: Callable[[], float] | None = None, **more: Any) -> Told:
    """The scene; what was told by on_change. Checks that stop() leaves nothing."""

    async def play() -> Told:
        told: Told = []
        options: dict[str, Any] = {"health_interval_s": 0.01, "timeout_s": 5.0} | more
        clocks = {} if clock is None else {"clock": clock}
        suspects = Suspects(HealthSettings(**options), told.append, rng=random.Random(1), **clocks)
        try:
            await scene(suspects, told)
        finally:
            await suspects.stop()
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return told

    return asyncio.run(play())


def pings(node: FakeNode) -> int:
    return len(node.seen("PING"))


def test_asked_again_and_again_over_one_connection(node: FakeNode) -> None:
    async def scene(suspects: Suspects, told: Told) -> None:
        suspects.set_nodes([at(node)])
        await until(lambda: pings(node) >= 5)
        assert len(node.sessions) == 1
        assert suspects.suspected == frozenset()

    assert run(scene) == []
    wait_for(lambda: closed(node), 5, "closed")


@pytest.mark.parametrize("answer", [SILENCE, Cut(), Cut(b"+PO")])
def test_no_answer_is_suspicious_until_there_is_one(node: FakeNode, answer: Any) -> None:
    async def scene(suspects: Suspects, told: Told) -> None:
        suspects.set_nodes([at(node)])
        await until(lambda: pings(node))
        node.on("PING", answer)
        assert suspects.ages == {at(node): 0.0}
        await until(lambda: suspects.suspected == {at(node)})
        assert 0 < suspects.ages[at(node)] < 5
        node.on("PING", b"+PONG\r\n")
        await until(lambda: not suspects.suspected)
        assert suspects.ages == {at(node): 0.0}
        suspects.set_nodes([])
        assert suspects.ages == {}

    assert run(scene, timeout_s=1.0) == [{at(node)}, frozenset()]


def test_an_error_is_an_answer(node: FakeNode) -> None:
    """-BUSY: a script runs."""
    node.on("PING", b"-BUSY Valkey is busy running a script.\r\n")

    async def scene(suspects: Suspects, told: Told) -> None:
        suspects.set_nodes([at(node)])
        await until(lambda: pings(node) >= 3)

    assert run(scene) == []


@pytest.mark.parametrize(
    "reply",
    [
        b"-WRONGPASS invalid username-password pair or user is disabled.\r\n",
        Cut(b"-ERR max number of clients reached\r\n"),
        Cut(b"-ERR max number of clients + cluster connections reached\r\n"),
    ],
)
def test_a_refusal_is_an_answer(node: FakeNode, reply: Any) -> None:
    """The password is changed at the servers first: the connections that carry traffic go on, and nothing hangs."""

    async def scene(suspects: Suspects, told: Told) -> None:
        suspects.set_nodes([at(node)])
        await until(lambda: pings(node))
        node.on("AUTH", reply).on("PING", Cut())
        await until(lambda: len(node.seen("AUTH")) >= 4)
        assert suspects.suspected == frozenset()
        suspects.suspect(at(node), "it closes connections")  # as a worker finds
        assert suspects.suspected == frozenset()

    # The connection that was lost at first is no answer.
    assert run(scene, clock=lambda: 100.0, password="old") == [{at(node)}, frozenset()]


def test_a_node_that_is_loading_is_of_no_use(node: FakeNode) -> None:
    node.on("PING", b"-LOADING Redis is loading the dataset in memory\r\n")

    async def scene(suspects: Suspects, told: Told) -> None:
        suspects.set_nodes([at(node)])
        await until(lambda: suspects.suspected == {at(node)})

    run(scene)


def test_one_that_is_not_there() -> None:
    nobody = Address(HOST, free_port())

    async def scene(suspects: Suspects, told: Told) -> None:
        suspects.set_nodes([nobody])
        await until(lambda: told)

    assert run(scene) == [{nobody}, frozenset()]  # the last: it is not watched any more


def test_what_a_worker_says_is_looked_into_at_once(node: FakeNode) -> None:
    node.on("PING", SILENCE)

    async def scene(suspects: Suspects, told: Told) -> None:
        suspects.set_nodes([at(node)])
        suspects.suspect(at(node), "it is silent")
        assert suspects.suspected == {at(node)}
        suspects.suspect(at(node), "it is silent")
        await until(lambda: pings(node))
        node.on("PING", b"+PONG\r\n")
        await until(lambda: not suspects.suspected)

    assert run(scene, health_interval_s=3600.0, timeout_s=1.0) == [{at(node)}, frozenset()]


def test_one_that_has_just_answered_is_not_suspected(node: FakeNode) -> None:
    now = [100.0]

    async def scene(suspects: Suspects, told: Told) -> None:
        suspects.set_nodes([at(node)])
        await until(lambda: pings(node))
        await asyncio.sleep(0.05)
        suspects.suspect(at(node), "it is silent")
        assert told == []
        now[0] += 1.01
        suspects.suspect(at(node), "it is silent")
        assert told == [{at(node)}]
        await until(lambda: not suspects.suspected)
        assert pings(node) == 2

    run(scene, clock=lambda: now[0], health_interval_s=3600.0)


def test_what_another_node_doubts(node: FakeNode) -> None:
    async def scene(suspects: Suspects, told: Told) -> None:
        suspects.set_nodes([at(node)], [at(node)])
        assert suspects.suspected == {at(node)}
        await until(lambda: not suspects.suspected)

    assert run(scene, health_interval_s=3600.0) == [{at(node)}, frozenset()]


def test_who_owns_nothing_is_not_asked(start_node: Callable[[], FakeNode]) -> None:
    one, other = start_node(), start_node()
    one.on("PING", SILENCE)

    async def scene(suspects: Suspects, told: Told) -> None:
        suspects.set_nodes([at(one), at(other)])
        suspects.suspect(Address("nobody", 1), "it is silent")
        await until(lambda: suspects.suspected == {at(one)})
        suspects.set_nodes([at(other)])
        assert suspects.suspected == frozenset()
        before = pings(one)
        await until(lambda: pings(other) >= 5)
        assert pings(one) == before

    assert run(scene, timeout_s=1.0) == [{at(one)}, frozenset()]
    wait_for(lambda: closed(one), 5, "closed")


def test_new_credentials_are_used_at_once(node: FakeNode) -> None:
    async def scene(suspects: Suspects, told: Told) -> None:
        suspects.set_nodes([at(node)])
        await until(lambda: pings(node) == 1)
        suspects.reconfigure(HealthSettings(health_interval_s=3600.0, timeout_s=5.0, username="bob", password="new"))
        await until(lambda: pings(node) == 2)
        assert [b"AUTH", b"bob", b"new"] in node.sessions[-1].commands

    assert run(scene, health_interval_s=3600.0) == []


def test_a_listener_that_fails_stops_nothing(node: FakeNode, caplog: pytest.LogCaptureFixture) -> None:
    def boom(suspected: frozenset[Address]) -> None:
        raise RuntimeError("boom")

    async def scene() -> None:
        suspects = Suspects(HealthSettings(health_interval_s=0.01), boom)
        suspects.set_nodes([at(node)], [at(node)])
        await until(lambda: pings(node) >= 3)
        await suspects.stop()

    asyncio.run(scene())
    assert "telling who is suspected failed" in caplog.text


def test_what_comes_and_goes_is_not_logged_every_time(node: FakeNode, caplog: pytest.LogCaptureFixture) -> None:
    """Each beginning that is shown has its end, and one that lasts is shown in the end."""
    caplog.set_level("INFO")
    shown: list[tuple[str, str]] = []

    async def scene(suspects: Suspects, told: Told) -> None:
        suspects.set_nodes([at(node)])
        await until(lambda: pings(node))
        for n in range(5):
            now[0] += 2.0
            suspects.suspect(at(node), f"it closes connections {n}")
            await until(lambda: not suspects.suspected)
        shown.extend((one.levelname, one.fields.get("reason")) for one in caplog.records)  # type: ignore[attr-defined]
        node.on("PING", Cut())
        now[0] += 2.0
        suspects.suspect(at(node), "it stays away")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("proxy.system.log.REPEAT_INTERVAL_S", 0.0)
            await until(lambda: len(caplog.records) > 2)

    now = [100.0]
    told = run(scene, clock=lambda: now[0], health_interval_s=3600.0)
    assert len(told) == 12
    assert shown == [("WARNING", "it closes connections 0"), ("INFO", None)]
    assert caplog.records[2].levelname == "WARNING"
