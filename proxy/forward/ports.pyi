from collections.abc import Callable

from proxy.forward.backend import Backend
from proxy.forward.reactor import Peer

class Sink:
    """Whoever takes a reply."""

class Outlet(Peer):
    """The peer a reply queue writes to: a client."""

class Recovery:
    """What becomes of a request that a backend cannot simply answer: Exchange."""

class PushPort:
    """Where pushes of nodes go: call(backend, whole frame). raised(what, error): that has raised."""

    def __init__(
        self,
        call: Callable[[Backend, bytes], object] | None = None,
        raised: Callable[[str, BaseException], object] | None = None,
    ) -> None: ...

class Owner(PushPort):
    """A client with connections to the nodes of its own."""

    @property
    def db(self) -> int: ...
    @property
    def greeting(self) -> tuple[str | bytes, ...]:
        """A command that ends the handshake of its connections."""
