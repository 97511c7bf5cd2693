"""The bound on what all clients together may hold."""
from libc.stdint cimport int64_t

from proxy.forward.client cimport Client
from proxy.forward.datapath cimport DataPath
from proxy.forward.reactor cimport Peer

cdef class MemoryGuard(Peer):
    cdef DataPath path
    cdef list stopped               # clients that are not read; some may have been closed since
    cdef Client trying              # one of them that is read for a while, or None
    cdef Py_ssize_t place           # its place among them
    cdef int64_t average            # of all clients when they were last looked at
    cdef int64_t trim_ns            # when the heap may be trimmed again
    cdef int64_t look_ns            # when the clients may be looked at again, at the limit
    cdef object again               # the timer for that, or None
    cdef object timer               # None while nobody has been stopped lately
    cdef object _next
    cdef object _later
    cdef void look(self, int64_t limit, int64_t stop_from) noexcept
    cdef void trim(self, int64_t limit) noexcept
    cdef void stop(self, Client client) noexcept
    cdef void go_on_all(self) noexcept
