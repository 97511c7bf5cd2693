from proxy.forward.backend import Backend
from proxy.forward.client import Client

class Topic:
    """A channel, pattern or shard channel that clients are subscribed to, or are about to be."""

    waiting: int  # SUBSCRIBEs under way that name it
    events: bool  # only names of keyspace events can fit
    source: Backend | None  # of a shard channel: the connection that it is subscribed on
    def __init__(self, kind: int, name: bytes) -> None: ...
    @property
    def kind(self) -> int: ...
    @property
    def name(self) -> bytes: ...
    @property
    def members(self) -> dict[Client, int]: ...
    @property
    def wide(self) -> bool:
        """A pattern that fits events and other names."""

class Subscriber:
    """What one client is subscribed to."""

    @property
    def topics(self) -> tuple[dict[bytes, Topic], dict[bytes, Topic], dict[bytes, Topic]]: ...
    @property
    def counts(self) -> tuple[int, int, int]: ...
    @property
    def wide(self) -> int:
        """Patterns among them that are wide."""

class Wide:
    """The wide patterns, and the event that is being matched with them."""

    @property
    def topics(self) -> dict[bytes, Topic]: ...
    @property
    def cut(self) -> int:
        """Events that not all patterns were compared with."""
