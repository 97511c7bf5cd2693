"""PROXY PAUSE in one worker: which nodes are paused, until when, and what has to be done before and after.

Why: planned work on a node (a restart) is not to be seen by any client. What is held is the data path's business
(forward.gate); this knows the time, follows the topology, tells the log, and sees to it that subscriptions are where
messages come from before anything is let go. Called by worker.worker; serve.console has it obey and wait.

Invariants: all workers have the same pauses, a new one included (an order to everyone, see supervisor.relay); each ends
by itself; a node is known by its id, so that it stays paused where it comes back with another address. Worker 0 logs.
From lift() on nothing is held any more.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Final, Protocol

from proxy.cluster.topology import Address
from proxy.forward.backend import Backend
from proxy.forward.datapath import DataPath
from proxy.forward.gate import held, pending, reconnect, set_paused
from proxy.forward.node import Node
from proxy.forward.router import Router
from proxy.ipc.messages import NodeEntry
from proxy.serve.context import NodePause
from proxy.system.log import get

UP_S: Final = 2.0  # a node that is about to be resumed has this long to take connections ...
IN_FORCE_S: Final = 2.0  # ... and subscriptions
LINES: Final = 20  # of the log per second; of what is more the last of each node is said afterwards
REFRESH_S: Final = 1.0  # nothing that goes to a paused node would tell that it has lost its role

log = get("worker.pause")


class Upstream(Protocol):
    """As much of worker.upstream as is needed here."""

    @property
    def interrupted(self) -> bool: ...
    def recall(self, node: Node) -> None: ...


class NodePauses:
    """See the module. forget: ends the attempts to connect a backend; stale(reason): the topology may have changed."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        path: DataPath,
        router: Router,
        forget: Callable[[Backend], None],
        upstream: Upstream,
        stale: Callable[[str], None],
        *,
        logged: bool,
    ) -> None:
        self._topology: Sequence[tuple[Address, NodeEntry]] = ()
        self._loop = loop
        self._path = path
        self._router = router
        self._forget = forget
        self._upstream = upstream
        self._logged = logged
        self._stale = stale
        self._refresh_s = 0.0
        self._pauses: dict[str, NodePause] = {}  # by subject
        self._last: dict[str, NodePause] = {}  # by subject: what has begun, changed or ended it last
        self._lifted = False
        self._said: list[float] = []  # when, within the last second
        self._unsaid: dict[str, tuple[str, dict[str, Any]]] = {}  # by subject

    @property
    def present(self) -> Collection[NodePause]:
        """Those in force."""
        return self._pauses.values()

    def obey(self, pause: NodePause) -> None:
        """Begins one, changes its time, or ends it (all of them, when it is of no certain node).

        Orders may come late, and what was paused after a RESUME was given has another owner, who was told that it is.
        """
        if self._lifted:
            return
        if pause.until_ns > time.monotonic_ns():
            self._pauses[pause.subject] = self._last[pause.subject] = pause
            seconds = round((pause.until_ns - time.monotonic_ns()) / 1e9, 1)
            self._say("node paused", pause, seconds=seconds, client=pause.who)
        elif pause.until_ns:  # its time is over already; it is no RESUME, which is of all nodes if this one is
            self._last[pause.subject] = pause
            self._end([pause.subject] if pause.subject in self._pauses else [], pause.who)
        else:
            older = [one.subject for one in self._pauses.values() if one.given_ns <= pause.given_ns]
            ended = [subject for subject in older if pause.subject in ("", subject)]
            self._last |= dict.fromkeys(ended, pause)
            self._end(ended, pause.who)
        self._apply()

    def fate(self, pause: NodePause) -> str:
        """What has come of one that was obeyed here, as a clause; "" = it is in force."""
        if self._lifted:
            return "was ended by a drain"
        if (last := self._last.get(pause.subject, pause)) != pause:
            return f"was {'set anew' if last.until_ns else 'ended'} by {last.who}"
        if pause.until_ns <= time.monotonic_ns():
            return "is over: its time was too short for what was under way there"
        return ""

    def follow(self, nodes: Sequence[tuple[Address, NodeEntry]]) -> None:
        """Another topology is in force, with these nodes."""
        self._topology = nodes
        if self._pauses:
            self._apply()

    @property
    def ids(self) -> Mapping[str, str]:
        """Of the topology: "host:port" -> id. Made when it is asked for: there may be many."""
        return {str(address): entry.id for address, entry in self._topology}

    def look(self) -> None:
        """To be called regularly: a pause ends by itself, too."""
        self._catch_up()
        if not self._pauses:
            return
        if self._logged and self._loop.time() >= self._refresh_s:
            self._refresh_s = self._loop.time() + REFRESH_S
            self._stale("paused")
        now_ns = time.monotonic_ns()
        if over := [pause.subject for pause in self._pauses.values() if pause.until_ns <= now_ns]:
            self._end(over, "")
            self._apply()

    def lift(self) -> None:
        """Lets everything go on, for good: this worker is to end."""
        self._lifted = True
        self._catch_up()
        if self._pauses:
            if self._logged:
                log.warning("nodes resumed: this process ends", nodes=" ".join(map(_named, self._pauses.values())))
            self._pauses = {}
            self._apply()

    def pending(self, subject: str) -> int:
        """Commands that were sent to the nodes of this pause and are not answered."""
        return sum(pending(node) for node in self._nodes(subject))

    def prepare(self, subject: str) -> Iterator[None]:
        """Before what is held is let go: the nodes are connected to, and what is subscribed there is in force.

        Ends when that is done, or takes too long.
        """
        until_s, known = self._loop.time() + UP_S, set[Node]()
        while True:
            nodes = [node for node in self._nodes(subject) if node.paused]  # it may come back with another address
            for node in [node for node in nodes if node not in known]:
                known.add(node)
                for backend in node.backends():
                    if backend.fd < 0:
                        self._forget(backend)  # however long it waits before the next attempt
                reconnect(self._path, node)
            if all(node.up for node in nodes) or self._loop.time() >= until_s:
                break
            yield
        for node in nodes:
            self._upstream.recall(node)
        until_s = self._loop.time() + IN_FORCE_S
        yield  # what is lost is noticed meanwhile
        while self._upstream.interrupted and self._loop.time() < until_s:
            yield

    def _nodes(self, subject: str) -> list[Node]:
        """Those that this pause is of: by the id if it has one, for another node may come to have the address."""
        if not subject:
            return list(self._router.nodes.values())
        addresses = {subject, *(str(address) for address, entry in self._topology if entry.id == subject)}
        return [node for node in self._router.nodes.values() if node.label in addresses]

    def _apply(self) -> None:
        paused = {node for subject in self._pauses for node in self._nodes(subject)}
        for node in paused:
            if not node.paused:
                for backend in node.backends():
                    if backend.fd < 0:
                        self._forget(backend)
        set_paused(self._path, paused)

    def _end(self, subjects: Collection[str], who: str) -> None:
        for subject in subjects:
            pause = self._pauses.pop(subject)
            self._say("node resumed", pause, held=held(self._path), **({"client": who} if who else {}))

    def _say(self, event: str, pause: NodePause, **more: object) -> None:
        if self._logged:
            self._unsaid.pop(pause.subject, None)
            self._unsaid[pause.subject] = (event, {"node": _named(pause), **more})
            self._catch_up()

    def _catch_up(self) -> None:
        """Logs what has not been said yet, as fast as it may."""
        now_s = self._loop.time()
        while self._unsaid and (len(self._said) < LINES or now_s - self._said[0] >= 1.0):
            self._said = [*self._said[-LINES + 1 :], now_s]
            event, fields = self._unsaid.pop(next(iter(self._unsaid)))
            log.warning(event, **fields)


def _named(pause: NodePause) -> str:
    return pause.label if pause.subject else "all"
