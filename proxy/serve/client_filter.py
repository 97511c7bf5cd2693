"""Which clients CLIENT LIST and CLIENT KILL mean: the filters read, sent to other workers, and applied.

Why: both have the same grammar since Valkey 8.1, and every worker applies it to its own clients. Called by
serve.client_all.

Texts and rules are those of Valkey 9 (src/networking.c, parseClientFiltersOrReply, clientMatchesFilter); with servers
that are older, the filters they lack work all the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from proxy.resp import errors
from proxy.serve.client import flags_of, peer
from proxy.serve.context import ClientLike, ServeContext
from proxy.serve.words import DEFAULT_USER, integer

MOST_BYTES: Final = 1 << 16  # of all words: the question goes to every worker
Value = bytes | int | list[int]

_TYPES: Final = {
    b"NORMAL": b"normal",
    b"PUBSUB": b"pubsub",
    b"REPLICA": b"replica",
    b"SLAVE": b"replica",
    b"PRIMARY": b"primary",
    b"MASTER": b"primary",
}
_FLAGS: Final = b"OSMPxbtRBdcuAUreTIN"
_CAPA: Final = b"r"
_TEXTS: Final = frozenset({b"ADDR", b"LADDR", b"NAME", b"LIB-NAME", b"LIB-VER", b"IP"})


class Filter(msgspec.Struct, array_like=True):
    """only: what a client must fit, by option; never: what it must not; skip: the id of one that is left out, 0 = none.

    idle_s, age_s: at least; 0 = any.
    """

    only: dict[str, Value] = {}
    never: dict[str, Value] = {}
    skip: int = 0
    idle_s: int = 0
    age_s: int = 0


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Filter)


def encode(wanted: Filter) -> bytes:
    """For another worker."""
    return _encoder.encode(wanted)


def decode(body: bytes) -> Filter:
    """What encode() made."""
    return _decoder.decode(body)


def _error(text: bytes, shown: bytes = b"") -> bytes:
    """An error line that shows a word as C does: up to its first NUL."""
    return errors.line(b"ERR " + text.replace(b"%s", shown.partition(b"\0")[0]))


def parse(ctx: ServeContext, client: ClientLike, words: list[bytes], *, skip_me: bool) -> Filter | bytes:
    """The filters in these words, or the error; skip_me: unless SKIPME says otherwise."""
    if sum(map(len, words)) + len(words) > MOST_BYTES:
        return _error(b"the filters are too long, the limit is %d bytes" % MOST_BYTES)
    wanted = Filter({}, {})
    at = 0
    while at < len(words):
        option = words[at].upper()
        name = option.removeprefix(b"NOT-")
        terms = wanted.only if name is option or name == option else wanted.never
        if at + 1 == len(words):
            return errors.SYNTAX
        value = words[at + 1]
        at += 2
        if name == b"ID":
            ids, at = _ids(words, at - 1)
            if isinstance(ids, bytes):
                return ids
            known = terms.setdefault("ID", [])
            assert isinstance(known, list)
            known += ids
        elif option in (b"MAXAGE", b"IDLE"):
            number = integer(value)
            if number is None:
                return _error(option.lower() + b" is not an integer or out of range")
            if number < 1:
                return _error(option.lower() + b" should be greater than 0")
            if option == b"IDLE":
                wanted.idle_s = number
            else:
                wanted.age_s = number
        elif option == b"SKIPME":
            if value.upper() not in (b"YES", b"NO"):
                return errors.SYNTAX
            skip_me = value.upper() == b"YES"
        else:
            read = _value(ctx, name, value)
            if isinstance(read, tuple):
                return read[0]
            terms[name.decode("ascii")] = read
    wanted.skip = client.id if skip_me else 0
    return wanted


def _ids(words: list[bytes], at: int) -> tuple[list[int] | bytes, int]:
    """(the ids that begin there, or an error; where the next option is)."""
    ids: list[int] = []
    while at < len(words) and (number := integer(words[at])) is not None:
        if number < 1:
            return _error(b"client-id should be greater than 0"), at
        ids.append(number)
        at += 1
    return (ids or errors.SYNTAX), at


def _value(ctx: ServeContext, name: bytes, value: bytes) -> Value | tuple[bytes]:
    """What an option's word means; an error in a tuple."""
    if name in _TEXTS:
        return value
    if name == b"TYPE":
        kind = _TYPES.get(value.upper())
        return kind if kind is not None else (_error(b"Unknown client type '%s'", value),)
    if name == b"USER":
        return value if value == DEFAULT_USER.encode() else (_error(b"No such user '%s'", value),)
    if name == b"FLAGS":
        known = not value.translate(None, _FLAGS)
        return value if known else (_error(b"Unknown flags found in the provided filter: %s", value),)
    if name == b"CAPA":
        known = not value.translate(None, _CAPA)
        return value if known else (_error(b"Unknown capa found in the provided filter: %s", value),)
    if name == b"DB":
        number = integer(value)
        if number is None:
            return (_error(b"DB is not an integer or out of range"),)
        most = max(1, ctx.databases) - 1
        return number if 0 <= number <= most else (_error(b"DB number should be between 0 and %d" % most),)
    return (errors.SYNTAX,)


# -- applied -------------------------------------------------------------------------------------------------------

Test = Callable[[ClientLike], bool]


def _ip(client: ClientLike, value: bytes) -> bool:
    host, _, port = client.address.rpartition(":")
    return not client.address.startswith("unix:") and port != "0" and host.strip("[]").encode() == value


def _has_flags(client: ClientLike, value: bytes) -> bool:
    flags = flags_of(client)
    return all(flag in flags if flag != "N" else not flags for flag in value.decode("ascii"))


def _test(name: str, value: Value) -> Test:
    """Whether a client has what an option wants."""
    if isinstance(value, list):
        ids = frozenset(value)
        return lambda client: client.id in ids
    if isinstance(value, int):
        return lambda client: client.db == value
    word = value
    tests: dict[str, Test] = {
        "TYPE": lambda client: word == (b"pubsub" if any(client.subscriptions) else b"normal"),
        "USER": lambda client: (client.user or DEFAULT_USER).encode() == word,
        "ADDR": lambda client: peer(client.address).encode() == word,
        "LADDR": lambda client: peer(client.local_address).encode() == word,
        "NAME": lambda client: bool(client.name) and client.name == word,
        "LIB-NAME": lambda client: bool(client.lib_name) and client.lib_name == word,
        "LIB-VER": lambda client: bool(client.lib_ver) and client.lib_ver == word,
        "IP": lambda client: _ip(client, word),
        "CAPA": lambda client: not word or client.redirects,
        "FLAGS": lambda client: _has_flags(client, word),
    }
    return tests[name]


def tester(wanted: Filter) -> Callable[[ClientLike, float], bool]:
    """(client, time.time()) -> whether it is meant."""
    only = [_test(name, value) for name, value in wanted.only.items()]
    never = [_test(name, value) for name, value in wanted.never.items()]

    def fits(client: ClientLike, now_s: float) -> bool:
        return (
            client.id != wanted.skip
            and (not wanted.age_s or int(client.age_s) >= wanted.age_s)
            and (not wanted.idle_s or int(now_s - client.last_active_s) >= wanted.idle_s)
            and all(test(client) for test in only)
            and not any(test(client) for test in never)
        )

    return fits
