"""What a node takes at most of one client: more ends the connection, which many clients share.

Why: the proxy keeps its clients below it. Asked by worker.connector in each handshake, and by control.command_table
from time to time, for these options may be changed while connections last.
"""

from __future__ import annotations

from typing import Final

COMMANDS: Final[tuple[tuple[str, ...], ...]] = (
    ("CONFIG", "GET", "proto-max-bulk-len"),
    ("CONFIG", "GET", "client-query-buffer-limit"),
)
# The servers' own minimum for these options, and what is as good as no limit: other values are nonsense.
_LEAST, _NO_LIMIT = 1 << 20, 1 << 48


def told(reply: object) -> int:
    """The value in a reply to one of COMMANDS, in bytes; 0 = not told."""
    if isinstance(reply, dict):
        reply = [word for pair in reply.items() for word in pair]
    if not isinstance(reply, list) or len(reply) != 2:
        return 0
    try:
        value = int(reply[1])
    except (TypeError, ValueError):
        return 0
    return value if _LEAST <= value < _NO_LIMIT else 0
