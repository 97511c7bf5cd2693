"""Commands that are asked of several nodes at once, because one node knows only its own part of the answer.

Why: what one Redis says in one reply is spread over the cluster. Who is asked, and how one reply is made of theirs, is
in the table below where a command needs a decision; for any other (of a module, newer than the table, or allowed by the
configuration) COMMAND's tips `request_policy` and `response_policy` say it. Called through serve.table.

Invariants: an answer is of all that were asked, or an error that names the node that failed (serve.combine), except
that nodes without slots which are down, or do not answer in time, are left out; what is held for it is bounded by
proxy.forward.gather, and freed when the client leaves. Primaries are those that own slots.

Source: https://redis.io/docs/latest/develop/reference/command-tips/
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, Literal

from proxy.cluster.topology import SLOTS
from proxy.forward.ask import Ask
from proxy.forward.backend import Backend
from proxy.resp import encode, errors
from proxy.resp.errors import ProtocolFault
from proxy.serve import reports
from proxy.serve.combine import (
    BY_TIP,
    Combine,
    TooLong,
    Unexpected,
    aggregate,
    all_succeeded,
    concatenated,
    elements,
    failure,
    is_error,
    logical_and,
    named,
    number,
    one_succeeded,
    packed,
    total,
    union,
)
from proxy.serve.context import Answer, ClientLike, Commands, Handler, ServeContext
from proxy.serve.words import integer

if TYPE_CHECKING:
    from proxy.forward.ask import Where

# Their subcommands are about one connection or about the virtual node, whatever a server's tips say of them.
_NEVER_BY_TIP: Final = frozenset({b"client", b"cluster"})
_BY_REQUEST: Final[Mapping[str, Literal["primaries", "nodes"]]] = {
    "all_nodes": "nodes",
    "all_shards": "primaries",
    "multi_shard": "primaries",
    "special": "primaries",
}
# What is said for a node that has not answered.
_UNANSWERED: Final = frozenset(
    errors.EXCHANGE_TEXTS[occasion] for occasion in ("down", "full", "timeout", "timeout_sent", "lost", "gone")
)
_SLICE: Final = 1000  # words of one round of InSlices
_SLOWEST: Final = 10  # entries of SLOWLOG GET without a count

Make = Callable[[list[bytes], "Finish"], bytes | Ask]


class Finish:
    """One reply of a round's replies.

    labels, nodes, optional: whence they came; the Ask fills in its lists as it is sent (this keeps them and not the
    Ask, or both would live, with all they hold, until the next garbage collection).
    """

    __slots__ = ("__weakref__", "_make", "labels", "nodes", "optional")

    def __init__(self, make: Make) -> None:
        self._make = make
        self.labels: list[str] = []
        self.nodes: list[Where] = []
        self.optional: list[bool] = []

    def __call__(self, replies: list[bytes]) -> bytes | Ask:
        try:
            return self._make(self._heard(replies), self)
        except (Unexpected, ProtocolFault):
            return errors.BAD_PART
        except TooLong:
            return errors.TOO_LONG

    def _heard(self, replies: list[bytes]) -> list[bytes]:
        """Without the nodes that did not answer and need not: what of them is not known, no client misses."""
        if not any(self.optional):
            return replies
        heard = [n for n, reply in enumerate(replies) if not (self.optional[n] and reply in _UNANSWERED)]
        if not heard or len(heard) == len(replies):
            return replies
        self.labels, self.nodes = [self.labels[n] for n in heard], [self.nodes[n] for n in heard]
        return [replies[n] for n in heard]


def _round(parts: list[tuple[Where, bytes, int]], make: Make, read: bool) -> Ask:
    finish = Finish(make)
    ask = Ask(parts, finish=finish, read=read, errors=True, primary=True)
    finish.labels, finish.nodes, finish.optional = ask.labels, ask.nodes, ask.optional
    return ask


def asked(where: list[Where], args: list[bytes], combine: Combine, *, again: bool = False) -> Ask:
    """The command, sent to these; again: may be sent a second time when a connection is lost."""
    frame = encode.encode_command(*args)
    return _round([(one, frame, 0) for one in where], lambda replies, finish: combine(replies, finish.labels), again)


@dataclass(frozen=True, slots=True)
class Plan:
    """Who is asked, and what is made of the replies. again: see asked()."""

    arity: int
    where: Literal["any", "primaries", "nodes"]
    combine: Combine
    again: bool = False

    def __call__(self, ctx: ServeContext, client: ClientLike, args: list[bytes]) -> Ask:
        return asked([self.where], args, self.combine, again=self.again)


@dataclass(frozen=True, slots=True)
class InSlices:
    """A plan for a command with an answer, of so many elements, for each word from the third on.

    Several rounds of a limited number of words each: a million of them at once would hold up everybody. A client has
    one such command under way, since its words are held until the last round.
    """

    arity: int
    where: Literal["primaries", "nodes"]
    combine: Combine

    def __call__(self, ctx: ServeContext, client: ClientLike, args: list[bytes]) -> Ask | None:
        if len(args) > _SLICE + 2 and client.pending:
            return None
        return self._slice(args, 2, [])

    def _slice(self, args: list[bytes], begin: int, before: list[bytes]) -> Ask:
        frame = encode.encode_command(*args[:2], *args[begin : begin + _SLICE])

        def combined(replies: list[bytes], finish: Finish) -> bytes | Ask:
            made = self.combine(replies, finish.labels)
            if is_error(made) or len(args) <= _SLICE + 2:
                return made
            before.extend(elements(made))
            return self._slice(args, begin + _SLICE, before) if begin + _SLICE < len(args) else aggregate(made, before)

        return _round([(self.where, frame, 0)], combined, True)


# -- special cases -----------------------------------------------------------------------------------------------------


def slowest(ctx: ServeContext, client: ClientLike, args: list[bytes]) -> Ask:
    """SLOWLOG GET [count], COMMANDLOG GET count type. A count that is none is left to the servers to refuse."""
    count = integer(args[2]) if len(args) > 2 else _SLOWEST
    return asked(["nodes"], args, reports.newest(-1 if count is None else count), again=True)


def random_key(ctx: ServeContext, client: ClientLike, args: list[bytes]) -> Ask:
    """RANDOMKEY: first how many keys each primary has, then one of them, by that number."""
    make = partial(_counted, encode.encode_command(*args), encode.null(client.proto))
    return _round([("primaries", encode.encode_command("DBSIZE"), 0)], make, True)


def _counted(frame: bytes, nothing: bytes, replies: list[bytes], finish: Finish) -> bytes | Ask:
    if (failed := failure(replies, finish.labels)) is not None:
        return failed
    counts = [max(0, number(reply)) for reply in replies]
    return _one_of(frame, nothing, dict(zip(zip(finish.nodes, finish.labels, strict=True), counts, strict=True)))


def _one_of(frame: bytes, nothing: bytes, counts: dict[tuple[Where, str], int]) -> bytes | Ask:
    """Of a node chosen by the number of its keys. It may have none any more: then another one is asked."""
    if not any(counts.values()):
        return nothing
    ((node, label),) = random.choices(list(counts), weights=list(counts.values()))
    rest = {other: keys for other, keys in counts.items() if other[0] != node}

    def found(replies: list[bytes], finish: Finish) -> bytes | Ask:
        if is_error(replies[0]):
            return named(replies[0], label)
        return _one_of(frame, nothing, rest) if replies[0] == nothing else replies[0]

    return _round([(node, frame, 0)], found, True)


def of_slot(ctx: ServeContext, client: ClientLike, args: list[bytes]) -> Ask:
    """CLUSTER COUNTKEYSINSLOT slot, GETKEYSINSLOT slot count: of the slot's owner; any node refuses what is none."""
    slot = integer(args[2])
    where: Where = slot if slot is not None and 0 <= slot < SLOTS else "any"
    return Ask([(where, encode.encode_command(*args), 0)], read=True)


def script_debug(ctx: ServeContext, client: ClientLike, args: list[bytes]) -> bytes:
    """SCRIPT DEBUG would make a shared connection a debugging session."""
    return errors.not_allowed(b"script|debug")


def kill(ctx: ServeContext, client: ClientLike, args: list[bytes]) -> Answer:
    """SCRIPT KILL, FUNCTION KILL.

    On connections of their own: while a script runs, its node reads no more from the connection that it came by, which
    is one of those that all clients share.
    """
    spare: list[Backend] = ctx.spare_connections()
    if not spare:
        return errors.CLUSTERDOWN
    labels = [backend.node.label for backend in spare]
    frame = encode.encode_command(*args)
    return _round([(one, frame, 0) for one in spare], lambda replies, finish: one_succeeded(replies, labels), True)


_ON_ALL: Final[dict[bytes, Plan | InSlices]] = {
    # name: arity, who, how, whether it may be sent again
    b"dbsize": Plan(1, "primaries", total, True),
    b"keys": Plan(2, "primaries", concatenated, True),
    b"flushall": Plan(-1, "primaries", all_succeeded),
    b"flushdb": Plan(-1, "primaries", all_succeeded),
    b"sflush": Plan(-3, "primaries", concatenated),
    b"config|resetstat": Plan(2, "nodes", all_succeeded, True),
    b"config|rewrite": Plan(2, "nodes", all_succeeded, True),
    b"slowlog|len": Plan(2, "nodes", total, True),
    b"slowlog|reset": Plan(2, "nodes", all_succeeded, True),
    b"commandlog|len": Plan(3, "nodes", total, True),
    b"commandlog|reset": Plan(3, "nodes", all_succeeded, True),
    b"latency|doctor": Plan(2, "nodes", reports.texts, True),
    b"latency|graph": Plan(3, "nodes", reports.graphs, True),
    b"latency|histogram": Plan(-2, "nodes", reports.histogram, True),
    b"latency|history": Plan(3, "nodes", reports.history, True),
    b"latency|latest": Plan(2, "nodes", reports.latest, True),
    b"latency|reset": Plan(-2, "nodes", total),
    b"memory|doctor": Plan(2, "primaries", reports.texts, True),
    b"memory|malloc-stats": Plan(2, "primaries", reports.texts, True),
    b"memory|purge": Plan(2, "primaries", all_succeeded, True),
    b"memory|stats": Plan(2, "primaries", reports.memory, True),
    # A client of the cluster may have subscribed at any node.
    b"pubsub|channels": Plan(-2, "nodes", union, True),
    b"pubsub|numpat": Plan(2, "nodes", total, True),
    b"pubsub|numsub": InSlices(-2, "nodes", reports.subscribers),
    b"pubsub|shardchannels": Plan(-2, "nodes", union, True),
    b"pubsub|shardnumsub": InSlices(-2, "nodes", reports.subscribers),
    b"script|exists": InSlices(-3, "primaries", logical_and),
    b"script|show": Plan(3, "primaries", one_succeeded, True),
    b"function|delete": Plan(3, "primaries", all_succeeded),
    b"function|flush": Plan(-2, "primaries", all_succeeded, True),
    b"function|load": Plan(-3, "primaries", all_succeeded),
    b"function|restore": Plan(-3, "primaries", all_succeeded),
    b"function|dump": Plan(2, "any", all_succeeded, True),
    b"function|list": Plan(-2, "any", all_succeeded, True),
    b"function|stats": Plan(2, "any", all_succeeded, True),
    # Refused unless the configuration allows them. One Redis would do it to all of its data, or all of its users.
    b"save": Plan(1, "primaries", all_succeeded),
    b"bgsave": Plan(-1, "primaries", all_succeeded),
    b"bgrewriteaof": Plan(1, "primaries", all_succeeded),
    b"swapdb": Plan(3, "primaries", all_succeeded),
    b"acl|load": Plan(2, "nodes", all_succeeded),
}

COMMANDS: Final[Commands] = {
    **{name: (plan.arity, plan) for name, plan in _ON_ALL.items()},
    b"randomkey": (1, random_key),
    b"slowlog|get": (-2, slowest),
    b"commandlog|get": (4, slowest),
    b"cluster|countkeysinslot": (3, of_slot),
    b"cluster|getkeysinslot": (4, of_slot),
    b"script|debug": (-3, script_debug),
    b"script|kill": (2, kill),
    b"function|kill": (2, kill),
}

# Containers whose subcommands are here.
CONTAINERS: Final = frozenset(name.partition(b"|")[0] for name in COMMANDS if b"|" in name) - {b"cluster"}


def by_tip(ctx: ServeContext, name: bytes) -> tuple[int, Handler] | None:
    """(arity, handler) of a command whose tips say that it is for several nodes; None when they do not.

    name: full, as in the command table.
    """
    row = ctx.rows.get(name)
    if row is None or row.keyed or name.partition(b"|")[0] in _NEVER_BY_TIP:
        return None
    where = _BY_REQUEST.get(row.request_policy)
    if where is None:
        return None
    return row.arity, Plan(row.arity, where, BY_TIP.get(row.response_policy, packed), "readonly" in row.flags)
