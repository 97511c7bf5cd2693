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

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

from proxy.forward.ask import Ask
from proxy.resp import encode, errors
from proxy.resp.readers import split_array
from proxy.serve import table
from proxy.serve.context import Answer, ClientLike, ServeContext
from proxy.serve.words import OK, full_name, integer

if TYPE_CHECKING:
    from proxy.forward.ask import Where

QUEUED: Final = encode.simple("QUEUED")
ASKING: Final = encode.encode_command("ASKING")
EMPTY: Final = encode.encode_command("MULTI") + encode.encode_command("EXEC")
TRIES: Final = 5
ANSWERS: Final = 8 << 20  # bytes of all answers of the proxy's own in one EXEC
# What the proxy answers itself, at once and without asking anybody.
PLAIN: Final = frozenset(
    {
        b"acl|whoami",
        b"asking",
        b"auth",
        b"client|caching",
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
_UNEXECUTED: Final = (
    b"-MOVED ",
    b"-ASK ",
    b"-TRYAGAIN ",
    b"-CLUSTERDOWN ",
    b"-READONLY ",
    b"-LOADING ",
    b"-MASTERDOWN ",
)
_BECAUSE: Final = b"-EXECABORT Transaction discarded because of: "


# -- between MULTI and EXEC


def queue(ctx: ServeContext, client: ClientLike, words: list[bytes]) -> bytes:
    """Queues a command that the proxy answers itself; the reply to it for now."""
    name = full_name(words)
    if name not in PLAIN:
        client.spoil()
        return errors.not_inside(name)
    told = integer(words[1]) if len(words) > 1 else None
    if name == b"select" and told is not None and told != client.db and 0 <= told < ctx.databases:
        client.spoil()
        return errors.SELECT_INSIDE
    if name == b"hello" and told in (2, 3) and told != client.proto:
        client.spoil()  # what goes to a server is answered in one protocol
        return errors.HELLO_INSIDE
    return QUEUED if client.queue(words) else errors.TRANSACTION_TOO_LONG


# -- WATCH


def watch(ctx: ServeContext, client: ClientLike, words: list[bytes], slot: int) -> bytes | Ask:
    """WATCH key [key ...], all in this slot, which is that of the keys watched before."""
    if client.watching < 0:
        return _first(client, words, slot, 0)
    if client.lease is None or not client.leased_at(slot):
        return OK  # what is watched already will be said to have changed
    return _ask_lease(client, words, slot, 0)


def _first(client: ClientLike, words: list[bytes], slot: int, tries: int) -> bytes | Ask:
    """On a connection of the client's own to the node that has the slot."""
    trouble = client.lease_slot(slot)
    if trouble == "busy":
        return errors.NO_LEASE
    if trouble:
        return errors.CLUSTERDOWN_UNSERVED if trouble == "uncovered" else errors.CLUSTERDOWN
    return _ask_lease(client, words, slot, tries)


def _ask_lease(client: ClientLike, words: list[bytes], slot: int, tries: int) -> bytes | Ask:
    frame = encode.encode_command(*words)
    if client.asking:
        frame = ASKING + frame
    finish = partial(_watched, client, words, slot, tries)
    return _on_lease(client, frame, int(client.asking), finish)


def _watched(client: ClientLike, words: list[bytes], slot: int, tries: int, replies: list[bytes]) -> bytes | Ask:
    """The node's reply to WATCH. What it refuses for now is tried again: WATCH changes nothing."""
    (reply,) = replies
    if reply == OK:
        client.watching = slot
        return OK
    if client.watching >= 0 or not reply.startswith(b"-"):
        client.watching = slot
        client.forfeit()  # nobody knows what is watched: it will be said to have changed
        return OK
    if tries < TRIES:
        trouble = "unknown"
        if reply.startswith((b"-MOVED ", b"-ASK ")):
            trouble = client.lease_redirected(reply, slot)
            if not trouble:
                return _ask_lease(client, words, slot, tries + 1)
        if trouble == "busy":
            client.release()
            return errors.NO_LEASE
        if reply.startswith(_UNEXECUTED) or reply in (errors.NODE_GONE, errors.MAYBE_EXECUTED):
            client.release()
            # Asked on the shared connection, which is patient with a slot that moves and a node that is lost.
            probe = encode.encode_command("EXISTS", *words[1:])
            again = partial(_probed, client, words, slot, tries + 1)
            return Ask([(slot, probe, 0)], finish=again, errors=True)
    client.release()
    return errors.TRYAGAIN if reply.startswith((b"-MOVED ", b"-ASK ")) else reply


def _probed(client: ClientLike, words: list[bytes], slot: int, tries: int, replies: list[bytes]) -> bytes | Ask:
    (reply,) = replies
    if reply.startswith(b"-") and reply != errors.MAYBE_EXECUTED:
        return reply
    return _first(client, words, slot, tries)


def _on_lease(client: ClientLike, frame: bytes, swallow: int, finish: Callable[[list[bytes]], bytes | Ask]) -> Ask:
    """Asks the client's own connection, in the protocol and the database that the client has now."""
    lease = client.lease
    assert lease is not None
    parts: list[tuple[Where, bytes, int]] = []
    if lease.proto != client.proto:
        parts.append((lease, encode.encode_command("HELLO", str(client.proto)), 0))
    if lease.db != client.db:
        parts.append((lease, encode.encode_command("SELECT", str(client.db)), 0))
    if not parts:
        return Ask([(lease, frame, swallow)], finish=finish, errors=True)

    def tuned(replies: list[bytes]) -> bytes | Ask:
        if any(reply.startswith(b"-") for reply in replies):
            return finish([errors.NODE_GONE])  # it was not sent
        client.lease_tuned()
        return Ask([(lease, frame, swallow)], finish=finish, errors=True)

    return Ask(parts, finish=tuned, errors=True)


# -- EXEC


def execute(
    ctx: ServeContext,
    client: ClientLike,
    words: list[bytes],
    slot: int,
    frame: bytes,
    swallow: int,
    local: list[tuple[int, list[bytes]]],
    reads: bool,
) -> Answer:
    """EXEC of a transaction that watches, or in which the proxy answers something.

    slot: of its keys, -1 = it has none. frame: MULTI to EXEC of what goes to a server (empty = nothing), with so many
    replies to swallow. local: (place among all commands, words) of those for the proxy. reads: what goes to a server
    changes nothing.
    """
    finish = partial(_executed, ctx, client, swallow - 1 if frame else 0, local)
    if client.watching < 0:
        if not frame:
            return finish([encode.array([])])
        reads = reads and client.reads == "primary"  # all of one transaction is read in one place
        return Ask([(slot if slot >= 0 else "any", frame, swallow)], finish=finish, read=reads)
    if client.lease is None or not client.leased_at(client.watching):
        client.release()
        return encode.null_array(client.proto)
    if not frame:
        frame, swallow = EMPTY, 1
    untold = False
    if client.asking:
        frame, swallow = ASKING + frame, swallow + 1
        untold = client.cached  # ASKING and CLIENT CACHING cannot both come right before it
    return _on_lease(client, frame, swallow, partial(_decided, client, finish, untold))


def _decided(client: ClientLike, finish: partial[bytes], untold: bool, replies: list[bytes]) -> bytes:
    """The reply to EXEC of a client that watches. untold: its node does not remember what was read, as it should."""
    (reply,) = replies
    if untold and client.tracking is not None:
        client.tracking.invalidate()
    if not reply.startswith(b"-"):
        if not reply.startswith((b"*", b"_")):
            client.forfeit()  # no reply to EXEC
        client.release(executed=True)
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
    ctx: ServeContext, client: ClientLike, sent: int, local: list[tuple[int, list[bytes]]], replies: list[bytes]
) -> bytes:
    """EXEC's reply with the proxy's own answers in their places. sent: commands that went to the server."""
    (reply,) = replies
    if reply[:1] != b"*" or reply.startswith(b"*-1") or not local:
        return reply
    # Those before a local command that are not local themselves come before it in the reply.
    at = reply.index(b"\r\n") + 2
    try:
        if int(reply[1 : at - 2]) != sent:
            return errors.UNEXPECTED_FORM
        borders = split_array(reply, [place - n for n, (place, _) in enumerate(local)])
    except ValueError:
        return errors.UNEXPECTED_FORM
    pieces = [b"*%d\r\n" % (sent + len(local))]
    size = 0
    for (_, words), border in zip(local, borders, strict=True):
        answer = _answer(ctx, client, words)
        size += len(answer)
        if size > ANSWERS:
            return errors.TOO_LONG
        pieces += (reply[at:border], answer)
        at = border
    pieces.append(reply[at:])
    return b"".join(pieces)


def _answer(ctx: ServeContext, client: ClientLike, words: list[bytes]) -> bytes:
    if words[0].lower() == b"unwatch":
        return OK
    answer = table.answer(ctx, client, words)
    client.cached = False  # CLIENT CACHING is over with its transaction
    return answer if isinstance(answer, bytes) else errors.not_inside(full_name(words))
