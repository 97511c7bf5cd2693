import asyncio

def put_forward(ns: int) -> None:
    """Makes it so much later for all of the data path: a test need neither wait for a deadline nor be quicker."""

class Peer:
    """A socket of the data path. Subclasses say what to do when it is ready and when a batch ends."""

    @property
    def fd(self) -> int:
        """Its descriptor; -1 = closed or not connected."""

class Reactor:
    """One per event loop. Raises OSError without epoll, MemoryError.

    python_most_ns: what answers of proxy.serve may take of a batch, for which everybody waits.
    """

    pause_ns: int  # how long a batch waits for more events when many clients are active
    def __init__(
        self, loop: asyncio.AbstractEventLoop, *, pause_ns: int = 50_000, python_most_ns: int = 5_000_000
    ) -> None: ...
    @property
    def batches(self) -> int:
        """Batches of events so far."""
    @property
    def events(self) -> int:
        """Events so far."""
    @property
    def active_clients(self) -> int:
        """Distinct clients that were heard in the last few milliseconds."""
    @property
    def open_peers(self) -> int:
        """Number of open sockets, clients and backends."""
    def start(self) -> None:
        """Begins to watch for events."""
    def stop(self) -> None:
        """Stops watching; closes what was waiting to be closed."""
