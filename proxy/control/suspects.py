"""Which primaries may hang: asked PING from time to time, and at once when a worker finds one silent.

Why: a node that hangs or is cut off keeps its connections open, and the cluster needs a node timeout and an election
before it says so; meanwhile somebody has to look again and again, and without asking the suspect. A primary on which
nothing but idle clients wait (blocked, subscribed) is noticed by nobody else. Called by control_plane: set_nodes()
after each topology, suspect() when a worker says so, on_change() back.

Invariants: one connection and one task per primary that owns slots, gone with its slots; at most `concurrency` probes
at a time; a suspicion begins with a probe that fails, a worker's report or another node's doubt, and ends with the
first answer, be it a refusal (of a password that is being changed, say), or with the node's slots. on_change() must not
block. A node that is only busy answers no PING either: a
suspicion makes others be asked, and nothing worse.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Final

from proxy.cluster.topology import Address
from proxy.control.node_client import NodeClientError, NodeRefusal, StandingClient
from proxy.control.node_health import HealthSettings
from proxy.control.tasks import keep
from proxy.system.log import get, warn_limited

# The first probes of a new topology are spread over this long (or the interval, if that is shorter).
_FIRST_SPREAD_S: Final = 0.2
_JITTER: Final = 0.1
_AGAIN_S: Final = 0.5  # between two probes of a suspect
# A worker that says that a node has been silent for a while is wrong about the node, if it has answered us since.
_ANSWERED_S: Final = 1.0

log = get("control.suspects")


class _Watched:
    """A primary under watch."""

    __slots__ = ("address", "answered_s", "logged", "since_s", "suspected", "task", "wake")

    def __init__(self, address: Address) -> None:
        self.address = address
        self.suspected = False
        self.logged = False  # that it is suspected
        self.since_s = 0.0  # of the suspicion
        self.answered_s: float | None = None
        self.wake = asyncio.Event()
        self.task: asyncio.Task[None] | None = None


class Suspects:
    """See the module. Needs a running loop from set_nodes() on. Of the settings health_interval_s is used as there."""

    def __init__(
        self,
        settings: HealthSettings,
        on_change: Callable[[frozenset[Address]], None],
        *,
        rng: random.Random | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings
        self._on_change = on_change
        self._rng = rng or random.Random()
        self._clock = clock
        self._watched: dict[Address, _Watched] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._slots = asyncio.Semaphore(settings.concurrency)

    @property
    def suspected(self) -> frozenset[Address]:
        """Who is, now."""
        return frozenset(address for address, watched in self._watched.items() if watched.suspected)

    @property
    def ages(self) -> dict[Address, float]:
        """Every primary that owns slots -> for how many seconds it has been suspected, 0 = it is not."""
        now_s = self._clock()
        return {
            address: max(now_s - watched.since_s, 1e-9) if watched.suspected else 0.0
            for address, watched in self._watched.items()
        }

    def reconfigure(self, settings: HealthSettings) -> None:
        """New settings (but for concurrency), at once: every primary is probed now, with the new credentials."""
        self.settings = settings
        for watched in self._watched.values():
            watched.wake.set()

    def set_nodes(self, owners: Iterable[Address], doubted: Iterable[Address] = ()) -> None:
        """The primaries that own slots by the newest topology; doubted: those that a node has lost touch with."""
        wanted = set(owners)
        before = self.suspected
        for address in self._watched.keys() - wanted:
            watched = self._watched.pop(address)
            if watched.task is not None:
                watched.task.cancel()
                self._ending.add(watched.task)
                watched.task.add_done_callback(self._ending.discard)
        for address in wanted - self._watched.keys():
            watched = self._watched[address] = _Watched(address)
            watched.task = keep(partial(self._watch, watched), "suspects")
        if self.suspected != before:
            self._tell()
        for address in doubted:
            self.suspect(address, "another node has lost touch with it")

    def suspect(self, address: Address, why: str) -> None:
        """A worker or another node finds it silent or away, until its next answer. Others than primaries: nothing."""
        watched = self._watched.get(address)
        if watched is None or watched.suspected:
            return
        if watched.answered_s is not None and self._clock() - watched.answered_s < _ANSWERED_S:
            return
        self._set(watched, True, why)
        watched.wake.set()

    async def stop(self) -> None:
        """Returns when every task and connection is gone."""
        self.set_nodes(())
        await asyncio.gather(*self._ending, return_exceptions=True)

    # --- inside

    def _set(self, watched: _Watched, suspected: bool, why: str) -> None:
        # Of a suspicion that comes and goes again and again only some are logged, but each of those with its end; and
        # one that lasts is logged in the end.
        if suspected and not watched.logged:
            text = "primary is suspected: the other nodes are asked about it"
            key = f"suspect:{watched.address}"
            watched.logged = warn_limited(log, key, text, node=watched.address, reason=why)
        if suspected == watched.suspected:
            return
        watched.suspected = suspected
        if suspected:
            watched.since_s = self._clock()
        elif watched.logged:
            watched.logged = False
            log.info("primary is not suspected any more: it answers", node=watched.address)
        self._tell()

    def _tell(self) -> None:
        try:
            self._on_change(self.suspected)
        except Exception:
            log.exception("telling who is suspected failed")

    async def _watch(self, watched: _Watched) -> None:
        client = StandingClient(watched.address)
        delay = self._rng.uniform(0, min(_FIRST_SPREAD_S, self.settings.health_interval_s))
        try:
            while True:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(delay):
                        await watched.wake.wait()
                watched.wake.clear()
                async with self._slots:
                    fault: NodeClientError | None = None
                    try:
                        await client.ask(self.settings.upstream, ("PING",))
                    except NodeClientError as error:
                        fault = None if isinstance(error, NodeRefusal) else error  # an error is an answer, too
                    if fault is None:
                        watched.answered_s = self._clock()
                    self._set(watched, fault is not None, str(fault))
                pause_s = _AGAIN_S if watched.suspected else self.settings.health_interval_s
                delay = min(pause_s, self.settings.health_interval_s) * self._rng.uniform(1 - _JITTER, 1 + _JITTER)
        finally:
            await client.close()
