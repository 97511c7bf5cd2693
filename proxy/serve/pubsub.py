"""SUBSCRIBE, UNSUBSCRIBE and their like for patterns and shard channels.

Why: a client's subscriptions are the proxy's own (ServeContext.pubsub, which is worker.subscriptions); the nodes know
of one for each worker. Called through serve.table.

Invariant: a subscription command waits until all that its client has under way is answered, so that the confirmations,
which are pushes, come in their place. As pushes they are sent in spite of CLIENT REPLY OFF, as Redis does it.

Source of the forms: Redis 7.0 and Valkey 9.1, src/pubsub.c.
"""

from __future__ import annotations

from functools import partial

from proxy.cluster.slot import slot_of
from proxy.forward.hub import SHARDS
from proxy.resp import errors
from proxy.serve.context import Answer, ClientLike, Commands, ServeContext


def _subscribe(kind: int, ctx: ServeContext, client: ClientLike, args: list[bytes]) -> Answer:
    names = args[1:]
    if kind == SHARDS and len({slot_of(name) for name in names}) > 1:
        return errors.CROSSSLOT
    if client.pending:
        return None
    return ctx.pubsub.subscribe(client, kind, names) if ctx.pubsub is not None else errors.CLUSTERDOWN


def _unsubscribe(kind: int, ctx: ServeContext, client: ClientLike, args: list[bytes]) -> Answer:
    names = args[1:]
    if kind == SHARDS and len({slot_of(name) for name in names}) > 1:
        return errors.CROSSSLOT
    if client.pending:
        return None
    return ctx.pubsub.unsubscribe(client, kind, names or None) if ctx.pubsub is not None else errors.CLUSTERDOWN


COMMANDS: Commands = {
    **{name: (-2, partial(_subscribe, kind)) for kind, name in enumerate((b"subscribe", b"psubscribe", b"ssubscribe"))},
    **{
        name: (-1, partial(_unsubscribe, kind))
        for kind, name in enumerate((b"unsubscribe", b"punsubscribe", b"sunsubscribe"))
    },
}
