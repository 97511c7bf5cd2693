"""COMMAND and its subcommands: what a server says of its commands, without those that are refused here.

Why: libraries and redis-cli learn from it what they may send. Called through serve.table.

Invariant: COMMAND, COUNT, LIST, INFO and DOCS agree on which commands there are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from proxy.forward.ask import Ask, Later
from proxy.resp import encode, errors
from proxy.serve.command_catalogs import Catalog, like, lower_name
from proxy.serve.context import Answer, ClientLike, Commands, ServeContext
from proxy.serve.words import elements

# Bytes of one answer: a million names of one command would make a gigabyte of it.
MOST: Final = 32 << 20


def answer(ctx: ServeContext, client: ClientLike, args: list[bytes]) -> Answer:
    """COMMAND [subcommand ...]."""
    if len(args) == 1:
        return _of_catalog(ctx, client, "command", _whole)
    handler = _SUBCOMMAND.get(args[1].lower())
    return errors.unknown_subcommand(args[0], args[1]) if handler is None else handler(ctx, client, args)


def _of_catalog(
    ctx: ServeContext, client: ClientLike, kind: str, make: Callable[[Catalog, int], bytes]
) -> bytes | Later:
    """What is made of a catalog in the client's protocol."""
    later, proto = Later(), client.proto
    made: list[bytes] = []

    def done(known: Catalog | bytes) -> None:
        reply = errors.INTERNAL
        try:
            reply = known if isinstance(known, bytes) else make(known, proto)
        finally:
            made.append(reply)
            later.answer(reply)

    if ctx.catalogs is None:
        return errors.CLUSTERDOWN
    ctx.catalogs.ask((ctx.rows, ctx.refused), kind, proto, done)
    return made[0] if made else later


def _whole(catalog: Catalog, proto: int) -> bytes:
    return encode.array(catalog.top.values())


def _count(ctx: ServeContext, client: ClientLike, args: list[bytes]) -> Answer:
    return _of_catalog(ctx, client, "command", lambda catalog, proto: encode.integer(len(catalog.top)))


def _info(ctx: ServeContext, client: ClientLike, args: list[bytes]) -> Answer:
    """COMMAND INFO [name ...]: nil for what there is not."""
    names = args[2:]
    if not names:
        return _of_catalog(ctx, client, "command", _whole)

    def make(catalog: Catalog, proto: int) -> bytes:
        null = encode.null(proto)
        return _limited([catalog.get(name.lower()) or null for name in names], encode.array)

    return _of_catalog(ctx, client, "command", make)


def _docs(ctx: ServeContext, client: ClientLike, args: list[bytes]) -> Answer:
    """COMMAND DOCS [name ...]: nothing of what there is not."""
    names = args[2:]

    def make(catalog: Catalog, proto: int) -> bytes:
        found = [doc for name in names if (doc := catalog.get(name.lower()))] if names else list(catalog.top.values())
        head = b"%%%d\r\n" % len(found) if proto == 3 else b"*%d\r\n" % (2 * len(found))
        return _limited(found, lambda docs: head + b"".join(docs))

    return _of_catalog(ctx, client, "docs", make)


def _limited(frames: list[bytes], make: Callable[[list[bytes]], bytes]) -> bytes:
    return make(frames) if sum(map(len, frames)) <= MOST else errors.REPLY_TOO_LONG


def _list(ctx: ServeContext, client: ClientLike, args: list[bytes]) -> Ask:
    """COMMAND LIST [FILTERBY ...]: a server knows how to filter."""
    refused = ctx.refused

    def finish(replies: list[bytes]) -> bytes:
        reply = replies[0]
        if reply[:1] not in (b"*", b"~"):
            return reply
        return like(reply, [frame for frame in elements(reply) if lower_name(frame) not in refused])

    return Ask([("any", encode.encode_command(*args), 0)], finish=finish, read=True)


def _getkeys(ctx: ServeContext, client: ClientLike, args: list[bytes]) -> Answer:
    """COMMAND GETKEYS, GETKEYSANDFLAGS: of a refused command as of one there is not."""
    if len(args) > 2:
        name = args[2].lower()
        full = name + b"|" + args[3].lower() if len(args) > 3 else name
        if name in ctx.refused or full in ctx.refused:
            return errors.line("ERR Invalid command specified")
    return _help(ctx, client, args)


def _help(ctx: ServeContext, client: ClientLike, args: list[bytes]) -> Ask:
    return Ask([("any", encode.encode_command(*args), 0)], read=True)


_SUBCOMMAND: Final[dict[bytes, Callable[[ServeContext, ClientLike, list[bytes]], Answer]]] = {
    b"count": _count,
    b"docs": _docs,
    b"getkeys": _getkeys,
    b"getkeysandflags": _getkeys,
    b"help": _help,
    b"info": _info,
    b"list": _list,
}

COMMANDS: Commands = {b"command": (-1, answer)}
