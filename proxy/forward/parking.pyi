class Parking:
    """Requests that wait for a better moment. One per worker, made by Exchange."""

    backoff_min_ns: int
    backoff_max_ns: int
    max_held: int  # requests; 0 = no limit, as the next
    max_held_bytes: int
    @property
    def waiting(self) -> int:
        """Requests parked."""
    @property
    def held_bytes(self) -> int:
        """Bytes of them."""
    def held_of(self, number: int) -> tuple[int, int]:
        """(requests, bytes) parked for the shard of the primary of that Node.number; 0: for none that is known."""
    @property
    def doubts(self) -> dict[int, tuple[int, int]]:
        """Slot -> requests whose redirection is in doubt, and the number of the oldest at least."""
    def wake(self) -> None:
        """Submits anew what has waited long enough; ends what is past its deadline."""
    def wake_all(self) -> None:
        """Something has changed (a topology, a connection): nothing need wait any longer."""
    def script_answered(self, sha: bytes, known: bool) -> None:
        """What waits for this script goes on; when nobody knows it, it gets the node's NOSCRIPT."""
    def stop(self) -> None:
        """Ends the timer and whatever is parked."""
