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

    def backends(self):
        """All its connections, leased ones and those still draining included."""
        cdef Pool pool
        cdef list found = []
        for pool in self.pools():
            found += pool.backends
        return found + self.leases + self.retired

    def figures(self):
        """{role, up, usable, pending, connections: {(purpose, state): n}, connect_failures, buckets, sum_s}."""
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
            "pending": pending,
            "connections": connections,
            "connect_failures": self.connect_failures,
            "buckets": buckets,
            "sum_s": sum_s,
        }


cdef Node last_resort(Shard shard, Request* r):
    """Nobody is fit for a read. Whoever waits, waits for the primary; while that refuses (it is loading), its replicas
    may be unfit only because they are cut off from it, and answer: another one is tried at each attempt."""
    cdef Node node
    cdef Py_ssize_t replicas = len(shard.replicas), i, place
    if shard.primary is None or shard.primary.usable:
        return shard.primary
    for i in range(replicas + 1):
        place = <Py_ssize_t> (r.affinity + r.attempts + i) % (replicas + 1)
        node = <Node> shard.replicas[place] if place < replicas else shard.primary
        if node.pool(r.proto, r.db).down_since_ns == 0:
            return node
    return shard.primary


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
            if node is not None and node.usable and node.pool(r.proto, r.db).down_since_ns == 0:
                return node
            node = self.least(r, False)
            return last_resort(self, r) if node is None else node
        if r.policy == READS_ANY:
            return self.least(r, True)
        node = self.least(r, False)
        if node is None and r.policy == READS_PREFER_REPLICA:
            return last_resort(self, r)
        return node

    cdef Node least(self, Request* r, bint with_primary):
        """The fit node with the fewest pending requests; ties go round by the client's affinity."""
        cdef Node node, best = None
        cdef size_t pending, fewest = 0
        cdef Py_ssize_t replicas = len(self.replicas), n, i, place
        cdef Pool pool
        n = replicas + (1 if with_primary and self.primary is not None else 0)
        for i in range(n):
            place = <Py_ssize_t> (r.affinity + i) % n
            node = <Node> self.replicas[place] if place < replicas else self.primary
            pool = node.pool(r.proto, r.db)
            if pool.down_since_ns or not node.usable:
                continue
            pending = (<Pipeline> pool.backends[0]).pending if pool.backends else 0
            if best is None or pending < fewest:
                best = node
                fewest = pending
        if best is None and with_primary:
            return last_resort(self, r)
        return best
