"""What a node takes at most of one client: more ends the connection, which many clients of the proxy share.

Why: asked at two places, in every handshake (worker.connector) and now and then by control.
"""

from __future__ import annotations

from typing import Final

# To be asked of a node, in this order: limits are (proto-max-bulk-len, client-query-buffer-limit) everywhere.
COMMANDS: Final = (("CONFIG", "GET", "proto-max-bulk-len"), ("CONFIG", "GET", "client-query-buffer-limit"))
# The servers' own minimum for these options, and what is as good as no limit: other values are nonsense.
_LEAST, _NO_LIMIT = 1 << 20, 1 << 48


def limit(reply: object) -> int:
    """The bytes in a decoded reply to CONFIG GET of one option, RESP2 or RESP3; 0 = not told, or no limit."""
    told = number(reply)
    return told if _LEAST <= told < _NO_LIMIT else 0


def number(reply: object) -> int:
    """The number in such a reply; 0 = there is none."""
    if isinstance(reply, dict):
        reply = [word for pair in reply.items() for word in pair]
    if not isinstance(reply, list) or len(reply) != 2:
        return 0
    try:
        return int(reply[1])
    except (TypeError, ValueError):
        return 0
