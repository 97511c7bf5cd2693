"""CONFIG GET: a server's answer without its secrets, which are the cluster's and not its clients'.

Why: with the cluster's password a client could go to the servers directly, past what the proxy allows. Called through
serve.table.

Invariants: a secret's value is the empty string, as if it were not set; every other byte is as the server sent it. Of
a malformed array or map the client sees nothing (the call raises). A server's error is passed on unchanged.
"""

from __future__ import annotations

from typing import Final

from proxy.forward.ask import Ask
from proxy.resp import encode
from proxy.resp.decode import decode
from proxy.resp.readers import ReplyReader
from proxy.serve.context import ClientLike, Commands, ServeContext

SECRETS: Final = frozenset(
    {
        b"masterauth",
        b"masteruser",
        b"primaryauth",
        b"primaryuser",
        b"requirepass",
        b"tls-client-key-file-pass",
        b"tls-key-file-pass",
    }
)
_EMPTY: Final = encode.bulk(b"")


def answer(ctx: ServeContext, client: ClientLike, args: list[bytes]) -> Ask:
    """CONFIG GET parameter [parameter ...], asked of any primary."""
    return Ask([("any", encode.encode_command(*args), 0)], finish=_finish, read=True)


def _finish(replies: list[bytes]) -> bytes:
    return without_secrets(replies[0])


def without_secrets(reply: bytes) -> bytes:
    """A flat array (RESP2) or map (RESP3) of names and values, the values of secrets emptied, others unchanged.

    Each element is kept as bytes, so that decoding and encoding lose nothing, such as a name that came twice or a type.
    """
    if reply[:1] not in (b"*", b"%"):
        return reply
    head = reply.index(b"\r\n") + 2
    items = [frame for frame, _, _ in ReplyReader().feed(reply[head:])]
    changed = False
    for at in range(0, len(items) - 1, 2):
        if _is_secret(items[at]) and items[at + 1] != _EMPTY:
            items[at + 1] = _EMPTY
            changed = True
    return reply[:head] + b"".join(items) if changed else reply


def _is_secret(frame: bytes) -> bool:
    """Whether an option's name, as a frame, means a secret.

    A server repeats a name as the client wrote it, and some compare names as C strings: what follows a NUL is ignored.
    """
    name = decode(frame)
    return isinstance(name, bytes) and name.partition(b"\0")[0].lower() in SECRETS


COMMANDS: Commands = {b"config|get": (-3, answer)}
