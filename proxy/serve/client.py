"""The CLIENT family, for this client itself.

Why: it concerns a client's own connection, which ends at the proxy. Called through serve.table.

Invariants: as serve.local. Texts are those of Redis 7.2 / Valkey 9 (src/networking.c); tests/unit/serve compares them
with servers.
"""

from __future__ import annotations

import time

from proxy.resp import encode, errors
from proxy.serve.context import ClientLike, Commands, ServeContext
from proxy.serve.words import DEFAULT_USER, OK, printable

HELP = (
    "CLIENT <subcommand> [<arg> [value] [opt] ...]. Subcommands are:",
    "GETNAME",
    "    Return the name of the current connection.",
    "ID",
    "    Return the ID of the current connection.",
    "INFO",
    "    Return information about the current client connection.",
    "SETNAME <name>",
    "    Assign the name <name> to the current connection.",
    "SETINFO <option> <value>",
    "    Set client meta attr. Options are:",
    "    * LIB-NAME: the client lib name.",
    "    * LIB-VER: the client lib version.",
    "NO-EVICT (ON|OFF)",
    "    Protect current client connection from eviction.",
    "HELP",
    "    Print this help.",
)


def _client_id(ctx: ServeContext, client: ClientLike, args: list[bytes]) -> bytes:
    return encode.integer(client.id)


def _client_setname(ctx: ServeContext, client: ClientLike, args: list[bytes]) -> bytes:
    """An empty name removes the name."""
    if not printable(args[2]):
        return errors.CLIENT_NAME
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
    setattr(client, attribute, value)
    return OK


def _client_info(ctx: ServeContext, client: ClientLike, args: list[bytes]) -> bytes:
    return encode.verbatim(client_line(client, time.time(), "client|info") + b"\n", "txt", client.proto)


def client_line(client: ClientLike, now_s: float, command: str) -> bytes:
    """One client as CLIENT INFO and CLIENT LIST show it, without the line's end; command: what to give as cmd=.

    The fields are Redis 7.2's and no others: go-redis refuses a line with a field it does not know. Buffers are the
    proxy's: qbuf is what is held of unfinished commands, omem what is held of replies; there are no others (0).
    """
    unix = client.address.startswith("unix:")
    flags = "U" if unix else ""
    if client.reads != "primary" and client.reads != client.listener_reads:
        flags += "r"
    fields: tuple[tuple[str, str | int], ...] = (
        ("id", client.id),
        ("addr", _peer(client.address)),
        ("laddr", _peer(client.local_address)),
        ("fd", client.fd),
        ("name", client.name.decode("ascii", "replace")),
        ("age", max(0, int(now_s - client.created_s))),
        ("idle", max(0, int(now_s - client.last_active_s))),
        ("flags", flags or "N"),
        ("db", client.db),
        ("sub", 0),
        ("psub", 0),
        ("ssub", 0),
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
        ("redir", -1),
        ("resp", client.proto),
        ("lib-name", client.lib_name.decode("ascii", "replace")),
        ("lib-ver", client.lib_ver.decode("ascii", "replace")),
    )
    return " ".join(f"{field}={value}" for field, value in fields).encode()


def _peer(address: str) -> str:
    """Redis writes a Unix socket as path:0 (genClientAddrString)."""
    return f"{address.removeprefix('unix:')}:0" if address.startswith("unix:") else address


def _client_no_evict(ctx: ServeContext, client: ClientLike, args: list[bytes]) -> bytes:
    """+OK without an effect: no client is exempt from the proxy's limits of memory and output."""
    return OK if args[2].upper() in (b"ON", b"OFF") else errors.SYNTAX


def _client_help(ctx: ServeContext, client: ClientLike, args: list[bytes]) -> bytes:
    return encode.array([encode.simple(line) for line in HELP])


COMMANDS: Commands = {
    b"client|getname": (2, _client_getname),
    b"client|help": (2, _client_help),
    b"client|id": (2, _client_id),
    b"client|info": (2, _client_info),
    b"client|no-evict": (3, _client_no_evict),
    b"client|setinfo": (4, _client_setinfo),
    b"client|setname": (3, _client_setname),
}

# Subcommands that exist in Redis or Valkey and are not served. NO-TOUCH among them: the servers would have to be told,
# on connections shared with clients who never asked for it.
UNSERVED = (
    b"caching",
    b"capa",
    b"getredir",
    b"import-source",
    b"kill",
    b"list",
    b"no-touch",
    b"pause",
    b"reply",
    b"tracking",
    b"trackinginfo",
    b"unblock",
    b"unpause",
)
