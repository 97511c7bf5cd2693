"""What the data path hands to proxy.serve: the one object it calls for whatever is not a plain forward.

Why: the compiled data path knows this one object instead of every module here. Called by proxy.forward for each command
that the proxy answers or refuses itself; never for a forwarded one.

Invariant: every method returns ready bytes (or None or an Ask where it says so) and raises for no input of a client.
"""

from __future__ import annotations

from collections.abc import Callable

from proxy.forward.counters import CLOSE_REASON_NAMES
from proxy.resp import errors
from proxy.resp.readers import fault_text
from proxy.serve import monitor, table, transaction
from proxy.serve.context import Answer, ClientLike, ServeContext

# They may move a client to other connections to the nodes (RESP2, RESP3; with databases SELECT, too), where what
# follows could overtake what is under way.
_BARRIERS = frozenset({b"hello", b"reset"})

# What a client did not bring about by itself, or should know of. (Malformed input has its notice already.)
_CLOSED_FOR = {
    "pubsub_limit": "client closed: it does not take its messages (clients.pubsub_output_limit)",
    "output_limit": "client closed: it does not take its replies (clients.output_hard_limit)",
    "query_limit": "client closed: its command is too long (clients.max_query)",
    "memory_limit": "client closed: all clients together hold too much (clients.max_memory)",
    "reply_cut": "client closed: the node was lost in the middle of its reply",
}


_TRANSACTION = {
    "nested": errors.MULTI_NESTED,
    "watch_inside": errors.WATCH_IN_MULTI,
}


class Responder:
    """One per worker.

    on_notice(event, client address): worth a line in the log, seldom enough. on_raised(what, error): an answer raised,
    which is a defect of ours.
    """

    def __init__(
        self,
        ctx: ServeContext,
        *,
        on_notice: Callable[[str, str], None] = lambda event, address: None,
        on_raised: Callable[[str, BaseException], None] = lambda what, error: None,
    ) -> None:
        self.ctx = ctx
        self._on_notice = on_notice
        self._on_raised = on_raised

    def answer(self, client: ClientLike, args: list[bytes]) -> Answer:
        """The reply to a command of CLASS_LOCAL, or whence it is to come."""
        name = args[0].lower()
        if client.pending and (name in _BARRIERS or (name == b"select" and self.ctx.databases > 1)):
            return None
        return table.answer(self.ctx, client, args)

    def watch(self, client: ClientLike, args: list[bytes], slot: int) -> Answer:
        """The reply to WATCH, whose keys are all in that slot."""
        return transaction.watch(self.ctx, client, args, slot)

    def queue(self, client: ClientLike, args: list[bytes]) -> bytes:
        """The reply to a command of CLASS_LOCAL between MULTI and EXEC."""
        return transaction.queue(self.ctx, client, args)

    def execute(
        self,
        client: ClientLike,
        args: list[bytes],
        slot: int,
        frame: bytes,
        swallow: int,
        local: list[tuple[int, list[bytes]]],
        reads: bool,
    ) -> Answer:
        """The reply to EXEC; see transaction.execute."""
        return transaction.execute(self.ctx, client, args, slot, frame, swallow, local, reads)

    def unknown(self, client: ClientLike, args: list[bytes]) -> bytes:
        """The error for a command, or a subcommand, that the servers do not have."""
        if args[0].lower() in self.ctx.rows and len(args) > 1:
            return errors.unknown_subcommand(args[0], args[1])
        return errors.unknown_command(args[0], args[1:])

    def raised(self, what: str, error: BaseException) -> None:
        """A method of this object has raised; the client was told `internal error`."""
        self._on_raised(what, error)

    def refuse(self, why: str, row: bytes, name: bytes, sub: bytes | None) -> bytes:
        """The error for a command that is not carried out.

        why: noauth, arity, refused or unserved; of transactions: no_multi (EXEC or DISCARD without one), nested,
        watch_inside, inside (not allowed there); subscribed: not allowed to a RESP2 client with subscriptions. row: its
        name in the command table (`object|encoding`), empty when it is unknown. name, sub: as the client spelt them.
        """
        if why == "noauth":
            return errors.NOAUTH
        if why in _TRANSACTION:
            return _TRANSACTION[why]
        known = row or name
        if why == "no_multi":
            return errors.EXEC_WITHOUT_MULTI if known == b"exec" else errors.DISCARD_WITHOUT_MULTI
        if why == "subscribed":
            refused = errors.not_in_subscribed_mode(
                known + (b"|" + sub if sub is not None and b"|" not in known else b"")
            )
            return refused if known != b"exec" else errors.exec_abort(refused)
        if why == "inside":
            return errors.not_in_transaction(known) if self.ctx.valkey_version else errors.NOT_IN_MULTI
        if sub is not None and b"|" not in known:
            known += b"|" + sub
        if why == "arity":
            return errors.EXEC_ARITY if row == b"exec" else errors.wrong_arity(row or name)
        return errors.not_allowed(known) if why == "refused" else errors.not_served(known)

    def fault(self, code: int, got: int, address: str) -> bytes:
        """The error for malformed input, after which the client is closed."""
        self._on_notice("protocol error", address)
        return fault_text(code, got)

    def closed(self, client: ClientLike, reason: int) -> None:
        """A client is closed. reason: index of proxy.forward.counters.CLOSE_REASON_NAMES."""
        monitor.ended(self.ctx, client)
        if self.ctx.pubsub is not None:
            self.ctx.pubsub.closed(client)
        if (why := _CLOSED_FOR.get(CLOSE_REASON_NAMES[reason])) is not None:
            self._on_notice(why, client.address)

    def attacked(self, address: str) -> None:
        """A client spoke HTTP and is closed."""
        self._on_notice("possible cross-protocol attack: POST or Host: received", address)
