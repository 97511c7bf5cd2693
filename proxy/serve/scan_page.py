"""One page of SCAN: which slots it covers, what it asks for them, and what becomes of the answers.

Why every key that is there throughout is returned: the unit is the slot, and slots are done in their order. A slot is
done when all its keys were listed at one instant at which they all were at one node: in one transaction the node said
that it owns the slot and that the slot is not migrating, and listed its keys. (A key of such a slot can be nowhere
else: an importer owns the slot only when it has all of it.) The cursor goes on behind the slots that were done, and no
further; where a slot goes later does not matter. What does not fit this (a slot that is migrating, or has too many
keys) is done by serve.scan_slot. What has expired, and what MATCH and TYPE exclude, is left out afterwards.

How much one page asks for follows COUNT and how many keys the nodes have. Nodes with few keys are listed whole, with
one SCAN in the transaction, so that an empty database takes one page; otherwise as many slots are asked for as have
about COUNT keys. A page that finds nothing to do for its first slot is empty, with the same place as its cursor.

Called by serve.scan. Invariants: each round of a page is bounded, in slots, keys and nodes, and there are few rounds;
nothing is remembered between pages but the nodes' numbers of keys, which decide about speed only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from proxy.cluster.slot import slot_of
from proxy.cluster.topology import SLOTS
from proxy.forward.ask import Ask
from proxy.resp import encode, errors
from proxy.resp.decode import decode
from proxy.resp.glob import Glob
from proxy.serve import scan_cursor, scan_node, scan_slot
from proxy.serve.context import ServeContext
from proxy.serve.scan_cursor import Position

if TYPE_CHECKING:
    from proxy.forward.ask import Where

SLOTS_MOST: Final = 512  # asked for in one page
KEYS_MOST: Final = 10_000  # of one slot that is listed at once
_BATCH_MOST: Final = 16_384  # keys of all slots of one page, where there are several
_LARGE_LEAST: Final = 1_000  # keys of a slot that is gone through by itself
_WHOLE_LEAST: Final = 128  # nodes with together this many keys are listed whole for any COUNT
_WHOLE_MOST: Final = 10_000
_NODES_MOST: Final = 64  # asked in one round
_TRIES: Final = 4  # to find the owner of a slot, in one page
_EMPTY_MOST: Final = 3  # rounds of a page that found no key at all and are followed by another one
_STEPS: Final = 20_000_000  # of matching, in one page: some 50 ms
TOO_HARD: Final = errors.line("ERR the pattern takes too long to match against the keys of this page")


class Wanted(NamedTuple):
    """about: COUNT. pattern: of MATCH, b"" = all. kind: of TYPE in lower case, b"" = all. low, high: slots."""

    about: int
    pattern: bytes
    kind: bytes
    low: int
    high: int


class Page:
    """One call of SCAN from its first round to its reply."""

    def __init__(self, ctx: ServeContext, db: int, wanted: Wanted, at: Position) -> None:
        if at.slot < wanted.low:
            at = Position(wanted.low)
        self.ctx, self.db, self.wanted, self.at = ctx, db, wanted, at
        self.slot = at.slot
        self.owners: list[tuple[int, int, str]] = []
        self.by_slot = scan_node.tables_by_slot(ctx.server_version, ctx.valkey_version)
        self.most = KEYS_MOST  # keys of a slot that are listed at once
        self.ask = ask
        self._asked_sizes = False
        self._whole = True  # as long as no node turned out to be too large for that
        self._empty = 0
        self._tries = 0

    # -- what to ask ---------------------------------------------------------------------------------------------

    def begin(self) -> Ask | bytes:
        if self.slot > self.wanted.high:
            return self.reply(None, [])
        if self.at.inner:
            return scan_slot.begin_large(self)
        return self.plan()

    def plan(self) -> Ask | bytes:
        """Nodes whole, or slots; first of all, if need be, how many keys the nodes have."""
        first, high = self.slot, self.wanted.high
        if first == high:
            return self.ask_slots(1)
        self.owners = [(max(low, first), last, label) for low, last, label in self.ctx.owners() if last >= first]
        places: dict[str, int] = {}
        for low, _, label in self.owners:
            if low <= high:
                places.setdefault(label, low)
        known = self.ctx.key_counts
        some = list(places)[:_NODES_MOST]
        missing = [label for label in some if (self.db, label) not in known]
        if missing and not self._asked_sizes:
            self._asked_sizes = True
            return self.ask_sizes({label: places[label] for label in missing})
        whole: dict[str, int] = {}
        total, most = 0, min(max(2 * self.wanted.about, _WHOLE_LEAST), _WHOLE_MOST)
        for label in some if self._whole else ():
            keys = known.get((self.db, label))
            if keys is None or total + keys > most:
                break
            total += keys
            whole[label] = places[label]
        if whole:
            return self.ask_nodes(whole, most)
        return self.ask_slots(self.slots_for_count())

    def slots_for_count(self) -> int:
        """How many slots have about COUNT keys at the owner of the first."""
        label = self.owners[0][2] if self.owners else ""
        slots = sum(last - low + 1 for low, last, other in self.ctx.owners() if other == label)
        keys = self.ctx.key_counts.get((self.db, label))
        if not keys:
            return 1 if keys is None else SLOTS_MOST
        about = min(self.wanted.about, _BATCH_MOST // 2)  # most slots have less than twice the usual number
        return max(1, min(SLOTS_MOST, about * slots // keys))

    def note_size(self, label: str, size: scan_node.Size) -> None:
        known = self.ctx.key_counts
        if label:
            known[self.db, label] = size.keys
        if len(known) > 4096:
            known.clear()

    def ask_sizes(self, places: dict[str, int]) -> Ask:
        labels = list(places)

        def noted(replies: list[bytes]) -> Ask | bytes:
            for label, reply in zip(labels, replies, strict=True):
                if reply[:1] != b"-" and (size := scan_node.size(decode(reply), self.db)) is not None:
                    self.note_size(label, size)
            return self.plan()

        return ask([(slot, scan_node.KEYSPACE, 0) for slot in places.values()], noted)

    # -- nodes with few keys -------------------------------------------------------------------------------------

    def ask_nodes(self, places: dict[str, int], most: int) -> Ask:
        """Everything of these nodes. places: label -> one of its slots."""
        words: list[bytes | int | str] = ["SCAN", 0, "COUNT", 2 * most, *self.filters()]
        frame, swallow = scan_node.transaction(scan_node.NODES, scan_node.KEYSPACE, encode.encode_command(*words))
        labels = list(places)

        def listed(replies: list[bytes]) -> Ask | bytes:
            stable = 0
            keys: dict[bytes, None] = {}
            for label, reply in zip(labels, replies, strict=True):
                found = scan_node.executed(reply, 3)
                if isinstance(found, bytes):
                    continue
                view, size, page = (
                    scan_node.view(found[0]),
                    scan_node.size(found[1], self.db),
                    scan_node.scanned(found[2]),
                )
                if view is None or size is None or page is None:
                    return scan_node.MALFORMED
                self.note_size(label, size)
                if page[0]:
                    self._whole = False  # it had more keys than last time, or has a table too large for its keys
                else:
                    stable |= int.from_bytes(view.owned.replace(b"\2", b"\0"))
                    keys.update(dict.fromkeys(page[1]))
            done = stable.to_bytes(SLOTS) + b"\0"
            end = min(done.index(0, self.slot), self.wanted.high + 1)
            if end == self.slot:
                self._whole = False
                return self.ask_slots(self.slots_for_count())
            return self.reply(Position(end), [key for key in keys if self.slot <= slot_of(key) < end])

        return ask([(slot, frame, swallow) for slot in places.values()], listed)

    def filters(self) -> list[bytes | int | str]:
        """MATCH and TYPE for a node's SCAN."""
        out: list[bytes | int | str] = []
        if self.wanted.pattern:
            out += ["MATCH", self.wanted.pattern]
        if self.wanted.kind:
            out += ["TYPE", self.wanted.kind]
        return out

    # -- slots ---------------------------------------------------------------------------------------------------

    def ask_slots(self, count: int) -> Ask:
        """The keys of so many slots, of each node its own in one transaction."""
        last = min(self.slot + count - 1, self.wanted.high)
        self.most = most = self.most_of_one() if count == 1 else max(32, _BATCH_MOST // count)
        groups: dict[str, list[int]] = {}
        if count == 1:
            groups[self.label_of(self.slot)] = [self.slot]
        else:
            for low, high, label in self.owners:
                if low <= last:
                    groups.setdefault(label, []).extend(range(low, min(high, last) + 1))
            if not any(slots[0] == self.slot for slots in groups.values()):
                return self.ask_slots(1)
        parts: list[tuple[Where, bytes, int]] = []
        for slots in groups.values():
            lists = (scan_node.keys_in_slot(slot, most + 1) for slot in slots)
            frame, swallow = scan_node.transaction(scan_node.NODES, scan_node.KEYSPACE, *lists)
            parts.append((slots[0], frame, swallow))
        return ask(parts, lambda replies: self.slots_listed(list(groups.items()), most, replies))

    def most_of_one(self) -> int:
        """How many keys of the first slot are listed at once.

        Where a slot can be gone through by itself, about COUNT; where that means to go through all of the node's keys,
        as many as its slots usually have.
        """
        if self.by_slot:
            return min(max(2 * self.wanted.about, _LARGE_LEAST), KEYS_MOST)
        label = self.label_of(self.slot)
        slots = sum(last - low + 1 for low, last, other in self.ctx.owners() if other == label)
        usual = self.ctx.key_counts.get((self.db, label), 0) // max(1, slots)
        return max(KEYS_MOST, min(4 * usual, 20 * KEYS_MOST))

    def label_of(self, slot: int) -> str:
        return next((label for low, last, label in self.owners if low <= slot <= last), "")

    def slots_listed(self, groups: list[tuple[str, list[int]]], most: int, replies: list[bytes]) -> Ask | bytes:
        keys_of: dict[int, list[bytes]] = {}
        views: dict[int, scan_node.View] = {}
        expires = 0
        for (label, slots), reply in zip(groups, replies, strict=True):
            found = scan_node.executed(reply, 2 + len(slots))
            if isinstance(found, bytes):
                if slots[0] == self.slot:
                    return found
                continue
            view, size = scan_node.view(found[0]), scan_node.size(found[1], self.db)
            if view is None or size is None or not all(scan_node.is_keys(keys) for keys in found[2:]):
                return scan_node.MALFORMED
            self.note_size(label, size)
            expires += size.expires
            for slot, keys in zip(slots, found[2:], strict=True):
                keys_of[slot], views[slot] = keys, view
        end, listed = self.slot, []
        while end in views and views[end].owned[end] == 1 and len(keys_of[end]) <= most:
            listed += keys_of[end]
            end += 1
        if end > self.slot and not listed and end <= self.wanted.high and self._empty < _EMPTY_MOST:
            self._empty += 1
            self.slot, self.at = end, Position(end)
            return self.plan()
        if end > self.slot:
            return self.sift(Position(end), listed, expires > 0)
        if len(keys_of) > 1:
            return self.ask_slots(1)
        view, keys = views[end], keys_of[end]
        if not view.owned[end]:
            return self.find_owner()
        if len(keys) > most:
            return scan_slot.begin_large(self)
        return scan_slot.follow(self, view, keys)

    def find_owner(self) -> Ask | bytes:
        """The slot is somewhere else than was thought: a command for one of its keys finds out where."""

        def answered(replies: list[bytes]) -> Ask | bytes:
            if replies[0][:1] == b"-":
                return replies[0]
            self.owners = [(low, last, label) for low, last, label in self.ctx.owners() if last >= self.slot]
            return self.ask_slots(1)

        return self.again(lambda: ask([(self.slot, scan_node.probe(self.slot), 0)], answered))

    def again(self, anew: Callable[[], Ask | bytes] | None = None) -> Ask | bytes:
        """Begins the first slot anew; with an empty page when that was too often."""
        self._tries += 1
        self.at = Position(self.slot)
        if self._tries >= _TRIES:
            return self.reply(self.at, [])
        return anew() if anew is not None else self.ask_slots(1)

    # -- what is left of it --------------------------------------------------------------------------------------

    def sift(self, to: Position, keys: list[bytes], expiring: bool, together: bool = True) -> Ask | bytes:
        """Replies with what MATCH, TYPE and expiry leave of the keys.

        together: all keys of a slot are at one node, so that they may be asked for in one command.
        """
        if self.wanted.pattern:
            matching = Glob(self.wanted.pattern).matching(keys, _STEPS)
            if matching is None:
                return self.too_hard(to)
            keys = matching
        if not keys or not (self.wanted.kind or expiring):
            return self.reply(to, keys)
        if not together:
            return self.ask_types(to, [[key] for key in keys])
        by_slot: dict[int, list[bytes]] = {}
        for key in keys:
            by_slot.setdefault(slot_of(key), []).append(key)
        groups = list(by_slot.values())
        if self.wanted.kind:
            return self.ask_types(to, groups)

        def counted(replies: list[bytes]) -> Ask | bytes:
            """Where not all are there, which?"""
            there: list[bytes] = []
            unsure: list[list[bytes]] = []
            for group, reply in zip(groups, replies, strict=True):
                if reply[:1] == b"-":
                    return reply
                if reply == b":%d\r\n" % len(group):
                    there += group
                else:
                    unsure.append(group)
            return self.ask_types(to, unsure, there) if unsure else self.reply(to, there)

        exist = [(slot_of(group[0]), encode.encode_command("EXISTS", *group), 0) for group in groups]
        return ask(list(exist), counted)

    def ask_types(self, to: Position, groups: list[list[bytes]], there: list[bytes] | None = None) -> Ask:
        """Replies with `there` and what of the groups, each of one slot, exists and is of the kind that is wanted."""
        parts: list[tuple[Where, bytes, int]] = []
        for group in groups:
            commands = [encode.encode_command("TYPE", key) for key in group]
            frame, swallow = scan_node.transaction(*commands) if len(group) > 1 else (commands[0], 0)
            parts.append((slot_of(group[0]), frame, swallow))

        def told(replies: list[bytes]) -> Ask | bytes:
            out = there or []
            for group, reply in zip(groups, replies, strict=True):
                if reply[:1] == b"-":
                    return reply
                kinds = scan_node.executed(reply if len(group) > 1 else b"*1\r\n" + reply, len(group))
                if isinstance(kinds, bytes):
                    return kinds
                out += [key for key, kind in zip(group, kinds, strict=True) if self.is_wanted(kind)]
            return self.reply(to, out)

        return ask(parts, told)

    def is_wanted(self, kind: Any) -> bool:
        if not isinstance(kind, bytes) or kind == b"none":
            return False
        return not self.wanted.kind or kind.lower() == self.wanted.kind

    def too_hard(self, to: Position) -> Ask | bytes:
        """Fewer slots may do; where it was one already, they will not."""
        if to.slot - self.slot > 1 and not to.inner:
            return self.ask_slots(1)
        return TOO_HARD

    def reply(self, to: Position | None, keys: list[bytes]) -> bytes:
        """to: None = the end."""
        cursor = 0 if to is None or to.slot > self.wanted.high else scan_cursor.encode(to)
        return encode.array([encode.bulk(cursor), encode.array([encode.bulk(key) for key in keys])])


def ask(parts: list[tuple[Where, bytes, int]], finish: Callable[[list[bytes]], bytes | Ask]) -> Ask:
    """Reads at primaries; what fails is a reply."""
    return Ask(parts, finish=finish, read=True, errors=True, primary=True)
