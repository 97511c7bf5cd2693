"""Commands over many slots: one sub-command per slot."""
from libc.stdint cimport int16_t, uint32_t

from proxy.commands.keys cimport KeyList
from proxy.forward.buffer cimport Buffer
from proxy.resp.scanner cimport Arg

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

cdef bint split_plan(Plan* plan, bint pairs, const char* frame, const Arg* args, const KeyList* keys) noexcept nogil
cdef void plan_trim(Plan* plan) noexcept nogil
cdef void plan_free(Plan* plan) noexcept nogil
