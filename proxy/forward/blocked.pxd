"""A blocking command under way."""
from libc.stdint cimport int64_t, uint32_t

from proxy.forward.leg cimport Command
from proxy.forward.node cimport Node

cdef class Blocking(Command):
    cdef list legs
    cdef bint unblocking        # CLIENT UNBLOCK is under way
    cdef bint with_error
    cdef bint suspending        # ... because its node is to be paused: it is begun again
    cdef int64_t asked_ns       # since when
    cdef int64_t parted_ns      # since when it is to be over
    cdef uint32_t questions
    cdef uint32_t tries
    cdef list askers
    cdef bint begun(self) noexcept
    cdef void end(self) noexcept
    cdef void suspend(self, Node node) noexcept
    cdef bint keep_on(self) noexcept
    cdef bytes nothing(self)
    cdef void combine(self) noexcept
    cdef void ask_again(self) noexcept
    cdef void tell(self, bint hit) noexcept
