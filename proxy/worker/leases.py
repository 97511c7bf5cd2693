"""The connections that WATCH, blocking commands and CLIENT TRACKING take, within what the limit of open files leaves.

Why: each takes a descriptor beside its client's; without a bound a few clients could take all, and then nobody can come
and no connection to a node can be made again. Called by worker.worker.

Invariant: the bound follows the clients: where more have come than there is room for beside the leases, idle leases go
first, then those that are watching, whose EXEC then fails as if a key had changed, then those that are blocked, who
are told -UNBLOCKED, then clients that track.
"""

from __future__ import annotations

import resource

from proxy.forward.datapath import DataPath
from proxy.system.limits import leases_allowed
from proxy.system.log import get, warn_limited

log = get("worker.leases")


class LeaseWatch:
    """See the module."""

    def __init__(self, path: DataPath) -> None:
        self._path = path
        self._refused = self._tracking_refused = 0
        self._soft_limit = 0
        self.tune()

    def tune(self) -> None:
        """The limit of open files may be another one."""
        self._soft_limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self.share()

    def share(self) -> None:
        """The number of clients may be another one."""
        self._path.leases.all_most = leases_allowed(len(self._path.clients), self._soft_limit)

    def look(self) -> None:
        """To be called regularly: makes room where there is too little, and says what was refused."""
        leases = self._path.leases
        self.share()
        if too_many := leases.shed():
            self._forfeit(too_many)
        if leases.refused > self._refused:
            self._path.counters.refuse_leases(leases.refused - self._refused)
            self._refused = leases.refused
            text = "no more connections for WATCH and blocking commands (backends.max_leased, or file descriptors)"
            limits = {"max_leased": leases.most, "of_all": leases.all_most}
            warn_limited(log, "refused", text, refused=leases.refused, **limits)
        if leases.tracking_refused > self._tracking_refused:
            self._path.counters.refuse_leases(leases.tracking_refused - self._tracking_refused)
            self._tracking_refused = leases.tracking_refused
            text = "CLIENT TRACKING refused: no more connections for it (backends.max_leased, or the file descriptors)"
            limits = {"max_leased": leases.most, "of_all": leases.all_most}
            warn_limited(log, "tracking-refused", text, refused=leases.tracking_refused, **limits)

    def _forfeit(self, count: int) -> None:
        left = count
        for client in list(self._path.clients):
            if left and client.lease is not None and client.lease.leased and not client.lease.pending:
                client.forfeit()
                left -= 1
        for client in list(self._path.clients):
            if left and client.blocked:
                left -= client.evict()
        if left:
            self._end_tracking(left)
        if left == count:
            return
        text = "connections that clients watch keys or are blocked on closed: the clients need their file descriptors"
        warn_limited(log, "forfeit", text, closed=count - left)

    def _end_tracking(self, count: int) -> None:
        """Closes clients that track, for their connections would be made again."""
        left = count
        for client in list(self._path.tracking):
            if left > 0 and client.proto == 3:
                client.kill()
                left -= self._path.leases.per_tracking
        text = "clients that track keys closed: the others need their file descriptors"
        warn_limited(log, "tracking-closed", text, connections=count - left)
