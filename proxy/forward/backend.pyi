from typing import Any, Protocol

from proxy.cluster.topology import Address
from proxy.forward.counters import Counters
from proxy.forward.ports import Recovery
from proxy.forward.reactor import Peer, Reactor

STATE_NAMES: tuple[str, ...]

class BackendState:
    """The states of a Backend by name."""

    IDLE: int
    CONNECTING: int
    UP: int
    BACKOFF: int
    CLOSED: int

class BackendPort(Protocol):
    """Control's side of the backends; the calls come from the data path and must not block or raise."""

    def connect(self, backend: Backend) -> None:
        """The backend is wanted: it is CONNECTING."""
    def backend_lost(self, backend: Backend, reason: str) -> None:
        """Its connection is gone; it is CONNECTING again, or CLOSED."""

class BackendSettings:
    """Limits of connections: stall_ns, after which a connection on which nothing moves is given up."""

    stall_ns: int
    def __init__(self, *, stall_ns: int) -> None: ...

class Node:
    """A server of the cluster as the data path knows it: its connections and its figures."""

    replica: bool
    usable: bool  # a replica fit for reads
    connect_failures: int
    def __init__(self, address: Address, replica: bool) -> None: ...
    @property
    def address(self) -> Address: ...
    @property
    def label(self) -> str: ...
    @property
    def gone(self) -> bool:
        """No longer in the topology."""
    @property
    def up(self) -> bool:
        """Whether any connection to it is established."""
    @property
    def down(self) -> bool:
        """Whether the last attempt to connect failed."""
    def backends(self) -> list[Backend]:
        """All its connections, those still draining included."""
    def figures(self) -> Any:
        """{role, up, usable, pending, connections: {state: n}, connect_failures, buckets, sum_s}."""

class Backend(Peer):
    """One connection to a node, shared by all clients of a worker."""

    state: int  # BackendState
    def __init__(
        self,
        reactor: Reactor,
        node: Node,
        proto: int,
        recovery: Recovery,
        port: BackendPort,
        counters: Counters,
        settings: BackendSettings,
    ) -> None: ...
    @property
    def node(self) -> Node: ...
    @property
    def proto(self) -> int: ...
    @property
    def readonly(self) -> bool:
        """READONLY belongs to its handshake."""
    @property
    def pending(self) -> int:
        """Requests that wait for a reply."""
    def attach(self, fd: int) -> None:
        """Begins to use a connected descriptor whose handshake is done, and owns it from now on.

        Raises OSError when epoll refuses it or the backend is CLOSED; the descriptor is then still the caller's.
        """
    def connect_failed(self) -> None:
        """Control could not connect: what waited is handed to recovery."""
    def close(self) -> None:
        """Ends it for good; what is pending is handed to recovery."""
