# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Whether the nodes that clients' own connections lead to are alive, asked over those that are idle.

Why: a client that tracks asks nothing about what it has in its cache, so nothing of its own would find out that a node
hangs or cannot be reached, while its replica is promoted and the keys are written there.

A few idle connections of each node are asked with each beat, by turns: one, and one more for each ROUND that there are,
so that every idle one is asked within ROUND beats or so. One that does not answer for PATIENCE beats is lost. Unless
one that was asked later has answered, the node is silent: all clients' own connections to it that are idle are lost
with it, whereupon everything is invalidated (Tracking.ended). One with a command under way is left to the stall
timeout, but everything is invalidated for its client, too. Beats are counted, not time: a process that has stood still
itself takes no node for a silent one.
"""
cimport cython
from libc.stdint cimport int64_t, uint64_t

from proxy.forward.backend cimport BACKEND_UP, Backend
from proxy.forward.node cimport Node, Pool
from proxy.forward.pipeline cimport ENQUEUED
from proxy.forward.request cimport REQ_READ, TARGET_LEASE, Request, request_free, request_new
from proxy.forward.router cimport Router

cdef const char* PING = b"*1\r\n$4\r\nPING\r\n"
cdef enum:
    PING_LEN = 14
    PATIENCE = 3
    ROUND = 30

cdef int64_t NEVER_NS = 3600 * <int64_t> 1_000_000_000     # the beats decide, or the stall timeout


@cython.final
cdef class Asked:
    """A PING that is not known to be answered."""
    cdef Backend backend
    cdef uint64_t pos               # where it stands in the connection's stream
    cdef int64_t beat


@cython.final
cdef class Pulse:
    """One per worker."""

    cdef Router router
    cdef list asked                 # in the order of their beats
    cdef int64_t beats

    def __cinit__(self, Router router not None):
        self.router = router
        self.asked = []

    def beat(self):
        """To be called once a second. Its time is linear in the connections of clients that track."""
        cdef Node node
        self.beats += 1
        if self.asked:
            self.judge()
        if self.router.trackers:
            for node in self.router.nodes.values():
                if node.owned:
                    self.ask(node)

    cdef void judge(self):
        cdef Asked one
        cdef list left = [], silent = []
        cdef dict heard = {}        # Node.number -> the last beat of which an answer has come
        for one in self.asked:
            if one.backend.fd < 0:
                continue
            if one.backend.win_pos > one.pos:
                heard[one.backend.node.number] = one.beat
            elif self.beats - one.beat >= PATIENCE:
                silent.append(one)
            else:
                left.append(one)
        self.asked = left
        for one in silent:
            if heard.get(one.backend.node.number, 0) <= one.beat:
                self.flatline(one.backend.node)
            self.miss(one.backend)

    cdef void flatline(self, Node node):
        """The node is silent."""
        cdef Pool pool
        cdef Backend b
        for pool in list(node.owned.values()):      # (a client may be closed by what it is told)
            for b in list(pool.backends):
                self.miss(b)

    cdef void miss(self, Backend b):
        if b.fd < 0:
            return
        if b.head == NULL or b.pending == 1 and b.head.sink == NULL:        # at most a PING is under way
            b.lose("the node does not answer")
        elif b.pool is not None and b.pool.owner is not None:
            b.pool.owner.missed()

    cdef void ask(self, Node node):
        cdef list pools = list(node.owned.values())
        cdef Py_ssize_t n = len(pools), count = 1 + n // ROUND, i
        cdef Pool pool
        cdef Backend b
        for i in range(n):
            pool = <Pool> pools[(self.beats * (1 + n // ROUND) + i) % n]
            for b in pool.backends:
                if b.state == BACKEND_UP and b.head == NULL and not b.draining and self.ping(b):
                    count -= 1
            if count <= 0:
                return

    cdef bint ping(self, Backend b):
        cdef Asked one = Asked.__new__(Asked)
        cdef Request* r = request_new()
        if r == NULL:
            return False
        r.slot = -1
        r.target = TARGET_LEASE
        r.lease = <void*> b
        r.proto = b.proto
        r.flags = REQ_READ
        r.start_ns = b.reactor.now
        r.deadline_ns = r.start_ns + NEVER_NS
        one.backend = b
        one.pos = b.win_pos + (b.win.end - b.win.start)
        one.beat = self.beats
        if b.enqueue(r, PING, PING_LEN) != ENQUEUED:
            request_free(r)
            return False
        self.asked.append(one)
        return True
