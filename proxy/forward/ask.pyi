from collections.abc import Callable
from typing import Literal

from proxy.forward.backend import Backend
from proxy.forward.node import Node

Where = int | Node | Backend | Literal["any", "primaries", "nodes"]

class Ask:
    """Commands for the servers, and how one reply is made of theirs; see ask.pyx.

    parts: (where, frame, replies to swallow). finish: the parts' replies -> the reply, or the next Ask. read: safe to
    send again. errors: finish is called with error replies too. primary: slots are those of primaries, whatever the
    client's read policy.
    """

    parts: list[tuple[Where, bytes, int]]
    labels: list[str]
    nodes: list[Where]
    optional: list[bool]

    def __init__(
        self,
        parts: list[tuple[Where, bytes, int]],
        finish: Callable[[list[bytes]], bytes | Ask] | None = None,
        read: bool = False,
        errors: bool = False,
        primary: bool = False,
    ) -> None: ...

class Later:
    """A reply that comes from elsewhere than the servers, within a time that whoever makes it bounds.

    barrier: until it is answered, the client's next commands wait.
    """

    def __init__(self, barrier: bool = False) -> None: ...
    @property
    def wanted(self) -> bool:
        """Whether its client is still there."""
    def answer(self, made: bytes | Ask, /) -> None: ...
