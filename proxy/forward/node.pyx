# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""A server of the cluster as the data path knows it: its pools of connections and what is counted.

A pool holds what clients of one protocol and database share. Whether a node is down is known per pool: a handshake
that fails in one protocol says nothing of the connections in the other. A client may have a pool of its own, of one
connection (Owner). Made and kept by Router; a Backend points to its pool.
"""
cimport cython

from proxy.forward.counters cimport histogram_values
from proxy.forward.pipeline cimport Pipeline
from proxy.forward.request cimport OWN_FIRST, REQ_READ

PURPOSES = ("shared", "leased", "tracking", "subscriber")
STATE_NAMES = ("idle", "connecting", "up", "backoff", "closed")

cdef uint32_t numbers = 0


cdef class Pool:
    """The connections to a node in one protocol and database."""

    def __cinit__(self, Node node, int proto, int db):
        self.node = node
        self.proto = proto
        self.db = db
        self.backends = []


@cython.final
cdef class Node:
    """See the module. address: proxy.cluster.topology.Address."""

    def __cinit__(self, address, bint replica):
        global numbers
        numbers += 1
        self.number = numbers
        self.address = address
        self.label = str(address)
        self.replica = replica
        self.usable = True
        self.shard = -1
        self.resp2 = Pool(self, 2, 0)
        self.resp3 = Pool(self, 3, 0)
        self.numbered = {}
        self.owned = {}
        self.leases = []
        self.retired = []

    @property
    def up(self):
        """Whether any connection to it is established."""
        return any(STATE_NAMES[b.state] == "up" for b in self.backends())

    @property
    def down(self):
        """Whether it could not be reached lately, in any protocol it is used in."""
        return not self.up and any((<Pool> pool).down_since_ns != 0 for pool in self.shared_pools())

    cdef int64_t down_since(self):
        """When that was first found; 0 = it is not known to be down."""
        cdef Pool pool
        cdef int64_t since_ns = 0
        for pool in self.shared_pools():
            if pool.down_since_ns and (since_ns == 0 or pool.down_since_ns < since_ns):
                since_ns = pool.down_since_ns
        return since_ns

    cdef Pool pool(self, int proto, int db):
        cdef Pool found
        if db == 0:
            return self.resp3 if proto == 3 else self.resp2
        if db >= OWN_FIRST:
            return self.owned.get(db, self.resp2)   # whether it is down, which is all that is asked of another's
        found = self.numbered.get((proto, db))
        if found is None:
            found = self.numbered[proto, db] = Pool(self, proto, db)
        return found

    cdef list pools(self):
        return [*self.shared_pools(), *self.owned.values()]

    cdef list shared_pools(self):
        return [self.resp2, self.resp3, *self.numbered.values()]

    cdef Pool own_pool(self, Owner owner, int number):
        """That of a client's own connection, of which there is one at most."""
        cdef Pool found = self.owned.get(number)
        if found is None:
            found = self.owned[number] = Pool(self, 3, number)
            found.owner = owner
        return found

    cdef void heard(self) noexcept:
        """It was silent and is not any more: what was held back is sent. (Nothing else ends `silent`: a connection that
        stayed wary would send nothing for ever.)"""
        cdef Pipeline b
        self.silent = False
        for b in self.backends():
            if b.wary:
                b.wary = False
                b.reactor.touch(b)

    cdef bint shunned(self, Request* r):
        """Whether it is not to be read from as long as there is another one."""
        if self.paused or self.silent or self.failing or not (self.replica or self.usable):
            return True
        return self.pool(r.proto, r.db).down_since_ns != 0

    def backends(self):
        """All its connections, leased ones and those still draining included."""
        cdef Pool pool
        cdef list found = []
        for pool in self.pools():
            found += pool.backends
        return found + self.leases + self.retired

    def figures(self):
        """{role, owner, up, usable, paused, down_since_ns, pending, connections: {(purpose, state): n},
        connect_failures, buckets, sum_s}. down_since_ns: of CLOCK_MONOTONIC, 0 = it is not known to be down; owner: it
        owns slots."""
        connections = {(purpose, state): 0 for purpose in PURPOSES for state in STATE_NAMES}
        pending = 0
        for b in self.backends():
            connections[b.purpose, STATE_NAMES[b.state]] += 1
            pending += b.pending
        buckets, sum_s = histogram_values(&self.duration)
        return {
            "role": "replica" if self.replica else "primary",
            # Answers: connected, or (a replica nobody reads from) found fit by its last probe.
            "up": self.up or (self.replica and self.usable and not self.down),
            "usable": bool(self.usable),
            "owner": bool(self.owner),
            "down_since_ns": self.down_since() if self.down else 0,
            "paused": bool(self.paused),
            "pending": pending,
            "connections": connections,
            "connect_failures": self.connect_failures,
            "buckets": buckets,
            "sum_s": sum_s,
        }


@cython.final
cdef class Shard:
    """A primary (or None) and its replicas."""

    def __cinit__(self, Node primary, list replicas):
        self.primary = primary
        self.replicas = replicas

    cdef Node pick(self, Request* r):
        """The node of the shard that the read policy asks for; None when there is none fit."""
        cdef Node node = self.primary
        if r.policy == READS_PRIMARY or not r.flags & REQ_READ:
            return node
        if r.policy == READS_PREFER_PRIMARY:
            if node is not None and not node.shunned(r):
                return node
            node = self.least(r, False, False)
            return self.other_than_replicas(r) if node is None else node
        node = self.least(r, r.policy == READS_ANY, False)
        if node is not None:
            return node
        if r.policy != READS_REPLICA:
            return self.other_than_replicas(r)
        node = self.paused_replica()
        if node is None and (self.primary is None or self.primary.shunned(r)):
            node = self.least(r, False, True)
        return node

    cdef Node paused_replica(self):
        """One that reads may only wait for; None when there is none."""
        cdef Node node
        for node in self.replicas:
            if node.paused and node.usable:
                return node
        return None

    cdef Node other_than_replicas(self, Request* r):
        """No replica is in step: the primary, or while that is no good a replica that was in step with it; when nothing
        answers, whoever waits, waits for the primary."""
        cdef Node node = None
        if self.primary is None or self.primary.shunned(r):
            node = self.least(r, False, True)
        return self.primary if node is None else node

    cdef Node least(self, Request* r, bint with_primary, bint stale):
        """The fit node with the fewest pending requests; ties go round by the client's affinity. stale: of those that
        have lost touch with their primary."""
        cdef Node node, best = None
        cdef size_t pending, fewest = 0
        cdef Py_ssize_t replicas = len(self.replicas), n, i, place
        cdef Pool pool
        n = replicas + (1 if with_primary and self.primary is not None else 0)
        for i in range(n):
            place = <Py_ssize_t> (r.affinity + i) % n
            node = <Node> self.replicas[place] if place < replicas else self.primary
            pool = node.pool(r.proto, r.db)
            if pool.down_since_ns or node.paused or node.silent or node.failing or not (
                node.stale if stale and node.replica else node.usable
            ):
                continue
            pending = (<Pipeline> pool.backends[0]).pending if pool.backends else 0
            if best is None or pending < fewest:
                best = node
                fewest = pending
        return best
