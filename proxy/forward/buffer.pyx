# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Byte buffers of the data path.

A `Buffer` belongs to exactly one peer or request, which calls `buffer_release` when it has nothing left to keep, so
that an idle connection holds no memory. Its capacity is counted where its owner says (`counted`). The first `BLOCK`
bytes come from a pool that keeps at most `POOL_MAX` free blocks; what grew beyond is handed back to the C library.
"""
from libc.stdint cimport SIZE_MAX, int64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, memmove

cdef extern from "malloc.h" nogil:
    int mallopt(int param, int value)
    int M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
    int malloc_trim(size_t pad)
    cdef struct mallinfo2_t "mallinfo2":
        size_t fordblks
    mallinfo2_t mallinfo2()

cdef enum:
    POOL_MAX = 256

# Large buffers come from mmap and really go back when freed. Left to itself glibc raises the threshold after the first
# large free, and what is freed later stays in the heap for good. Smaller ones stay mapped between commands, for handing
# them back each time costs a page fault per 4 KB (64 KB values took twice the CPU); `trim` does it now and then.
mallopt(M_MMAP_THRESHOLD, 2 << 20)
mallopt(M_TRIM_THRESHOLD, 64 << 20)

cdef enum:
    TRIM_FROM = 4 << 20


def trim():
    """Gives free heap memory back to the system when there is much of it; to be called every few seconds."""
    buffer_trim(TRIM_FROM)


cdef void buffer_trim(size_t most) noexcept nogil:
    """Gives free heap memory back to the system when there is more of it than that: some milliseconds for 100 MB."""
    if mallinfo2().fordblks > most:
        malloc_trim(0)


cdef char* pool[POOL_MAX]
cdef int pooled = 0


cdef char* _take() noexcept nogil:
    global pooled
    if pooled:
        pooled -= 1
        return pool[pooled]
    return <char*> malloc(BLOCK)


cdef void _give(char* data, size_t cap) noexcept nogil:
    global pooled
    if cap == BLOCK and pooled < POOL_MAX:
        pool[pooled] = data
        pooled += 1
    else:
        free(data)


cdef bint buffer_reserve(Buffer* b, size_t n) noexcept nogil:
    """Makes room for n more bytes after `end`; false when there is no memory, the buffer then being as before."""
    return buffer_reserve_within(b, n, SIZE_MAX)


cdef bint buffer_reserve_within(Buffer* b, size_t n, size_t most) noexcept nogil:
    """The same for a buffer that will most likely not come to more than `most` bytes: it gets no more than that ahead.

    Live bytes move to the front when that alone makes the room and costs no more than what was consumed, so that
    a window sliding through its buffer stays O(1) per byte.
    """
    cdef size_t live = b.end - b.start
    cdef size_t need = live + n
    cdef size_t cap
    cdef char* data
    if need < n:
        return False
    if b.cap - b.end >= n:
        return True
    if b.cap == 0 and need <= BLOCK:
        data = _take()
        if data == NULL:
            return False
        b.data = data
        b.cap = BLOCK
        b.start = b.end = 0
        if b.counted != NULL:
            b.counted[0] += BLOCK
        return True
    if need <= b.cap and b.start >= live:
        memcpy(b.data, b.data + b.start, live)
        b.start = 0
        b.end = live
        return True
    cap = grown(b.cap) if b.cap else BLOCK
    if cap < need:
        cap = need + (need >> 3)
    if cap > most:
        cap = most if most > need else need
    if b.cap > BLOCK:
        if b.start:
            memmove(b.data, b.data + b.start, live)
            b.start = 0
            b.end = live
        data = <char*> realloc(b.data, cap)
        if data == NULL:
            return False
    else:
        data = <char*> malloc(cap)
        if data == NULL:
            return False
        if live:
            memcpy(data, b.data + b.start, live)
        if b.cap:
            _give(b.data, b.cap)
        b.start = 0
        b.end = live
    if b.counted != NULL:
        b.counted[0] += <int64_t> cap - <int64_t> b.cap
    b.data = data
    b.cap = cap
    return True


cdef void buffer_release(Buffer* b) noexcept nogil:
    """Gives the memory back; the buffer is empty afterwards and may be used again."""
    if b.cap:
        if b.counted != NULL:
            b.counted[0] -= <int64_t> b.cap
        _give(b.data, b.cap)
    b.data = NULL
    b.start = b.end = b.cap = 0


cdef void buffer_shrink(Buffer* b) noexcept nogil:
    """Moves what is left of a once large content into a smaller allocation, when that frees three quarters or more."""
    cdef size_t live = b.end - b.start
    cdef size_t cap = live * 2 if live * 2 > BLOCK else BLOCK
    cdef char* data
    if live == 0:
        buffer_release(b)
        return
    if b.cap <= 4 * BLOCK or cap > b.cap // 4:
        return
    data = _take() if cap == BLOCK else <char*> malloc(cap)
    if data == NULL:
        return
    memcpy(data, b.data + b.start, live)
    free(b.data)
    if b.counted != NULL:
        b.counted[0] += <int64_t> cap - <int64_t> b.cap
    b.data = data
    b.start = 0
    b.end = live
    b.cap = cap
