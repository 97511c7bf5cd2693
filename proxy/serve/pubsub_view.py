"""PUBSUB: who is subscribed, over all workers and all nodes.

Why: the nodes know of the proxy's clients only what each worker has subscribed for all of them. So the workers are
asked what is their clients' and what is at the nodes on their own account (ANSWERERS), then the nodes; theirs without
the proxy's, and the clients' instead, is the answer. Subscribers of another proxy count as one. Called through
serve.table.

Invariant: a name without wildcards is looked up, others are compared in slices; what does not fit in an answer of
LISTED_MAX names is an error, since it is put together in one go.

Source of the forms: Redis 7.0 and Valkey 9.1, src/pubsub.c.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Final
from zlib import crc32

import msgspec

from proxy.forward.ask import Ask
from proxy.forward.hub import CHANNELS, PATTERNS, SHARDS
from proxy.resp import encode, errors
from proxy.resp.glob import Glob, literal_prefix
from proxy.serve import reports
from proxy.serve.all_shards import InSlices, asked
from proxy.serve.combine import aggregate, elements, failure, integer, is_error, number, text, union
from proxy.serve.context import Answer, Answerers, ClientLike, Commands, Inquiry, ServeContext

PATTERN_MAX: Final = 65536
STEPS: Final = 1 << 20  # of one match
ASKED_MAX: Final = 1 << 20  # bytes of names: the question goes to every worker
LISTED_MAX: Final = 10_000  # names of an answer ...
LISTED_BYTES: Final = 1 << 20  # ... and their bytes
AT_ONCE: Final = 100  # names that are compared in one go

# name -> (clients that are subscribed, connections of the proxy's that are)
Figures = dict[bytes, tuple[int, int]]
_Asked = tuple[int, bytes | None, list[bytes] | None]  # kind; of those that fit a pattern, or of these; else of all
_MORE: Final = b"-1 0 0 "  # the end of a share that would be too long
_TOO_MANY: Final = errors.line(
    f"ERR too many channels to list, the limit is {LISTED_MAX}: ask for a pattern that fits less"
)
_TOO_LONG: Final = errors.line(f"ERR the names are together too long, the limit is {ASKED_MAX} bytes")


# -- a worker's share ----------------------------------------------------------------------------------------------


def _share(ctx: ServeContext, body: bytes) -> Iterator[bytes]:
    """`clients own size name` of each name; then _MORE when there are too many."""
    kind, pattern, names = msgspec.msgpack.decode(body, type=_Asked)
    if ctx.pubsub is None:
        return
    glob = None
    if pattern is not None:
        literal, whole = literal_prefix(pattern)
        glob, names = (None, [literal]) if whole else (Glob(pattern), None)
    listed = names is None
    known = ctx.pubsub.names(kind) if names is None else names
    count = size = 0
    for at in range(0, len(known), AT_ONCE):
        some = known[at : at + AT_ONCE]
        for name in some if glob is None else _fitting(glob, some):
            clients, own = ctx.pubsub.figures(kind, name)
            if not clients and not own:
                continue
            count += 1
            size += len(name)
            if listed and (count > LISTED_MAX or size > LISTED_BYTES):
                yield _MORE
                return
            yield b"%d %d %d %b" % (clients, own, len(name), name)
        yield b""


def _fitting(glob: Glob, names: list[bytes]) -> list[bytes]:
    """Those of the names that fit; when all together take too many steps, each for itself, which may be none."""
    found = glob.matching(names, STEPS)
    if found is None:
        found = [name for name in names if glob.matching([name], STEPS // AT_ONCE)]
    return found


def _figures(parts: list[bytes], missing: int) -> Figures | None:
    """The shares of all workers; None: too many."""
    found: Figures = {}
    for part in parts:
        at = 0
        while at < len(part):
            clients, own, size, _ = part[at : at + 64].split(b" ", 3)
            if clients == b"-1":
                return None
            begin = at + len(clients) + len(own) + len(size) + 3
            at = begin + int(size)
            name = part[begin:at]
            before = found.get(name, (0, 0))
            found[name] = before[0] + int(clients), before[1] + int(own)
    return found


def _patterns(ctx: ServeContext, body: bytes) -> Iterator[bytes]:
    """`hash` of each pattern of a client, and `node hash` of each that the worker has at a node."""
    if ctx.pubsub is None:
        return
    for name in ctx.pubsub.names(PATTERNS):
        clients, _ = ctx.pubsub.figures(PATTERNS, name)
        where = [b"%b %x" % (label.encode(), _hash(name)) for label in ctx.pubsub.places(PATTERNS, name)]
        yield b"".join(b"%b\n" % line for line in ([b"%x" % _hash(name)] if clients else []) + where)


def _hash(name: bytes) -> int:
    return crc32(name) << 32 | crc32(name[::-1])


# -- commands ------------------------------------------------------------------------------------------------------


def _ask(
    ctx: ServeContext, client: ClientLike, asked_for: _Asked, reply: Callable[[Figures | None], Ask | bytes]
) -> Answer:
    if client.pending:
        return None
    return ctx.inquire(Inquiry("pubsub", msgspec.msgpack.encode(asked_for), _figures), reply)


def _channels(kind: int, ctx: ServeContext, client: ClientLike, args: list[bytes]) -> Answer:
    """PUBSUB CHANNELS [pattern], SHARDCHANNELS [pattern]."""
    if len(args) > 3:
        return errors.subcommand_syntax(args[0], args[1])
    pattern = args[2] if len(args) == 3 else None
    if pattern is not None and len(pattern) > PATTERN_MAX:
        return errors.PATTERN_TOO_LONG

    def combined(figures: Figures, replies: list[bytes], labels: list[str]) -> bytes:
        if sum(map(len, replies)) > 4 * LISTED_BYTES:  # of clients that are not ours
            return _TOO_MANY
        made = union(replies, labels)
        if is_error(made):
            return made
        names = {text(frame): frame for frame in elements(made)}
        for name, (clients, own) in figures.items():
            if clients:
                names[name] = encode.bulk(name)
            elif own:
                names.pop(name, None)  # on its way out, or in
        return aggregate(made, names.values())

    def ask(figures: Figures | None) -> Ask | bytes:
        if figures is None or len(figures) > LISTED_MAX:
            return _TOO_MANY
        return asked(["nodes"], args, partial(combined, figures), again=True)

    return _ask(ctx, client, (kind, pattern, None), ask)


def _numsub(kind: int, ctx: ServeContext, client: ClientLike, args: list[bytes]) -> Answer:
    """PUBSUB NUMSUB [channel ...], SHARDNUMSUB [channel ...]."""
    if sum(map(len, args)) > ASKED_MAX:
        return _TOO_LONG

    def combined(figures: Figures, replies: list[bytes], labels: list[str]) -> bytes:
        made = reports.subscribers(replies, labels)
        if is_error(made):
            return made
        flat = elements(made)
        for at in range(0, len(flat), 2):
            clients, own = figures.get(text(flat[at]), (0, 0))
            flat[at + 1] = integer(max(0, number(flat[at + 1]) - own) + clients)
        return aggregate(made, flat)

    def ask(figures: Figures | None) -> Ask:
        return InSlices(-2, "nodes", partial(combined, figures or {})).first(args)

    return _ask(ctx, client, (kind, None, list(dict.fromkeys(args[2:]))), ask)


def _numpat(ctx: ServeContext, client: ClientLike, args: list[bytes]) -> Answer:
    """PUBSUB NUMPAT: different patterns."""
    if client.pending:
        return None

    def combined(own: int, clients: int, replies: list[bytes], labels: list[str]) -> bytes:
        return failure(replies, labels) or integer(max(0, sum(map(number, replies)) - own) + clients)

    def ask(lines: set[bytes]) -> Ask:
        own = sum(b" " in line for line in lines)
        return asked(["nodes"], args, partial(combined, own, len(lines) - own), again=True)

    return ctx.inquire(
        Inquiry("pubsub|patterns", b"", lambda parts, missing: set(b"".join(parts).splitlines()), shared=True), ask
    )


COMMANDS: Commands = {
    b"pubsub|channels": (-2, partial(_channels, CHANNELS)),
    b"pubsub|numpat": (2, _numpat),
    b"pubsub|numsub": (-2, partial(_numsub, CHANNELS)),
    b"pubsub|shardchannels": (-2, partial(_channels, SHARDS)),
    b"pubsub|shardnumsub": (-2, partial(_numsub, SHARDS)),
}

ANSWERERS: Answerers = {"pubsub": _share, "pubsub|patterns": _patterns}
