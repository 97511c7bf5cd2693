"""Which function answers which command of CLASS_LOCAL: the tables of all modules of serve as one.

Called by serve.responder, once for each such command, in the client's order of commands. A command that is not here
is answered by all_shards where its tips say so, else refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from proxy.resp import errors
from proxy.serve import (
    acl_view,
    all_shards,
    client,
    client_all,
    cluster_view,
    command_info,
    config_get,
    config_set,
    console,
    info,
    local,
    monitor,
    pubsub,
    pubsub_view,
    role,
    scan,
    scripts,
    tracking,
)
from proxy.serve.context import Answer, Answerers, ClientLike, Commands, ServeContext

COMMANDS: Final[Commands] = {
    **local.COMMANDS,
    **client.COMMANDS,
    **client_all.COMMANDS,
    **cluster_view.COMMANDS,
    **info.COMMANDS,
    **all_shards.COMMANDS,
    **config_get.COMMANDS,
    **config_set.COMMANDS,
    **pubsub.COMMANDS,
    **pubsub_view.COMMANDS,
    **command_info.COMMANDS,
    **acl_view.COMMANDS,
    **role.COMMANDS,
    **scan.COMMANDS,
    **scripts.COMMANDS,
    **monitor.COMMANDS,
    **tracking.COMMANDS,
    **console.COMMANDS,
}

# What this worker answers for its share of a question to all workers, by the question's kind.
ANSWERERS: Final[Answerers] = {
    **client_all.ANSWERERS,
    **console.ANSWERERS,
    **monitor.ANSWERERS,
    **pubsub_view.ANSWERERS,
}

# container -> its subcommands that are not served -> the refusal
CONTAINERS: Final[dict[bytes, dict[bytes, Callable[[bytes], bytes]]]] = {
    b"client": {},
    b"cluster": {
        **dict.fromkeys(cluster_view.CHANGING, errors.not_allowed),
        **dict.fromkeys(cluster_view.UNSERVED, errors.not_served),
    },
    **{name: {} for name in all_shards.CONTAINERS},
    b"pubsub": {},
    b"acl": {},
    b"proxy": {},
}


def answer(ctx: ServeContext, client: ClientLike, args: list[bytes]) -> Answer:
    """The reply to one command, or whence it is to come. args: its name and arguments, at least the name."""
    name = args[0].lower()
    served = COMMANDS.get(name)
    if served is None and (known := _container(ctx, name)) is not None:
        if len(args) < 2:
            return errors.wrong_arity(name)
        sub = args[1].lower()
        full = name + b"|" + sub
        served = COMMANDS.get(full)
        if served is None:
            if (refusal := known.get(sub)) is not None:
                return refusal(full)
            served = all_shards.by_tip(ctx, full)
            if served is None and full not in ctx.rows:
                return errors.unknown_subcommand(args[0], args[1])
        name = full
    if served is None:
        served = all_shards.by_tip(ctx, name)
    if served is None:
        return errors.not_served(name)
    arity, handler = served
    if len(args) != arity and (arity > 0 or len(args) < -arity):
        return errors.wrong_arity(name)
    return handler(ctx, client, args)


def _container(ctx: ServeContext, name: bytes) -> Mapping[bytes, Callable[[bytes], bytes]] | None:
    """The refusals of a container by subcommand; None when it is none."""
    known = CONTAINERS.get(name)
    if known is None and (row := ctx.rows.get(name)) is not None and row.subcommands:
        return {}
    return known
