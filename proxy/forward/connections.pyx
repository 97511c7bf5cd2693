# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The connections to the nodes: which there are, made when they are first used.

Those that all clients share stand in pools by protocol and database; a lease is one client's for a while; a client that
tracks keys has its own to each node that it comes to (Owner, forward.tracking), for the node remembers for each
connection what was read on it. Router is the one subclass: it decides about the node.
"""
from libc.stdint cimport int64_t, uint32_t

from proxy.forward.backend cimport BACKEND_BACKOFF, BACKEND_CLOSED, BACKEND_IDLE, BACKEND_UP
from proxy.forward.ports cimport Sink
from proxy.forward.request cimport (
    OWN_FIRST, STATE_PAIRING, STATE_QUEUED, TARGET_EXTRA, TARGET_NODE, request_free, request_move,
)

cdef int64_t IDLE_NS = 60_000_000_000       # ... of a connection to a database other than 0: see trim
cdef int64_t REFUSED_NS = 1_000_000_000     # after which a client's own connection, once refused, is tried again


cdef class Connections:
    """See the module; the arguments are Router's."""

    def __cinit__(self, Reactor reactor, Counters counters, BackendSettings settings, *, int connections,
                  int64_t failover_ns):
        self.reactor = reactor
        self.counters = counters
        self.settings = settings
        self.connections = connections
        self.failover_ns = failover_ns
        self.nodes = {}
        self.retired = []
        self.trackers = {}
        self.last_number = 2 * OWN_FIRST - 1

    # -- shared, leased ------------------------------------------------------------------------------------------

    cdef list fill(self, Node node, int proto, int db):
        """The node's connections in that protocol and database, made on first use."""
        cdef Pool pool = node.pool(proto, db)
        if not pool.backends:
            for _ in range(self.connections):
                pool.backends.append(Backend(
                    self.reactor, node, pool, proto, db, self.recovery, self.port, self.counters, self.settings,
                    self.pushes
                ))
        return pool.backends

    cdef list empty(self, Node node, list pools):
        """Empties these pools of a node: see Router.replace."""
        cdef Backend b
        cdef Pool pool
        cdef list old = []
        for pool in pools:
            old += pool.backends
            pool.down_since_ns = 0
            pool.backends = []
        if old:
            for b in old:
                b.retire()
            node.retired = [b for b in node.retired + old if b.state != BACKEND_CLOSED]
        return old

    cdef int at(self, Node node, Request* r) noexcept:
        """Chooses the request's connection to this node."""
        if node.paused:
            return PAUSED
        if r.db >= OWN_FIRST:
            return self.at_own(node, r)
        return self.shared(node, r.proto, r.db, r.affinity)

    cdef int shared(self, Node node, int proto, int db, uint32_t affinity) noexcept:
        cdef Pool pool = node.pool(proto, db)
        cdef list backends = pool.backends
        cdef Backend b
        cdef Py_ssize_t n = len(backends)
        if n == 0:
            backends = self.fill(node, proto, db)
            n = len(backends)
        b = <Backend> backends[0 if n == 1 else <Py_ssize_t> (affinity % n)]
        if b.state == BACKEND_UP:
            self.chosen = <void*> b
            return CHOSEN
        if pool.down_since_ns and self.reactor.now - pool.down_since_ns > self.failover_ns:
            return HOPELESS
        if b.state == BACKEND_BACKOFF or b.state == BACKEND_CLOSED or (pool.down_since_ns and b.state != BACKEND_IDLE):
            return WAIT                 # (the last: a probe is under way, and nothing is sent before it has succeeded)
        b.demand()
        self.chosen = <void*> b
        return CHOSEN

    def lease(self, Node node, int proto, int db=0):
        """A connection of its own for one client, connected when it is first used.

        Whoever leases it closes it; when it is lost, what is under way on it fails and it is not made again.
        """
        backend = Backend(self.reactor, node, None, proto, db, self.recovery, self.port, self.counters, self.settings,
                          self.pushes)
        node.leases.append(backend)
        return backend

    cdef void trim(self, Pool pool) noexcept:
        """Closes the connections to a database other than 0 that nobody has used for a while: there may be many."""
        cdef Backend b
        for b in pool.backends:
            if b.state != BACKEND_UP or b.head != NULL or self.reactor.now - b.progress_ns < IDLE_NS:
                return
        for b in pool.backends:
            b.close()
        pool.backends = []

    # -- clients with connections of their own (Tracking): one to each node that they come to ----------------------

    cdef int enter(self, Owner owner):
        """A number for its connections, which are made when they are first used; 0 = all are taken."""
        cdef int number = self.last_number, _
        for _ in range(OWN_FIRST):
            number = OWN_FIRST if number == 2 * OWN_FIRST - 1 else number + 1
            if number not in self.trackers:
                self.last_number = number
                self.trackers[number] = owner
                return number
        return 0

    cdef void leave(self, int number) noexcept:
        """Its connections are closed; what was under way on them has nobody who waits for it."""
        cdef Node node
        cdef Pool pool
        cdef Backend b
        del self.trackers[number]
        for nodes in (self.nodes.values(), self.retired):
            for node in nodes:
                pool = node.owned.pop(number, None)
                if pool is not None:
                    for b in pool.backends:
                        b.close()
                    pool.backends = []

    cdef int at_own(self, Node node, Request* r) noexcept:
        """at, for such a client. A replica pushes nothing that its primary does not: that is asked like by anybody."""
        cdef Owner owner = self.trackers.get(r.db)
        cdef Backend b
        if owner is None:
            return LOST
        if node.replica and (r.target == TARGET_NODE or r.target == TARGET_EXTRA):
            return self.shared(node, r.proto, owner.db, r.affinity)
        b = self.own_backend(node, r.db)
        if b is None or b.state == BACKEND_BACKOFF:
            down_ns = node.pool(3, r.db).down_since_ns or node.resp2.down_since_ns
            return HOPELESS if down_ns and self.reactor.now - down_ns > self.failover_ns else WAIT
        b.demand()
        self.chosen = <void*> b
        return CHOSEN

    def refuse(self, Backend b not None, bytes line not None):
        """A node takes no such connection of one client (its own, or leased), which was never up: it is closed, and
        what waits for it is answered with this error line."""
        cdef Request* r = b.head
        cdef Request* following
        if b.pool is not None:
            b.pool.not_before_ns = self.reactor.now + REFUSED_NS
        b.node.connect_failures += 1
        b.state = BACKEND_CLOSED
        b.head = b.tail = b.cancelled = NULL
        b.pending = 0
        b.start_over()                          # the window
        while r != NULL:
            following = r.bnext
            r.bnext = NULL
            if r.state == STATE_QUEUED and r.sink != NULL:
                request_move(r, STATE_PAIRING)
                (<Sink> r.sink).withdraw(r)
                (<Sink> r.sink).deliver(r, line, len(line), True, True)
            else:
                request_free(r)
            r = following

    cdef Backend own_backend(self, Node node, int number):
        """A client's own connection to the node, made anew when it was lost; None: not now.

        A node that the shared connections do not reach is not tried.
        """
        cdef Owner owner = <Owner> self.trackers[number]
        cdef Pool pool = node.own_pool(owner, number)
        if pool.backends and (<Backend> pool.backends[0]).state != BACKEND_CLOSED:
            return <Backend> pool.backends[0]
        if node.gone or node.resp2.down_since_ns or self.reactor.now < pool.not_before_ns:
            return None
        pool.backends = [Backend(
            self.reactor, node, pool, 3, owner.db, self.recovery, self.port, self.counters, self.settings, owner,
        )]
        return <Backend> pool.backends[0]
