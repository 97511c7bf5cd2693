"""What a server says about its commands, as plain values.

COMMAND is the only description of a server's commands that is always right for that server, so it is the source of the
proxy's command table: at start-up the generated `proxy.commands.table.ROWS`, later the reply of the connected servers
laid over it (`merge_rows(ROWS, rows_from_command_reply(reply))`). Called by `generate` and by control; the C
table in `lookup` is built from these rows. Invariants: a Row is immutable and hashable, names are lower case and a
subcommand's name is the full one (`object|encoding`); nothing here raises over what a server sent.

Format: https://redis.io/docs/latest/commands/command/ and https://redis.io/docs/latest/develop/reference/key-specs/.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

# Before Redis 7 an entry ends with the ACL categories: no tips, key specs or subcommands.
_FIELDS_BEFORE_7: Final = 7
# What an old server's COMMAND does not say although it holds for the command there too.
_FLAGS_ADDED_BY_7: Final = ("blocking", "no_multi")
_MAX_INT32: Final = 2**31 - 1


class KeySpec(NamedTuple):
    """One key specification: where to begin, then which arguments from there are keys."""

    begin: str  # "index" | "keyword" | "unknown"
    at: int  # index: the position; keyword: where to search from, negative = backwards from the end
    keyword: str  # as the server writes it; "" unless begin is "keyword"
    find: str  # "range" | "keynum" | "unknown"
    last: int  # range: last key relative to the first, negative = from the end; keynum: keynumidx
    step: int  # arguments from one key to the next
    limit: int  # range: with last -1, 1/limit of the arguments are keys; keynum: firstkey
    flags: tuple[str, ...] = ()  # "RW", "access", "not_key", "incomplete" ...

    @property
    def complete(self) -> bool:
        """Whether the spec says enough to find the positions."""
        return self.begin != "unknown" and self.find != "unknown"


class Row(NamedTuple):
    """One command or subcommand, as COMMAND gives it."""

    name: str  # lower case; "object|encoding" for a subcommand
    arity: int  # with the name(s); negative = at least
    flags: tuple[str, ...]
    first: int  # first key, last key and step of the old description; 0 = no keys
    last: int
    step: int
    tips: tuple[str, ...] = ()
    specs: tuple[KeySpec, ...] | None = None  # None: the server knows no key specs (before Redis 7)
    subcommands: tuple[Row, ...] = ()
    categories: tuple[str, ...] = ()  # of the ACL, without their "@"

    @property
    def request_policy(self) -> str:
        """The tip's value ("all_shards", "multi_shard" ...), "" without one."""
        return self._tip("request_policy")

    @property
    def response_policy(self) -> str:
        """The tip's value ("agg_sum", "all_succeeded" ...), "" without one."""
        return self._tip("response_policy")

    def _tip(self, name: str) -> str:
        for tip in self.tips:
            key, _, value = tip.partition(":")
            if key == name:
                return value
        return ""

    @property
    def keyed(self) -> bool:
        """Whether a call may name keys (or, for SPUBLISH and its like, something else that picks the slot)."""
        return bool(self.specs) or self.first > 0 or "movablekeys" in self.flags

    def key_specs(self) -> tuple[KeySpec, ...]:
        """The key specs, made from first/last/step where the server gave none.

        The flag `movablekeys` (EVAL on Redis 6) gives a spec that does not say where the keys are.
        """
        if self.specs is not None:
            return self.specs
        specs: list[KeySpec] = []
        if self.first > 0:
            last = self.last - self.first if self.last >= 0 else self.last
            specs.append(KeySpec("index", self.first, "", "range", last, max(self.step, 1), 0))
        if "movablekeys" in self.flags:
            specs.append(KeySpec("unknown", 0, "", "unknown", 0, 1, 0))
        return tuple(specs)


def row(
    name: str,
    arity: int,
    flags: str,
    range_: tuple[int, int, int] = (0, 0, 0),
    tips: str = "",
    specs: tuple[KeySpec, ...] = (),
    subcommands: tuple[Row, ...] = (),
    categories: str = "",
) -> Row:
    """A Row as `table.py` writes it: flags, tips and categories as space-separated words."""
    words = tuple(flags.split()), tuple(tips.split()), tuple(categories.split())
    return Row(name, arity, words[0], *range_, words[1], specs, subcommands, words[2])


def index_range(at: int, last: int, step: int, limit: int, flags: str) -> KeySpec:
    """A spec of keys in a range from a fixed position; flags as space-separated words."""
    return KeySpec("index", at, "", "range", last, step, limit, tuple(flags.split()))


def keyword_range(keyword: str, at: int, last: int, step: int, limit: int, flags: str) -> KeySpec:
    """A spec of keys in a range after a keyword; flags as space-separated words."""
    return KeySpec("keyword", at, keyword, "range", last, step, limit, tuple(flags.split()))


def index_keynum(at: int, keynumidx: int, firstkey: int, step: int, flags: str) -> KeySpec:
    """A spec of as many keys as an argument says; flags as space-separated words."""
    return KeySpec("index", at, "", "keynum", keynumidx, step, firstkey, tuple(flags.split()))


def unknown_spec(flags: str) -> KeySpec:
    """A spec that only says there may be more keys; flags as space-separated words."""
    return KeySpec("unknown", 0, "", "unknown", 0, 1, 0, tuple(flags.split()))


def rows_from_command_reply(reply: object) -> list[Row]:
    """The rows of a whole decoded COMMAND reply (RESP2 or RESP3, bytes or str), Redis 6.2 up to now.

    An entry that is not what COMMAND documents (also a nil, as COMMAND INFO gives for an unknown name) is skipped.
    """
    return [made for entry in _items(reply) if (made := _row(entry, "")) is not None]


def merge_rows(older: Iterable[Row], newer: Iterable[Row]) -> list[Row]:
    """All rows by name, sorted; where both have a command, the newer row is taken.

    A newer row from a server without key specs takes the older row's specs, tips and subcommands: an old server has
    them too but does not say so. Subcommands of both are kept, so that one the newer server lacks keeps its class.
    """
    merged = {r.name: r for r in older}
    for new in newer:
        old = merged.get(new.name)
        merged[new.name] = new if old is None else _merge(old, new)
    return [merged[name] for name in sorted(merged)]


def _merge(old: Row, new: Row) -> Row:
    subcommands = tuple(merge_rows(old.subcommands, new.subcommands))
    if new.specs is not None:
        return new._replace(subcommands=subcommands)
    flags = new.flags + tuple(f for f in _FLAGS_ADDED_BY_7 if f in old.flags and f not in new.flags)
    return new._replace(flags=flags, specs=old.specs, tips=old.tips, subcommands=subcommands)


def _row(entry: object, parent: str) -> Row | None:
    fields = _items(entry)
    if len(fields) < 6:
        return None
    name = _text(fields[0]).lower()
    numbers = [_int32(f) for f in (fields[1], *fields[3:6])]
    if not name or (not parent and "|" in name) or None in numbers:
        return None
    arity, first, last, step = (n or 0 for n in numbers)
    if parent and not name.startswith(parent + "|"):
        name = f"{parent}|{name}"
    flags = _texts(fields[2])
    categories = tuple(c.removeprefix("@") for c in _texts(fields[6])) if len(fields) > 6 else ()
    if len(fields) <= _FIELDS_BEFORE_7:
        return Row(name, arity, flags, first, last, step, categories=categories)
    specs = None
    if len(fields) > 8:
        specs = tuple(s for f in _items(fields[8]) if (s := _spec(f)) is not None)
    subcommands: tuple[Row, ...] = ()
    if len(fields) > 9 and not parent:
        made = (_row(f, name) for f in _items(fields[9]))
        subcommands = tuple(sorted((m for m in made if m is not None), key=lambda m: m.name))
    return Row(name, arity, flags, first, last, step, _texts(fields[7]), specs, subcommands, categories)


def _spec(field: object) -> KeySpec | None:
    outer = _pairs(field)
    begin, find = _pairs(outer.get("begin_search")), _pairs(outer.get("find_keys"))
    begin_kind, find_kind = _text(begin.get("type")), _text(find.get("type"))
    if not begin_kind or not find_kind:
        return None
    flags = _texts(outer.get("flags"))
    bs, fk = _pairs(begin.get("spec")), _pairs(find.get("spec"))
    at, keyword, unknown = 0, "", KeySpec("unknown", 0, "", "unknown", 0, 1, 0, flags)
    if begin_kind == "index":
        at = _number(bs, "index")
    elif begin_kind == "keyword":
        at, keyword = _number(bs, "startfrom"), _text(bs.get("keyword"))
        if not keyword:
            return unknown
    else:
        return unknown
    if find_kind == "range":
        return KeySpec(
            begin_kind, at, keyword, find_kind, _number(fk, "lastkey"), max(_number(fk, "keystep"), 1),
            max(_number(fk, "limit"), 0), flags,
        )  # fmt: skip
    if find_kind == "keynum":
        return KeySpec(
            begin_kind, at, keyword, find_kind, _number(fk, "keynumidx"), max(_number(fk, "keystep"), 1),
            _number(fk, "firstkey"), flags,
        )  # fmt: skip
    return unknown


def _items(value: object) -> list[object]:
    if isinstance(value, list | tuple):
        return list(value)
    if isinstance(value, set | frozenset):  # RESP3 sets come unordered: an order makes rows comparable
        return sorted(value, key=_text)
    return []


def _pairs(value: object) -> dict[str, object]:
    """A map: RESP3's own, or RESP2's list of keys and values one after the other."""
    if isinstance(value, Mapping):
        return {_text(k): v for k, v in value.items()}
    flat = _items(value)
    return {_text(k): v for k, v in zip(flat[::2], flat[1::2], strict=False)}


def _text(value: object) -> str:
    if isinstance(value, bytes | bytearray):
        return bytes(value).decode("utf-8", "replace")
    return value if isinstance(value, str) else ""


def _texts(value: object) -> tuple[str, ...]:
    return tuple(t for item in _items(value) if (t := _text(item)))


def _int32(value: object) -> int | None:
    if isinstance(value, int) and not isinstance(value, bool) and -_MAX_INT32 <= value <= _MAX_INT32:
        return value
    return None


def _number(pairs: Mapping[str, object], name: str) -> int:
    return _int32(pairs.get(name)) or 0
