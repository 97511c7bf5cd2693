# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""One command on its way.

States and who owns the struct:
  queued    in a backend's pairing queue (and its client's order, unless internal or a part)
  parked    in Retry's list, its bytes in `own`
  done      only in its client's order, its reply in `hold`
It is freed by whoever takes it out of the last of these. A client that leaves sets `client` to NULL and frees only
what is done; the rest is freed when its reply or its loss arrives.
"""
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, memset

cdef enum:
    SPARE_MAX = 4096        # freed structs kept for reuse

cdef Request* spare = NULL
cdef int spares = 0
cdef Py_ssize_t allocated = 0


def live():
    """Requests in use, of all data paths of the process: for tests, which see by it that each is given back."""
    return allocated - spares


cdef Request* request_new() noexcept nogil:
    """A cleared request, NULL when there is no memory."""
    global spare, spares, allocated
    cdef Request* r = spare
    if r != NULL:
        spare = r.bnext
        spares -= 1
    else:
        r = <Request*> malloc(sizeof(Request))
        if r == NULL:
            return NULL
        allocated += 1
    memset(r, 0, sizeof(Request) - SMALL)
    r.hold = r.small
    r.hold_cap = SMALL
    return r


cdef void request_free(Request* r) noexcept nogil:
    global spare, spares, allocated
    if r.own != NULL:
        free(r.own)
    if r.fault != NULL:
        free(r.fault)
    if r.hold != r.small:
        free(r.hold)
    if spares < SPARE_MAX:
        r.bnext = spare
        spare = r
        spares += 1
    else:
        free(r)
        allocated -= 1


cdef bint request_hold(Request* r, const char* p, size_t n) noexcept nogil:
    """Appends reply bytes to what is held back; false when there is no memory."""
    cdef size_t need = r.hold_len + n
    cdef size_t cap
    cdef char* data
    if need > r.hold_cap:
        cap = r.hold_cap * 2
        if cap < need:
            cap = need
        data = <char*> (malloc(cap) if r.hold == r.small else realloc(r.hold, cap))
        if data == NULL:
            return False
        if r.hold == r.small:
            memcpy(data, r.small, r.hold_len)
        r.hold = data
        r.hold_cap = cap
    memcpy(r.hold + r.hold_len, p, n)
    r.hold_len = need
    return True


cdef void request_unhold(Request* r) noexcept nogil:
    """Forgets the held reply bytes."""
    if r.hold != r.small:
        free(r.hold)
        r.hold = r.small
        r.hold_cap = SMALL
    r.hold_len = 0


cdef bint request_keep(Request* r, const char* p, size_t n) noexcept nogil:
    """Copies the command's bytes into the request itself, unless it has them already."""
    if r.own != NULL:
        return True
    r.own = <char*> malloc(n)
    if r.own == NULL:
        return False
    memcpy(r.own, p, n)
    r.len = n
    return True
