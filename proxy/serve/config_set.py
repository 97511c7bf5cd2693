"""CONFIG SET: to every node, and what concerns notifications of the keyspace to those that join later.

Why: one Redis that was told to send them goes on doing so; a cluster gets new primaries, and some restart. Called
through serve.table; the main process remembers (control.keyspace_events).
"""

from __future__ import annotations

from typing import Final

from proxy.forward.ask import Ask
from proxy.resp import errors
from proxy.serve import config_guard
from proxy.serve.all_shards import asked
from proxy.serve.combine import all_succeeded
from proxy.serve.context import ClientLike, Commands, ServeContext

NOTIFY: Final = b"notify-keyspace-events"
VALUE_MAX: Final = 64
# Of a node that may have been changed all the same.
_UNHEARD: Final = (errors.TIMED_OUT[:14], errors.MAYBE_EXECUTED)


def answer(ctx: ServeContext, client: ClientLike, args: list[bytes]) -> bytes | Ask:
    """CONFIG SET parameter value [parameter value ...], told to every node."""
    if (refused := config_guard.refusal(args)) is not None:
        return refused
    words = args[2:]
    told = [value for name, value in zip(words[::2], words[1::2], strict=False) if name.lower() == NOTIFY]

    def combine(replies: list[bytes], labels: list[str]) -> bytes:
        made = all_succeeded(replies, labels)
        if told and len(told[-1]) <= VALUE_MAX:
            refused = [label for label, reply in zip(labels, replies, strict=True) if not reply.startswith(b"+")]
            if any(reply.startswith((b"+", *_UNHEARD)) for reply in replies):
                ctx.keyspace_events(told[-1], refused)  # the last value wins, be it that the client is told an error
        return made

    return asked(["nodes"], args, combine, again=True)


COMMANDS: Commands = {b"config|set": (-4, answer)}
