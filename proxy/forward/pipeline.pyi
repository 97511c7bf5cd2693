from proxy.forward.reactor import Peer

class BackendSettings:
    """Limits of connections.

    stall_ns: after which a connection on which nothing moves is given up. max_window: bytes of unanswered commands
    from which on no further command is taken. silent_ns: after which a node that owes replies is taken to hang.
    """

    stall_ns: int
    max_window: int
    silent_ns: int
    def __init__(self, *, stall_ns: int, max_window: int = ..., silent_ns: int = ...) -> None: ...

class Pipeline(Peer):
    """What is under way on a connection; never made by itself."""

    @property
    def asked(self) -> bool:
        """Whether the last connection was sent something."""

    @property
    def pending(self) -> int:
        """Requests that wait for a reply."""
