"""A connection of its own to each primary, for what must get through to a node that is busy (SCRIPT KILL).

Why: while a script runs, its node reads nothing more from the connection that the script came by, and that one is
shared by all clients. Made by worker.worker, called by serve.all_shards.

Invariant: at most one for each primary, in RESP2, made when it is first asked for; nothing that takes time is sent on
it. Router.close ends them.
"""

from __future__ import annotations

from proxy.forward.backend import Backend, BackendState
from proxy.forward.node import Node
from proxy.forward.router import Router


class SpareConnections:
    """See the module."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self._of: dict[Node, Backend] = {}

    def __call__(self) -> list[Backend]:
        """To each primary; one that was lost is made anew."""
        primaries = self._router.primaries
        for node in [node for node in self._of if node not in primaries]:
            self._of.pop(node).close()
        for node in primaries:
            known = self._of.get(node)
            if known is None or known.state == BackendState.CLOSED:
                self._of[node] = self._router.lease(node, 2)
        return [self._of[node] for node in primaries]
