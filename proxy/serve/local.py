"""Commands the proxy answers for this client itself: the connection family, TIME, INFO, the CLUSTER view.

Why: they concern the client's own connection, which ends at the proxy; none of them may reach a shared connection to a
server (SELECT, AUTH, HELLO, READONLY ... would change it for everybody). Called by serve.responder: `answer` once for
each command of CLASS_LOCAL, in the client's order of commands.

Invariants:
- `answer` returns the whole reply as ready bytes in client.proto as it is after the command (HELLO answers in the
  protocol it has just set), and raises for no input.
- The caller has checked that the command is known and that the client is authenticated unless the command may come
  before AUTH. Arity is checked here again for what the servers' own table may lack (CLIENT SETINFO on Redis 7.0).
- A command that fails has changed nothing.
- Texts are those of Redis 7.2 / Valkey 9 (src/networking.c, acl.c, db.c); tests/unit/serve compares them with servers.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from proxy.resp import encode, errors
from proxy.serve import cluster_view, info
from proxy.serve.context import ClientLike, ServeContext

Handler = Callable[[ServeContext, ClientLike, list[bytes]], bytes]

DEFAULT_USER = "default"

CLIENT_HELP = (
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

OK = encode.simple("OK")
_PRINTABLE = bytes(range(0x21, 0x7F))
OUT_OF_INT_RANGE = errors.line("ERR value is out of range, value must between -2147483648 and 2147483647")
# Until redis/redis#11809 (7.2) the sentence did not name the protocol.
_NOAUTH_HELLO_OLD = errors.NOAUTH_HELLO.replace(b"HELLO <proto> AUTH", b"HELLO AUTH")


def answer(ctx: ServeContext, client: ClientLike, args: list[bytes]) -> bytes:
    """The reply to one command. args: its name and arguments, at least the name."""
    name = args[0].lower()
    served = _COMMANDS.get(name)
    if served is None and (known := _CONTAINERS.get(name)) is not None:
        if len(args) < 2:
            return errors.wrong_arity(name)
        sub = args[1].lower()
        full = name + b"|" + sub
        served = _COMMANDS.get(full)
        if served is None:
            refusal = known.get(sub)
            return refusal(full) if refusal is not None else errors.unknown_subcommand(args[0], args[1])
        name = full
    if served is None:
        return errors.not_served(name)
    arity, handler = served
    if len(args) != arity and (arity > 0 or len(args) < -arity):
        return errors.wrong_arity(name)
    return handler(ctx, client, args)


def _integer(word: bytes) -> int | None:
    """A 64-bit integer in the only form Redis accepts (string2ll): no plus, blanks, leading zeros or `-0`."""
    digits = word.removeprefix(b"-")
    if not digits.isdigit() or len(digits) > 19 or (digits[:1] == b"0" and word != b"0"):
        return None
    number = int(word)
    return number if -(2**63) <= number < 2**63 else None


def _before_7_2(server_version: str) -> bool:
    major, _, rest = server_version.partition(".")
    minor = rest.partition(".")[0]
    return major.isdigit() and minor.isdigit() and (int(major), int(minor)) < (7, 2)


def _printable(word: bytes) -> bool:
    """What a client may call itself: no blanks, no control characters, ASCII (validateClientAttr)."""
    return not word.translate(None, _PRINTABLE)


def _right_password(ctx: ServeContext, user: bytes, password: bytes) -> bool:
    """Compares in constant time; without a configured password any one is right (Redis's `nopass`)."""
    if user != DEFAULT_USER.encode():
        return False
    if ctx.client_password is None:
        return True
    # Digests, because compare_digest shows a difference in length; Redis compares SHA-256 too (acl.c).
    import hashlib  # here: with hmac 0.8 MB of a process, which most proxies, without a password, need not have
    import hmac

    wanted = hashlib.sha256(ctx.client_password.encode()).digest()
    return hmac.compare_digest(hashlib.sha256(password).digest(), wanted)


def _log_in(client: ClientLike) -> None:
    client.authenticated = True
    client.user = DEFAULT_USER


def _echo(ctx: ServeContext, client: ClientLike, args: list[bytes]) -> bytes:
    return encode.bulk(args[1])


def _quit(ctx: ServeContext, client: ClientLike, args: list[bytes]) -> bytes:
    client.close_after_reply()
    return OK


def _reset(ctx: ServeContext, client: ClientLike, args: list[bytes]) -> bytes:
    """Everything but the library's name and version, which Redis keeps (clearClientConnectionState)."""
    client.set_proto(2)
    client.set_reads(client.listener_reads)
    client.db = 0
    client.name = b""
    client.user = DEFAULT_USER
    client.authenticated = ctx.client_password is None
    client.reset()
    return encode.simple("RESET")


def _auth(ctx: ServeContext, client: ClientLike, args: list[bytes]) -> bytes:
    """AUTH password | AUTH user password; a failed one leaves an earlier login as it is."""
    if len(args) > 3:
        return errors.SYNTAX
    if len(args) == 2 and ctx.client_password is None:
        return errors.AUTH_NO_PASSWORD
    user = args[1] if len(args) == 3 else DEFAULT_USER.encode()
    if not _right_password(ctx, user, args[-1]):
        return errors.WRONGPASS
    _log_in(client)
    return OK


def _hello(ctx: ServeContext, client: ClientLike, args: list[bytes]) -> bytes:
    """HELLO [proto [AUTH user password] [SETNAME name]]: all options are read before any of them takes effect.

    The order of checks is Valkey's (helloCommand): version, options from left to right, login, and only then the name
    and the protocol. The proxy answers as one Redis, so `server` and `mode` are those of a standalone Redis (as
    Valkey's own with extended-redis-compatibility), with the redis_version of the servers.
    """
    proto = client.proto
    if len(args) > 1:
        version = _integer(args[1])
        if version is None:
            return errors.PROTO_NOT_AN_INTEGER
        if version not in (2, 3):
            return errors.NOPROTO
        proto = version
    login: tuple[bytes, bytes] | None = None
    name: bytes | None = None
    at = 2
    while at < len(args):
        option, more = args[at].upper(), len(args) - at - 1
        if option == b"AUTH" and more >= 2:
            login = (args[at + 1], args[at + 2])
            at += 3
        elif option == b"SETNAME" and more >= 1:
            name = args[at + 1]
            if not _printable(name):
                return errors.CLIENT_NAME
            at += 2
        else:
            return errors.hello_option(args[at])
    if login is not None and not _right_password(ctx, *login):
        return errors.WRONGPASS
    if login is None and not client.authenticated:
        return _NOAUTH_HELLO_OLD if _before_7_2(ctx.server_version) else errors.NOAUTH_HELLO
    if login is not None:
        _log_in(client)
    if name is not None:
        client.name = name
    if proto != client.proto:
        client.set_proto(proto)
    pairs = (
        (b"server", encode.bulk(b"redis")),
        (b"version", encode.bulk(ctx.server_version.encode())),
        (b"proto", encode.integer(proto)),
        (b"id", encode.integer(client.id)),
        (b"mode", encode.bulk(b"standalone")),
        (b"role", encode.bulk(b"master")),
        (b"modules", encode.array([])),
    )
    return encode.map_([(encode.bulk(field), value) for field, value in pairs], proto)


def _select(ctx: ServeContext, client: ClientLike, args: list[bytes]) -> bytes:
    """SELECT db: within ctx.databases. With database 0 only, any other gets Redis Cluster's refusal.

    No server has a database with a negative number, so that gets the error of a standalone Redis.
    """
    db = _integer(args[1])
    if db is None:
        return errors.NOT_AN_INTEGER
    if not -(2**31) <= db < 2**31:
        return OUT_OF_INT_RANGE
    if 0 <= db < max(1, ctx.databases):
        client.db = db
        return OK
    return errors.DB_INDEX if db < 0 or ctx.databases > 1 else errors.SELECT_IN_CLUSTER


def _readonly(ctx: ServeContext, client: ClientLike, args: list[bytes]) -> bytes:
    """Reads go to replicas: by the listener's policy if that uses replicas, else to a replica if there is one."""
    client.set_reads("prefer_replica" if client.listener_reads == "primary" else client.listener_reads)
    return OK


def _readwrite(ctx: ServeContext, client: ClientLike, args: list[bytes]) -> bytes:
    client.set_reads("primary")
    return OK


def _asking(ctx: ServeContext, client: ClientLike, args: list[bytes]) -> bytes:
    """No effect: the proxy follows ASK itself and never sends one to a client."""
    return OK


def _time(ctx: ServeContext, client: ClientLike, args: list[bytes]) -> bytes:
    seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
    return encode.array([encode.bulk(b"%d" % seconds), encode.bulk(b"%d" % (nanoseconds // 1000))])


def _client_id(ctx: ServeContext, client: ClientLike, args: list[bytes]) -> bytes:
    return encode.integer(client.id)


def _client_setname(ctx: ServeContext, client: ClientLike, args: list[bytes]) -> bytes:
    """An empty name removes the name."""
    if not _printable(args[2]):
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
    if not _printable(value):
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
    return encode.array([encode.simple(line) for line in CLIENT_HELP])


# name or "name|subcommand" -> (arity as COMMAND gives it, handler)
_COMMANDS: dict[bytes, tuple[int, Handler]] = {
    b"asking": (1, _asking),
    b"auth": (-2, _auth),
    b"client|getname": (2, _client_getname),
    b"client|help": (2, _client_help),
    b"client|id": (2, _client_id),
    b"client|info": (2, _client_info),
    b"client|no-evict": (3, _client_no_evict),
    b"client|setinfo": (4, _client_setinfo),
    b"client|setname": (3, _client_setname),
    b"cluster|help": (2, cluster_view.help_),
    b"cluster|info": (2, cluster_view.info),
    b"cluster|keyslot": (3, cluster_view.keyslot),
    b"cluster|myid": (2, cluster_view.myid),
    b"cluster|nodes": (2, cluster_view.nodes),
    b"cluster|shards": (2, cluster_view.shards),
    b"cluster|slots": (2, cluster_view.slots),
    b"echo": (2, _echo),
    b"hello": (-1, _hello),
    b"info": (-1, info.info),
    b"quit": (-1, _quit),
    b"readonly": (1, _readonly),
    b"readwrite": (1, _readwrite),
    b"reset": (1, _reset),
    b"select": (2, _select),
    b"time": (1, _time),
}

# Subcommands that exist in Redis or Valkey and are not served. NO-TOUCH among them: the servers would have to be told,
# on connections shared with clients who never asked for it.
_CLIENT_UNSERVED = (
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

# container -> its subcommands that are not served -> the refusal
_CONTAINERS: dict[bytes, dict[bytes, Callable[[bytes], bytes]]] = {
    b"client": dict.fromkeys(_CLIENT_UNSERVED, errors.not_served),
    b"cluster": {
        **dict.fromkeys(cluster_view.CHANGING, errors.not_allowed),
        **dict.fromkeys(cluster_view.UNSERVED, errors.not_served),
    },
}
