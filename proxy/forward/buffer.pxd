"""Byte buffers of the data path: contiguous, growing, given back when empty."""
from libc.string cimport memcpy

cdef enum:
    BLOCK = 16384               # the size every buffer starts with; blocks are pooled

cdef struct Buffer:
    char* data                  # NULL while cap is 0
    size_t start                # first live byte
    size_t end                  # one past the last live byte
    size_t cap

cdef bint buffer_reserve(Buffer* b, size_t n) noexcept nogil
cdef void buffer_release(Buffer* b) noexcept nogil
cdef void buffer_shrink(Buffer* b) noexcept nogil


cdef inline size_t buffer_len(const Buffer* b) noexcept nogil:
    return b.end - b.start


cdef inline bint buffer_append(Buffer* b, const char* p, size_t n) noexcept nogil:
    if b.cap - b.end < n and not buffer_reserve(b, n):
        return False
    memcpy(b.data + b.end, p, n)
    b.end += n
    return True
