from typing import Any

from proxy.commands.lookup import CommandTable
from proxy.forward.client import Client
from proxy.forward.counters import Counters
from proxy.forward.reactor import Reactor
from proxy.forward.retry import Retry

class ClientSettings:
    """What holds for all clients of a listener; sizes in bytes."""

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

class DataPath:
    """What all clients of a worker share."""

    table: CommandTable
    desk: Any  # proxy.serve.desk.Desk, which this layer must not name
    def __init__(self, reactor: Reactor, retry: Retry, counters: Counters, table: CommandTable, desk: Any) -> None: ...
    @property
    def clients(self) -> set[Client]: ...
    def reject(self) -> None:
        """Counts a connection that was turned away."""
