# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Commands over many slots: MGET, MSET, DEL, UNLINK, EXISTS, TOUCH.

`split_plan` groups the keys by slot in one pass and writes one sub-command per slot, the elements copied as they came;
`split_assemble` makes one reply of the parts' replies: elements back in the order of the keys, sums, or +OK. A failed
part fails the whole answer with that part's own error: never a silent nil or 0 (FIELD: Predixy).
"""
from libc.stdint cimport int16_t, int64_t, uint32_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcpy

from proxy.cluster.slot cimport SLOTS, key_slot
from proxy.forward.buffer cimport Buffer, buffer_append, buffer_reserve
from proxy.forward.request cimport request_free
from proxy.resp.encode cimport HEAD_MAX, put_head
from proxy.resp.scanner cimport SCAN_DONE, ReplyScan, reply_scan_reset, scan_reply

# Which part a slot belongs to in the plan at hand: valid where the stamp is the plan's number.
cdef uint32_t stamp[SLOTS]
cdef uint32_t part_at[SLOTS]
cdef uint32_t plans = 0

cdef const char* BAD_PART = b"-ERR a node answered part of this command in an unexpected form\r\n"
cdef enum:
    BAD_PART_LEN = 65


cdef inline size_t element_start(const Arg* args, uint32_t i) noexcept nogil:
    """Where argument i (not the first) begins with its `$n` head: right behind the one before."""
    return args[i - 1].off + args[i - 1].len + 2


cdef bint split_plan(Plan* plan, int kind, const char* frame, const Arg* args, const KeyList* keys) noexcept nogil:
    """Fills the plan; false when there is no memory. With one slot in all, nparts is 1 and no bytes are written."""
    global plans
    cdef size_t i, width, off
    cdef uint32_t key, p
    cdef int slot
    cdef Part* grown
    cdef Part* part
    cdef Buffer* out = &plan.bytes
    cdef int values = 1 if kind == SPLIT_MSET else 0
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


cdef Split* split_new(const Plan* plan, int kind, const KeyList* keys) noexcept nogil:
    """What is needed to put the answer together; NULL when there is no memory. The caller fills `parts`."""
    cdef Split* s = <Split*> calloc(1, sizeof(Split))
    if s == NULL:
        return NULL
    s.kind = kind
    s.nkeys = <uint32_t> keys.n
    s.nparts = s.left = plan.nparts
    s.parts = <Request**> calloc(plan.nparts, sizeof(Request*))
    if kind == SPLIT_MGET:
        s.part_of = <uint32_t*> malloc(keys.n * sizeof(uint32_t))
        if s.part_of != NULL:
            memcpy(s.part_of, plan.part_of, keys.n * sizeof(uint32_t))
    if s.parts == NULL or (kind == SPLIT_MGET and s.part_of == NULL):
        split_free(s)
        return NULL
    return s


cdef void split_free(Split* s) noexcept nogil:
    """Frees it with the parts, all of which must have been answered."""
    cdef uint32_t i
    if s.parts != NULL:
        for i in range(s.nparts):
            if s.parts[i] != NULL:
                request_free(s.parts[i])
    free(s.parts)
    free(s.part_of)
    free(s)


cdef size_t split_weight(const Split* s) noexcept nogil:
    """Reply bytes held in the parts."""
    cdef size_t total = 0
    cdef uint32_t i
    for i in range(s.nparts):
        total += s.parts[i].hold_len
    return total


cdef bint bad_part(Buffer* out, bint* error) noexcept nogil:
    error[0] = True
    out.end = out.start
    return buffer_append(out, BAD_PART, BAD_PART_LEN)


cdef bint split_assemble(Split* s, Buffer* out, bint* error) noexcept nogil:
    """Appends the one reply to out (empty before); false when there is no memory. error: the reply is an error."""
    cdef uint32_t i
    cdef Request* part
    error[0] = False
    for i in range(s.nparts):
        part = s.parts[i]
        if part.hold_len and part.hold[0] == c"-":
            error[0] = True
            return buffer_append(out, part.hold, part.hold_len)
    if s.kind == SPLIT_MSET:
        return buffer_append(out, s.parts[0].hold, s.parts[0].hold_len)
    if s.kind == SPLIT_SUM:
        return assemble_sum(s, out, error)
    return assemble_array(s, out, error)


cdef bint assemble_sum(Split* s, Buffer* out, bint* error) noexcept nogil:
    cdef int64_t total = 0, value
    cdef uint32_t i
    cdef size_t k
    cdef Request* part
    for i in range(s.nparts):
        part = s.parts[i]
        if part.hold_len < 4 or part.hold[0] != c":":
            return bad_part(out, error)
        value = 0
        k = 1
        while c"0" <= part.hold[k] <= c"9":
            value = value * 10 + (part.hold[k] - c"0")
            k += 1
        if part.hold[k] != c"\r" or k == 1:
            return bad_part(out, error)
        total += value
    if not buffer_reserve(out, HEAD_MAX):
        return False
    out.end += put_head(out.data + out.end, c":", total)
    return True


cdef bint assemble_array(Split* s, Buffer* out, bint* error) noexcept nogil:
    """One element per key: each part's elements stand in the order of its keys, so one cursor a part is enough."""
    cdef uint32_t i
    cdef size_t used = 0, total = HEAD_MAX
    cdef Request* part
    cdef ReplyScan scan
    for i in range(s.nparts):
        part = s.parts[i]
        if part.hold_len < 4 or part.hold[0] != c"*":
            return bad_part(out, error)
        total += part.hold_len
        part.pos = head_length(part.hold)   # its stream position is of no use any more: the cursor
    if not buffer_reserve(out, total):
        return False
    out.end += put_head(out.data + out.end, c"*", s.nkeys)
    for i in range(s.nkeys):
        part = s.parts[s.part_of[i]]
        reply_scan_reset(&scan)
        if part.pos >= part.hold_len or scan_reply(
            &scan, part.hold + part.pos, part.hold_len - part.pos, &used
        ) != SCAN_DONE:
            return bad_part(out, error)
        memcpy(out.data + out.end, part.hold + part.pos, used)
        out.end += used
        part.pos += used
    return True
