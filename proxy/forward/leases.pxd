"""Connections that one client owns for a while."""
from libc.stdint cimport int64_t, uint32_t, uint64_t

from proxy.forward.backend cimport Backend
from proxy.forward.node cimport Node
from proxy.forward.router cimport Router

cdef class Leases:
    cdef Router router
    cdef public uint32_t most               # per node, protocol and database
    cdef public uint32_t all_most           # of all together: what the limit of descriptors leaves for them
    cdef public int64_t idle_ns             # after which one that nobody uses is closed
    cdef dict idle                          # (Node.number, proto, db) -> Backends that were given back
    cdef readonly uint64_t refused          # times that there was none to be had
    cdef readonly uint64_t tracking_refused  # times that there was no room for a client that tracks
    cdef uint32_t listed(self) noexcept
    cdef uint32_t open(self) noexcept
    cdef uint32_t tracking(self) noexcept
    cdef uint32_t reduce(self, uint32_t most) noexcept
    cdef bint room_for_tracking(self)
    cdef Backend take(self, Node node, int proto, int db)
    cdef void give(self, Backend lease, bint watching) noexcept
    cdef bint unwatch(self, Backend lease) noexcept
