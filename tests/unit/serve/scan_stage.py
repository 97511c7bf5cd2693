"""A cluster in memory for the tests of SCAN: nodes that answer what SCAN asks, and anything happening in between.

Each transaction is carried out at one instant, as a server does; before each of them `meanwhile` may move keys, slots
and roles. Parts for a slot are routed as the data path does it: to the believed owner, following and learning MOVED,
following ASK with ASKING.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from functools import lru_cache
from itertools import count as numbers
from typing import Any

from proxy.cluster.slot import slot_of
from proxy.forward.ask import Ask
from proxy.resp.decode import decode
from proxy.resp.encode import array, bulk, integer
from proxy.resp.glob import Glob
from proxy.resp.readers import CommandReader
from proxy.serve import scan
from proxy.serve.context import ServeContext
from tests.unit.serve.fakes import FakeClient, context

_RUNS = numbers(1)
cached_slot = lru_cache(maxsize=None)(slot_of)


def runs(numbers: set[int]) -> list[tuple[int, int]]:
    """First and last of those that are neighbours, in their order."""
    firsts = numbers.difference([number + 1 for number in numbers])
    lasts = numbers.difference([number - 1 for number in numbers])
    return list(zip(sorted(firsts), sorted(lasts), strict=True))


class Node:
    """A primary; `label` is its address and id."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.keys: dict[bytes, str] = {}  # -> type, "none" = expired
        self.slots: dict[int, dict[bytes, None]] = {}  # the same, by slot
        self.owned: set[int] = set()
        self.migrating: dict[int, Node] = {}
        self.importing: dict[int, Node] = {}
        self.epoch = 1
        self._spelt: tuple[set[int], str] = (set(), "")
        self.restart()

    def restart(self) -> None:
        """The same data in another order of SCAN."""
        self.run_id = b"run%d" % next(_RUNS)

    def ranges(self) -> str:
        """The slots it owns, as CLUSTER NODES has them."""
        if self._spelt[0] != self.owned:
            self._spelt = (set(self.owned), " ".join(f"{first}-{last}" for first, last in runs(self.owned)))
        return self._spelt[1]

    def in_slot(self, slot: int) -> list[bytes]:
        return list(self.slots.get(slot, ()))

    def add(self, key: bytes, kind: str) -> None:
        self.keys[key] = kind
        self.slots.setdefault(cached_slot(key), {})[key] = None

    def remove(self, key: bytes) -> str:
        del self.slots[cached_slot(key)][key]
        return self.keys.pop(key)


class Stage:
    """nodes share the slots evenly. by_slot: tables for each slot, as in Valkey 8."""

    def __init__(self, labels: str = "ABC", by_slot: bool = True) -> None:
        self.nodes = [Node(label) for label in labels]
        self.by_slot = by_slot
        self.meanwhile: Callable[[], None] = lambda: None
        self.rounds = self.parts = 0
        self.down: set[str] = set()
        for slot in range(16384):
            self.nodes[slot * len(labels) // 16384].owned.add(slot)
        self.believed = {slot: node for node in self.nodes for slot in node.owned}
        self._ranges: list[tuple[int, int, str]] | None = None
        self.ctx = self.proxy()

    def proxy(self) -> ServeContext:
        """Another proxy in front of it."""
        versions = {"server_version": "7.2.4", "valkey_version": "9.1.2"} if self.by_slot else {"server_version": "7.0"}
        return context(owners=self.owners, **versions)

    def owners(self) -> list[tuple[int, int, str]]:
        if self._ranges is None:
            slots: dict[str, set[int]] = {node.label: set() for node in self.nodes}
            for slot, node in self.believed.items():
                slots[node.label].add(slot)
            self._ranges = sorted((*run, label) for label, owned in slots.items() for run in runs(owned))
        return self._ranges

    def believe(self, slot: int, node: Node) -> None:
        self.believed[slot] = node
        self._ranges = None

    def put(self, *keys: bytes | str, kind: str = "string") -> list[bytes]:
        names = [key.encode() if isinstance(key, str) else key for key in keys]
        for name in names:
            self.owner(slot_of(name)).add(name, kind)
        return names

    def owner(self, slot: int) -> Node:
        return next(node for node in self.nodes if slot in node.owned)

    # -- what an administrator does, in steps that are atomic at a server

    def begin_move(self, slot: int, target: Node) -> None:
        source = self.owner(slot)
        target.importing[slot] = source
        source.migrating[slot] = target

    def move_key(self, key: bytes) -> None:
        source = self.owner(slot_of(key))
        source.migrating[slot_of(key)].add(key, source.remove(key))

    def end_move(self, slot: int) -> None:
        source = self.owner(slot)
        target = source.migrating[slot]
        for key in source.in_slot(slot):
            self.move_key(key)
        del source.migrating[slot], target.importing[slot]
        source.owned.discard(slot)
        target.owned.add(slot)
        if target.epoch != max(node.epoch for node in self.nodes) or source.epoch == target.epoch:
            target.epoch = max(node.epoch for node in self.nodes) + 1

    # -- the client's side

    def scan(self, *words: bytes | str | int, ctx: ServeContext | None = None) -> Any:
        """One page: (cursor, keys), or the error line."""
        args = [b"SCAN", *(word if isinstance(word, bytes) else str(word).encode() for word in words)]
        made = scan.scan(ctx or self.ctx, FakeClient(), args)
        while isinstance(made, Ask):
            self.rounds += 1
            assert len(made.parts) <= 20_000
            made = made.finish([self.carry_out(part) for part in made.parts])
        assert isinstance(made, bytes)
        if made.startswith(b"-"):
            return made
        cursor, keys = decode(made)
        return cursor, keys

    def scan_all(self, *words: bytes | str | int, pages: int = 5000) -> list[bytes]:
        """Each page by another proxy; the keys as they came."""
        cursor, found = b"0", list[bytes]()
        proxies = [self.ctx, self.proxy()]
        for turn in range(pages):
            got = self.scan(cursor, *words, ctx=proxies[turn % 2])
            assert isinstance(got, tuple), got
            cursor = got[0]
            found += got[1]
            if cursor == b"0":
                self.pages = turn + 1
                return found
        raise AssertionError(f"no end after {pages} pages")

    def carry_out(self, part: tuple[Any, bytes, int]) -> bytes:
        where, frame, swallow = part
        self.parts += 1
        commands = [args for _, args in CommandReader().feed(frame)]
        if swallow:
            assert commands[0] == [b"MULTI"]
            assert commands[-1] == [b"EXEC"]
            assert swallow == len(commands) - 1
        slot = 0 if where == "any" else where
        for _ in range(30):
            self.meanwhile()
            node = self.believed[slot]
            if node.label in self.down:
                return b"-CLUSTERDOWN The node for this command cannot be reached\r\n"
            got = self.at(node, commands)
            if isinstance(got, tuple) and got[0] == "ask":
                self.meanwhile()
                got = self.at(got[1], commands, asking=True)
            if isinstance(got, tuple) and got[0] == "moved":
                self.believe(slot, got[1])
                continue
            if isinstance(got, bytes):
                return got
        raise AssertionError("redirected without end")

    def at(self, node: Node, commands: list[list[bytes]], asking: bool = False) -> Any:
        """The reply that counts, or where else to ask."""
        inner = commands[1:-1] if len(commands) > 1 else commands
        for args in inner:
            if args[0] in (b"EXISTS", b"TYPE") and (away := self.elsewhere(node, args[1:], asking)):
                return away
        replies = [self.answer(node, args) for args in inner]
        return array(replies) if len(commands) > 1 else replies[0]

    def elsewhere(self, node: Node, keys: list[bytes], asking: bool) -> Any:
        slot = slot_of(keys[0])
        assert all(slot_of(key) == slot for key in keys)
        lacking = [key for key in keys if key not in node.keys]
        if slot in node.owned:
            return ("ask", node.migrating[slot]) if slot in node.migrating and lacking else None
        if asking and slot in node.importing:
            return ("again", None) if lacking and len(keys) > 1 else None
        return ("moved", self.owner(slot))

    def answer(self, node: Node, args: list[bytes]) -> bytes:
        words = [word.decode("latin-1") for word in args]
        match words:
            case ["CLUSTER", "NODES"]:
                return bulk(self.nodes_line(node))
            case ["CLUSTER", "GETKEYSINSLOT", slot, most]:
                return array(bulk(key) for key in node.in_slot(int(slot))[: int(most)])
            case ["INFO", "keyspace"]:
                expires = sum(kind == "none" for kind in node.keys.values())
                line = b"db0:keys=%d,expires=%d,avg_ttl=0\r\n" % (len(node.keys), expires)
                return bulk(b"# Keyspace\r\n" + (line if node.keys else b""))
            case ["INFO", "server"]:
                version = b"redis_version:7.2.4\r\nvalkey_version:9.1.2" if self.by_slot else b"redis_version:7.0.15"
                return bulk(b"# Server\r\n" + version + b"\r\nrun_id:" + node.run_id + b"\r\n")
            case ["EXISTS", *_]:
                return integer(sum(node.keys.get(key, "none") != "none" for key in args[1:]))
            case ["TYPE", _]:
                return b"+" + node.keys.get(args[1], "none").encode() + b"\r\n"
            case ["SCAN", cursor, *_]:
                return self.scan_node(node, int(cursor), args[2:])
        raise AssertionError(words)

    def nodes_line(self, node: Node) -> bytes:
        moving = " ".join(f"[{slot}->-{target.label}]" for slot, target in node.migrating.items())
        coming = " ".join(f"[{slot}-<-{source.label}]" for slot, source in node.importing.items())
        line = (
            f"{node.label} 127.0.0.1:1@2 myself,master - 0 0 {node.epoch} connected {node.ranges()} {moving} {coming}"
        )
        return line.encode() + b"\n"

    def scan_node(self, node: Node, cursor: int, options: list[bytes]) -> bytes:
        if b"NOVALUES" in options:
            return b"-ERR NOVALUES option can only be used in HSCAN\r\n"
        if len(options) % 2:
            return b"-ERR syntax error\r\n"
        chosen = dict(zip(options[::2], options[1::2], strict=True))
        if (kind := chosen.get(b"TYPE", b"string")) == b"nosuch":
            return b"-ERR unknown type name 'nosuch'\r\n"

        def place(key: bytes) -> tuple[int, int]:
            return cached_slot(key) if self.by_slot else 0, zlib.crc32(node.run_id + key) % 60_000 + 1

        at = (cursor & 16383, cursor >> 14) if self.by_slot else (0, cursor)
        rest = sorted((place(key), key) for key in node.keys if place(key) >= at)
        most = int(chosen.get(b"COUNT", b"10"))
        while 0 < most < len(rest) and rest[most][0] == rest[most - 1][0]:
            most += 1  # a place is done whole
        page, following = rest[:most], rest[most][0] if most < len(rest) else None
        number = 0
        if following is not None:
            number = following[1] << 14 | following[0] if self.by_slot else following[1]
        keys = [key for _, key in page if node.keys[key] != "none"]
        if b"TYPE" in chosen:
            keys = [key for key in keys if node.keys[key].encode() == kind]
        if b"MATCH" in chosen:
            keys = Glob(chosen[b"MATCH"]).matching(keys, 1 << 40) or []
        return array([bulk(number), array(bulk(key) for key in keys)])
