from typing import Protocol

from proxy.forward.counters import Counters
from proxy.forward.node import Node, Pool
from proxy.forward.pipeline import BackendSettings, Pipeline
from proxy.forward.ports import PushPort, Recovery
from proxy.forward.reactor import Reactor

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

class Backend(Pipeline):
    """One connection to a node: shared by all clients of a worker, or leased to one (pool None)."""

    state: int  # BackendState
    client_id: int  # of a lease: its CLIENT ID at the node; 0 = not known
    def __init__(
        self,
        reactor: Reactor,
        node: Node,
        pool: Pool | None,
        proto: int,
        db: int,
        recovery: Recovery,
        port: BackendPort,
        counters: Counters,
        settings: BackendSettings,
        pushes: PushPort | None,
    ) -> None: ...
    @property
    def node(self) -> Node: ...
    @property
    def proto(self) -> int: ...
    @property
    def db(self) -> int:
        """Number of the database it works in."""
    @property
    def readonly(self) -> bool:
        """READONLY belongs to its handshake."""
    @property
    def leased(self) -> bool:
        """Owned by one client; never made again once it is lost."""
    @property
    def asked(self) -> bool:
        """The last connection was sent something."""
    @property
    def draining(self) -> bool:
        """Closed once nothing is pending."""
    @property
    def purpose(self) -> str:
        """One of node.PURPOSES."""
    @property
    def greeting(self) -> tuple[str | bytes, ...]:
        """The command that ends its handshake, in words; () = there is none."""
    def attach(self, fd: int, rest: bytes = b"") -> None:
        """Begins to use a connected descriptor whose handshake is done, and owns it from now on.

        rest: bytes that came behind the handshake: pushes, or the beginning of one. Raises OSError when epoll
        refuses it or the backend is CLOSED; the descriptor is then still the caller's.
        """
    duty: int  # of a lease of the hub's: proxy.forward.hub
    def connect_failed(self, tried: bool = True) -> None:
        """Control could not connect: what waited is handed to recovery. tried: false when it did not even try."""
    def close(self) -> None:
        """Ends it for good; what is pending is handed to recovery."""
