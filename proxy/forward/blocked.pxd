"""A blocking command under way."""
from libc.stdint cimport int64_t, uint32_t

from proxy.forward.leg cimport Command

cdef class Blocking(Command):
    cdef list legs
    cdef bint unblocking        # CLIENT UNBLOCK is under way
    cdef bint with_error
    cdef int64_t asked_ns       # since when
    cdef int64_t parted_ns      # since when it is to be over
    cdef uint32_t questions
    cdef uint32_t tries
    cdef list askers
    cdef bint begun(self) noexcept
    cdef void end(self) noexcept
    cdef void combine(self) noexcept
    cdef void ask_again(self) noexcept
    cdef void tell(self, bint hit) noexcept
