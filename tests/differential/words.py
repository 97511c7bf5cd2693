"""Words of commands: keys, values and numbers that meet each other often enough to matter, and odd ones.

Called by: grammar. Numbers are chosen so that no server is made to hold much: an offset is small or out of every range.
"""

from __future__ import annotations

import hashlib
from random import Random

SCRIPTS = [
    b"return 1",
    b"return {1, 2, {3, 'x', false, true}, 3.7}",
    b"return {KEYS, ARGV}",
    b"return redis.call('set', KEYS[1], ARGV[1])",
    b"return redis.call('get', KEYS[1])",
    b"return redis.pcall('incr', KEYS[1])",
    b"return redis.call('lpush', KEYS[1], unpack(ARGV))",
    b"redis.call('set', KEYS[1], 'x') return redis.error_reply('MY error')",
    b"return redis.error_reply('plain')",
    b"return redis.status_reply('fine')",
    b"return nil",
    b"return false",
    b"return {double=3.5}",
    b"return {map={a=1}}",
    b"return {err='broken'}",
    b"return {ok='well'}",
    b"redis.setresp(3) return redis.call('hgetall', KEYS[1])",
    b"redis.setresp(3) return redis.call('zrange', KEYS[1], 0, -1, 'withscores')",
    b"return redis.call('nosuch')",
    b"return redis.call('get')",
    b"return nosuch.field",
    b"return redis.sha1hex(ARGV[1])",
    b"return cjson.encode({1, 'a'})",
    b"return #ARGV",
    b"this is not Lua",
    b"",
    b"#!lua\nreturn redis.call('incr', KEYS[1])",
    b"#!lua flags=no-writes\nreturn redis.call('set', KEYS[1], 1)",
    b"#!lua flags=nosuch\nreturn 1",
    b"return redis.call('multi')",
    b"return redis.call('select', 1)",
    b"return redis.call('subscribe', 'x')",
    b"return string.rep('x', 5000)",
]
SHAS = [hashlib.sha1(body).hexdigest().encode() for body in SCRIPTS]
SHAS += [b"f" * 40, b"x", hashlib.sha1(SCRIPTS[0]).hexdigest().upper().encode()]
LIBRARIES = [
    b"#!lua name=one\nredis.register_function('one', function(keys, args) return {keys, args} end)",
    b"#!lua name=two\nredis.register_function{function_name='two', flags={'no-writes'},"
    b" callback=function(keys) return redis.call('get', keys[1]) end}",
    b"#!lua name=three\nredis.register_function('set', function(keys, args)"
    b" return redis.call('set', keys[1], args[1]) end)",
    b"#!lua\nreturn",
    b"no library",
    b"#!lua name=bad\nerror('x')",
    b"#!lua name=one\nredis.register_function('one', function() return 'again' end)",
]

KINDS = {
    "string": "s",
    "bitmap": "s",
    "hyperloglog": "p",
    "list": "l",
    "set": "t",
    "sorted-set": "z",
    "geo": "g",
    "hash": "h",
    "stream": "x",
}
ALL_KINDS = "sspltzghx"
WEIRD_KEYS = [b"", b"\x00\xff\r\n", b"{}", b"{x", b"x}{y}", b"a b", b"{a}{b}", b"*", b"'q\"", b"k" * 300]
ODD = [
    *(b"", b"abc", b"9223372036854775807", b"-9223372036854775808", b"9223372036854775808", b"-9223372036854775807"),
    *(b"18446744073709551616", b"1.5", b"+1", b"01", b" 1", b"1 ", b"nan", b"-nan", b"inf", b"1e400", b"0x10", b"-0"),
    *(b"\x00\xff", b"\r\n", b"(", b"[", b"-", b"+", b"$", b"*", b"#", b"x" * 300, b"LIMIT", b"NX", b"GET", b"-1"),
]
# By the argument's name in COMMAND DOCS. What is not here is chosen by its type.
BY_NAME: dict[str, list[bytes]] = {
    "seconds": b"100 1000 100000 0 -1".split(),
    "milliseconds": b"100000 1000000 0 -1".split(),
    "ttl": b"0 0 100000 4102444800000".split(),
    "unix-time-seconds": b"4102444800 4102444801 1 0 -1".split(),
    "unix-time-milliseconds": b"4102444800000 4102444800001 1 0".split(),
    "longitude": b"13.361389 15.087269 0 -122.27652 181 2.5".split(),
    "latitude": b"38.115556 37.502669 0 37.805186 86 -3".split(),
    "radius": b"200 1000 0 5000000 1.5".split(),
    "width": b"400 10000 0".split(),
    "height": b"400 10000 0".split(),
    "min-idle-time": b"0 0 0 1000000000".split(),
    "ms": b"0 100".split(),
    "cursor": b"0 0 0 0 abc 18446744073709551615".split(),
    "bit": b"0 1 1 2".split(),
    "encoding": b"u8 i8 u1 i16 u63 i64 u64 x u4".split(),
    "pivot": b"a b 1".split(),
    "pattern": [b"*", b"a*", b"{*", b"?", b"[ab]", b"[a", b"", b"\\*", b"nosuch"],
    "index": b"0 1 -1 2 5 -3 100".split(),
    "db": b"0 0 1 2 16 -1 x".split(),
    "destination-db": b"0 1 2 99".split(),
    "protover": b"2 3 2 3 1 4 x".split(),
    "clientname": [b"name", b"", b"with space", b"x\n"],
    "connection-name": [b"name", b"other", b"", b"with space", b"x\n"],
    "username": b"default nobody".split(),
    "password": [b"secret", b""],
    "sha1": SHAS,
    "script": SCRIPTS,
    "function-code": LIBRARIES,
    "function": b"one two set nosuch".split(),
    "library-name": b"one two nosuch".split(),
    "library-name-pattern": b"* o* nosuch".split(),
    "message": [b"hello", b"", b"\x00\r\n"],
    "channel": b"ch1 ch2".split(),
    "command-name": [b"get", b"set", b"GET", b"config|get", b"nosuch", b"client", b"xgroup|create", b"mset"],
    "categoryname": b"string hash dangerous nosuch".split(),
    "category": b"string hash dangerous nosuch".split(),
    "bits": b"5 128 1 1024 4096 0 x".split(),
    "parameter": b"maxmemory timeout max* nosuch appendonly".split(),
    "section": b"server clients all nosuch".split(),
    "type": b"string list set zset hash stream nosuch".split(),
    "version": b"5 6".split(),
    "entries-read": b"0 1 2 -1".split(),
    "entries_read": b"0 1 2 -1".split(),
    "entries-added": b"0 1 100".split(),
    "entries_added": b"0 1 100".split(),
    "max-deleted-id": b"0-0 1-1".split(),
    "max_deleted_entry_id": b"0-0 1-1".split(),
    "weight": b"1 2 0 -1 0.5 inf x".split(),
    "score": b"1 2 3 2.5 -1 0 inf -inf 1e10 nan x 0.1 3.0".split(),
    "increment": b"1 5 -3 0 2.5 9223372036854775807 x".split(),
    "decrement": b"1 5 -3 0 9223372036854775807".split(),
    "client-id": b"1 0 999999999 x".split(),
    "comparison-value": [b"a", b"10", b"", b"hello"],
}
IDS = b"1-1 1-2 2-1 3-0 5-5 - + $ > 0 0-0 (1-1 7 1-* 9-9 18446744073709551615-1 x".split()
LEX_OR_SCORE = b"- + [a (c [b -inf +inf (1 2 0 -1 1 5 [ (inf".split()
INTEGERS = b"0 1 2 3 -1 -2 5 10 100 1 2 0".split()
DOUBLES = b"0 1 2 2.5 -1 -inf +inf (1 (2 10 1e3".split()
MEMBERS = [b"a", b"b", b"c", b"d", b"1", b"2", b"3", b"f1", b"f2", b"10.5", b"", b"\x00\xff\r\n", b"m" * 70]
GROUPS_OF_STREAMS = [b"g", b"g", b"h"]
CONSUMERS = b"alice bob".split()
VALUES = [
    *(b"v", b"hello", b"10", b"-5", b"3.0", b"3.14", b"", b"a", b"b", b"9223372036854775807", b"\x00\xff\r\nx", b"1"),
    *(b"y" * 45, b"z" * 70, b"w" * 1000, b"ohmytext", b"mynewtext", b"+OK\r\n", b"*3", b"1e5"),
]


def word(chance: Random, command: str, group: str, kind: str, name: str) -> bytes:
    """A likely word for an argument of this type and name."""
    if name in BY_NAME:
        return chance.choice(BY_NAME[name])
    if group == "stream" and kind == "string":
        if name in ("group", "groupname"):
            return chance.choice(GROUPS_OF_STREAMS)
        if name in ("consumer", "consumername"):
            return chance.choice(CONSUMERS)
        if name in ("id", "start", "end", "last-id", "lastid", "threshold", "min-idle-time"):
            return chance.choice(IDS) if name != "threshold" else chance.choice([b"0", b"1", b"2", b"2-1"])
    if kind == "string" and name in ("start", "stop", "min", "max", "end"):
        return chance.choice(LEX_OR_SCORE)
    if kind == "integer" and group == "bitmap" and name == "offset":
        return chance.choice([b"0", b"1", b"7", b"8", b"100", b"#1", b"-1"])
    match kind:
        case "integer":
            return chance.choice(INTEGERS)
        case "double":
            return chance.choice(DOUBLES)
        case "pattern":
            return chance.choice(BY_NAME["pattern"])
        case "unix-time":
            return chance.choice(BY_NAME["unix-time-seconds"])
    if name in ("field", "member", "element", "member1", "member2"):
        return chance.choice(MEMBERS)
    return chance.choice(VALUES)


def tamed(words: list[bytes]) -> list[bytes]:
    """Without what takes long, takes much memory, or ends while it is looked at."""
    if len(words) < 3:
        return words
    name = words[0].upper()
    at: list[int] = []
    low = 0
    if name in (b"EXPIRE", b"SETEX", b"HEXPIRE"):
        at, low = [2], 100
    elif name in (b"PEXPIRE", b"PSETEX", b"RESTORE", b"HPEXPIRE"):
        at, low = [2], 100_000
    elif name in (b"SET", b"GETEX", b"HSETEX", b"HGETEX", b"MSETEX"):
        at, low = [n + 1 for n, w in enumerate(words[:-1]) if w.upper() in (b"EX", b"PX")], 100_000
    elif name in (b"BLPOP", b"BRPOP", b"BLMOVE", b"BRPOPLPUSH", b"BZPOPMIN", b"BZPOPMAX"):
        return [*words[:-1], _soon(words[-1], b"0.01")]
    elif name in (b"BLMPOP", b"BZMPOP"):
        return [words[0], _soon(words[1], b"0.01"), *words[2:]]
    elif name in (b"XREAD", b"XREADGROUP"):
        return [_soon(w, b"10") if words[max(n - 1, 0)].upper() == b"BLOCK" else w for n, w in enumerate(words)]
    for n in at:
        if words[n].isdigit() and 0 < int(words[n]) < low:
            words = [*words[:n], b"%d" % (int(words[n]) + low), *words[n + 1 :]]
    if name in (b"SRANDMEMBER", b"ZRANDMEMBER", b"HRANDFIELD"):
        return [w if not _number(w) or abs(int(w)) < 1000 else b"-7" for w in words]
    if name in (b"SETBIT", b"SETRANGE", b"BITFIELD", b"BITFIELD_RO"):
        return [w if not _number(w) or abs(int(w)) < 1000 or abs(int(w)) > 1 << 62 else b"77" for w in words]
    return words


def _soon(timeout: bytes, short: bytes) -> bytes:
    """A timeout that blocks for a short while; what is none stays as it is."""
    try:
        return short if float(timeout) >= 0 else timeout
    except ValueError:
        return short if timeout[:2].lower() == b"0x" else timeout


def _number(text: bytes) -> bool:
    return text.removeprefix(b"-").isdigit()
