"""The timeout of a blocking command."""
from libc.stdint cimport int64_t

from proxy.forward.call cimport Call
from proxy.forward.request cimport Request

cdef class Timeout:
    cdef bint in_ms
    cdef size_t at              # where it stands in the command's bytes
    cdef size_t length
    cdef int64_t timeout_ns     # 0 = for ever; -1 = not known, or not valid
    cdef int64_t until_ns
    cdef void find(self, Call* call, int64_t now)
    cdef bytes left(self, Request* r, int64_t now)
