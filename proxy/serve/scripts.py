"""SCRIPT LOAD and SCRIPT FLUSH: what the servers answer, and what the proxy remembers or forgets with it.

Why: NOSCRIPT is repaired with bodies seen before (forward.redirect); a script that a client has loaded is one, and
after SCRIPT FLUSH nobody may know any more, in any worker. Called through serve.table.

Invariant: what is refused by the servers changes nothing that is remembered, and a flush is answered only when every
worker has forgotten (or did not say so in time) and every server after it.
"""

from __future__ import annotations

from proxy.forward.ask import Ask
from proxy.resp.encode import encode_command
from proxy.serve.all_shards import asked
from proxy.serve.combine import all_succeeded
from proxy.serve.context import Answer, ClientLike, Commands, ServeContext

_HOW = frozenset({b"sync", b"async"})


def load(ctx: ServeContext, client: ClientLike, args: list[bytes]) -> Answer:
    """SCRIPT LOAD body: on every primary. A node that joins later is given it when it lacks it."""

    def loaded(replies: list[bytes], labels: list[str]) -> bytes:
        reply = all_succeeded(replies, labels)
        if ctx.scripts is not None and not reply.startswith(b"-"):
            ctx.scripts.loaded(args[2])
        return reply

    return asked(["primaries"], args, loaded, again=True)


def flush(ctx: ServeContext, client: ClientLike, args: list[bytes]) -> Answer:
    """SCRIPT FLUSH [ASYNC | SYNC]: on every node, for a replica that reads go to has scripts of its own.

    Behind all that this client has under way: what it loaded before must not be remembered after, nor must a script
    that it called before lack its body.
    """
    if client.pending:
        return None

    def everywhere() -> Ask:
        return asked(["nodes"], args, all_succeeded, again=True)

    if len(args) > 3 or (len(args) == 3 and args[2].lower() not in _HOW):
        return Ask([("any", encode_command(*args), 0)], read=True)  # the server says what is wrong
    return everywhere() if ctx.scripts is None else ctx.scripts.flush(everywhere)


COMMANDS: Commands = {
    b"script|load": (3, load),
    b"script|flush": (-2, flush),
}
