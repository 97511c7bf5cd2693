from collections.abc import Callable
from typing import Literal

from proxy.forward.backend import Backend
from proxy.forward.node import Node

Where = int | Node | Backend | Literal["any", "primaries", "nodes"]

class Ask:
    """Commands for the servers, and how one reply is made of theirs; see ask.pyx.

    parts: (where, frame, replies to swallow). finish: the parts' replies -> the reply. read: safe to send again.
    """

    def __init__(
        self,
        parts: list[tuple[Where, bytes, int]],
        finish: Callable[[list[bytes]], bytes] | None = None,
        read: bool = False,
    ) -> None: ...
