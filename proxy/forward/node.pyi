from typing import Any

from proxy.cluster.topology import Address
from proxy.forward.backend import Backend

PURPOSES: tuple[str, ...]
STATE_NAMES: tuple[str, ...]

class Pool:
    """The connections to a node in one protocol and database."""

    @property
    def proto(self) -> int: ...

class Node:
    """A server of the cluster as the data path knows it: its connections and what is counted."""

    replica: bool
    usable: bool  # a replica fit for reads
    stale: bool  # one that is not, but only because it has lost touch with its primary
    paused: bool  # PROXY PAUSE holds what is for it; set by proxy.forward.gate
    connect_failures: int
    def __init__(self, address: Address, replica: bool) -> None: ...
    @property
    def address(self) -> Address: ...
    @property
    def label(self) -> str: ...
    @property
    def number(self) -> int:
        """Never given twice in a process."""
    @property
    def owner(self) -> bool:
        """Whether it is a primary that owns slots."""
    @property
    def gone(self) -> bool:
        """No longer in the topology."""
    @property
    def failing(self) -> bool:
        """The cluster has voted it failed."""
    @property
    def silent(self) -> bool:
        """It owes replies, and nothing has come for a while."""
    @property
    def up(self) -> bool:
        """Whether any connection to it is established."""
    @property
    def down(self) -> bool:
        """Whether it could not be reached lately, in any protocol it is used in."""
    def backends(self) -> list[Backend]:
        """All its connections, leased ones and those still draining included."""
    def figures(self) -> Any:
        """{role, owner, up, usable, paused, down_since_ns, pending, connections: {(purpose, state): n},
        connect_failures, buckets, sum_s}. down_since_ns: of CLOCK_MONOTONIC, 0 = it is not known to be down; owner: it
        owns slots."""
