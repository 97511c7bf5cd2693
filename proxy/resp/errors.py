"""Redis's own error lines as ready bytes, letter for letter, and the one exception for malformed input.

Whoever answers a client takes its error here (forward, serve), so that each text is written once. Texts come from
Redis's server.c, networking.c, acl.c, cluster.c and db.c; where Redis and Valkey differ, the newer text of the two is
here and a comment says so. Lines of our own are at the end.

Invariant: every line begins with '-', ends with CRLF and has no CR or LF in between.
"""

_SHOWN = 128  # bytes of a name, and of all arguments together, that unknown command errors repeat
_LINE_BREAKS = bytes.maketrans(b"\r\n", b"  ")


class ProtocolFault(Exception):
    """Malformed bytes from a peer. `line` is the ready error line for it; str() its text."""

    def __init__(self, line: bytes) -> None:
        super().__init__(line.strip(b"-\r\n").decode("latin-1"))
        self.line = line


def line(text: bytes | str) -> bytes:
    """Make an error line of a text with its code, as addReplyErrorLength does: line breaks become spaces."""
    raw = text.encode() if isinstance(text, str) else text
    return b"-" + raw.removeprefix(b"-").translate(_LINE_BREAKS) + b"\r\n"


def _c_string(value: bytes, limit: int = _SHOWN) -> bytes:
    """What printf's `%.*s` shows: up to the limit or the first NUL."""
    return value[:limit].split(b"\0", 1)[0]


def unknown_command(name: bytes, args: list[bytes] | tuple[bytes, ...] = ()) -> bytes:
    """Say that no such command exists; args: what came after its name (server.c, commandCheckExistence)."""
    shown = b""
    for arg in args:
        if len(shown) >= _SHOWN:
            break
        shown += b"'" + _c_string(arg, _SHOWN - len(shown)) + b"' "
    return line(b"ERR unknown command '" + _c_string(name) + b"', with args beginning with: " + shown)


def not_found(what: str, name: bytes) -> bytes:
    """Say in ACL DRYRUN that there is no such User or Command (acl.c, aclCommand)."""
    return line(b"ERR %s '%s' not found" % (what.encode(), _c_string(name, len(name))))


def unknown_node(node: bytes) -> bytes:
    """Say that the cluster has no node of that id (cluster.c)."""
    return line(b"ERR Unknown node " + _c_string(node, len(node)))


def unknown_subcommand(name: bytes, subcommand: bytes) -> bytes:
    """Say that a container command has no such subcommand (server.c, commandCheckExistence)."""
    return line(b"ERR unknown subcommand '" + _c_string(subcommand) + b"'. Try " + _c_string(name.upper()) + b" HELP.")


def subcommand_syntax(name: bytes, subcommand: bytes) -> bytes:
    """Say that a known subcommand was misused (networking.c, addReplySubcommandSyntaxError)."""
    return line(
        b"ERR unknown subcommand or wrong number of arguments for '"
        + _c_string(subcommand)
        + b"'. Try "
        + _c_string(name.upper())
        + b" HELP."
    )


def wrong_arity(name: bytes | str) -> bytes:
    """Say that the number of arguments is wrong; name: as the command table has it, e.g. `client|setname`."""
    raw = name.encode() if isinstance(name, str) else name
    return line(b"ERR wrong number of arguments for '" + raw.lower() + b"' command")


def hello_option(option: bytes) -> bytes:
    """Say that HELLO does not know an option."""
    return line(b"ERR Syntax error in HELLO option '" + _c_string(option, 1 << 16) + b"'")


def unrecognized_option(option: bytes) -> bytes:
    """Say that CLIENT SETINFO does not know an attribute."""
    return line(b"ERR Unrecognized option '" + _c_string(option, 1 << 16) + b"'")


def invalid_attribute(attribute: bytes) -> bytes:
    """Say that a CLIENT SETINFO value has characters it must not have; attribute: lib-name or lib-ver."""
    return line(b"ERR " + attribute + b" cannot contain spaces, newlines or special characters.")


def not_in_subscribed_mode(name: bytes | str) -> bytes:
    """Refuse a command of a RESP2 client that has subscriptions (server.c, processCommand)."""
    raw = name.encode() if isinstance(name, str) else name
    return line(
        b"ERR Can't execute '" + raw.lower() + b"': only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT / RESET"
        b" are allowed in this context"
    )


def exec_abort(refusal: bytes) -> bytes:
    """Say that EXEC itself is refused, and why (server.c, rejectCommand)."""
    return line(b"EXECABORT Transaction discarded because of: " + refusal.removeprefix(b"-ERR ").rstrip())


def not_in_transaction(name: bytes | str) -> bytes:
    """Refuse a command between MULTI and EXEC, in Valkey's words; Redis has MULTI_NESTED and WATCH_IN_MULTI."""
    raw = name.encode() if isinstance(name, str) else name
    return line(b"ERR Command '" + raw.lower() + b"' not allowed inside a transaction")


SYNTAX = line("ERR syntax error")
NOT_AN_INTEGER = line("ERR value is not an integer or out of range")
NOT_A_FLOAT = line("ERR value is not a valid float")
OUT_OF_RANGE = line("ERR value is out of range")
NUMKEYS_NEGATIVE = line("ERR Number of keys can't be negative")
NUMKEYS_TOO_MANY = line("ERR Number of keys can't be greater than number of args")
INVALID_CURSOR = line("ERR invalid cursor")
WRONGTYPE = line("WRONGTYPE Operation against a key holding the wrong kind of value")

NOAUTH = line("NOAUTH Authentication required.")
# Valkey's wording; Redis 7.0 leaves out "<proto>".
NOAUTH_HELLO = line(
    "NOAUTH HELLO must be called with the client already authenticated, otherwise the HELLO <proto> AUTH <user> <pass>"
    " option can be used to authenticate the client and select the RESP protocol version at the same time"
)
WRONGPASS = line("WRONGPASS invalid username-password pair or user is disabled.")
AUTH_NO_PASSWORD = line(
    "ERR AUTH <password> called without any password configured for the default user."
    " Are you sure your configuration is correct?"
)
PATTERN_TOO_LONG = line("ERR a pattern is at most 65536 bytes here")
TEXT_TOO_LONG = line("ERR a client's name, and what it says of its library, is at most 4096 bytes here")
NOPROTO = line("NOPROTO unsupported protocol version")
PROTO_NOT_AN_INTEGER = line("ERR Protocol version is not an integer or out of range")
CLIENT_NAME = line("ERR Client names cannot contain spaces, newlines or special characters.")
MAX_CLIENTS = line("ERR max number of clients reached")

DB_INDEX = line("ERR DB index is out of range")
INVALID_DB_INDEX = line("ERR invalid DB index")
# Redis in cluster mode; Valkey 9 has numbered databases there and says DB_INDEX.
SELECT_IN_CLUSTER = line("ERR SELECT is not allowed in cluster mode")

CROSSSLOT = line("CROSSSLOT Keys in request don't hash to the same slot")
CLUSTERDOWN = line("CLUSTERDOWN The cluster is down")
CLUSTERDOWN_UNSERVED = line("CLUSTERDOWN Hash slot not served")
CLUSTERDOWN_READS_ONLY = line("CLUSTERDOWN The cluster is down and only accepts read commands")
TRYAGAIN = line("TRYAGAIN Multiple keys request during rehashing of slot")
INVALID_SLOT = line("ERR Invalid or out of range slot")

MULTI_NESTED = line("ERR MULTI calls can not be nested")
WATCH_IN_MULTI = line("ERR WATCH inside MULTI is not allowed")
EXEC_WITHOUT_MULTI = line("ERR EXEC without MULTI")
DISCARD_WITHOUT_MULTI = line("ERR DISCARD without MULTI")
EXECABORT = line("EXECABORT Transaction discarded because of previous errors.")
EXEC_ARITY = line("EXECABORT Transaction discarded because of: wrong number of arguments for 'exec' command")
# Redis 7; Valkey names the command: not_in_transaction().
NOT_IN_MULTI = line("ERR Command not allowed inside a transaction")

NO_KEYS_IN_COMMAND = line("ERR The command has no key arguments")
INVALID_COMMAND = line("ERR Invalid command specified")
INVALID_ARGUMENT_COUNT = line("ERR Invalid number of arguments specified for command")


# ---- the proxy's own


def not_allowed(name: bytes | str) -> bytes:
    """Refuse a command by policy; name: as the command table has it."""
    raw = name.encode() if isinstance(name, str) else name
    return line(b"ERR command '" + _c_string(raw.lower()) + b"' is not allowed through this proxy")


def config_not_allowed(name: bytes) -> bytes:
    """Refuse CONFIG SET for this parameter, in the words Redis has for those that it cannot set."""
    reason = b"') - not allowed through this proxy"
    return line(b"ERR CONFIG SET failed (possibly related to argument '" + _c_string(name) + reason)


def not_served(name: bytes | str) -> bytes:
    """Refuse a command the proxy cannot do yet; name: as the command table has it."""
    raw = name.encode() if isinstance(name, str) else name
    return line(b"ERR command '" + _c_string(raw.lower()) + b"' is not served by this proxy yet")


def not_inside(name: bytes | str) -> bytes:
    """Refuse a command between MULTI and EXEC that one server alone cannot answer."""
    raw = name.encode() if isinstance(name, str) else name
    return line(b"ERR command '" + _c_string(raw.lower()) + b"' is not possible inside a transaction here")


SELECT_INSIDE = line("ERR SELECT of another database is not possible inside a transaction here")
HELLO_INSIDE = line("ERR HELLO with another protocol is not possible inside a transaction here")
TRANSACTION_TOO_LONG = line("ERR the transaction is too long (clients.max_query)")
UNEXPECTED_FORM = line("ERR a node answered part of this command in an unexpected form")
NO_LEASE = line("ERR no connection to the node is free (backends.max_leased, or the limit of file descriptors)")
# CLIENT UNBLOCK ... ERROR, and what a node says to those it blocks when it loses its role (blocked.c).
UNBLOCKED = line("UNBLOCKED client unblocked via CLIENT UNBLOCK")
UNBLOCKED_CHANGED = line("UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)")
BAD_PART = line("ERR a node answered part of this command in an unexpected form")
TOO_LONG = line("ERR the nodes' replies to this command are together too long")
INTERNAL = line("ERR internal error")
REPLY_TOO_LONG = line("ERR the reply to this command is too long")
TIMED_OUT = line("ERR timed out waiting for the node's reply")
TIMED_OUT_WRITE = line("ERR timed out waiting for the node's reply; the command may have been executed")
MAYBE_EXECUTED = line("ERR connection to the node was lost after the command was sent; it may have been executed")
NODE_DOWN = line("CLUSTERDOWN The node for this command cannot be reached")
NODE_DOWN_HELD = line("CLUSTERDOWN The node for this command cannot be reached and too many commands wait for it")
REDIRECTED_IN_VAIN = line("CLUSTERDOWN The redirections of this command lead to no node that serves it")
NODE_FULL = line("ERR max number of clients reached at the node for this command")
NODE_BUSY = line("ERR the node does not take its commands fast enough; this one was not sent")
NODE_CUTS = line("ERR the node closes the connection instead of answering this command; it is not tried again")
NODE_GONE = line("ERR the connection or the node this command was for is gone; it was not executed")
OUT_OF_MEMORY = line("OOM the proxy is out of memory")

# What proxy.forward.exchange says when it gives up on a command, by the occasion.
EXCHANGE_TEXTS = {
    "uncovered": CLUSTERDOWN_UNSERVED,
    "unknown": CLUSTERDOWN,
    "down": NODE_DOWN,
    "held": NODE_DOWN_HELD,
    "full": NODE_BUSY,
    "timeout": TIMED_OUT,
    "timeout_sent": TIMED_OUT_WRITE,
    "lost": MAYBE_EXECUTED,
    "cut": NODE_CUTS,
    "gone": NODE_GONE,
    "memory": OUT_OF_MEMORY,
}
