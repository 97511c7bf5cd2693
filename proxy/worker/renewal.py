"""New connections to the nodes when they are to be made otherwise: the old ones go when a new one can be had.

Why: a node may have no room for more clients, may hang, or may not take the new credentials yet; giving up connections
that work, for new ones that cannot be made, would be an outage that the operator has not asked for. Called by
worker.worker: begin() with the new settings, up() when a connection was made, look() in every sweep.

Invariants: a node with a connection keeps all it has until a connection of our own, made with the new settings, was
shaken hands on; that one is closed at once, for it is nobody's. A node without one has nothing to lose and is renewed
at once; at one that PROXY PAUSE holds nothing is tried until it is resumed, and then as at the others. At most one
attempt at a node at a time, after a pause that grows from backoff_min to backoff_max.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from proxy.forward.backend import Backend, BackendState
from proxy.forward.node import Node
from proxy.forward.router import Router
from proxy.ipc.settings import Backends
from proxy.system.log import get, warn_limited
from proxy.worker.breaker import backoff
from proxy.worker.connector import Connector

log = get("worker.renewal")


class _Attempt:
    def __init__(self) -> None:
        self.backend: Backend | None = None  # the last one that was tried
        self.failures = 0
        self.due_s: float | None = 0.0  # when the next one is to be made, in the clock's time; None = it is under way


class Renewal:
    """See the module. renew(labels): these nodes' old connections are not to be used any more; clock: in seconds."""

    def __init__(
        self,
        router: Router,
        connector: Connector,
        renew: Callable[[Collection[str]], None],
        clock: Callable[[], float],
    ) -> None:
        self._router, self._connector = router, connector
        self._renew, self._clock = renew, clock
        self._attempts: dict[Node, _Attempt] = {}
        self._kept: dict[Node, list[Backend]] = {}  # nodes that are left as they are: their connections of before

    @property
    def waiting(self) -> list[str]:
        """The labels of the nodes that still have connections of before."""
        kept = [node for node, old in self._kept.items() if any(backend.fd >= 0 for backend in old)]
        return [node.label for node in (*self._attempts, *kept)]

    def begin(self, keep: Collection[str] = ()) -> None:
        """Connections are made otherwise from now on; keep: the labels of nodes that are left as they are."""
        for attempt in self._attempts.values():
            self._close(attempt)
        self._attempts.clear()
        every = self._router.nodes.values()
        # What a client has of its own goes when the client does.
        old = {node: [one for one in node.backends() if one.purpose == "shared"] for node in every}
        self._kept = {node: old[node] for node in every if node.label in keep}
        self._take([node for node in every if node.label not in keep])

    def follow(self, keep: Collection[str]) -> None:
        """The settings are the same, and these nodes are to be left as they are now; others no more."""
        released = [node for node in self._kept if node.label not in keep]
        for node in released:
            del self._kept[node]
        self._take(released)

    def _take(self, nodes: Collection[Node]) -> None:
        self._renew({node.label for node in nodes if not node.up})
        for node in nodes:
            if node.up:
                attempt = self._attempts[node] = _Attempt()
                if not node.paused:
                    self._dial(node, attempt)

    def up(self, backend: Backend) -> None:
        """A connection was made."""
        if backend in (old := self._kept.get(backend.node, [])):
            old.remove(backend)
        attempt = self._attempts.get(backend.node)
        if attempt is not None and attempt.backend is backend:
            self._done(backend.node)

    def look(self) -> None:
        """Attempts that failed, and nodes for which nothing is to be waited for any more."""
        for node in [node for node in self._kept if node.gone]:
            del self._kept[node]
        for node, attempt in list(self._attempts.items()):
            if node.gone or not node.up:
                self._done(node)
            elif not node.paused and (attempt.backend is None or attempt.backend.state == BackendState.CLOSED):
                self._again(node, attempt)

    def _again(self, node: Node, attempt: _Attempt) -> None:
        now_s = self._clock()
        if attempt.due_s is None:
            text = "a node keeps its old connections until new ones can be made"
            warn_limited(log, f"kept:{node.label}", text, node=node.label)
            settings: Backends = self._connector.settings
            attempt.failures += 1
            attempt.due_s = now_s + backoff(attempt.failures, settings.backoff_min, settings.backoff_max)
        elif now_s >= attempt.due_s:
            self._dial(node, attempt)

    def _dial(self, node: Node, attempt: _Attempt) -> None:
        attempt.backend, attempt.due_s = self._router.lease(node, 2), None
        attempt.backend.state = BackendState.CONNECTING
        self._connector.connect(attempt.backend)

    def _done(self, node: Node) -> None:
        self._close(self._attempts.pop(node))
        if not node.gone:
            self._renew({node.label})

    def _close(self, attempt: _Attempt) -> None:
        if attempt.backend is not None:
            attempt.backend.close()
            self._connector.forget(attempt.backend)
