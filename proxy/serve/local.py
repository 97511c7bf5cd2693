"""Commands the proxy answers for this client itself: the connection family and TIME.

Why: they concern the client's own connection, which ends at the proxy; none of them may reach a shared connection to a
server (SELECT, AUTH, HELLO, READONLY ... would change it for everybody). Called through serve.table.

Invariants:
- An answer is the whole reply as ready bytes in client.proto as it is after the command (HELLO answers in the
  protocol it has just set), and raises for no input.
- The caller has checked that the command is known and that the client is authenticated unless the command may come
  before AUTH. Arity is checked here again for what the servers' own table may lack (CLIENT SETINFO on Redis 7.0).
- A command that fails has changed nothing.
- Texts are those of Redis 7.2 / Valkey 9 (src/networking.c, acl.c, db.c); tests/unit/serve compares them with servers.
"""

from __future__ import annotations

import time

from proxy.resp import encode, errors
from proxy.serve import monitor
from proxy.serve.context import Answer, ClientLike, Commands, ServeContext
from proxy.serve.words import ADMIN_USER, DEFAULT_USER, OK, TEXT_MAX, integer, printable

OUT_OF_INT_RANGE = errors.line("ERR value is out of range, value must between -2147483648 and 2147483647")
# Until redis/redis#11809 (7.2) the sentence did not name the protocol.
_NOAUTH_HELLO_OLD = errors.NOAUTH_HELLO.replace(b"HELLO <proto> AUTH", b"HELLO AUTH")


def _major(version: str) -> int:
    """0 = there is none."""
    first = version.partition(".")[0]
    return int(first) if first.isdecimal() and first.isascii() else 0


def _before_7_2(server_version: str) -> bool:
    major, _, rest = server_version.partition(".")
    minor = rest.partition(".")[0]
    return major.isdigit() and minor.isdigit() and (int(major), int(minor)) < (7, 2)


def _right_password(ctx: ServeContext, user: bytes, password: bytes) -> bool:
    """Compares in constant time; without a configured password any one is right (Redis's `nopass`), but the admin's."""
    expected = ctx.admin_password
    if user == DEFAULT_USER.encode():
        expected = ctx.client_password
        if expected is None:
            return True
    if user not in (DEFAULT_USER.encode(), ADMIN_USER.encode()) or expected is None:
        return False
    # Digests, because compare_digest shows a difference in length; Redis compares SHA-256 too (acl.c).
    import hashlib  # here: with hmac 0.8 MB of a process, which most proxies, without a password, need not have
    import hmac

    wanted = hashlib.sha256(expected.encode()).digest()
    return hmac.compare_digest(hashlib.sha256(password).digest(), wanted)


def _log_in(client: ClientLike, user: bytes) -> None:
    """As one of the two users."""
    client.authenticated = True
    client.user = user.decode()


def log_out(ctx: ServeContext, user: str) -> None:
    """Everybody who is logged in as the user is who connected: its password is another one now."""
    for client in ctx.clients():
        if client.user == user:
            client.user = DEFAULT_USER
            client.authenticated = ctx.client_password is None


def _echo(ctx: ServeContext, client: ClientLike, args: list[bytes]) -> bytes:
    return encode.bulk(args[1])


def _quit(ctx: ServeContext, client: ClientLike, args: list[bytes]) -> bytes:
    client.close_after_reply()
    return OK


def _reset(ctx: ServeContext, client: ClientLike, args: list[bytes]) -> Answer:
    """Everything but the library's name and version, which Redis keeps (clearClientConnectionState)."""
    client.set_proto(2)
    client.set_reads(client.listener_reads)
    client.db = 0
    client.name = b""
    client.user = DEFAULT_USER
    client.authenticated = ctx.client_password is None
    client.no_evict = client.no_touch = False
    monitor.ended(ctx, client)
    client.reset()
    reply = encode.simple("RESET")
    return reply if ctx.pubsub is None else ctx.pubsub.forget(client, reply)


def _auth(ctx: ServeContext, client: ClientLike, args: list[bytes]) -> bytes:
    """AUTH password | AUTH user password; a failed one leaves an earlier login as it is."""
    if len(args) > 3:
        return errors.SYNTAX
    if len(args) == 2 and ctx.client_password is None:
        return errors.AUTH_NO_PASSWORD
    user = args[1] if len(args) == 3 else DEFAULT_USER.encode()
    if not _right_password(ctx, user, args[-1]):
        return errors.WRONGPASS
    _log_in(client, user)
    return OK


def _hello(ctx: ServeContext, client: ClientLike, args: list[bytes]) -> bytes:
    """HELLO [proto [AUTH user password] [SETNAME name]]: all options are read before any of them takes effect.

    The order of checks is Valkey's (helloCommand): version, options from left to right, login, and only then the name
    and the protocol. The proxy answers as one Redis, so `server` and `mode` are those of a standalone Redis (as
    Valkey's own with extended-redis-compatibility), with the redis_version of the servers.
    """
    proto = client.proto
    if len(args) > 1:
        version = integer(args[1])
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
            if not printable(name):
                return errors.CLIENT_NAME
            if len(name) > TEXT_MAX:
                return errors.TEXT_TOO_LONG
            at += 2
        else:
            return errors.hello_option(args[at])
    if login is not None and not _right_password(ctx, *login):
        return errors.WRONGPASS
    if login is None and not client.authenticated:
        return _NOAUTH_HELLO_OLD if _before_7_2(ctx.server_version) else errors.NOAUTH_HELLO
    if login is not None:
        _log_in(client, login[0])
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
    """SELECT db: within ctx.databases. With database 0 only, any other gets Redis Cluster's refusal, or Valkey 9's.

    No server has a database with a negative number, so that gets the error of a standalone Redis.
    """
    db = integer(args[1])
    if db is None:
        return errors.NOT_AN_INTEGER
    if not -(2**31) <= db < 2**31:
        return OUT_OF_INT_RANGE
    if 0 <= db < max(1, ctx.databases):
        client.db = db
        return OK
    numbered = ctx.databases > 1 or _major(ctx.valkey_version) >= 9
    return errors.DB_INDEX if db < 0 or numbered else errors.SELECT_IN_CLUSTER


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


COMMANDS: Commands = {
    b"asking": (1, _asking),
    b"auth": (-2, _auth),
    b"echo": (2, _echo),
    b"hello": (-1, _hello),
    b"quit": (-1, _quit),
    b"readonly": (1, _readonly),
    b"readwrite": (1, _readwrite),
    b"reset": (1, _reset),
    b"select": (2, _select),
    b"time": (1, _time),
}
