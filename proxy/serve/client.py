"""The CLIENT family, for this client itself; serve.client_all has what concerns the others.

Why: it concerns a client's own connection, which ends at the proxy. Called through serve.table.

Invariants: as serve.local. Texts are those of Redis 7.2 / Valkey 9 (src/networking.c); tests/unit/serve compares them
with servers.
"""

from __future__ import annotations

import time

from proxy.resp import encode, errors
from proxy.serve.context import ClientLike, Commands, ServeContext
from proxy.serve.words import DEFAULT_USER, OK, TEXT_MAX, printable

HELP = (
    "CLIENT <subcommand> [<arg> [value] [opt] ...]. Subcommands are:",
    "CACHING (YES|NO)",
    "    Enable/disable tracking of the keys for next command in OPTIN/OPTOUT modes.",
    "CAPA <option> [options...]",
    "    The client claims its some capability options. Options are:",
    "    * REDIRECT",
    "      The client can handle redirection during primary and replica failover in standalone mode.",
    "GETREDIR",
    "    Return the client ID we are redirecting to when tracking is enabled.",
    "GETNAME",
    "    Return the name of the current connection.",
    "ID",
    "    Return the ID of the current connection.",
    "IMPORT-SOURCE (ON|OFF)",
    "    Mark this connection as an import source if import-mode is enabled.",
    "INFO",
    "    Return information about the current client connection.",
    "KILL <ip:port>",
    "    Kill connection made from <ip:port>.",
    "KILL <option> <value> [<option> <value> [...]]",
    "    Kill connections. Options are those of LIST; SKIPME (YES|NO) is YES by default.",
    "LIST [options ...]",
    "    Return information about client connections. Options:",
    "    * [NOT-]ADDR, [NOT-]LADDR (<ip:port>|<unixsocket>:0)",
    "    * [NOT-]ID <client-id> [<client-id>...]",
    "    * [NOT-]TYPE (NORMAL|PRIMARY|REPLICA|PUBSUB)",
    "    * [NOT-]CAPA, [NOT-]DB, [NOT-]FLAGS, [NOT-]IP, [NOT-]LIB-NAME, [NOT-]LIB-VER, [NOT-]NAME, [NOT-]USER <value>",
    "    * IDLE, MAXAGE <seconds>",
    "    * SKIPME (YES|NO)",
    "NO-EVICT (ON|OFF)",
    "    Protect current client connection from eviction.",
    "NO-TOUCH (ON|OFF)",
    "    Accepted without an effect: connections to the servers are shared with other clients.",
    "PAUSE <timeout> [WRITE|ALL]",
    "    Suspend all, or just write, clients for <timeout> milliseconds.",
    "REPLY (ON|OFF|SKIP)",
    "    Control the replies sent to the current connection.",
    "SETNAME <name>",
    "    Assign the name <name> to the current connection.",
    "SETINFO <option> <value>",
    "    Set client meta attr. Options are:",
    "    * LIB-NAME: the client lib name.",
    "    * LIB-VER: the client lib version.",
    "TRACKING (ON|OFF) [option ...]",
    "    Control server assisted client side caching.",
    "TRACKINGINFO",
    "    Report tracking status for the current connection.",
    "UNBLOCK <clientid> [TIMEOUT|ERROR]",
    "    Unblock the specified blocked client.",
    "UNPAUSE",
    "    Stop the current client pause, resuming traffic.",
    "HELP",
    "    Print this help.",
)

NOT_IMPORTING = errors.line("ERR Server is not in import mode")


def _client_id(ctx: ServeContext, client: ClientLike, args: list[bytes]) -> bytes:
    return encode.integer(client.id)


def _client_setname(ctx: ServeContext, client: ClientLike, args: list[bytes]) -> bytes:
    """An empty name removes the name."""
    if not printable(args[2]):
        return errors.CLIENT_NAME
    if len(args[2]) > TEXT_MAX:
        return errors.TEXT_TOO_LONG
    client.name = args[2]
    return OK


def _client_getname(ctx: ServeContext, client: ClientLike, args: list[bytes]) -> bytes:
    return encode.bulk(client.name) if client.name else encode.null(client.proto)


def _client_setinfo(ctx: ServeContext, client: ClientLike, args: list[bytes]) -> bytes:
    option, value = args[2], args[3]
    attribute = {b"LIB-NAME": "lib_name", b"LIB-VER": "lib_ver"}.get(option.upper())
    if attribute is None:
        return errors.unrecognized_option(option)
    if not printable(value):
        return errors.invalid_attribute(option)
    if len(value) > TEXT_MAX:
        return errors.TEXT_TOO_LONG
    setattr(client, attribute, value)
    return OK


def _client_info(ctx: ServeContext, client: ClientLike, args: list[bytes]) -> bytes:
    return encode.verbatim(client_line(client, time.time(), "client|info") + b"\n", "txt", client.proto)


def client_line(client: ClientLike, now_s: float, command: str) -> bytes:
    """One client as CLIENT INFO and CLIENT LIST show it, without the line's end; command: what to give as cmd=.

    The fields are Redis 7.2's and no others: go-redis refuses a line with a field it does not know. Buffers are the
    proxy's: qbuf is what is held of unfinished commands, omem what is held of replies; there are no others (0).
    """
    fields: tuple[tuple[str, str | int], ...] = (
        ("id", client.id),
        ("addr", peer(client.address)),
        ("laddr", peer(client.local_address)),
        ("fd", client.fd),
        ("name", client.name.decode("ascii", "replace")),
        ("age", int(client.age_s)),
        ("idle", max(0, int(now_s - client.last_active_s))),
        ("flags", flags_of(client) or "N"),
        ("db", client.db),
        ("sub", client.subscriptions[0]),
        ("psub", client.subscriptions[1]),
        ("ssub", client.subscriptions[2]),
        ("multi", -1),
        ("qbuf", client.query_bytes),
        ("qbuf-free", 0),
        ("argv-mem", 0),
        ("multi-mem", 0),
        ("rbs", 0),
        ("rbp", 0),
        ("obl", 0),
        ("oll", int(client.output_bytes > 0)),
        ("omem", client.output_bytes),
        ("tot-mem", client.query_bytes + client.output_bytes),
        ("events", "rw" if client.output_bytes else "r"),
        ("cmd", command or "NULL"),
        ("user", client.user or DEFAULT_USER),
        ("redir", -1 if client.tracking is None else 0),
        ("resp", client.proto),
        ("lib-name", client.lib_name.decode("ascii", "replace")),
        ("lib-ver", client.lib_ver.decode("ascii", "replace")),
    )
    return " ".join(f"{field}={value}" for field, value in fields).encode()


def flags_of(client: ClientLike) -> str:
    """Redis's letters for what a client is or does, in Redis's order; "" where Redis writes N."""
    flags = "O" if client.monitoring else ""
    if any(client.subscriptions):
        flags += "P"
    if client.held_back or client.blocked:
        flags += "b"
    if client.tracking is not None:
        flags += "tB" if client.tracking.bcast else "t"
    if client.address.startswith("unix:"):
        flags += "U"
    if client.reads != "primary" and client.reads != client.listener_reads:
        flags += "r"
    if client.no_evict:
        flags += "e"
    return flags + "T" if client.no_touch else flags


def peer(address: str) -> str:
    """Redis writes a Unix socket as path:0 (genClientAddrString)."""
    return f"{address.removeprefix('unix:')}:0" if address.startswith("unix:") else address


def _switch(word: bytes) -> bool | None:
    """ON or OFF; None = neither."""
    return {b"ON": True, b"OFF": False}.get(word.upper())


def _client_no_evict(ctx: ServeContext, client: ClientLike, args: list[bytes]) -> bytes:
    """+OK without an effect: no client is exempt from the proxy's limits of memory and output."""
    on = _switch(args[2])
    if on is None:
        return errors.SYNTAX
    client.no_evict = on
    return OK


def _client_no_touch(ctx: ServeContext, client: ClientLike, args: list[bytes]) -> bytes:
    """+OK without an effect: the servers would have to be told, on connections shared with others."""
    on = _switch(args[2])
    if on is None:
        return errors.SYNTAX
    client.no_touch = on
    return OK


def _client_reply(ctx: ServeContext, client: ClientLike, args: list[bytes]) -> bytes:
    """OFF and SKIP answer nothing; an error is not answered either when replies are off."""
    mode = args[2].upper()
    if mode not in (b"ON", b"OFF", b"SKIP"):
        return errors.SYNTAX
    client.set_reply(mode.decode().lower())
    return OK if mode == b"ON" else b""


def _client_capa(ctx: ServeContext, client: ClientLike, args: list[bytes]) -> bytes:
    """REDIRECT is noted for CLIENT LIST, without an effect: the proxy redirects nobody. Others are ignored."""
    if b"REDIRECT" in [word.upper() for word in args[2:]]:
        client.redirects = True
    return OK


def _client_import_source(ctx: ServeContext, client: ClientLike, args: list[bytes]) -> bytes:
    """As a server that is not importing."""
    return OK if args[2].upper() == b"OFF" else NOT_IMPORTING


def _client_help(ctx: ServeContext, client: ClientLike, args: list[bytes]) -> bytes:
    return encode.array([encode.simple(line) for line in HELP])


COMMANDS: Commands = {
    b"client|capa": (-3, _client_capa),
    b"client|getname": (2, _client_getname),
    b"client|help": (2, _client_help),
    b"client|id": (2, _client_id),
    b"client|import-source": (3, _client_import_source),
    b"client|info": (2, _client_info),
    b"client|no-evict": (3, _client_no_evict),
    b"client|no-touch": (3, _client_no_touch),
    b"client|reply": (3, _client_reply),
    b"client|setinfo": (4, _client_setinfo),
    b"client|setname": (3, _client_setname),
}
