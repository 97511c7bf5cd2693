# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""A server of the cluster as the data path knows it: its pools of connections and what is counted.

A pool holds what clients of one protocol share. Whether a node is down is known per pool: a handshake that fails in one
protocol says nothing of the connections in the other. Made and kept by Router; a Backend points to its pool.
"""
cimport cython

from proxy.forward.counters cimport histogram_values

STATE_NAMES = ("idle", "connecting", "up", "backoff", "closed")

cdef uint32_t numbers = 0


cdef class Pool:
    """The connections to a node in one protocol."""

    def __cinit__(self, Node node, int proto):
        self.node = node
        self.proto = proto
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
        self.resp2 = Pool(self, 2)
        self.resp3 = Pool(self, 3)
        self.leases = []
        self.retired = []

    @property
    def up(self):
        """Whether any connection to it is established."""
        return any(STATE_NAMES[b.state] == "up" for b in self.backends())

    @property
    def down(self):
        """Whether it could not be reached lately, in any protocol it is used in."""
        return not self.up and (self.resp2.down_since_ns != 0 or self.resp3.down_since_ns != 0)

    cdef Pool pool(self, int proto):
        return self.resp3 if proto == 3 else self.resp2

    def backends(self):
        """All its connections, leased ones and those still draining included."""
        return [*self.resp2.backends, *self.resp3.backends, *self.leases, *self.retired]

    def figures(self):
        """{role, up, usable, pending, connections: {state: n}, connect_failures, buckets, sum_s}."""
        connections = dict.fromkeys(STATE_NAMES, 0)
        pending = 0
        for b in self.backends():
            connections[STATE_NAMES[b.state]] += 1
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
