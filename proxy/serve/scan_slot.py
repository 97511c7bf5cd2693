"""SCAN of one slot that cannot be listed at one instant: it is migrating, or it has very many keys.

A migrating slot (follow). Its keys go from the source to the target and not back, as long as the slot does not change
hands. The source is asked first, the target afterwards: a key that is not at the source any more is at the target by
then, and stays there. At last the source is asked again. When it is migrating to the same target still, with the same
configuration epoch, the slot was never given away and taken back in between: to take a slot over, a node makes a new
epoch. When the target owns the slot by now, its answer was complete by itself. Otherwise the slot is done anew.

A slot with very many keys (begin_large) is gone through with the node's own SCAN, page by page. Such a cursor means
something to the process that gave it only, whose hash function has a seed of its own; so the mark in our cursor stands
for that process, and the slot is begun anew where another one is found. SCAN goes through the places of a table in an
order that depends on the keys alone: a key that is at the node at the instant of each page is returned. Each page says
in its transaction that the node owns the slot. While the slot is migrating, the source is gone through first and then
the target, with marks that stand also for the source's epoch: the argument is that of `follow`, over many pages.

A server with one table for all slots (before Redis 7.4 and Valkey 8) goes through all its keys for each such slot;
serve.scan_page lists slots of up to 10,000 keys at once instead.

Called by serve.scan_page. Invariant: an answer that does not fit begins the slot anew, a few times in one page at most,
and then the page is empty with a cursor for the same place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from proxy.cluster.slot import slot_of
from proxy.forward.ask import Ask
from proxy.resp import encode
from proxy.serve import scan_node
from proxy.serve.scan_cursor import INNER_MAX, SLOT_BITS, Position, mark

if TYPE_CHECKING:
    from proxy.serve.scan_page import Page

_COUNT_MOST: Final = 10_000  # that a node's SCAN is asked for at once
# ... and at least, by whether its tables are by slot; without, most of what it finds is of other slots. The slot has to
# be done before it has moved again and is begun anew, however small COUNT is.
_COUNT_LEAST: Final = {True: 500, False: 5_000}


# -- a migrating slot --------------------------------------------------------------------------------------------------


def follow(page: Page, source: scan_node.View, keys: list[bytes]) -> Ask:
    """source, keys: what the owner said just now."""
    slot, most = page.slot, page.most
    lists = (scan_node.NODES, scan_node.KEYSPACE, scan_node.keys_in_slot(slot, most + 1))
    frame, swallow = scan_node.transaction(scan_node.probe(slot), *lists)

    def listed(replies: list[bytes]) -> Ask | bytes:
        found = scan_node.executed(replies[0], 4)
        if isinstance(found, bytes):
            return found
        view, size, more = scan_node.view(found[1]), scan_node.size(found[2], page.db), found[3]
        if view is None or size is None or not scan_node.is_keys(more):
            return scan_node.MALFORMED
        if len(more) > most:
            return begin_large(page)
        if view.owned[slot] == 1:
            return page.sift(Position(slot + 1), more, size.expires > 0)
        if view.id != source.migrating.get(slot):
            return page.again()
        both = list(dict.fromkeys(keys + more))

        def unchanged(replies: list[bytes]) -> Ask | bytes:
            now = scan_node.executed(replies[0], 1)
            if isinstance(now, bytes):
                return now
            after = scan_node.view(now[0])
            if not same_migration(slot, source, after):
                return page.again()
            return page.sift(Position(slot + 1), both, True, together=False)

        return page.ask([(slot, *scan_node.transaction(scan_node.NODES))], unchanged)

    return page.ask([(slot, frame, swallow)], listed)


def same_migration(slot: int, before: scan_node.View, after: scan_node.View | None) -> bool:
    """Whether the slot was on its way from the one to the other node all the time."""
    return (
        after is not None
        and after.id == before.id
        and after.epoch == before.epoch
        and after.owned[slot] == before.owned[slot] == 2
        and after.migrating[slot] == before.migrating[slot]
    )


# -- a slot with very many keys ----------------------------------------------------------------------------------------


class _Reply(NamedTuple):
    """One page of a node's SCAN. inner: what to go on with, 0 = done."""

    view: scan_node.View
    server: scan_node.Server
    inner: int
    keys: list[bytes]


def begin_large(page: Page) -> Ask | bytes:
    """Goes on with the slot where the page's position says."""
    if page.at.target:
        return _ask_target(page, None, page.at)
    return _ask_source(page, page.at)


def _frame(page: Page, at: Position, *before: bytes) -> tuple[bytes, int]:
    by_slot = page.by_slot
    cursor = at.inner << SLOT_BITS | at.slot if by_slot else at.inner
    count = min(max(page.wanted.about, _COUNT_LEAST[by_slot]), _COUNT_MOST)
    words: list[bytes | int | str] = ["SCAN", cursor, "COUNT", count, *page.filters()]
    return scan_node.transaction(*before, scan_node.NODES, scan_node.SERVER, encode.encode_command(*words))


def _read(page: Page, values: list[object]) -> _Reply | bytes | None:
    """None when the node's tables are of the other kind than was thought: to be asked again."""
    view, server, found = scan_node.view(values[0]), scan_node.server(values[1]), scan_node.scanned(values[2])
    if view is None or server is None or found is None:
        return scan_node.MALFORMED
    if server.by_slot != page.by_slot:
        page.by_slot = server.by_slot
        return None
    cursor, keys = found
    inner = cursor
    if server.by_slot:
        inner, in_slot = divmod(cursor, 1 << SLOT_BITS)
        inner = inner if in_slot == page.slot else 0
    if inner > INNER_MAX:
        return scan_node.MALFORMED
    return _Reply(view, server, inner, [key for key in keys if slot_of(key) == page.slot])


def _ask_source(page: Page, at: Position) -> Ask:
    slot = page.slot

    def scanned(replies: list[bytes]) -> Ask | bytes:
        values = scan_node.executed(replies[0], 3)
        if isinstance(values, bytes):
            return values
        got = _read(page, values)
        if isinstance(got, bytes):
            return got
        if got is None:
            return page.again(lambda: _ask_source(page, Position(slot)))
        view = got.view
        if not view.owned[slot]:
            return page.find_owner()
        stable = mark(b"owner", got.server.run_id)
        fits = stable
        if view.owned[slot] == 2:
            fits = mark(b"source", got.server.run_id, view.epoch, view.migrating[slot])
        if at.inner and at.mark not in (stable, fits):
            return page.again(lambda: _ask_source(page, Position(slot)))
        if got.inner:
            return page.reply(Position(slot, got.inner, fits), got.keys)
        if view.owned[slot] == 1:
            return page.reply(Position(slot + 1), got.keys)
        return _ask_target(page, got, Position(slot, 0, 0, True))

    return page.ask([(slot, *_frame(page, at))], scanned)


def _ask_target(page: Page, source: _Reply | None, at: Position) -> Ask:
    """The target's side; source: the last page of the source's, when that was just now."""
    slot = page.slot

    def scanned(replies: list[bytes]) -> Ask | bytes:
        values = scan_node.executed(replies[0], 4)
        if isinstance(values, bytes):
            return values
        got = _read(page, values[1:])
        if isinstance(got, bytes):
            return got
        if got is None:
            return page.again(lambda: _ask_target(page, source, at))
        target = got

        def unchanged(replies: list[bytes]) -> Ask | bytes:
            now = scan_node.executed(replies[0], 1)
            if isinstance(now, bytes):
                return now
            view = scan_node.view(now[0])
            if view is None or view.owned[slot] != 2 or view.migrating[slot] != target.view.id:
                return page.again()
            if source is not None and not same_migration(slot, source.view, view):
                return page.again()
            fits = mark(b"target", view.id, view.epoch, target.view.id, target.server.run_id)
            if at.inner and at.mark != fits:
                return page.again()
            keys = list(dict.fromkeys((source.keys if source else []) + target.keys))
            if target.inner:
                return page.reply(Position(slot, target.inner, fits, True), keys)
            return page.reply(Position(slot + 1), keys)

        return page.ask([(slot, *scan_node.transaction(scan_node.NODES))], unchanged)

    return page.ask([(slot, *_frame(page, at, scan_node.probe(slot)))], scanned)
