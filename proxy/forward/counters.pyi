from typing import Any

BOUNDS_S: tuple[float, ...]
ERROR_KINDS: tuple[str, ...]
CLOSE_REASON_NAMES: tuple[str, ...]
REDIRECTION_NAMES: tuple[str | None, ...]
RETRY_REASON_NAMES: tuple[str, ...]
RETRY_OUTCOME_NAMES: tuple[str, ...]

class Counters:
    """The counters of one worker."""

    @property
    def metrics(self) -> dict[str, int]:
        """Command name -> index; grows, never changes. Shared with the command tables."""
    def snapshot(self) -> Any:
        """All counters as plain values: proxy.admin.metrics.CounterValues."""
