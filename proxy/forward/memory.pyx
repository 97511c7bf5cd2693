# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The bound on what all clients together may hold (`DataPath.max_memory`).

Each client has limits of its own, but ten thousand clients may come to ten thousand times as much. What they hold is
counted as it is allocated and freed (proxy.forward.account), so that looking at it costs one comparison per batch. The
reactor calls `flush` at the end of a batch that leaves the bounds which were set here, and a client's read does when a
long command makes its buffer grow; only then are the clients looked at one by one:

- from 85 % of the limit on, clients that hold more than the average are not read any more: they may only get rid of
  what they hold. The others go on. All are read again when it has fallen (a little) below that.
- from 100 % on the client that holds the most is closed, and the next one, until it is below. Each is counted under
  CLOSE_MEMORY_LIMIT.

A client that holds half a command can only get rid of it by being read. Therefore those that are stopped are read one
after another, for a short while each: such a command becomes whole in the end, or reaches the limit.

The guard is a Peer without a socket: the reactor knows no other kind of thing that it can call.
"""
cimport cython
from libc.stdint cimport INT64_MAX, INT64_MIN, int64_t

from proxy.forward.buffer cimport buffer_trim
from proxy.forward.client cimport Client
from proxy.forward.counters cimport CLOSE_MEMORY_LIMIT
from proxy.forward.datapath cimport DataPath
from proxy.forward.reactor cimport Peer

cdef enum:
    STEPS = 64              # clients are looked at again when a 64th of the limit more is held
    TRIM_NS = 50_000_000    # between two times that the heap is trimmed
    LOOK_NS = 20_000_000    # between two looks at all clients, unless a step more is held: a look costs their number

TURN_S = 0.02               # how long one of those that are stopped is read


@cython.final
cdef class MemoryGuard(Peer):
    """One per data path, made with its first client."""

    def __cinit__(self, DataPath path):
        self.fd = -1
        self.path = path
        self.reactor = path.reactor
        self.stopped = []
        self._next = self.next_turn
        self._later = self.look_again

    cdef void flush(self) noexcept:
        """Does what is to be done about what is held now, and says when to look again."""
        cdef int64_t limit = self.path.most_memory
        cdef int64_t stop_from = limit - limit * 3 // 20
        cdef int64_t step = limit // STEPS
        cdef int64_t held = self.reactor.memory
        if limit and held >= stop_from:
            if self.reactor.now < self.look_ns and held < limit + step:
                # It was looked at a moment ago. Clients that come and go at the limit must not have it done for each.
                self.reactor.set_guard(self, stop_from - step, limit + step - 1)
                if self.again is None:
                    self.again = self.reactor.loop.call_later(LOOK_NS / 1e9, self._later)
                return
            self.look(limit, stop_from)
            self.look_ns = self.reactor.now + LOOK_NS
        else:
            self.go_on_all()
        held = self.reactor.memory
        if limit == 0:
            self.reactor.set_guard(self, INT64_MIN, INT64_MAX)
        elif not self.stopped and held < stop_from:
            self.reactor.set_guard(self, INT64_MIN, stop_from - 1)
        else:
            self.reactor.set_guard(
                self, stop_from - step, limit - 1 if held < limit <= held + step else held + step)

    cdef void look(self, int64_t limit, int64_t stop_from) noexcept:
        """Closes the largest until less than the limit is held, then stops what is above the average."""
        cdef Client client
        cdef int64_t held
        cdef list large = [], before = self.stopped
        self.stopped = []
        while self.path.clients:
            self.average = self.reactor.memory // len(self.path.clients)
            large = [
                ((<Client> client).held(), client.id, client) for client in self.path.clients
                if (<Client> client).held() >= self.average
            ]
            if self.reactor.memory < limit or not large:
                break
            large.sort(reverse=True)
            for _, _, client in large:
                client.close(CLOSE_MEMORY_LIMIT)
                if self.reactor.memory < limit:
                    break
            self.trim(limit)
            if self.reactor.memory < limit:
                break
        if self.reactor.memory >= stop_from:
            for held, _, client in large:
                if held > self.average:
                    self.stop(client)
        for client in before:
            if self.reactor.memory < stop_from or client.held() <= self.average:
                go_on(client)
        if self.stopped and self.timer is None:
            self.timer = self.reactor.loop.call_later(TURN_S, self._next)

    cdef void trim(self, int64_t limit) noexcept:
        """What a closed client held is to leave the process, too: freed buffers up to 2 MB stay in the heap."""
        if self.reactor.now >= self.trim_ns:
            self.trim_ns = self.reactor.now + TRIM_NS
            buffer_trim(limit // STEPS)

    cdef void stop(self, Client client) noexcept:
        """Reads no more of it. One that has ended its input is past that already."""
        if client.fd < 0 or client.eof or client.closing:
            return
        self.stopped.append(client)
        if not client.replies.stopped and client is not self.trying:
            client.replies.stopped = True
            client.pause()

    cdef void go_on_all(self) noexcept:
        cdef Client client
        for client in self.stopped:
            go_on(client)
        self.stopped = []
        self.trying = None

    def look_again(self):
        """What was put off is done."""
        self.again = None
        if self.reactor.guard is self:      # (else the reactor was stopped)
            self.reactor.tick()
            self.look_ns = 0
            self.flush()

    def next_turn(self):
        """The turn of another one of those that are stopped."""
        cdef Client client = self.trying
        self.timer = None
        self.trying = None
        if client is not None and client.fd >= 0 and not client.replies.stopped and client.held() > self.average:
            client.replies.stopped = True
            client.pause()
        if not self.stopped or self.reactor.guard is not self:      # (the reactor was stopped)
            return
        self.place = (self.place + 1) % len(self.stopped)
        self.trying = self.stopped[self.place]
        go_on(self.trying)
        self.timer = self.reactor.loop.call_later(TURN_S, self._next)


cdef void go_on(Client client) noexcept:
    """It is read again as soon as nothing else speaks against it."""
    if client.fd >= 0 and client.replies.stopped:
        client.replies.stopped = False
        client.reactor.touch(client)        # its flush finds that there is room
