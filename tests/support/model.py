"""A dict that answers as Redis does, byte for byte, for the few commands the order test draws from.

Called by: tests/integration/test_order.py, tests/chaos. One Model is one client's own keys: nobody else may write them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from tests.support.cluster import slot_of
from tests.support.raw import array, bulk, encode

Value = bytes | list[bytes] | dict[bytes, bytes] | set[bytes]

OK = b"+OK\r\n"
WRONGTYPE = b"-WRONGTYPE Operation against a key holding the wrong kind of value\r\n"
NOT_INTEGER = b"-ERR value is not an integer or out of range\r\n"
CROSSSLOT = b"-CROSSSLOT Keys in request don't hash to the same slot\r\n"
TYPES = {bytes: b"+string\r\n", list: b"+list\r\n", dict: b"+hash\r\n", set: b"+set\r\n", type(None): b"+none\r\n"}


def number(value: int) -> bytes:
    return b":%d\r\n" % value


def arity(name: str) -> bytes:
    return b"-ERR wrong number of arguments for '%s' command\r\n" % name.encode()


class Model:
    """apply(words) executes one command and returns the reply frame; protocol 2 or 3 decides the null."""

    def __init__(self, protocol: int = 2) -> None:
        self.data: dict[bytes, Value] = {}
        self.null = b"_\r\n" if protocol == 3 else b"$-1\r\n"

    def apply(self, words: list[bytes]) -> bytes:
        handler = getattr(self, f"_{words[0].decode().lower()}", None)
        if handler is None:
            arguments = b"".join(b"'%s' " % word for word in words[1:])
            return b"-ERR unknown command '%s', with args beginning with: %s\r\n" % (words[0], arguments)
        return bytes(handler(*words[1:]))

    # Strings

    def _set(self, key: bytes, value: bytes) -> bytes:
        self.data[key] = value
        return OK

    def _get(self, *keys: bytes) -> bytes:
        if len(keys) != 1:
            return arity("get")
        value = self.data.get(keys[0])
        if value is None:
            return self.null
        return bulk(value) if isinstance(value, bytes) else WRONGTYPE

    def _getdel(self, key: bytes) -> bytes:
        reply = self._get(key)
        if reply != WRONGTYPE:
            self.data.pop(key, None)
        return reply

    def _append(self, key: bytes, value: bytes) -> bytes:
        old = self.data.get(key, b"")
        if not isinstance(old, bytes):
            return WRONGTYPE
        self.data[key] = old + value
        return number(len(old + value))

    def _incr(self, *keys: bytes) -> bytes:
        if len(keys) != 1:
            return arity("incr")
        old = self.data.get(keys[0], b"0")
        if not isinstance(old, bytes):
            return WRONGTYPE
        if str(_integer(old)).encode() != old:
            return NOT_INTEGER
        self.data[keys[0]] = str(_integer(old) + 1).encode()
        return number(_integer(old) + 1)

    # Lists, hashes, sets

    def _rpush(self, key: bytes, *values: bytes) -> bytes:
        old = self.data.setdefault(key, [])
        if not isinstance(old, list):
            return WRONGTYPE
        old.extend(values)
        return number(len(old))

    def _lrange(self, key: bytes, first: bytes, last: bytes) -> bytes:
        assert (first, last) == (b"0", b"-1")
        old = self.data.get(key, [])
        return array(*(bulk(value) for value in old)) if isinstance(old, list) else WRONGTYPE

    def _hset(self, key: bytes, name: bytes, value: bytes) -> bytes:
        old = self.data.setdefault(key, {})
        if not isinstance(old, dict):
            return WRONGTYPE
        added = name not in old
        old[name] = value
        return number(added)

    def _hget(self, key: bytes, name: bytes) -> bytes:
        old = self.data.get(key, {})
        if not isinstance(old, dict):
            return WRONGTYPE
        return bulk(old[name]) if name in old else self.null

    def _sadd(self, key: bytes, *members: bytes) -> bytes:
        old = self.data.setdefault(key, set())
        if not isinstance(old, set):
            return WRONGTYPE
        before = len(old)
        old.update(members)
        return number(len(old) - before)

    def _scard(self, key: bytes) -> bytes:
        old = self.data.get(key, set())
        return number(len(old)) if isinstance(old, set) else WRONGTYPE

    # Any type, several keys

    def _type(self, key: bytes) -> bytes:
        return TYPES[type(self.data.get(key))]

    def _mget(self, *keys: bytes) -> bytes:
        if not keys:
            return arity("mget")
        values = (self.data.get(key) for key in keys)
        return array(*(bulk(value) if isinstance(value, bytes) else self.null for value in values))

    def _mset(self, *pairs: bytes) -> bytes:
        if not pairs or len(pairs) % 2:
            return arity("mset")
        self.data.update(zip(pairs[::2], pairs[1::2], strict=True))
        return OK

    def _msetnx(self, *pairs: bytes) -> bytes:
        if len({slot_of(key) for key in pairs[::2]}) > 1:
            return CROSSSLOT
        if any(key in self.data for key in pairs[::2]):
            return number(0)
        self._mset(*pairs)
        return number(1)

    def _exists(self, *keys: bytes) -> bytes:
        return number(sum(key in self.data for key in keys)) if keys else arity("exists")

    _touch = _exists

    def _del(self, *keys: bytes) -> bytes:
        return number(sum(self.data.pop(key, None) is not None for key in keys)) if keys else arity("del")

    _unlink = _del

    # No keys

    def _ping(self, *message: bytes) -> bytes:
        if len(message) > 1:
            return arity("ping")
        return bulk(message[0]) if message else b"+PONG\r\n"

    def _echo(self, message: bytes) -> bytes:
        return bulk(message)


def commands(rng: random.Random, prefix: str, keys: int = 12) -> Iterator[list[bytes]]:
    """Endless random commands over `keys` keys named after the prefix: mixed types, split commands, errors."""
    names = [f"{prefix}:{n}".encode() for n in range(keys - 3)] + [f"{{{prefix}}}:{n}".encode() for n in range(3)]
    tagged = names[-3:]

    def key() -> bytes:
        return rng.choice(names)

    def some(most: int = 8) -> list[bytes]:
        return [key() for _ in range(rng.randint(1, most))]

    def value() -> bytes:
        kind = rng.random()
        if kind < 0.3:
            return str(rng.randint(-50, 50)).encode()
        return rng.randbytes(rng.choice((0, 1, 5, 64, 300, 300, 20000) if kind < 0.95 else (0,)))

    makers: list[tuple[int, Callable[[], list[bytes]]]] = [
        (10, lambda: [b"SET", key(), value()]),
        (10, lambda: [b"GET", key()]),
        (6, lambda: [b"INCR", key()]),
        (3, lambda: [b"APPEND", key(), value()[:50]]),
        (2, lambda: [b"GETDEL", key()]),
        (3, lambda: [b"RPUSH", key(), *some(3)]),
        (3, lambda: [b"LRANGE", key(), b"0", b"-1"]),
        (3, lambda: [b"HSET", key(), rng.choice((b"f", b"g")), value()]),
        (3, lambda: [b"HGET", key(), rng.choice((b"f", b"g"))]),
        (2, lambda: [b"SADD", key(), *some(3)]),
        (2, lambda: [b"SCARD", key()]),
        (2, lambda: [b"TYPE", key()]),
        (6, lambda: [b"MGET", *some()]),
        (4, lambda: [b"MSET", *(word for name in some() for word in (name, value()))]),
        (2, lambda: [b"DEL", *some(4)]),
        (1, lambda: [b"UNLINK", *some(4)]),
        (3, lambda: [b"EXISTS", *some()]),
        (1, lambda: [b"TOUCH", *some()]),
        (2, lambda: [b"MSETNX", *(word for name in some(2) for word in (name, b"nx"))]),
        (1, lambda: [b"MSETNX", tagged[0], value(), tagged[1], value()]),
        (1, lambda: [b"MGET", *tagged]),
        (2, lambda: [b"PING"]),
        (1, lambda: [b"PING", value()]),
        (1, lambda: [b"ECHO", value()]),
        (1, lambda: [b"NOSUCHCOMMAND", b"a", b"b"]),
        (1, lambda: [rng.choice((b"GET", b"INCR", b"MGET", b"MSET", b"DEL", b"EXISTS"))]),
        (1, lambda: [b"GET", key(), key()]),
        (1, lambda: [b"MSET", key(), value(), key()]),
    ]
    weights = [weight for weight, _ in makers]
    while True:
        yield rng.choices(makers, weights)[0][1]()


def wire(words: list[bytes], rng: random.Random) -> bytes:
    """The command as sent: a RESP array, now and then with its name in another case."""
    name = words[0].lower() if rng.random() < 0.3 and words[0] != b"NOSUCHCOMMAND" else words[0]
    return encode(name, *words[1:])


def _integer(text: bytes) -> int:
    """The 64-bit number the text is; for any other text a number that is not written like it."""
    try:
        value = int(text)
    except ValueError:
        return 0 if text != b"0" else 1
    return value if -(1 << 63) <= value < 1 << 63 else 0
