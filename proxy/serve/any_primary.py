"""One question to any primary, whose answer is for many clients and for some time.

Why: a worker keeps what it makes of long answers that are the same for everybody (COMMAND), so it is not one client's
command, and two hundred clients that start together ask once. Called by serve.command_info; made by worker.worker.

Invariant: done is called once, after at most TRIES * TIMEOUT_S: with the reply, or with the last error line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Final

from proxy.resp import errors
from proxy.serve.node_infos import AskNode, NodeLike

TRIES: Final = 3
TIMEOUT_S: Final = 2.0
MOST: Final = 8 << 20


class AnyPrimary:
    """See the module. primaries(): of the topology."""

    def __init__(self, primaries: Callable[[], Iterable[NodeLike]], ask: AskNode) -> None:
        self._primaries, self._ask = primaries, ask

    def ask(self, frame: bytes, proto: int, done: Callable[[bytes], object]) -> None:
        """frame: a command that only reads."""
        self._try(list(self._primaries())[:TRIES], frame, proto, done, errors.CLUSTERDOWN)

    def _try(
        self, nodes: list[NodeLike], frame: bytes, proto: int, done: Callable[[bytes], object], reply: bytes | None
    ) -> None:
        """The next of these nodes, unless the reply of the one before is good."""
        if reply is None:
            reply = errors.REPLY_TOO_LONG
        if not nodes or not reply.startswith(b"-"):
            done(reply)
            return
        again = partial(self._try, nodes[1:], frame, proto, done)
        self._ask(nodes[0], frame, proto=proto, timeout_ns=int(TIMEOUT_S * 1e9), most=MOST, done=again)
