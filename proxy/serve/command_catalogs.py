"""What a server says of its commands, without those that are refused here: asked for once, filtered once, kept.

Why: COMMAND is some 200 KB and COMMAND DOCS a megabyte, and libraries and redis-cli ask for them with every start.
Called by serve.command_info; made by worker.worker.

Invariants: an entry is as the server sent it, but for its refused subcommands. A catalog is made once per command table
and protocol, however many clients wait for it; who waits is answered once, with the catalog or an error line.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial

from proxy.resp import encode, errors
from proxy.resp.decode import decode
from proxy.serve.any_primary import AnyPrimary
from proxy.serve.words import elements

_SUBCOMMANDS = 9  # where in an entry of COMMAND its subcommands are
Key = tuple[str, int]  # "command" or "docs", the protocol
# The command table and the names that are refused: objects that are replaced, never changed.
Basis = tuple[object, frozenset[bytes]]


class Catalog:
    """A filtered reply of COMMAND or COMMAND DOCS: frames by full name; `top`: those of commands, in their order."""

    def __init__(self) -> None:
        self.top: dict[bytes, bytes] = {}
        self.subs: dict[bytes, bytes] = {}

    def get(self, name: bytes) -> bytes | None:
        return self.top.get(name) or self.subs.get(name)


class CommandCatalogs:
    """One per worker."""

    def __init__(self, server: AnyPrimary) -> None:
        self._server = server
        self._basis: Basis = (None, frozenset())
        self._kept: dict[Key, Catalog] = {}
        self._waiting: dict[Key, list[Callable[[Catalog | bytes], object]]] = {}

    def ask(self, basis: Basis, kind: str, proto: int, done: Callable[[Catalog | bytes], object]) -> None:
        """basis: what the catalogs are made for. done: called, perhaps at once, with the catalog or an error line."""
        if any(new is not old for new, old in zip(basis, self._basis, strict=True)):
            self._basis, self._kept = basis, {}
        key = (kind, proto)
        if (known := self._kept.get(key)) is not None:
            done(known)
            return
        waiting = self._waiting.setdefault(key, [])
        waiting.append(done)
        if len(waiting) == 1:
            words = ("COMMAND",) if kind == "command" else ("COMMAND", "DOCS")
            self._server.ask(encode.encode_command(*words), proto, partial(self._told, key))

    def _told(self, key: Key, reply: bytes) -> None:
        made: Catalog | bytes = errors.INTERNAL
        try:
            if reply.startswith(b"-"):
                made = reply
            else:
                made = (catalog_of_command if key[0] == "command" else catalog_of_docs)(reply, self._basis[1])
                self._kept[key] = made
        finally:
            self._tell(self._waiting.pop(key, []), made)

    @staticmethod
    def _tell(waiting: list[Callable[[Catalog | bytes], object]], made: Catalog | bytes) -> None:
        """Nobody is left waiting because another one raised."""
        problem: Exception | None = None
        for done in waiting:
            try:
                done(made)
            except Exception as error:
                problem = error
        if problem is not None:
            raise problem


def catalog_of_command(reply: bytes, refused: Collection[bytes]) -> Catalog:
    """Of a reply to COMMAND; raises over one that is no array of arrays."""
    made = Catalog()
    for entry in elements(reply):
        fields = elements(entry)
        name = lower_name(fields[0])
        if name in refused:
            continue
        if len(fields) > _SUBCOMMANDS and len(subs := elements(fields[_SUBCOMMANDS])):
            kept = {full: sub for sub in subs if (full := _full(name, elements(sub)[0])) not in refused}
            made.subs |= kept
            fields[_SUBCOMMANDS] = encode.array(kept.values())
            entry = encode.array(fields)
        made.top[name] = entry
    return made


def catalog_of_docs(reply: bytes, refused: Collection[bytes]) -> Catalog:
    """Of a reply to COMMAND DOCS, in RESP2 or RESP3; raises over one that is no map."""
    made = Catalog()
    items = elements(reply)
    for name_frame, doc in zip(items[::2], items[1::2], strict=True):
        name = lower_name(name_frame)
        if name in refused:
            continue
        fields = elements(doc)
        for at in range(0, len(fields) - 1, 2):
            if lower_name(fields[at]) == b"subcommands":
                subs = elements(fields[at + 1])
                kept = {
                    full: (sub, its)
                    for sub, its in zip(subs[::2], subs[1::2], strict=True)
                    if (full := _full(name, sub)) not in refused
                }
                made.subs |= {full: sub + its for full, (sub, its) in kept.items()}
                fields[at + 1] = like(fields[at + 1], [frame for pair in kept.values() for frame in pair])
        made.top[name] = name_frame + like(doc, fields)
    return made


def lower_name(frame: bytes) -> bytes:
    value = decode(frame)
    return value.lower() if isinstance(value, bytes) else b""


def _full(container: bytes, frame: bytes) -> bytes:
    """A subcommand's full name, which servers give (Redis 7.0.0 did not)."""
    name = lower_name(frame)
    return name if b"|" in name else container + b"|" + name


def like(frame: bytes, items: Collection[bytes]) -> bytes:
    """A map or an array, as the frame is, of these elements (of a map: names and values in turn)."""
    count = len(items) // 2 if frame.startswith(b"%") else len(items)
    return b"%b%d\r\n%b" % (frame[:1], count, b"".join(items))
