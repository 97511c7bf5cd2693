"""What a reload says of nodes that refuse new credentials, or say nothing. See tests/daemon/test_reload.py, too."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from proxy.config.models import from_seeds
from proxy.control.credentials import Tried
from proxy.ipc.messages import NodeStatus
from proxy.supervisor.reload import Reload

SETTINGS = from_seeds(["a:1"])
LINE = "WRONGPASS invalid"
FULL = "ERR max number of clients reached"


class Stage:
    """As much of a supervisor as is asked; up: of each node, whether the one worker is connected to it."""

    def __init__(self, login: Tried, up: Mapping[str, bool]) -> None:
        nodes = {name: NodeStatus("primary", connected, {}, 0, 0, [], 0.0, True) for name, connected in up.items()}
        self.login = login
        self.moved = Tried({}, False)
        self.settings, self.control = SETTINGS, self
        self.pool = SimpleNamespace(ask=self._ask, present=[SimpleNamespace(status=SimpleNamespace(nodes=nodes))])
        self.notifier = SimpleNamespace(reloading=int, ready=int)
        self.kept: list[str] | None = None  # None = nothing was put in force

    async def try_login(self, new: Any) -> Tried:
        return self.login

    async def try_addresses(self, new: Any) -> Tried:
        return self.moved

    async def _ask(self, within_s: float) -> None:
        pass


def reloaded(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The state after it."""

    async def put_in_force(_: Reload, new: Any, opened: Any, keep: list[str]) -> None:
        stage.kept = keep

    async def nothing(_: Reload, new: Any) -> list[Any]:
        return []

    monkeypatch.setattr(Reload, "_put_in_force", put_in_force)
    monkeypatch.setattr(Reload, "_open", nothing)

    async def body() -> dict[str, Any]:
        reload = Reload(stage, lambda: SETTINGS)  # type: ignore[arg-type]
        await reload._once()
        return reload.state()

    return asyncio.run(body())


@pytest.mark.parametrize(
    ("login", "said"),
    [
        (Tried({}, True), ""),
        (
            Tried({}, True, {"b:1": FULL}),
            f"1 nodes have not said whether they take it, and keep their old connections until they do: b:1: {FULL}",
        ),
        # Nobody is connected to it: it has nothing that could be out of date.
        (Tried({}, True, {"gone:1": "Connection refused"}), ""),
        (Tried({"a:1": LINE}, True), f"1 nodes refuse it, and keep their old connections only: a:1: {LINE}"),
    ],
)
def test_a_node_that_has_not_taken_the_credentials(login: Tried, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are in force, and it is not over: to take the old ones away now would be an outage there."""
    stage = Stage(login, {"a:1": True, "b:1": True, "gone:1": False})
    told = reloaded(stage, monkeypatch)
    assert told["error"] == (f"cluster.password: {said}" if said else "")
    assert (told["successful"], told["partly"]) == (not said, bool(said))
    assert stage.kept == list(login.refused)


def test_both_kinds_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(Tried({"a:1": LINE}, True, {"b:1": FULL}), {"a:1": True, "b:1": True})
    error = reloaded(stage, monkeypatch)["error"]
    assert f"a:1: {LINE}; cluster.password: 1 nodes have not said" in error
    assert error.endswith(f"b:1: {FULL}")


def test_what_nobody_has_taken_is_not_put_in_force(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(Tried({}, False, {"b:1": FULL}), {"a:1": True, "b:1": True})
    told = reloaded(stage, monkeypatch)
    assert told["error"].startswith("cluster.password: no node has taken it yet: b:1: ")
    assert stage.kept is None


@pytest.mark.parametrize(
    ("moved", "error", "done"),
    [
        (Tried({}, False, {"c:1": "no route"}), "no primary can be reached where they lead: c:1: no route", False),
        (Tried({}, True, {"c:1": "no route"}), "1 primaries cannot be reached where they lead: c:1: no route", True),
        (Tried({"d:1": LINE}, False, {"c:1": "-"}), "1 primaries cannot be reached where they lead: c:1: -", True),
        (Tried({}, True), "", True),
    ],
)
def test_addresses_that_lead_nowhere(moved: Tried, error: str, done: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(Tried({}, True), {"a:1": True})
    stage.moved = moved
    told = reloaded(stage, monkeypatch)
    assert told["error"] == (f"cluster.address_map and cluster.endpoint: {error}" if error else "")
    assert (stage.kept is not None, told["partly"]) == (done, done and bool(error))


def test_where_nothing_works_other_addresses_are_welcome(monkeypatch: pytest.MonkeyPatch) -> None:
    """They may be right, and the way there not open yet."""
    stage = Stage(Tried({}, True), {})
    stage.moved = Tried({}, False, {"c:1": "no route"})
    reloaded(stage, monkeypatch)
    assert stage.kept == []
