import asyncio
from typing import Protocol

from proxy.cluster.topology import Address
from proxy.forward.backend import Node
from proxy.forward.counters import Counters
from proxy.forward.ports import Recovery
from proxy.forward.reactor import Reactor
from proxy.forward.router import Router

class RetryPort(Protocol):
    """Control's side of Retry; the calls come from the data path and must not block or raise."""

    def stale(self, reason: str) -> None:
        """The topology may have changed."""
    def resolve(self, host: str, port: int, node: Node) -> Address:
        """Where a redirection leads; host "" = the node that gave it."""
    def node_unfit(self, node: Node, reason: str) -> None:
        """A replica refused a read for a reason that will last a while."""

class Retry(Recovery):
    """One per worker. texts: ready error lines `uncovered unknown down timeout timeout_sent lost memory`."""

    backoff_min_ns: int
    backoff_max_ns: int
    max_redirections: int
    def __init__(
        self,
        reactor: Reactor,
        router: Router,
        counters: Counters,
        loop: asyncio.AbstractEventLoop,
        *,
        backoff_min_ns: int,
        backoff_max_ns: int,
        max_redirections: int,
        texts: dict[str, bytes],
    ) -> None: ...
    @property
    def waiting(self) -> int:
        """Requests parked."""
    def bind(self, port: RetryPort) -> None:
        """Gives it control's side."""
    def wake(self) -> None:
        """Submits anew what has waited long enough; ends what is past its deadline."""
    def wake_all(self) -> None:
        """Something has changed (a topology, a connection): nothing need wait any longer."""
    def stop(self) -> None:
        """Ends the timer and whatever is parked."""
