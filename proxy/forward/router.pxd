"""Which backend serves a request: the slot table joined with the nodes' connections."""
from libc.stdint cimport uint32_t

from proxy.cluster.slot_table cimport SlotTable
from proxy.forward.connections cimport (
    CHOSEN, HOPELESS, LOST, PAUSED, UNCOVERED, UNKNOWN, WAIT, Choice, Connections,
)
from proxy.forward.node cimport (
    READS_ANY, READS_PREFER_PRIMARY, READS_PREFER_REPLICA, READS_PRIMARY, READS_REPLICA, Node, ReadPolicy, Shard,
)
from proxy.forward.request cimport Request

cdef class Router(Connections):
    cdef readonly SlotTable slots
    cdef readonly list shards       # slots.owner indexes it
    cdef dict numbered              # Node.number -> Node
    cdef readonly list primaries    # Nodes that own slots
    cdef bint headless              # slots are owned by a shard whose primary is not known
    cdef readonly bint known        # a topology has been published
    cdef uint32_t published         # topologies so far
    cdef dict asked_ns              # slot -> when ASK was last followed, while there are such clients
    cdef uint32_t served_by         # Node.number of the primary that anywhere() took last
    cdef void** direct              # Backends, borrowed: a shard's primary has no other connection; see Router.choose
    cdef int ndirect                # shards it has room for, two each
    cdef Node primary_of(self, int slot)
    cdef int choose(self, Request* r) noexcept
    cdef int find(self, Request* r) noexcept
    cdef void forget_direct(self) noexcept
    cdef uint32_t home(self, int slot) noexcept
    cdef bint in_vain(self, const Request* r) noexcept
    cdef int anywhere(self, Request* r) noexcept
    cdef int heir(self, Request* r) noexcept
    cdef bint moved(self, SlotTable slots, list shards)
    cdef void tell_missed(self) noexcept
    cdef void asked(self, Request* r) noexcept
    cdef void learn(self, int slot, Node node) noexcept
    cdef bint astray(self, Node node, Request* r) noexcept
    cdef bint elsewhere(self, Node node, Request* r) noexcept
    cdef void find_primaries(self)
    cdef void own(self, Node node)
    cdef void unsettle(self, Node node, bint everything) noexcept
    cdef void unsettle_slot(self, Node node, int slot) noexcept
    cdef void change_role(self, Node node, bint replica) noexcept
    cdef list replace(self, Node node)
    cdef void drop(self, Node node) noexcept
