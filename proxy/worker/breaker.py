"""Which nodes cannot be reached, and who may try: one connection at a time for each of them.

Why: a worker has several connections to a node (protocols, databases, `backends.connections`, leases), and one that is
down or hangs must not be dialled by all of them at once, again and again. Called by worker.connector. What becomes of
the commands meanwhile is the data path's: Pool.down_since_ns, Parking.

States of a node's breaker: closed -> open (there is no connection to it, and an attempt failed, or one was lost as
soon as it was made) -> closed (an attempt succeeded, and whoever waited for a turn goes on at once, in that order) ...
While it is open each attempt is a probe, after a pause that doubles from backoff_min to backoff_max and is jittered.

Invariants: no count of failures outlives its trouble: a connection that has lived for a while ends it, and so does the
end of the last connection that was wanted. A node that answers, if only to refuse the handshake, has been reached: that
is the trouble of one kind of connection, and no reason to hold up the others.
"""

from __future__ import annotations

import asyncio
import random

_DOUBLINGS = 30


def backoff(failures: int, shortest_s: float, longest_s: float) -> float:
    """Seconds to wait after so many failures in a row, at least one: jittered, down to half."""
    longest = min(shortest_s * 2.0 ** min(failures - 1, _DOUBLINGS), longest_s)
    return longest * (0.5 + random.random() / 2)


class Breaker:
    """One node's. turn: whose probe it is, first come, first served."""

    def __init__(self) -> None:
        self.open = False
        self.failures = 0
        self.turn = asyncio.Lock()


class Breakers:
    """Those of a worker's nodes, by label; a node without trouble has none."""

    def __init__(self) -> None:
        self._of: dict[str, Breaker] = {}

    def open(self, node: str) -> Breaker | None:
        """The node's, if it is open."""
        known = self._of.get(node)
        return known if known is not None and known.open else None

    def failed(self, node: str, *, probe: bool = False) -> None:
        """It was not reached, or let go of a connection as soon as it was made.

        What other attempts of the same moment come to is not counted: probe tells the one whose turn it was.
        """
        breaker = self._of.setdefault(node, Breaker())
        if probe or not breaker.open:
            breaker.failures += 1
        breaker.open = True

    def reached(self, node: str) -> None:
        """It has answered."""
        if (known := self._of.get(node)) is not None:
            known.open = False

    def proved(self, node: str) -> None:
        """A connection to it has lived for a while: what happens from now on is new trouble."""
        if (known := self._of.get(node)) is not None and not known.open:
            del self._of[node]

    def forget(self, node: str) -> None:
        """Nobody wants to connect to it any more."""
        self._of.pop(node, None)

    def clear(self) -> None:
        """There are new settings: everything begins anew."""
        for breaker in self._of.values():
            breaker.open = False
        self._of.clear()
