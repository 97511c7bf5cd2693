import asyncio

class Peer:
    """A socket of the data path. Subclasses say what to do when it is ready and when a batch ends."""

    @property
    def fd(self) -> int:
        """Its descriptor; -1 = closed or not connected."""

class Reactor:
    """One per event loop. Raises OSError without epoll, MemoryError."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None: ...
    @property
    def batches(self) -> int:
        """Batches of events so far."""
    @property
    def events(self) -> int:
        """Events so far."""
    @property
    def open_peers(self) -> int:
        """Number of open sockets, clients and backends."""
    def start(self) -> None:
        """Begins to watch for events."""
    def stop(self) -> None:
        """Stops watching; closes what was waiting to be closed."""
