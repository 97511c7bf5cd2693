"""Which backend serves a request: the slot table joined with the nodes' connections."""
from libc.stdint cimport int64_t, uint32_t

from proxy.cluster.slot_table cimport SlotTable
from proxy.forward.backend cimport Backend
from proxy.forward.counters cimport Counters
from proxy.forward.node cimport Node, Pool, Shard
from proxy.forward.pipeline cimport BackendSettings
from proxy.forward.ports cimport PushPort, Recovery
from proxy.forward.reactor cimport Reactor
from proxy.forward.request cimport Request

cdef enum ReadPolicy:
    READS_PRIMARY = 0
    READS_PREFER_PRIMARY = 1
    READS_REPLICA = 2
    READS_PREFER_REPLICA = 3
    READS_ANY = 4

cdef enum Choice:
    CHOSEN = 0
    UNCOVERED = 1           # no shard owns the slot
    UNKNOWN = 2             # no topology yet
    WAIT = 3                # its node is down, or no replica is fit: try again a little later
    HOPELESS = 4            # its node has been down for longer than the failover deadline
    LOST = 5                # the one node or connection it may go to is gone

cdef class Router:
    cdef Reactor reactor
    cdef Counters counters
    cdef BackendSettings settings
    cdef readonly SlotTable slots
    cdef readonly list shards       # slots.owner indexes it
    cdef readonly dict nodes        # Address -> Node
    cdef dict numbered              # Node.number -> Node
    cdef readonly list primaries    # Nodes that own slots
    cdef bint headless              # slots are owned by a shard whose primary is not known
    cdef list retired               # Nodes that left the topology, their connections draining
    cdef readonly bint known        # a topology has been published
    cdef uint32_t published         # topologies so far
    cdef public int connections     # per node and protocol, of pools made from now on
    cdef public int64_t failover_ns
    cdef public object port
    cdef public PushPort pushes     # where pushes of nodes go; connections made before keep theirs
    cdef Recovery recovery
    cdef uint32_t served_by         # Node.number of the primary that anywhere() took last
    cdef void* chosen               # Backend, borrowed: by the last choose() that returned CHOSEN
    cdef void** direct              # Backends, borrowed: a shard's primary has no other connection; see Router.choose
    cdef int ndirect                # shards it has room for, two each
    cdef Node primary_of(self, int slot)
    cdef int choose(self, Request* r) noexcept
    cdef int find(self, Request* r) noexcept
    cdef void forget_direct(self) noexcept
    cdef uint32_t home(self, int slot) noexcept
    cdef int at(self, Node node, Request* r) noexcept
    cdef int anywhere(self, Request* r) noexcept
    cdef int heir(self, Request* r) noexcept
    cdef Node pick(self, Shard shard, Request* r)
    cdef Node least(self, Shard shard, Request* r, bint with_primary)
    cdef list fill(self, Node node, int proto, int db)
    cdef void trim(self, Pool pool) noexcept
    cdef void learn(self, int slot, Node node) noexcept
    cdef bint astray(self, Node node, Request* r) noexcept
    cdef void find_primaries(self)
    cdef void own(self, Node node)
    cdef void unsettle(self, Node node, bint everything) noexcept
    cdef void unsettle_slot(self, Node node, int slot) noexcept
    cdef void change_role(self, Node node, bint replica) noexcept
    cdef list replace(self, Node node)
    cdef void drop(self, Node node) noexcept
