from collections.abc import Iterable

from proxy.forward.node import Node
from proxy.forward.ports import Owner

DATABASES_MAX: int  # numbers of databases: those above are of clients' own connections

class Tracking(Owner):
    """What a client wants tracked, and its own connections to the nodes, while it has them."""

    def __init__(
        self,
        *,
        bcast: bool = False,
        optin: bool = False,
        optout: bool = False,
        noloop: bool = False,
        prefixes: Iterable[bytes] = (),
    ) -> None: ...
    @property
    def bcast(self) -> bool: ...
    @property
    def optin(self) -> bool: ...
    @property
    def optout(self) -> bool: ...
    @property
    def noloop(self) -> bool: ...
    @property
    def prefixes(self) -> tuple[bytes, ...]: ...
    def same(self, other: Tracking) -> bool:
        """Whether it says the same to the nodes."""
    def confirm(self) -> None:
        """Its client is being told that it is on."""
    def primaries(self) -> list[Node]:
        """The nodes that it needs connections to before it is on: with BCAST all primaries, else any."""
    def invalidate(self) -> None:
        """Everything is invalidated: behind what has been answered, and behind all that is under way."""
    def keep_up(self) -> None:
        """With BCAST: has a connection made to each primary that it has none to. To be called regularly."""
