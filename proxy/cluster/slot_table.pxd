"""Which shard owns each slot, as one flat C array the data path indexes."""
from libc.stdint cimport uint16_t

from proxy.cluster.slot cimport SLOTS

cdef enum:
    NO_SHARD = 0xFFFF

cdef class SlotTable:
    cdef uint16_t owner[SLOTS]      # shard index, NO_SHARD = not covered
    cdef readonly int covered       # slots with an owner
    cdef void set(self, int slot, int shard) noexcept nogil
