"""The connections to the nodes: shared, leased, and clients' own."""
from libc.stdint cimport int64_t, uint32_t

from proxy.forward.backend cimport Backend
from proxy.forward.counters cimport Counters
from proxy.forward.node cimport Node, Pool
from proxy.forward.pipeline cimport BackendSettings
from proxy.forward.ports cimport Owner, PushPort, Recovery
from proxy.forward.reactor cimport Reactor
from proxy.forward.request cimport Request

cdef enum Choice:
    CHOSEN = 0
    UNCOVERED = 1           # no shard owns the slot
    UNKNOWN = 2             # no topology yet
    WAIT = 3                # its node is down, or no replica is fit: try again a little later
    HOPELESS = 4            # its node has been down for longer than the failover deadline
    LOST = 5                # the one node or connection it may go to is gone
    PAUSED = 6              # its node is paused: until that is over

cdef class Connections:
    cdef Reactor reactor
    cdef Counters counters
    cdef BackendSettings settings
    cdef readonly dict nodes        # Address -> Node
    cdef list retired               # Nodes that left the topology, their connections draining
    cdef public int connections     # per node and protocol, of pools made from now on
    cdef public int64_t failover_ns
    cdef public object port
    cdef public PushPort pushes     # where pushes of nodes go; connections made before keep theirs
    cdef Recovery recovery
    cdef dict trackers              # clients with connections of their own: number -> Owner
    cdef int last_number
    cdef void* chosen               # Backend, borrowed: by the last choose() that returned CHOSEN
    cdef int at(self, Node node, Request* r) noexcept
    cdef int shared(self, Node node, int proto, int db, uint32_t affinity) noexcept
    cdef int at_own(self, Node node, Request* r) noexcept
    cdef Backend own_backend(self, Node node, int number)
    cdef int enter(self, Owner owner)
    cdef void leave(self, int number) noexcept
    cdef list fill(self, Node node, int proto, int db)
    cdef list empty(self, Node node, list pools)
    cdef void trim(self, Pool pool) noexcept
