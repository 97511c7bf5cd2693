# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Connections that one client owns for a while, because its commands leave a state there (WATCH) or block
it.

They are taken, given back clean and taken again by somebody else; how many there may be of a node, protocol and
database is bounded, so is how many in all, and idle ones are closed. One that cannot be given back clean is closed.
"""
cimport cython
from libc.stdint cimport UINT32_MAX, int64_t

from proxy.forward.backend cimport BACKEND_CLOSED, BACKEND_UP
from proxy.forward.pipeline cimport ENQUEUED
from proxy.forward.request cimport TARGET_LEASE, Request, request_free, request_new

cdef const char* UNWATCH = b"*1\r\n$7\r\nUNWATCH\r\n"
cdef enum:
    UNWATCH_LEN = 17

cdef int64_t CLEAN_NS = 5_000_000_000       # that UNWATCH may take, before the connection is given up


@cython.final
cdef class Leases:
    """One per worker. most: of one node, protocol and database; idle_ns: see the .pxd."""

    def __cinit__(self, Router router, *, most=1000, idle_ns=30_000_000_000):
        self.router = router
        self.most = most
        self.all_most = UINT32_MAX
        self.idle_ns = idle_ns
        self.idle = {}

    cdef uint32_t listed(self) noexcept:
        """At least as many as there are: some may be closed already."""
        cdef Node node
        cdef uint32_t n = 0
        for nodes in (self.router.nodes.values(), self.router.retired):
            for node in nodes:
                n += <uint32_t> len(node.leases)
        return n

    cdef uint32_t open(self) noexcept:
        """All there are, of all nodes: each has a descriptor, or is about to."""
        cdef Backend lease
        cdef Node node
        cdef uint32_t n = 0
        for nodes in (self.router.nodes.values(), self.router.retired):
            for node in nodes:
                for lease in node.leases:
                    n += lease.state != BACKEND_CLOSED
        return n + self.tracking()

    cdef uint32_t tracking(self) noexcept:
        """What clients that track may come to have, one to each primary."""
        return <uint32_t> (len(self.router.trackers) * max(1, len(self.router.primaries)))

    @property
    def per_tracking(self):
        """... one of them."""
        return max(1, len(self.router.primaries))

    cdef bint room_for_tracking(self):
        """Whether there is room for the connections of another client that tracks."""
        cdef uint32_t more = max(1, len(self.router.primaries))
        if len(self.router.trackers) < self.most and (
            self.all_most >= more and self.reduce(self.all_most - more) <= self.all_most - more
        ):
            return True
        self.tracking_refused += 1
        return False

    cdef uint32_t reduce(self, uint32_t most) noexcept:
        """Closes idle ones, of any node, until there are no more than so many; how many there are."""
        cdef Backend lease
        cdef uint32_t n = self.open()       # (those of clients that track are not closed: they would be made again)
        for idle in self.idle.values():
            while n > most and idle:
                lease = <Backend> idle.pop()
                n -= lease.state != BACKEND_CLOSED
                lease.close()
        return n

    def shed(self):
        """Closes idle ones until there are no more than all_most; how many are still too many."""
        cdef uint32_t n = self.reduce(self.all_most)
        return n - self.all_most if n > self.all_most else 0

    cdef Backend take(self, Node node, int proto, int db):
        """One that nobody else has, connected or not; None when there are too many."""
        cdef Backend lease
        cdef uint32_t n = 0
        cdef list idle = self.idle.get((node.number, proto, db))
        while idle:
            lease = idle.pop()
            if lease.state == BACKEND_UP and lease.readonly == node.replica:
                return lease
            lease.close()
        if <uint32_t> len(node.leases) >= self.most:        # (ten thousand of them are not looked at for each more)
            for lease in node.leases:
                if lease.state != BACKEND_CLOSED and lease.proto == proto and lease.db == db:
                    n += 1
        if n >= self.most or self.all_most == 0 or (
            self.listed() >= self.all_most and self.reduce(self.all_most - 1) >= self.all_most
        ):
            self.refused += 1
            return None
        return self.router.lease(node, proto, db)

    cdef void give(self, Backend lease, bint watching) noexcept:
        """It is not needed any more; watching: keys may be watched on it."""
        cdef Node node = lease.node
        if lease.pool is not None:              # its client's own, which it keeps
            if watching and lease.state == BACKEND_UP:
                self.unwatch(lease)
            return
        if lease.spent or lease.state != BACKEND_UP or lease.head != NULL or node.gone or (
            lease.readonly != node.replica or watching and node.paused      # (nothing is sent there, be it UNWATCH)
        ):
            lease.close()
            return
        if not watching or self.unwatch(lease):
            self.idle.setdefault((node.number, lease.proto, lease.db), []).append(lease)

    cdef bint unwatch(self, Backend lease) noexcept:
        """Has it watch nothing any more; false: it is closed."""
        cdef Request* r = request_new()         # for nobody: whoever has the connection next comes behind it
        if r == NULL:
            lease.close()
            return False
        r.slot = -1
        r.target = TARGET_LEASE
        r.lease = <void*> lease
        r.proto = lease.proto
        r.start_ns = lease.reactor.now
        r.deadline_ns = r.start_ns + CLEAN_NS
        if lease.enqueue(r, UNWATCH, UNWATCH_LEN) != ENQUEUED:
            request_free(r)
            lease.close()
            return False
        return True

    def sweep(self):
        """Closes what has been idle for too long, or belongs to a node that has left; to be called regularly."""
        cdef Backend lease
        cdef list kept
        for key, idle in list(self.idle.items()):
            kept = []
            for lease in idle:
                if lease.state != BACKEND_UP or lease.node.gone or (
                    lease.head == NULL and self.router.reactor.now - lease.progress_ns > self.idle_ns
                ):
                    lease.close()
                else:
                    kept.append(lease)
            if kept:
                self.idle[key] = kept
            else:
                del self.idle[key]

    def renew(self, labels=None):
        """Closes all to these nodes, None = to all, that nobody has now, and the others when they are given back: new
        ones are made otherwise."""
        cdef Backend lease
        cdef Node node
        for node in [*self.router.nodes.values(), *self.router.retired]:
            for lease in node.leases:
                lease.spent = lease.spent or labels is None or node.label in labels
        before, self.idle = self.idle, {}
        for key, idle in before.items():
            for lease in idle:
                if lease.spent:
                    lease.close()
                else:
                    self.idle.setdefault(key, []).append(lease)
