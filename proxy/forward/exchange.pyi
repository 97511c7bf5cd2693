import asyncio
from typing import Protocol

from proxy.cluster.topology import Address
from proxy.forward.counters import Counters
from proxy.forward.node import Node
from proxy.forward.parking import Parking
from proxy.forward.ports import Recovery
from proxy.forward.reactor import Reactor
from proxy.forward.redirect import Redirect
from proxy.forward.router import Router
from proxy.forward.scripts import Scripts

class ExchangePort(Protocol):
    """Control's side of the exchange; the calls come from the data path and must not block or raise."""

    def stale(self, reason: str) -> None:
        """The topology may have changed."""
    def resolve(self, host: str, port: int, node: Node) -> Address | None:
        """Which node of the topology a redirection names, None = none; host "" = the node that gave it."""
    def node_unfit(self, node: Node, reason: str) -> None:
        """A replica refused a read for a reason that will last a while."""

class Exchange(Recovery):
    """One per worker. texts: ready error lines by the names of proxy.resp.errors.EXCHANGE_TEXTS."""

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
    def router(self) -> Router: ...
    @property
    def redirect(self) -> Redirect: ...
    @property
    def parking(self) -> Parking: ...
    @property
    def scripts(self) -> Scripts: ...
    def bind(self, port: ExchangePort) -> None:
        """Gives it control's side."""
