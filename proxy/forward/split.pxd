"""Commands over many slots: one part per slot, and one answer from the parts."""
from libc.stdint cimport int16_t, uint32_t

from proxy.commands.keys cimport KeyList
from proxy.forward.buffer cimport Buffer
from proxy.forward.request cimport Request, Split
from proxy.resp.scanner cimport Arg

cdef enum SplitKind:
    SPLIT_MGET = 0          # an array: elements put back into the order of the keys
    SPLIT_MSET = 1          # +OK
    SPLIT_SUM = 2           # an integer: the sum

cdef struct Part:
    int16_t slot
    uint32_t keys
    size_t off              # of its command in Plan.bytes
    size_t len

cdef struct Plan:           # reused from command to command
    Part* parts
    uint32_t nparts
    uint32_t cap
    uint32_t* part_of       # per key, in the order of the keys
    size_t part_of_cap
    Buffer bytes

cdef bint split_plan(Plan* plan, int kind, const char* frame, const Arg* args, const KeyList* keys) noexcept nogil
cdef Split* split_new(const Plan* plan, int kind, const KeyList* keys) noexcept nogil
cdef size_t split_weight(const Split* s) noexcept nogil
cdef void split_free(Split* s) noexcept nogil
cdef bint split_assemble(Split* s, Buffer* out, bint* error) noexcept nogil
