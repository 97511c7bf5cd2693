"""Byte buffers of the data path: contiguous, growing, given back when empty."""
from libc.stdint cimport int64_t
from libc.string cimport memcpy

cdef enum:
    BLOCK = 16384               # the size every buffer starts with; blocks are pooled
    STEADY = 1 << 20            # from this size on what grows does so by a quarter, not by doubling

cdef struct Buffer:
    char* data                  # NULL while cap is 0
    size_t start                # first live byte
    size_t end                  # one past the last live byte
    size_t cap
    int64_t* counted            # where its capacity is counted (proxy.forward.account); NULL = nowhere

cdef bint buffer_reserve(Buffer* b, size_t n) noexcept nogil
cdef bint buffer_reserve_within(Buffer* b, size_t n, size_t most) noexcept nogil
cdef void buffer_trim(size_t most) noexcept nogil
cdef void buffer_release(Buffer* b) noexcept nogil
cdef void buffer_shrink(Buffer* b) noexcept nogil


cdef inline size_t grown(size_t cap) noexcept nogil:
    """The next capacity: reckoned in memory, much that is allocated and not used would close clients too early."""
    return cap * 2 if cap < STEADY else cap + (cap >> 2)


cdef inline size_t buffer_len(const Buffer* b) noexcept nogil:
    return b.end - b.start


cdef inline bint buffer_append(Buffer* b, const char* p, size_t n) noexcept nogil:
    if b.cap - b.end < n and not buffer_reserve(b, n):
        return False
    memcpy(b.data + b.end, p, n)
    b.end += n
    return True
