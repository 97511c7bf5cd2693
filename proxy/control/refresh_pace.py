"""When the topology is asked for again, if nothing asks for it before: what is known to be wrong makes it sooner.

Called by control.topology_refresh, which says what it has learnt (took) and what others have told it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from proxy.cluster.topology import Address, Topology

# While a shard is without a working primary, look again sooner than refresh_interval_s, but ever less often. So after a
# sign of a failover too: it comes a node timeout and an election before the cluster knows of one itself; and that a
# node is back some others know a few pings later.
_FIRST_RECHECK_S: Final = 0.5
_EARLY_SIGNS: Final = ("lost", "uncovered", "back")
# While any node is failed, or a primary without slots: nobody reads from it, and it gives no sign when it is back. One
# that stays dead is no reason to ask that often for ever.
_EXPECTED_S: Final = 1.0
_EXPECTED_LONG_S: Final = 5.0
_EXPECTED_FOR_S: Final = 60.0
# While a primary is suspected (control.suspects): the cluster needs a node timeout and an election, which nobody here
# knows the length of. Not for ever so often, for it may stay dead.
_SUSPECTED_S: Final = 0.25
_SUSPECTED_LONG_S: Final = 2.0
_SUSPECTED_FOR_S: Final = 60.0
# While the nodes say that the cluster is down: its end gives no sign.
_DOWN_S: Final = 1.0
# While clients rely on being told what changes: a slot that moves in order gives no sign to one who sends nothing.
_FOLLOWED_S: Final = 2.0


class RefreshPace:
    """See the module. suspects: primaries that may hang; down_since: when the nodes began to say that the cluster is
    down, by `clock`; followed: clients rely on being told of changes."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.suspects: frozenset[Address] = frozenset()
        self.down_since: float | None = None
        self.followed = False
        self._clock = clock
        self._suspected_at = 0.0
        self._expected: frozenset[str] = frozenset()
        self._expected_at = 0.0
        self._recheck_s = 0.0

    def suspect(self, suspects: frozenset[Address]) -> bool:
        """These are suspected now, and no others; whether there is one among them that was not before."""
        new = bool(suspects - self.suspects)
        if new:
            self._suspected_at = self._clock()
        self.suspects = suspects
        return new

    def took(self, topology: Topology) -> bool:
        """An answer was accepted; whether the nodes say something else than before of the cluster being down."""
        if topology.expected != self._expected:
            self._expected, self._expected_at = topology.expected, self._clock()
        if topology.down == (self.down_since is not None):
            return False
        self.down_since = self._clock() if topology.down else None
        return True

    def next_s(self, usual_s: float, min_gap_s: float, *, settled: bool, changed: bool, trigger: str) -> float:
        """Seconds until the next refresh; settled: every shard has a working primary. To be asked once for each."""
        if settled and changed:
            self._recheck_s = 0.0
        elif changed or trigger in _EARLY_SIGNS or (not settled and not self._recheck_s):
            self._recheck_s = max(_FIRST_RECHECK_S, min_gap_s)
        else:
            self._recheck_s *= 2
        if self._recheck_s >= usual_s and settled:
            self._recheck_s = 0.0
        waits = [usual_s, self._recheck_s or usual_s]
        if self.suspects:
            young = self._clock() - self._suspected_at < _SUSPECTED_FOR_S
            waits.append(_SUSPECTED_S if young else _SUSPECTED_LONG_S)
        if self._expected:
            young = self._clock() - self._expected_at < _EXPECTED_FOR_S
            waits.append(_EXPECTED_S if young else _EXPECTED_LONG_S)
        if self.down_since is not None:
            waits.append(_DOWN_S)
        if self.followed:
            waits.append(_FOLLOWED_S)
        return min(waits)
