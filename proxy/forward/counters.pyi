import mmap
from typing import Any

BOUNDS_S: tuple[float, ...]
COUNTERS_SIZE: int  # bytes of memory that Counters needs
ERROR_KINDS: tuple[str, ...]
CLOSE_REASON_NAMES: tuple[str, ...]
REDIRECTION_NAMES: tuple[str | None, ...]
RETRY_REASON_NAMES: tuple[str, ...]
REFUSAL_NAMES: tuple[str, ...]
RETRY_OUTCOME_NAMES: tuple[str, ...]

class Counters:
    """The counters of one worker, in memory of their own or in memory given from outside.

    memory: writable, aligned to 8 bytes, at least COUNTERS_SIZE bytes, zeroed by its maker; otherwise ValueError. It is
    held as long as the counters live: an mmap cannot be closed before. Several Counters, in several processes, may
    look at the same memory; one of them counts.
    """

    metrics: dict[str, int]  # command name -> index; grows in the one who counts, is told to those who look
    def __init__(self, memory: mmap.mmap | memoryview | bytearray | None = None) -> None: ...
    def fault(self) -> None:
        """Counts an exception of our own code outside of a command."""

    def refuse_leases(self, times: int) -> None:
        """Counts commands for which no connection to the node was free."""

    def drop_monitored(self, lines: int) -> None:
        """Counts lines of MONITOR that were not taken in time."""

    @property
    def accepted(self) -> int:
        """Clients that were taken in and served. Read straight from the memory, as `gone`: cheap and never late."""
    @property
    def gone(self) -> int:
        """Clients that have left: closed for any reason, or turned away before they were served (DataPath.reject).

        Clients that were handed over, less these, are the clients of a worker.
        """
    def totals(self) -> dict[str, int]:
        """Sums for INFO, under its names: cheap enough to be asked for with every INFO."""
    def snapshot(self) -> Any:
        """All counters as plain values: proxy.admin.snapshot.CounterValues. Only reads.

        Commands that were never answered share one list of buckets: what a snapshot holds must not be changed in
        place. Raises IndexError when `metrics` names an index there is no room for.
        """
