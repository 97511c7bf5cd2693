"""One connection to a node for subscriptions: what is wanted there, what the node has confirmed, what is under way.

Why: SUBSCRIBE has no reply but a push for each name, or one error; and a hundred thousand names must be neither one
command nor a hundred thousand. Used by worker.subscriptions, which decides what is wanted where.

Invariants: at most FLIGHT names are under way, in commands of one kind and (shard channels) of one slot; a name that
changes its mind meanwhile is looked at again when it is answered; after the loss of the connection nothing is
confirmed, and everything wanted is to be asked for again, behind what is new. Nothing here takes longer the more names
there are: what was confirmed by a lost connection is kept as it is, and taken up name by name.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Final

from proxy.cluster.slot import slot_of
from proxy.forward.backend import Backend, BackendState
from proxy.forward.hub import SHARDS, Hub
from proxy.forward.node import Node
from proxy.resp.encode import encode_command

Key = tuple[int, bytes]  # kind (proxy.forward.hub.CHANNELS, PATTERNS, SHARDS) and name

FLIGHT: Final = 400  # names under way: each is answered by a push that costs some microseconds
TOGETHER: Final = 200  # names of one command ...
BYTES: Final = 1 << 16  # ... and their bytes
LOOKED_AT: Final = 1000  # names that turn out to be as they should, in one go
PING: Final = encode_command("PING")
SUBSCRIBE: Final = ("SUBSCRIBE", "PSUBSCRIBE", "SSUBSCRIBE")
UNSUBSCRIBE: Final = ("UNSUBSCRIBE", "PUNSUBSCRIBE", "SUNSUBSCRIBE")
# What a node calls a confirmation: (whether it is subscribed now, kind).
WORDS: Final = {name.lower().encode(): (True, kind) for kind, name in enumerate(SUBSCRIBE)} | {
    name.lower().encode(): (False, kind) for kind, name in enumerate(UNSUBSCRIBE)
}


class Order:
    """A command under way. keys: those of its names."""

    __slots__ = ("confirmed", "keys", "kind", "names", "on")

    def __init__(self, on: bool, kind: int) -> None:
        self.on = on
        self.kind = kind
        self.names: list[bytes] = []
        self.keys: list[Key] = []
        self.confirmed = 0


class Feed:
    """See the module. node: where it is, or is to be; None = nobody knows.

    on_answer(feed, order, reply): a command is over; `+OK`, or an error.
    """

    def __init__(self, hub: Hub, duty: int, node: Node | None, on_answer: Callable[[Feed, Order, bytes], None]) -> None:
        self.duty = duty
        self.node = node
        self.backend: Backend | None = None
        self.wanted: set[Key] = set()
        self.have: set[Key] = set()
        self.given_up: dict[Key, None] = {}  # refused, oldest first: until reconsidered, or the connection is a new one
        self.parting: set[Key] = set()  # of `have` what is not wanted any more
        self.lacking = 0  # of `wanted` what is not confirmed
        self.alone: set[Key] = set()  # to be asked for one by one: one of several was refused
        self.failures = 0
        self.opened_s = 0.0
        self.opens_at_s = 0.0  # not before this loop.time()
        self.pinged_s: float | None = None
        self._hub = hub
        self._on_answer = on_answer
        self._todo: deque[Key] = deque()
        self._old: list[set[Key]] = []  # what lost connections had: to be asked for again when nothing else is to do
        self._orders: deque[Order] = deque()
        self._passed = 0
        self._flying: set[Key] = set()
        self._leaving: set[Key] = set()  # of them those that the node is told to end: it has them no more

    @property
    def up(self) -> bool:
        """Whether it is connected."""
        return self.backend is not None and self.backend.state == BackendState.UP

    @property
    def whole(self) -> bool:
        """Whether all that is wanted is confirmed."""
        return not self.lacking

    def has(self, key: Key) -> bool:
        """Whether the node sends it, and goes on with it."""
        return key in self.have and key not in self._leaving

    def want(self, key: Key) -> None:
        """It is to be subscribed; see flush()."""
        if key not in self.wanted:
            self.wanted.add(key)
            if key in self.have:
                self.parting.discard(key)
            else:
                self.lacking += 1
            self._todo.append(key)
        elif key in self.given_up:  # somebody else has asked for it
            del self.given_up[key]
            self._todo.append(key)

    def unwant(self, key: Key) -> None:
        """... and no more."""
        if key in self.wanted:
            self.wanted.discard(key)
            if key in self.have:
                self.parting.add(key)
            else:
                self.lacking -= 1
            self.given_up.pop(key, None)
            self.alone.discard(key)
            self._todo.append(key)

    def reconsider(self, most: int) -> bool:
        """Some of what was refused is asked for again, oldest refusal first; whether there was any."""
        some = list(islice(self.given_up, most))
        for key in some:
            del self.given_up[key]
            self._todo.append(key)
        return bool(some)

    def again(self, key: Key) -> None:
        """It is looked at once more."""
        self._todo.append(key)

    def open(self, now_s: float) -> None:
        """Begins a connection to its node."""
        assert self.node is not None
        self.backend = self._hub.open(self.node, self.duty)
        self.opened_s = now_s
        self.flush()

    def shut(self) -> bool:
        """The connection is of no use any more; whether there was something that it had confirmed."""
        backend, self.backend = self.backend, None
        had = bool(self.have)
        self._old += [names for names in (self.have, set(self.given_up)) if names]
        self.have = set()
        self.given_up = {}
        self.parting.clear()
        self.lacking = len(self.wanted)
        self._todo.extend(self._flying)
        self._flying.clear()
        self._leaving.clear()
        self._orders.clear()
        self.pinged_s = None
        if backend is not None:
            self._hub.close(backend)  # what was under way is answered with an error, which does not count
        return had

    def flush(self) -> bool:
        """Sends what there is room for. False: there may be more, but this has taken long enough."""
        self._passed = 0
        while self.backend is not None and (self._todo or self._old) and len(self._flying) < FLIGHT:
            order = self._next()
            if order is None:
                return self._passed < LOOKED_AT
            self._orders.append(order)
            verb = (SUBSCRIBE if order.on else UNSUBSCRIBE)[order.kind]
            self._send(self.backend, order, encode_command(verb, *order.names))
        return True

    def _send(self, backend: Backend, order: Order, frame: bytes) -> None:
        def done(reply: bytes) -> None:
            if self.backend is backend and order in self._orders:
                self._answered(order, reply)

        self._hub.send(backend, frame, done)

    def _next(self) -> Order | None:
        """The next command: names that stand one after the other and are to be told the same."""
        order: Order | None = None
        size = slot = 0
        while (self._todo or self._take_up()) and self._passed < LOOKED_AT:
            key = self._todo[0]
            kind, name = key
            on = key in self.wanted
            if key in self._flying or on == (key in self.have) or key in self.given_up:
                self._todo.popleft()
                self._passed += 1
                continue
            if order is None:
                order = Order(on, kind)
                slot = slot_of(name) if kind == SHARDS else 0
            elif (
                order.on != on
                or order.kind != kind
                or len(order.names) >= TOGETHER
                or size + len(name) > BYTES
                or key in self.alone
                or (kind == SHARDS and slot_of(name) != slot)
            ):
                break
            self._todo.popleft()
            self._flying.add(key)
            if not on:
                self._leaving.add(key)
            order.names.append(name)
            order.keys.append(key)
            size += len(name)
            if key in self.alone:
                break
        return order

    def _take_up(self) -> bool:
        """One of the names that a lost connection had is to be done; False: there is none."""
        while self._old:
            names = self._old[-1]
            if names:
                self._todo.append(names.pop())
                return True
            self._old.pop()
        return False

    def _confirmed(self, key: Key) -> None:
        if key not in self.have:
            self.have.add(key)
            if key in self.wanted:
                self.lacking -= 1
            else:
                self.parting.add(key)

    def _ended(self, key: Key) -> None:
        if key in self.have:
            self.have.discard(key)
            self.parting.discard(key)
            if key in self.wanted:
                self.lacking += 1

    def heard(self, word: bytes, name: bytes) -> Key | None:
        """A confirmation. Returns the name that the node has ended a subscription to by itself, else None."""
        told = WORDS.get(word)
        if told is None:
            return None
        on, kind = told
        key = (kind, name)
        order = self._orders[0] if self._orders else None
        if (
            order is not None
            and (order.on, order.kind) == told
            and order.confirmed < len(order.names)
            and order.names[order.confirmed] == name
        ):
            key = order.keys[order.confirmed]  # the one that is known: half a million new ones would be collected
            order.confirmed += 1
            (self._confirmed if on else self._ended)(key)
            if order.confirmed == len(order.names) and self.backend is not None:
                self._hub.confirm(self.backend)
            return None
        if not on and key in self.have:
            self._ended(key)
            return key
        return None

    def _answered(self, order: Order, reply: bytes) -> None:
        self._orders.remove(order)
        for name in order.names:
            key = (order.kind, name)
            self._flying.discard(key)
            self._leaving.discard(key)
            if (key in self.wanted) != (key in self.have) and not reply.startswith(b"-"):
                self._todo.append(key)  # it has changed its mind meanwhile
        self._on_answer(self, order, reply)
        self.flush()

    def ping(self, now_s: float) -> None:
        """Asks whether the node is alive; see pinged_s."""
        backend = self.backend
        assert backend is not None
        self.pinged_s = now_s

        def done(reply: bytes) -> None:
            if self.backend is backend:
                self.pinged_s = None

        self._hub.send(backend, PING, done)
