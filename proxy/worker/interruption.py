"""How long some subscription has not been in force: counted, and logged once at its beginning and at its end.

Called by worker.upstream.
"""

from __future__ import annotations

import time

from proxy.forward.hub import Hub
from proxy.forward.node import Node
from proxy.system.log import get

log = get("worker.upstream")


class Interruption:
    """One that lasts now, or none."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._since_s: float | None = None

    @property
    def lasts(self) -> bool:
        return self._since_s is not None

    def begins(self, why: str, node: Node | None) -> None:
        """Something is not in force any more; the first reason is the one that is logged."""
        if self._since_s is None:
            self._since_s = time.monotonic()
            where = node.label if node is not None else ""
            log.warning("subscriptions interrupted: messages may be missed", reason=why, node=where)

    def ends(self) -> None:
        """Everything is in force again."""
        if self._since_s is not None:
            seconds = time.monotonic() - self._since_s
            self._since_s = None
            self._hub.interrupted(seconds)
            log.info("subscriptions in force again", seconds=round(seconds, 3))
