class Glob:
    """A pattern of Redis, compiled."""

    def __init__(self, pattern: bytes) -> None: ...
    def matching(self, keys: list[bytes], budget: int) -> list[bytes] | None:
        """The keys that match, in order; None when that takes more steps than the budget."""

def literal_prefix(pattern: bytes) -> tuple[bytes, bool]:
    """What every name begins with that the pattern fits, and whether that is all of the pattern."""
