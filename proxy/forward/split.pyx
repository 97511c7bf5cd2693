# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""One command over many slots made several: MGET, MSET, DEL, UNLINK, EXISTS, TOUCH.

`split_plan` groups the keys by slot in one pass and writes one sub-command per slot, the elements copied as they came.
Called by dispatch; what becomes of the parts' replies is Gather's business.
"""
from libc.stdint cimport int16_t, int64_t, uint32_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy

from proxy.cluster.slot cimport SLOTS, key_slot
from proxy.forward.buffer cimport Buffer, buffer_release, buffer_reserve
from proxy.resp.encode cimport HEAD_MAX, put_head

cdef enum:
    KEEP_BYTES = 1 << 20        # a plan that grew beyond gives its memory back when it has been used
    KEEP_KEYS = 1 << 16

# Which part a slot belongs to in the plan at hand: valid where the stamp is the plan's number.
cdef uint32_t stamp[SLOTS]
cdef uint32_t part_at[SLOTS]
cdef uint32_t plans = 0

cdef inline size_t element_start(const Arg* args, uint32_t i) noexcept nogil:
    """Where argument i (not the first) begins with its `$n` head: right behind the one before."""
    return args[i - 1].off + args[i - 1].len + 2


cdef bint split_plan(Plan* plan, bint pairs, const char* frame, const Arg* args, const KeyList* keys) noexcept nogil:
    """Fills the plan; false when there is no memory. With one slot in all, nparts is 1 and no bytes are written.

    pairs: each key is followed by a value that goes with it.
    """
    global plans
    cdef size_t i, width, off
    cdef uint32_t key, p
    cdef int slot
    cdef Part* grown
    cdef Part* part
    cdef Buffer* out = &plan.bytes
    cdef int values = 1 if pairs else 0
    if keys.n > plan.part_of_cap:
        free(plan.part_of)
        plan.part_of_cap = 0
        plan.part_of = <uint32_t*> malloc(keys.n * sizeof(uint32_t))
        if plan.part_of == NULL:
            return False
        plan.part_of_cap = keys.n
    plans += 1
    if plans == 0:                          # wrapped: old stamps could be mistaken for new ones
        for i in range(SLOTS):
            stamp[i] = 0
        plans = 1
    plan.nparts = 0
    for i in range(keys.n):
        key = keys.v[i]
        slot = key_slot(frame + args[key].off, args[key].len)
        if stamp[slot] != plans:
            if plan.nparts == plan.cap:
                grown = <Part*> realloc(plan.parts, (plan.cap * 2 + 16) * sizeof(Part))
                if grown == NULL:
                    return False
                plan.parts = grown
                plan.cap = plan.cap * 2 + 16
            stamp[slot] = plans
            part_at[slot] = plan.nparts
            part = &plan.parts[plan.nparts]
            plan.nparts += 1
            part.slot = <int16_t> slot
            part.keys = 0
            part.len = 0
        p = part_at[slot]
        plan.part_of[i] = p
        plan.parts[p].keys += 1
        plan.parts[p].len += args[key + values].off + args[key + values].len + 2 - element_start(args, key)
    if plan.nparts == 1:
        return True
    # Where each part begins: its head and name first, then its elements; `len` becomes a cursor meanwhile.
    out.start = out.end = 0
    off = 0
    width = element_start(args, 1)          # bytes of the frame's own head and name
    for p in range(plan.nparts):
        part = &plan.parts[p]
        part.off = off
        off += HEAD_MAX + width + part.len
    if not buffer_reserve(out, off):
        return False
    for p in range(plan.nparts):
        part = &plan.parts[p]
        off = put_head(out.data + part.off, c"*", 1 + <int64_t> part.keys * (1 + values))
        i = head_length(frame)
        memcpy(out.data + part.off + off, frame + i, width - i)
        part.len = off + width - i
    for i in range(keys.n):
        key = keys.v[i]
        part = &plan.parts[plan.part_of[i]]
        off = element_start(args, key)
        width = args[key + values].off + args[key + values].len + 2 - off
        memcpy(out.data + part.off + part.len, frame + off, width)
        part.len += width
    return True


cdef inline size_t head_length(const char* frame) noexcept nogil:
    """Bytes of `*<n>\\r\\n`."""
    cdef size_t i = 0
    while frame[i] != c"\n":
        i += 1
    return i + 1


cdef void plan_trim(Plan* plan) noexcept nogil:
    """After use: what one large command needed is not kept for all time."""
    if plan.bytes.cap > KEEP_BYTES:
        buffer_release(&plan.bytes)
    if plan.part_of_cap > KEEP_KEYS:
        free(plan.part_of)
        plan.part_of = NULL
        plan.part_of_cap = 0


cdef void plan_free(Plan* plan) noexcept nogil:
    free(plan.parts)
    free(plan.part_of)
    buffer_release(&plan.bytes)
