"""WATCH, and transactions that are more than commands for one server: those that watch, or ask the proxy something.

Why: a transaction without either is one request on a shared connection, which the data path makes by itself
(proxy.forward.transaction, which calls this for the rest). Keys can be watched only on a connection of the client's
own, and what the proxy answers itself is put into EXEC's reply in its place.

Invariants:
- A transaction whose keys were watched is executed only on the connection that watches them all, at the node that owns
  the slot. If that connection is lost, or the slot has moved, EXEC's answer is nil: never a false success.
- What the proxy answers itself is carried out when EXEC's reply is there, and not if nothing was executed.
"""

from __future__ import annotations

from functools import partial
from typing import Final

from proxy.forward.ask import Ask
from proxy.resp import encode, errors
from proxy.resp.readers import ReplyReader
from proxy.serve import table
from proxy.serve.context import Answer, ClientLike, ServeContext
from proxy.serve.words import OK, full_name, integer

QUEUED: Final = encode.simple("QUEUED")
ASKING: Final = encode.encode_command("ASKING")
EMPTY: Final = encode.encode_command("MULTI") + encode.encode_command("EXEC")
TRIES: Final = 5
# What the proxy answers itself, at once and without asking anybody.
PLAIN: Final = frozenset(
    {
        b"acl|whoami",
        b"asking",
        b"auth",
        b"client|getname",
        b"client|getredir",
        b"client|help",
        b"client|id",
        b"client|info",
        b"client|no-evict",
        b"client|no-touch",
        b"client|setinfo",
        b"client|setname",
        b"client|trackinginfo",
        b"cluster|help",
        b"cluster|info",
        b"cluster|keyslot",
        b"cluster|myid",
        b"cluster|nodes",
        b"cluster|shards",
        b"cluster|slots",
        b"hello",
        b"readonly",
        b"readwrite",
        b"role",
        b"select",
        b"unwatch",
    }
)
# Refusals of a server that had not executed anything, beside those that are told by EXECABORT.
_UNEXECUTED: Final = (b"-MOVED ", b"-ASK ", b"-TRYAGAIN ", b"-CLUSTERDOWN ", b"-READONLY ", b"-LOADING ", b"-MASTERDOWN ")
_BECAUSE: Final = b"-EXECABORT Transaction discarded because of: "


# -- between MULTI and EXEC


def queue(ctx: ServeContext, client: ClientLike, words: list[bytes]) -> bytes:
    """Queues a command that the proxy answers itself; the reply to it for now."""
    name = full_name(words)
    if name not in PLAIN:
        client.spoil()
        return errors.not_inside(name)
    if name == b"select" and integer(words[1]) != client.db and 0 <= (integer(words[1]) or 0) < ctx.databases:
        client.spoil()
        return errors.SELECT_INSIDE
    return QUEUED if client.queue(words) else errors.TRANSACTION_TOO_LONG


# -- WATCH


def watch(ctx: ServeContext, client: ClientLike, words: list[bytes], slot: int, tries: int = 0) -> Answer:
    """WATCH key [key ...], all in this slot, which is that of the keys watched before."""
    if client.watching < 0:
        if not tries and (trouble := client.lease_slot(slot)):
            return {"busy": errors.NO_LEASE, "uncovered": errors.CLUSTERDOWN_UNSERVED}.get(trouble, errors.CLUSTERDOWN)
    elif client.lease is None or not client.leased_at(slot):
        return OK  # what is watched already will be said to have changed
    frame = encode.encode_command(*words)
    part = (client.lease, ASKING + frame, 1) if client.asking else (client.lease, frame, 0)
    return Ask([part], finish=partial(_watched, ctx, client, words, slot, tries), errors=True)  # type: ignore[list-item]


def _watched(
    ctx: ServeContext, client: ClientLike, words: list[bytes], slot: int, tries: int, replies: list[bytes]
) -> bytes | Ask:
    (reply,) = replies
    if not reply.startswith(b"-"):
        client.watching = slot
        return reply
    if client.watching >= 0:
        client.forfeit()
        return OK
    if reply.startswith((b"-MOVED ", b"-ASK ")):
        if tries < TRIES and client.lease_redirected(reply):
            again = watch(ctx, client, words, slot, tries + 1)
            assert isinstance(again, bytes | Ask)
            return again
        reply = errors.TRYAGAIN
    client.release()
    return reply


# -- EXEC


def execute(
    ctx: ServeContext,
    client: ClientLike,
    words: list[bytes],
    slot: int,
    frame: bytes,
    swallow: int,
    queued: int,
    local: list[tuple[int, list[bytes]]],
    reads: bool,
) -> Answer:
    """EXEC of a transaction that watches, or in which the proxy answers something.

    slot: of its keys, -1 = it has none. frame: MULTI to EXEC of what goes to a server (empty = nothing), with so many
    replies to swallow. queued: commands in all. local: (place among them, words) of those for the proxy. reads: what
    goes to a server changes nothing.
    """
    finish = partial(_executed, ctx, client, queued, local)
    if client.watching < 0:
        if not frame:
            return finish([encode.array([])])
        reads = reads and client.reads == "primary"  # all of one transaction is read in one place
        return Ask([(slot if slot >= 0 else "any", frame, swallow)], finish=finish, read=reads)
    lease = client.lease
    if lease is None or not client.leased_at(client.watching):
        client.release()
        return encode.null_array(client.proto)
    if not frame:
        frame, swallow = EMPTY, 1
    if client.asking:
        frame, swallow = ASKING + frame, swallow + 1
    return Ask([(lease, frame, swallow)], finish=partial(_decided, client, finish), errors=True)


def _decided(client: ClientLike, finish: partial[bytes], replies: list[bytes]) -> bytes:
    """The reply to EXEC of a client that watches."""
    (reply,) = replies
    if not reply.startswith(b"-"):
        client.release()
        return finish(replies)
    refusal = b"-" + reply[len(_BECAUSE) :] if reply.startswith(_BECAUSE) else reply
    if refusal.startswith(_UNEXECUTED) or reply == errors.NODE_GONE:
        client.forfeit()
        client.release()
        return encode.null_array(client.proto)
    if not reply.startswith(b"-EXECABORT "):
        client.forfeit()  # nobody knows what it watches now
    client.release()
    return reply


def _executed(
    ctx: ServeContext, client: ClientLike, queued: int, local: list[tuple[int, list[bytes]]], replies: list[bytes]
) -> bytes:
    """EXEC's reply with the proxy's own answers in their places."""
    (reply,) = replies
    if reply[:1] != b"*" or reply.startswith(b"*-1") or not local:
        return reply
    answers = [frame for frame, _, _ in ReplyReader().feed(reply[reply.index(b"\r\n") + 2 :])]
    for place, words in local:
        answers.insert(place, _answer(ctx, client, words))
    return encode.array(answers)


def _answer(ctx: ServeContext, client: ClientLike, words: list[bytes]) -> bytes:
    if words[0].lower() == b"unwatch":
        return OK
    answer = table.answer(ctx, client, words)
    return answer if isinstance(answer, bytes) else errors.not_inside(full_name(words))
