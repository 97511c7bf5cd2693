from collections.abc import Collection, Sequence
from typing import Protocol

from proxy.cluster.slot_table import SlotTable
from proxy.cluster.topology import Address
from proxy.forward.backend import Backend, BackendPort
from proxy.forward.counters import Counters
from proxy.forward.node import Node
from proxy.forward.pipeline import BackendSettings
from proxy.forward.ports import PushPort
from proxy.forward.reactor import Reactor

READ_POLICIES: tuple[str, ...]

class RouterPort(BackendPort, Protocol):
    """Control's side of the router."""

    def node_gone(self, node: Node) -> None:
        """A node left the topology; its connections drain."""
    def suspected(self, node: Node) -> None:
        """It is silent, or a primary that cannot be reached; said again and again while that is so."""

class Shard:
    """A primary (or None) and its replicas."""

    def __init__(self, primary: Node | None, replicas: list[Node]) -> None: ...
    @property
    def primary(self) -> Node | None: ...
    @property
    def replicas(self) -> list[Node]: ...

class Router:
    """connections: per node and protocol. failover_ns: how long a node known to be down is waited for.

    Both may be changed; connections holds for nodes met from then on, and after renew() for all.
    """

    connections: int
    failover_ns: int
    port: RouterPort
    pushes: PushPort | None  # where pushes of nodes go; connections made before keep theirs
    def __init__(
        self,
        reactor: Reactor,
        counters: Counters,
        settings: BackendSettings,
        *,
        connections: int,
        failover_ns: int,
    ) -> None: ...
    @property
    def slots(self) -> SlotTable: ...
    @property
    def shards(self) -> list[Shard]: ...
    @property
    def nodes(self) -> dict[Address, Node]: ...
    @property
    def primaries(self) -> list[Node]: ...
    @property
    def known(self) -> bool:
        """A topology has been published."""
    def publish(
        self,
        addresses: Sequence[tuple[Address, bool]],
        shards: Sequence[tuple[int, Sequence[int]]],
        owners: bytes,
        failing: Collection[Address] = (),
    ) -> None:
        """Replaces the whole table; what does not fit together raises ValueError and changes nothing.

        addresses: (address, whether it is a replica); one that is there twice is one node, a primary if it is one
        anywhere. shards: (index of the primary in addresses, or -1; those of its replicas). owners: 16,384
        little-endian uint16, the index into shards of each slot's owner, 0xFFFF = nobody. failing: those that the
        cluster has voted failed.
        """
    def owners(self) -> list[tuple[int, int, str]]:
        """(first slot, last slot, label of its primary), ascending; slots without a primary are left out."""
    def renew(self, keep: Collection[str] = ...) -> list[Backend]:
        """Every node but these (labels) gets new connections, made on first use; the old, returned, drain and close.

        Nothing that is under way is lost or overtaken: its clients send nothing new until it is answered. What was
        known of nodes that are down is forgotten with their connections.
        """
    def refuse(self, b: Backend, line: bytes) -> None:
        """A node takes no such connection of a client's own: what waits for it is answered with this error line."""
    def lease(self, node: Node, proto: int, db: int = 0) -> Backend:
        """A connection of its own for one client, connected when it is first used; whoever leases it closes it."""
    def warm(self, proto: int) -> None:
        """Connects to every primary that is not connected yet."""
    def sweep(self) -> None:
        """Deadlines, stalls, silence and trimming of every connection; to be called some ten times a second."""
    def close(self) -> None:
        """Closes every connection; what is pending is handed to recovery."""
