"""The listening sockets: connections are accepted here and handed to the workers.

Why: the kernel's own spreading (SO_REUSEPORT) treats few long-lived connections badly, and a worker can be replaced
without a listening socket being lost (DESIGN 2). Called by supervisor and reload; worker_pool gives the workers.

Invariants:
- A connection goes to the worker with the fewest clients, whatever its listener; of several, in turn. One that misses
  more primaries than another one that has room gets none, nor does one that says nothing while another one speaks.
- No worker gets more clients than per_worker. max_clients is at most what all workers may have together, so that there
  is room elsewhere, or will be when a missing worker is back.
- What cannot be served at once stays in the kernel's queue, where it costs nothing: while workers are missing or behind
  with their channels, while descriptors are short. Nothing here spins meanwhile.
- At the limit a connection waits for PATIENCE_S, because another client may just be leaving; then it is refused.
- Client ids ascend from 1; those of one take() follow each other.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import Callable, Sequence
from heapq import heapify, heapreplace
from typing import Final, Protocol

from proxy.resp.errors import MAX_CLIENTS
from proxy.supervisor.relay import QUIET_S
from proxy.system.log import get, warn_limited
from proxy.system.sockets import Listening

log = get("supervisor.acceptor")

BEHIND: Final = 1 << 16  # bytes a worker's channel has not taken: it is stuck, or nearly
PATIENCE_S: Final = 0.02
_BATCH: Final = 64  # per wake-up and listener, so that no listener starves another; a take() may have 253
_LOOK_S: Final = 0.05  # how soon it is looked again for a worker: nobody tells when one has caught up
_FULL_S: Final = 0.005  # ... or for room under the limit
_SHORT_S: Final = 0.1  # pause while descriptors are short
# What accept(2) says of a connection that is already gone, or of its network: the next one may be well.
_GONE: Final = {errno.ECONNABORTED, errno.EPROTO, errno.ENOPROTOOPT, errno.EOPNOTSUPP, errno.EINTR}
_NETWORK: Final = {errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENONET}


class Worker(Protocol):
    """One that takes clients."""

    @property
    def clients(self) -> int:
        """Connections it has."""

    @property
    def backlog(self) -> int:
        """Bytes its channel has not taken yet."""

    @property
    def missed(self) -> Sequence[str]:
        """The primaries that it does not reach although another worker does, as far as is known."""

    def silent_s(self) -> float:
        """Seconds since it was heard of."""

    def take(self, listener: str, first_id: int, descriptors: list[int]) -> None:
        """Serves these connections, accepted at that listener; the descriptors are the worker's from now on."""


class Acceptor:
    """See the module. Not before the loop runs.

    candidates: the workers that take clients. clients: connections of all workers, those included that take no more.
    `rejected` counts what was refused for max_clients. max_clients and per_worker may be changed at any time.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        candidates: Callable[[], Sequence[Worker]],
        clients: Callable[[], int],
        *,
        max_clients: int,
        per_worker: int,
    ) -> None:
        self.max_clients = max_clients
        self.per_worker = per_worker  # what the limit of descriptors lets one worker have
        self.rejected = 0
        self._loop = loop
        self._candidates = candidates
        self._clients = clients
        self._open: list[Listening] = []
        self._next_id = 1
        self._turn = 0
        self._pause: asyncio.TimerHandle | None = None  # set while nothing is accepted
        self._full_s: float | None = None  # loop.time() since when connections wait at the limit

    @property
    def listening(self) -> list[str]:
        """Where connections are taken, as the log has it."""
        return [one.label for one in self._open]

    def open(self, one: Listening) -> None:
        """Begins to take connections; ListenError."""
        one.listen()
        log.info("listening", address=one.label)
        self._open.append(one)
        if self._pause is None:
            self._loop.add_reader(one.sock.fileno(), self._readable, one)

    def close(self, one: Listening, *, accept: bool = True) -> None:
        """Takes what has reached its queue by now, unless told not to, and closes the socket; its clients stay.

        Without a worker, or without descriptors, the queue is lost, unless another process holds the same socket.
        """
        if one in self._open:
            self._open.remove(one)
            self._loop.remove_reader(one.sock.fileno())
            self._full_s = None
            if accept:
                self._empty_queue(one)
        one.close()

    def close_all(self, *, accept: bool) -> None:
        """close() for every listener."""
        for one in list(self._open):
            self.close(one, accept=accept)
        self._resume()

    def workers_changed(self) -> None:
        """Workers came or went. Costs nothing while connections are accepted."""
        if self._pause is not None and self._full_s is None and self._free():
            self._resume()

    # -- accepting ---------------------------------------------------------------------------------------------------

    def _free(self) -> list[Worker]:
        everybody = self._candidates()
        # When all are silent it is this process that has not listened, or a machine that is too busy for any of them.
        speaking = [one for one in everybody if one.silent_s() < QUIET_S] or everybody
        free = [one for one in speaking if one.backlog <= BEHIND and one.clients < self.per_worker]
        fewest = min((len(one.missed) for one in free), default=0)
        return [one for one in free if len(one.missed) == fewest]

    def _room(self, workers: Sequence[Worker]) -> int:
        """How many connections may be taken now."""
        places = sum(self.per_worker - one.clients for one in workers)
        return max(0, min(self.max_clients - self._clients(), places))

    def _readable(self, one: Listening) -> None:
        if one not in self._open:
            return  # closed by a callback of the same turn of the loop
        workers = self._free()
        if room := self._room(workers):
            self._full_s = None
            self._hand_out(str(one.listener.address), self._accepted(one, min(_BATCH, room)), workers)
        elif self._clients() < self.max_clients or not self._candidates():
            self._full_s = None
            self._suspend(_LOOK_S)
        elif self._full_s is None or self._loop.time() - self._full_s < PATIENCE_S:
            self._full_s = self._full_s or self._loop.time()
            self._suspend(_FULL_S)
        else:
            self._full_s = None
            for descriptor in self._accepted(one, _BATCH):
                self._refuse(descriptor)

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
                if error.errno in _GONE | _NETWORK:
                    continue
                reason = error.strerror or str(error)
                warn_limited(log, "accept", "cannot accept a connection", address=one.label, error=reason)
                self._suspend(_SHORT_S)
                break
        return found

    def _empty_queue(self, one: Listening) -> None:
        # As many as may have waited when we began: somebody who connects without end must not keep us here.
        left = one.listener.backlog + 1
        while left > 0 and (everybody := self._candidates()):
            # Rather one that is behind than none.
            workers = self._free() or list(everybody)
            room = self._room(workers)
            found = self._accepted(one, min(left, _BATCH, room or _BATCH))
            if not found:
                return
            left -= len(found)
            if room:
                self._hand_out(str(one.listener.address), found, workers)
            else:
                for descriptor in found:
                    self._refuse(descriptor)

    def _suspend(self, pause_s: float) -> None:
        """Leaves connections where they are."""
        if self._pause is None:
            for one in self._open:
                self._loop.remove_reader(one.sock.fileno())
        else:
            self._pause.cancel()
        self._pause = self._loop.call_later(pause_s, self._resume)

    def _resume(self) -> None:
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
            for one in self._open:
                self._loop.add_reader(one.sock.fileno(), self._readable, one)

    # -- handing out -------------------------------------------------------------------------------------------------

    def _hand_out(self, listener: str, descriptors: list[int], workers: list[Worker]) -> None:
        """Gives each to the worker with the fewest; the turn decides between equals."""
        if not descriptors:
            return
        self._turn += 1
        turn = self._turn % len(workers)
        workers = workers[turn:] + workers[:turn]
        order = [(worker.clients, place) for place, worker in enumerate(workers)]
        heapify(order)
        groups: dict[int, list[int]] = {}
        for descriptor in descriptors:
            clients, place = order[0]
            groups.setdefault(place, []).append(descriptor)
            heapreplace(order, (clients + 1, place))
        for place, group in groups.items():
            first_id = self._next_id
            self._next_id += len(group)
            workers[place].take(listener, first_id, group)

    def _refuse(self, descriptor: int) -> None:
        """Closes a connection with the words Redis has for it."""
        self.rejected += 1
        try:
            sock = socket.socket(fileno=descriptor)
        except OSError:  # no socket any more as far as the system can tell
            os.close(descriptor)
            return
        with sock:
            sock.setblocking(False)
            with contextlib.suppress(OSError):
                sock.recv(1 << 16)  # input nobody read would turn the end of the connection into a reset
            with contextlib.suppress(OSError):
                sock.send(MAX_CLIENTS)
        warn_limited(log, "max-clients", "client refused: max number of clients reached")
