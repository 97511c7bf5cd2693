from collections.abc import Callable
from typing import Any

from proxy.commands.lookup import CommandTable
from proxy.forward.client import Client
from proxy.forward.counters import Counters
from proxy.forward.exchange import Exchange
from proxy.forward.leases import Leases
from proxy.forward.reactor import Reactor

class ClientSettings:
    """What holds for all clients of a listener; sizes in bytes. To be changed with update()."""

    password: bool
    max_pending: int
    max_pending_bytes: int
    soft_output: int
    hard_output: int
    timeout_ns: int
    @property
    def max_query(self) -> int:
        """In force: no more than every node takes."""
    def __init__(
        self,
        *,
        reads: str = "primary",
        password: bool = False,
        max_pending: int = 1024,
        max_pending_bytes: int = ...,
        soft_output: int = ...,
        hard_output: int = ...,
        max_query: int = ...,
        max_bulk: int = ...,
        max_arguments: int = ...,
        timeout_ns: int = 5_000_000_000,
    ) -> None: ...
    def update(
        self,
        *,
        reads: str = ...,
        password: bool = ...,
        max_pending: int = ...,
        max_pending_bytes: int = ...,
        soft_output: int = ...,
        hard_output: int = ...,
        max_query: int = ...,
        max_bulk: int = ...,
        max_arguments: int = ...,
        timeout_ns: int = ...,
    ) -> None:
        """Changes what is given, all or nothing; the same errors as __init__.

        Holds for present clients too: limits at once, timeout_ns for requests to come, reads see
        clients.follow_reads. Without a password all are authenticated; with a new one, those who were stay so.
        """

class DataPath:
    """What all clients of a worker share."""

    table: CommandTable
    max_memory: int  # bytes that all clients together may hold, 0 = no limit; may be changed at any time
    responder: Any  # proxy.serve.responder.Responder, which this layer must not name
    most_left: int  # clients that end their input while PROXY PAUSE holds them and stay until it is carried out
    on_close: Callable[[], object] | None  # called when a client is closed; must not raise
    @property
    def counters(self) -> Counters: ...
    @property
    def leases(self) -> Leases: ...
    def __init__(
        self, reactor: Reactor, exchange: Exchange, counters: Counters, table: CommandTable, responder: Any
    ) -> None: ...
    @property
    def clients(self) -> set[Client]:
        """Clients not closed yet, draining ones included."""
    @property
    def tracking(self) -> set[Client]:
        """Clients that have said CLIENT TRACKING ON."""
    @property
    def lingering(self) -> set[Client]:
        """Clients that were told the end and have not closed."""
    @property
    def closed(self) -> int:
        """Clients closed so far."""
    @property
    def client_memory(self) -> int:
        """Bytes held for all clients now, as allocated: unfinished input, requests under way and their own bytes, parts
        of split commands, replies held, output not taken. What waits in a connection to a node is the node's."""
    def limit(self, max_bulk: int, max_query: int) -> None:
        """What the nodes take: the smallest proto-max-bulk-len and client-query-buffer-limit; 0 = unknown."""
    def reject(self) -> None:
        """Counts a connection that was turned away: it is one of Counters.gone."""
