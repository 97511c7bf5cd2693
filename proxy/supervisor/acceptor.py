"""The listening sockets of the supervisor: connections are accepted here and handed to the workers.

Why: DESIGN 2: the kernel's own spreading (SO_REUSEPORT) treats few long-lived connections badly, and a worker can be
replaced without a listening socket being lost. Called by proxy.supervisor.life; the crew gives the members.

Invariants:
- A connection goes to the member with the fewest clients, whatever its listener; of several, in turn.
- What cannot be served at once stays in the kernel's queue, where it costs nothing: while there is no member, while all
  are clogged, while descriptors are short. Nothing here spins meanwhile.
- An accepted descriptor belongs to a member, to the waiting room, or is closed.
- Client ids ascend from 1; those of one take() follow each other.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections import deque
from collections.abc import Callable, Sequence
from heapq import heapify, heapreplace
from typing import Final, NamedTuple, Protocol

from proxy.resp.errors import MAX_CLIENTS
from proxy.system.log import get, warn_limited
from proxy.system.sockets import Listening

log = get("supervisor.doors")

CLOGGED: Final = 1 << 16  # bytes a member's channel has not taken: the worker is stuck, or nearly
WAITING_ROOM: Final = 64
PATIENCE_S: Final = 0.02  # a worker tells within some 5 ms that a client has left
_BATCH: Final = 64  # per wake-up and listener, so that no listener starves another; a take() may have 253
_LOOK_S: Final = 0.05  # how soon a clogged member is looked at again: nobody tells when it is free
_SHORT_S: Final = 0.1  # pause while descriptors are short
# What accept(2) says of a connection that is already gone, or of its network: the next one may be well.
_HARMLESS: Final = frozenset(
    (
        errno.ECONNABORTED,
        errno.EPROTO,
        errno.ENOPROTOOPT,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ENONET,
        errno.EOPNOTSUPP,
        errno.EINTR,
    )
)


class Member(Protocol):
    """One worker. `clients` is raised here with every take() and lowered by the crew when the worker reports Left."""

    clients: int

    @property
    def backlog(self) -> int:
        """Bytes its channel has not taken yet."""

    def take(self, listener: str, first_id: int, descriptors: list[int]) -> None:
        """Serves these connections, accepted at that listener; the descriptors are the member's from now on."""


class Crew(Protocol):
    """All workers."""

    @property
    def clients(self) -> int:
        """Of all workers, those included that take no more."""

    def candidates(self) -> Sequence[Member]:
        """Those that take clients."""


class _Guest(NamedTuple):
    """A connection over the limit."""

    due_s: float  # loop.time() when it is refused
    listener: str
    descriptor: int


class Doors:
    """See the module. `rejected` counts the connections refused for max_clients. Not before the loop runs."""

    def __init__(self, loop: asyncio.AbstractEventLoop, crew: Crew, *, max_clients: int) -> None:
        self.rejected = 0
        self._loop = loop
        self._crew = crew
        self._max_clients = max_clients
        self._open: list[Listening] = []
        self._next_id = 1
        self._turn = 0
        self._pause: asyncio.TimerHandle | None = None  # set while nothing is accepted
        self._starved = False  # why: no member is free (else: descriptors are short)
        self._waiting: deque[_Guest] = deque()
        self._patience: asyncio.TimerHandle | None = None

    # -- listeners -----------------------------------------------------------------------------------------------

    @property
    def listening(self) -> list[str]:
        """Where connections are taken, as the log spells it."""
        return [one.label for one in self._open]

    def open(self, one: Listening) -> None:
        """Begins to take connections; ListenError."""
        one.listen()
        log.info("listening", address=one.label)
        self._open.append(one)
        if self._pause is None:
            self._loop.add_reader(one.sock.fileno(), self._accept, one)

    def close(self, one: Listening, *, accept: bool = True) -> None:
        """Takes what has reached its queue by now, unless told not to, and closes the socket; its clients stay.

        Without a member, or without descriptors, the queue is lost, unless another process holds the same socket.
        """
        if one in self._open:
            self._open.remove(one)
            self._loop.remove_reader(one.sock.fileno())
            if accept:
                self._empty_queue(one)
        one.close()

    def drain_backlog(self) -> None:
        """Closes every listener when what its queue holds has been taken; who waits at the limit is let in or refused.

        Clogged members count as free: it is now or never.
        """
        for one in list(self._open):
            self.close(one)
        self._settle()

    def close_all(self) -> None:
        """Closes every listener at once; who waits at the limit is let in or refused."""
        for one in list(self._open):
            self.close(one, accept=False)
        self._settle()

    # -- the crew ------------------------------------------------------------------------------------------------

    @property
    def max_clients(self) -> int:
        """Connections of all members together; may change at any time, clients that are there stay."""
        return self._max_clients

    @max_clients.setter
    def max_clients(self, clients: int) -> None:
        self._max_clients = clients
        self.members_changed()

    def members_changed(self) -> None:
        """Members came or went, or clients left them: to be called by the crew. Costs nothing when nobody waits."""
        if self._waiting:
            self._admit(self._free)
        if self._starved and self._free():
            self._resume()

    def _free(self) -> list[Member]:
        return [member for member in self._crew.candidates() if member.backlog <= CLOGGED]

    def _last(self) -> list[Member]:
        """Rather a clogged member than none: for connections that cannot wait."""
        return self._free() or list(self._crew.candidates())

    # -- accepting -----------------------------------------------------------------------------------------------

    def _accept(self, one: Listening) -> None:
        if one not in self._open:
            return  # closed by a callback of the same turn of the loop
        if self._waiting:
            self._admit(self._free)
        members = self._free()
        if members:
            self._welcome(str(one.listener.address), self._accepted(one, _BATCH), members)
        else:
            self._suspend(_LOOK_S, starved=True)

    def _accepted(self, one: Listening, most: int) -> list[int]:
        """Descriptors out of its queue."""
        found: list[int] = []
        accept = one.sock._accept  # type: ignore[attr-defined]  # accept() but for the object it makes: 3 us instead of 8
        for _ in range(most):
            try:
                found.append(accept()[0])
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno in _HARMLESS:
                    continue
                warn_limited(log, "accept", "cannot accept a connection", address=one.label, error=str(error))
                self._suspend(_SHORT_S, starved=False)
                break
        return found

    def _empty_queue(self, one: Listening) -> None:
        # As many as may have waited when we began: somebody who connects without end must not keep us here.
        left = one.listener.backlog + 1
        while left > 0 and (members := self._last()):
            found = self._accepted(one, min(left, _BATCH))
            if not found:
                return
            left -= len(found)
            self._welcome(str(one.listener.address), found, members)

    def _suspend(self, pause_s: float, *, starved: bool) -> None:
        """Leaves connections where they are."""
        if self._pause is None:
            for one in self._open:
                self._loop.remove_reader(one.sock.fileno())
        else:
            self._pause.cancel()
        self._starved = starved
        self._pause = self._loop.call_later(pause_s, self._look)

    def _look(self) -> None:
        """The pause is over."""
        if self._free():
            self._resume()
        else:
            self._suspend(_LOOK_S, starved=True)

    def _resume(self) -> None:
        self._halt()
        for one in self._open:
            self._loop.add_reader(one.sock.fileno(), self._accept, one)

    def _halt(self) -> None:
        if self._pause is not None:
            self._pause.cancel()
        self._pause = None
        self._starved = False

    # -- handing out ---------------------------------------------------------------------------------------------

    def _welcome(self, listener: str, descriptors: list[int], members: list[Member]) -> None:
        room = self._max_clients - self._crew.clients
        if room < len(descriptors):
            room = max(0, room)
            for descriptor in descriptors[room:]:
                self._wait(listener, descriptor)
            del descriptors[room:]
        if descriptors:
            self._hand_out(listener, descriptors, members)

    def _hand_out(self, listener: str, descriptors: list[int], members: list[Member]) -> None:
        """Gives each to the member with the fewest; the turn decides between equals."""
        self._turn += 1
        turn = self._turn % len(members)
        members = members[turn:] + members[:turn]
        order = [(member.clients, place) for place, member in enumerate(members)]
        heapify(order)
        groups: dict[int, list[int]] = {}
        for descriptor in descriptors:
            clients, place = order[0]
            groups.setdefault(place, []).append(descriptor)
            heapreplace(order, (clients + 1, place))
        for place, group in groups.items():
            first_id = self._next_id
            self._next_id += len(group)
            member = members[place]
            member.clients += len(group)
            member.take(listener, first_id, group)  # may fail, and the crew then call members_changed()

    # -- the limit -----------------------------------------------------------------------------------------------

    def _wait(self, listener: str, descriptor: int) -> None:
        """Over the limit; perhaps only because nobody has told us yet that another left, so it waits a moment."""
        if len(self._waiting) >= WAITING_ROOM:
            self._refuse(descriptor)
            return
        self._waiting.append(_Guest(self._loop.time() + PATIENCE_S, listener, descriptor))
        if self._patience is None:
            self._patience = self._loop.call_later(PATIENCE_S, self._patience_ends)

    def _admit(self, members: Callable[[], list[Member]]) -> None:
        """Lets in those who wait, as far as there is room."""
        while self._waiting and (room := self._max_clients - self._crew.clients) > 0 and (found := members()):
            listener = self._waiting[0].listener
            descriptors: list[int] = []
            while self._waiting and len(descriptors) < room and self._waiting[0].listener == listener:
                descriptors.append(self._waiting.popleft().descriptor)
            self._hand_out(listener, descriptors, found)

    def _patience_ends(self) -> None:
        self._patience = None
        self._admit(self._free)
        # When there is room but no member, it is the pause that ends soon, and nobody is refused.
        if self._crew.clients >= self._max_clients:
            now_s = self._loop.time() + 0.001  # the resolution of the loop's clock
            while self._waiting and self._waiting[0].due_s <= now_s:
                self._refuse(self._waiting.popleft().descriptor)
        if self._waiting:
            wait_s = self._waiting[0].due_s - self._loop.time()
            self._patience = self._loop.call_later(wait_s if wait_s > 0 else PATIENCE_S, self._patience_ends)

    def _refuse(self, descriptor: int) -> None:
        """Closes a connection with the words Redis has for it."""
        self.rejected += 1
        with socket.socket(fileno=descriptor) as sock:
            sock.setblocking(False)
            with contextlib.suppress(OSError):
                sock.recv(1 << 16)  # input nobody read would turn the end of the connection into a reset
            with contextlib.suppress(OSError):
                sock.send(MAX_CLIENTS)
        warn_limited(log, "max-clients", "client refused: max number of clients reached")

    def _settle(self) -> None:
        """All listeners are closed."""
        self._halt()
        self._admit(self._last)
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
        while self._waiting:
            self._refuse(self._waiting.popleft().descriptor)
