"""What MONITOR shows: every command that clients have carried out, in Redis's format."""
from libc.stdint cimport uint32_t, uint64_t

from proxy.forward.buffer cimport Buffer
from proxy.forward.call cimport Dispatcher
from proxy.forward.datapath cimport DataPath

cdef class Monitor(Dispatcher):
    cdef DataPath path
    cdef Dispatcher inner               # does the work
    cdef Buffer lines                   # of what was carried out since they were taken last
    cdef readonly uint32_t count        # of them
    cdef readonly uint64_t dropped      # lines there was no room for
    cdef void keep(self, const Buffer* lines, uint32_t n) noexcept
