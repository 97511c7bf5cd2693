"""What SCAN asks of one node in one transaction, and what the answers say.

Why: a transaction is one instant at the node. Its own view of who owns a slot (CLUSTER NODES, the line `myself`) and
the keys that it holds of that slot, taken in the same instant, belong together; asked one by one they do not.
Called by serve.scan_page and serve.scan_slot.

Invariants: nothing here raises for what a node says; a malformed answer is Unexpected, as a value.
"""

from __future__ import annotations

import os
from functools import lru_cache
from typing import Any, Final, NamedTuple

from proxy.cluster.slot import slot_of
from proxy.cluster.topology import SLOTS
from proxy.resp import encode, errors
from proxy.resp.decode import ReplyError, decode
from proxy.resp.errors import ProtocolFault

MALFORMED: Final = errors.line("ERR a node answered part of this command in an unexpected form")

_NOPERM: Final = b"NOPERM "
_DENIED: Final = b"-EXECABORT Transaction discarded because of: " + _NOPERM
NODES: Final = encode.encode_command("CLUSTER", "NODES")
KEYSPACE: Final = encode.encode_command("INFO", "keyspace")
SERVER: Final = encode.encode_command("INFO", "server")
_MULTI: Final = encode.encode_command("MULTI")
_EXEC: Final = encode.encode_command("EXEC")
_SUFFIX: Final = os.urandom(12).hex()  # a key nobody can guess, and so nobody has
_ALPHABET: Final = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-_"


def transaction(*commands: bytes) -> tuple[bytes, int]:
    """The frame of MULTI ... EXEC, and how many replies come before that of EXEC."""
    return b"".join((_MULTI, *commands, _EXEC)), 1 + len(commands)


def keys_in_slot(slot: int, limit: int) -> bytes:
    return encode.encode_command("CLUSTER", "GETKEYSINSLOT", slot, limit)


def executed(reply: bytes, count: int) -> list[Any] | bytes:
    """EXEC's replies, `count` of them, none of them an error; or the error line to answer with."""
    if reply.startswith(_DENIED):  # of a transaction that the client knows nothing of
        return b"-" + reply[len(_DENIED) - len(_NOPERM) :]
    if reply[:1] == b"-":
        return reply
    try:
        values = decode(reply)
    except ProtocolFault:
        return MALFORMED
    if not isinstance(values, list) or len(values) != count:
        return MALFORMED
    for value in values:
        if isinstance(value, ReplyError):
            return errors.line(str(value))
    return values


def is_keys(value: object) -> bool:
    """Whether it is a list of keys."""
    return isinstance(value, list) and all(isinstance(key, bytes) for key in value)


def scanned(value: object) -> tuple[int, list[bytes]] | None:
    """A node's own cursor and the keys, of its reply to SCAN; None when it is not that."""
    if not isinstance(value, list) or len(value) != 2 or not is_keys(value[1]):
        return None
    cursor = value[0]
    if not isinstance(cursor, bytes) or not cursor.isdigit() or len(cursor) > 20:
        return None
    return int(cursor), value[1]


class View(NamedTuple):
    """What a node says of itself.

    owned: a byte for each slot: 0 not its own, 1 its own, 2 its own and migrating. migrating: those slots -> the id of
    the node they go to. epoch: its configuration epoch; a node that takes over a slot from another one has a new one.
    """

    id: bytes
    epoch: int
    owned: bytearray
    migrating: dict[int, bytes]


def view(text: object) -> View | None:
    """Of CLUSTER NODES; None when it is not that."""
    if not isinstance(text, bytes):
        return None
    at = text.find(b"myself")
    line = text[text.rfind(b"\n", 0, at) + 1 :].split(b"\n", 1)[0] if at >= 0 else b""
    fields = line.split()
    if len(fields) < 8 or b"myself" not in fields[2].split(b",") or not fields[6].isdigit():
        return None
    owned = bytearray(SLOTS)
    migrating: dict[int, bytes] = {}
    try:
        for word in fields[8:]:
            if word[:1] == b"[":
                slot, arrow, node = word[1:-1].partition(b"->-")
                if arrow and 0 <= int(slot) < SLOTS:
                    migrating[int(slot)] = node
                continue
            first, dash, last = word.partition(b"-")
            low, high = int(first), int(last if dash else first)
            if not 0 <= low <= high < SLOTS:
                return None
            owned[low : high + 1] = b"\1" * (high + 1 - low)
    except ValueError:
        return None
    if b"slave" in fields[2] or b"replica" in fields[2]:
        owned = bytearray(SLOTS)
    for slot_moving in migrating:
        if owned[slot_moving]:
            owned[slot_moving] = 2
    return View(fields[0], int(fields[6]), owned, migrating)


class Size(NamedTuple):
    """How many keys a node has in a database, and how many of them will expire."""

    keys: int
    expires: int


def size(text: object, db: int) -> Size | None:
    """Of INFO keyspace; None when it is not that."""
    if not isinstance(text, bytes) or not text.startswith(b"# Keyspace"):
        return None
    for line in text.split(b"\r\n"):
        name, _, figures = line.partition(b":")
        if name == b"db%d" % db:
            found = dict(figure.partition(b"=")[::2] for figure in figures.split(b","))
            keys, expires = found.get(b"keys", b""), found.get(b"expires", b"")
            if not (keys.isdigit() and expires.isdigit() and len(keys) < 19 and len(expires) < 19):
                return None
            return Size(int(keys), int(expires))
    return Size(0, 0)


class Server(NamedTuple):
    """run_id: of the process, and so of the order in which its SCAN goes. by_slot: it has a table for each slot, and
    its SCAN's cursors end with the slot's 14 bits (Redis 7.4, Valkey 8)."""

    run_id: bytes
    by_slot: bool


def server(text: object) -> Server | None:
    """Of INFO server; None when it is not that."""
    if not isinstance(text, bytes):
        return None
    facts = dict(line.partition(b":")[::2] for line in text.split(b"\r\n"))
    if not (run_id := facts.get(b"run_id")):
        return None
    valkey = facts.get(b"valkey_version", b"")
    return Server(run_id, tables_by_slot(facts.get(b"redis_version", b"").decode("latin-1"), valkey.decode("latin-1")))


def tables_by_slot(redis_version: str, valkey_version: str) -> bool:
    """Whether servers of these versions (the second "" for Redis) have a table for each slot."""
    wanted = (8, 0) if valkey_version else (7, 4)
    numbers = [int(part) if part.isdigit() else 0 for part in (valkey_version or redis_version).split(".")[:2]]
    return tuple(numbers) >= wanted


@lru_cache(maxsize=1)
def _pairs() -> tuple[dict[int, bytes], dict[int, bytes]]:
    """What two letters do to the slot, in front of two others and behind them: a CRC is linear."""
    pairs = [bytes((one, two)) for one in _ALPHABET for two in _ALPHABET]
    return {slot_of(pair + b"\0\0"): pair for pair in pairs}, {slot_of(pair): pair for pair in pairs}


def tag(slot: int) -> bytes:
    """Four letters whose slot this is."""
    fronts, backs = _pairs()
    for front, letters in fronts.items():
        if (back := backs.get(front ^ slot)) is not None:
            return letters + back
    raise ValueError(f"no slot: {slot}")


def probe(slot: int) -> bytes:
    """EXISTS of a key of the slot that nobody has: only who owns the slot, or is asked as an importer, says :0."""
    return encode.encode_command("EXISTS", b"{%b}%b" % (tag(slot), _SUFFIX.encode()))
