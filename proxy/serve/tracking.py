"""CLIENT TRACKING, CACHING, TRACKINGINFO, GETREDIR: the options read, checked and shown.

Why: what is tracked is the nodes' work, done on connections of the client's own (forward.tracking); here is what Redis
says to the client about it. Called through serve.table.

Invariants: texts and their order are those of Redis 7 and Valkey 9 (src/networking.c, clientCommand; src/tracking.c,
checkPrefixCollisionsOrReply). Nothing is changed while the client has anything under way: what it sends next must not
overtake, on other connections, what it sent before. A command that fails has changed nothing, apart from ON of a
client whose connections cannot be had: that one tracks nothing afterwards.
"""

from __future__ import annotations

from functools import partial
from typing import Final

from proxy.forward.ask import Ask
from proxy.forward.tracking import Tracking
from proxy.resp import encode, errors
from proxy.serve.context import Answer, ClientLike, Commands, ServeContext
from proxy.serve.words import OK, integer

PREFIXES: Final = 256  # of one client; compared by the square of their number
PREFIX_BYTES: Final = 1 << 16  # of all of them: each connection is told them

SEVERAL_REDIRECTS: Final = errors.line("ERR A client can only redirect to a single other client")
NO_SUCH_CLIENT: Final = errors.line("ERR The client ID you want redirect to does not exist")
REDIRECT_UNSERVED: Final = errors.line(
    "ERR CLIENT TRACKING with REDIRECT is not served by this proxy: use RESP3 (HELLO 3), where invalidations come on"
    " the same connection"
)
PREFIX_WITHOUT_BCAST: Final = errors.line("ERR PREFIX option requires BCAST mode to be enabled")
SWITCHES_BCAST: Final = errors.line(
    "ERR You can't switch BCAST mode on/off before disabling tracking for this client, and then re-enabling it with a"
    " different mode."
)
OPT_WITH_BCAST: Final = errors.line("ERR OPTIN and OPTOUT are not compatible with BCAST")
BOTH_OPTS: Final = errors.line("ERR You can't specify both OPTIN mode and OPTOUT mode")
SWITCHES_OPT: Final = errors.line(
    "ERR You can't switch OPTIN/OPTOUT mode before disabling tracking for this client, and then re-enabling it with a"
    " different mode."
)
CACHING_OFF: Final = errors.line(
    "ERR CLIENT CACHING can be called only when the client is in tracking mode with OPTIN or OPTOUT mode enabled"
)
CACHING_YES: Final = errors.line("ERR CLIENT CACHING YES is only valid when tracking is enabled in OPTIN mode.")
CACHING_NO: Final = errors.line("ERR CLIENT CACHING NO is only valid when tracking is enabled in OPTOUT mode.")
NO_ROOM: Final = errors.line(
    "ERR no connections to the nodes are free for CLIENT TRACKING (backends.max_leased, or the limit of file"
    " descriptors)"
)
TOO_MANY_PREFIXES: Final = errors.line(
    f"ERR too many or too long prefixes ({PREFIXES}, {PREFIX_BYTES} bytes in all, at most)"
)
UNREACHABLE: Final = errors.line("CLUSTERDOWN The cluster is down")
PING: Final = encode.encode_command("PING")
PASSING: Final = frozenset(errors.EXCHANGE_TEXTS.values())
_FLAGS: Final = (b"BCAST", b"OPTIN", b"OPTOUT", b"NOLOOP")


def _tracking(ctx: ServeContext, client: ClientLike, args: list[bytes]) -> Answer:
    """CLIENT TRACKING ON|OFF [REDIRECT id] [PREFIX prefix ...] [BCAST] [OPTIN] [OPTOUT] [NOLOOP]."""
    options: set[bytes] = set()
    prefixes: list[bytes] = []
    redirect = 0
    at = 3
    while at < len(args):
        option, more = args[at].upper(), len(args) - at - 1
        if option == b"REDIRECT" and more:
            if redirect:
                return SEVERAL_REDIRECTS
            told = integer(args[at + 1])
            if told is None:
                return errors.NOT_AN_INTEGER
            if told <= 0:
                return NO_SUCH_CLIENT
            redirect = told
            at += 2
        elif option == b"PREFIX" and more:
            prefixes.append(args[at + 1])
            at += 2
        elif option in _FLAGS:
            options.add(option)
            at += 1
        else:
            return errors.SYNTAX
    switch = args[2].upper()
    if switch == b"OFF":
        if client.tracking is None:
            return OK
        if client.pending:
            return None
        client.track(None)
        return OK
    if switch != b"ON":
        return errors.SYNTAX
    fault = _fault(client.tracking, options, prefixes)
    if fault:
        return fault
    return REDIRECT_UNSERVED if redirect else _begin(client, options, prefixes)


def _fault(known: Tracking | None, options: set[bytes], prefixes: list[bytes]) -> bytes:
    """What is wrong with these options, or with them after those in force; b"" = nothing."""
    bcast, optin, optout = (flag in options for flag in (b"BCAST", b"OPTIN", b"OPTOUT"))
    if prefixes and not bcast:
        return PREFIX_WITHOUT_BCAST
    if known is not None and known.bcast != bcast:
        return SWITCHES_BCAST
    if bcast and (optin or optout):
        return OPT_WITH_BCAST
    if optin and optout:
        return BOTH_OPTS
    if known is not None and ((optin and known.optout) or (optout and known.optin)):
        return SWITCHES_OPT
    present = () if known is None else known.prefixes
    every = {*present, *prefixes}
    if len(present) + len(prefixes) > PREFIXES or sum(map(len, every)) > PREFIX_BYTES:
        return TOO_MANY_PREFIXES
    for place, prefix in enumerate(prefixes):
        for other in present:
            if _overlap(prefix, other):
                return _collision(prefix, b"an existing", other)
        for other in prefixes[place + 1 :]:
            if _overlap(prefix, other):
                return _collision(prefix, b"another provided", other)
    return b""


def _overlap(one: bytes, other: bytes) -> bool:
    """Whether some key begins with both."""
    return one.startswith(other) or other.startswith(one)


def _collision(prefix: bytes, kind: bytes, other: bytes) -> bytes:
    shown = tuple(text.split(b"\0", 1)[0] for text in (prefix, other))  # as printf's %s
    return errors.line(
        b"ERR Prefix '%b' overlaps with %b prefix '%b'. Prefixes for a single client must not overlap."
        % (shown[0], kind, shown[1])
    )


def _begin(client: ClientLike, options: set[bytes], prefixes: list[bytes]) -> Answer:
    """In force as soon as there is a connection to any primary, with BCAST to every one."""
    if client.pending:
        return None
    known = client.tracking
    bcast = b"BCAST" in options
    present = () if known is None else known.prefixes
    wanted = Tracking(
        bcast=bcast,
        optin=b"OPTIN" in options,
        optout=b"OPTOUT" in options,
        noloop=b"NOLOOP" in options,
        prefixes=sorted({*present, *(prefixes or [b""])}) if bcast else (),
    )
    if known is not None and known.same(wanted):
        return OK
    if not client.track(wanted):
        return NO_ROOM
    nodes = wanted.primaries()
    if not nodes:
        if bcast and client.proto == 3:
            client.track(None)
            return UNREACHABLE
        wanted.confirm()
        return OK
    return Ask([(node, PING, 0) for node in nodes], finish=partial(_begun, client, wanted), read=True, errors=True)


def _begun(client: ClientLike, wanted: Tracking, replies: list[bytes]) -> bytes:
    """A refusal of the node's own counts always (NOPERM); that it cannot be reached counts with BCAST only, for without
    it connections are made when they are used."""
    for reply in replies:
        if reply.startswith(b"-") and b"'ping'" not in reply and (wanted.bcast or reply not in PASSING):
            client.track(None)
            return reply
    wanted.confirm()
    return OK


def _caching(ctx: ServeContext, client: ClientLike, args: list[bytes]) -> bytes:
    """For the next command, which takes it along to its node."""
    known = client.tracking
    if known is None:
        return CACHING_OFF
    word = args[2].upper()
    if word == b"YES":
        if not known.optin:
            return CACHING_YES
    elif word == b"NO":
        if not known.optout:
            return CACHING_NO
    else:
        return errors.SYNTAX
    client.cached = True
    return OK


def _trackinginfo(ctx: ServeContext, client: ClientLike, args: list[bytes]) -> bytes:
    known = client.tracking
    flags = [b"on" if known is not None else b"off"]
    if known is not None:
        if known.bcast:
            flags.append(b"bcast")
        if known.optin:
            flags += [b"optin", b"caching-yes"] if client.cached else [b"optin"]
        if known.optout:
            flags += [b"optout", b"caching-no"] if client.cached else [b"optout"]
        if known.noloop:
            flags.append(b"noloop")
    pairs = (
        (b"flags", encode.set_([encode.bulk(flag) for flag in flags], client.proto)),
        (b"redirect", encode.integer(redirection(client))),
        (b"prefixes", encode.array([encode.bulk(prefix) for prefix in (known.prefixes if known is not None else ())])),
    )
    return encode.map_([(encode.bulk(field), value) for field, value in pairs], client.proto)


def _getredir(ctx: ServeContext, client: ClientLike, args: list[bytes]) -> bytes:
    return encode.integer(redirection(client))


def redirection(client: ClientLike) -> int:
    """The client that gets the invalidations: 0, itself; -1, nobody, for nothing is tracked."""
    return -1 if client.tracking is None else 0


COMMANDS: Commands = {
    b"client|caching": (3, _caching),
    b"client|getredir": (2, _getredir),
    b"client|tracking": (-3, _tracking),
    b"client|trackinginfo": (2, _trackinginfo),
}
