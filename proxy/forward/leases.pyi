from collections.abc import Collection

from proxy.forward.router import Router

class Leases:
    """See leases.pyx; sizes: connections of one node, protocol and database, of all, and nanoseconds."""

    most: int
    all_most: int
    idle_ns: int
    @property
    def refused(self) -> int: ...
    @property
    def per_tracking(self) -> int: ...  # connections that a client that tracks may come to have
    @property
    def tracking_refused(self) -> int: ...  # clients that wanted to track, and had no room
    def __init__(self, router: Router, *, most: int = ..., idle_ns: int = ...) -> None: ...
    def shed(self) -> int: ...  # closes idle ones; how many there still are too many
    def sweep(self) -> None: ...
    def renew(self, keep: Collection[str] = ...) -> None: ...
