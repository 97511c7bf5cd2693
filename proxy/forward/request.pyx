# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""One command on its way.

A request has one owner at a time; `state` says which, and only `request_move` changes it:

    NEW -> QUEUED       sent (or to be sent) by a backend        QUEUED -> PAIRING     its reply, loss or timeout came
    NEW -> PARKED       waits for a better moment                PAIRING -> PARKED, QUEUED, ANSWERED
    NEW -> GATHERING    its parts are on their way               PARKED -> NEW         its time has come
    NEW -> ANSWERED     refused before it was sent               GATHERING -> ANSWERED
    NEW -> GHOST        stands in for a timed-out one that was sent
    NEW -> CANCELLED    ... of which nothing was sent            all but QUEUED -> FREE

A request whose client has left is not looked for: its `sink` is NULL (or says that it is not alive), and whoever owns
it frees it when its reply, its loss or its time comes. Besides its owner it may stand in its client's order of replies,
which ends (`sink` NULL) or answers it, and never frees what another one owns.

What it owns (a copy of its bytes, a fault, held reply bytes) is counted in its client's `account`, until the client has
left (`request_disown`).
"""
from libc.stdlib cimport abort, free, malloc, realloc
from libc.stdio cimport fprintf, stderr
from libc.string cimport memcpy, memset

from proxy.forward.account cimport charge
from proxy.forward.buffer cimport grown

cdef enum:
    SPARE_MAX = 8192        # freed structs kept for reuse

cdef Request* spare = NULL
cdef int spares = 0
cdef Py_ssize_t allocated = 0


def live():
    """Requests in use, of all data paths of the process: for tests, which see by it that each is given back."""
    return allocated - spares


cdef void request_init(Request* r) noexcept nogil:
    """Clears it: new, without a target, a sink or bytes."""
    memset(r, 0, sizeof(Request) - SMALL)
    r.hold = r.small
    r.hold_cap = SMALL


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
    request_init(r)
    return r


cdef Request* request_block(uint32_t n, size_t extra) noexcept nogil:
    """n cleared requests in one allocation, and `extra` bytes behind them; NULL when there is no memory."""
    global allocated
    cdef Request* block = <Request*> malloc(n * sizeof(Request) + extra)
    cdef uint32_t i
    if block == NULL:
        return NULL
    for i in range(n):
        request_init(&block[i])
        block[i].flags = REQ_EMBEDDED
    allocated += n
    return block


cdef void request_block_free(Request* block, uint32_t n) noexcept nogil:
    """Ends a block, each request of which has been freed."""
    global allocated
    free(block)
    allocated -= n


cdef void request_dispose(Request* r) noexcept nogil:
    """Gives back what it owns, not itself."""
    if r.own != NULL:
        request_forget(r)
    if r.fault != NULL:
        free(request_take_fault(r))
    request_unhold(r)


cdef void request_free(Request* r) noexcept nogil:
    """Ends it; one of a gather's block only gives back what it owns."""
    global spare, spares, allocated
    request_dispose(r)
    request_move(r, STATE_FREE)
    if r.flags & REQ_EMBEDDED:
        return
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
        cap = grown(r.hold_cap)
        if cap < need:
            cap = need
        data = <char*> (malloc(cap) if r.hold == r.small else realloc(r.hold, cap))
        if data == NULL:
            return False
        if r.hold == r.small:
            memcpy(data, r.small, r.hold_len)
        if r.account != NULL:
            charge(r.account, <int64_t> cap - (0 if r.hold == r.small else <int64_t> r.hold_cap))
        r.hold = data
        r.hold_cap = cap
    memcpy(r.hold + r.hold_len, p, n)
    r.hold_len = need
    return True


cdef void request_unhold(Request* r) noexcept nogil:
    """Forgets the held reply bytes."""
    if r.hold != r.small:
        if r.account != NULL:
            charge(r.account, -<int64_t> r.hold_cap)
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
    if r.account != NULL:
        charge(r.account, n)
    return True


cdef void request_forget(Request* r) noexcept nogil:
    """A window holds the command's bytes now: its own copy is not needed any more."""
    if r.own != NULL:
        if r.account != NULL:
            charge(r.account, -<int64_t> r.len)
        free(r.own)
        r.own = NULL


cdef void request_fault(Request* r, const char* p, size_t n) noexcept nogil:
    """Keeps an error line a server gave for it, in the place of an earlier one; none when there is no memory."""
    free(request_take_fault(r))
    r.fault_len = 0
    r.fault = <char*> malloc(n)
    if r.fault != NULL:
        memcpy(r.fault, p, n)
        r.fault_len = n
        if r.account != NULL:
            charge(r.account, n)


cdef char* request_take_fault(Request* r) noexcept nogil:
    """The error line it kept, r.fault_len bytes: the caller's to free. NULL when there is none."""
    cdef char* fault = r.fault
    if fault != NULL and r.account != NULL:
        charge(r.account, -<int64_t> r.fault_len)
    r.fault = NULL
    return fault


cdef void request_disown(Request* r) noexcept nogil:
    """Its client has left: what it owns is nobody's until it is freed."""
    cdef int64_t n = 0
    if r.own != NULL:
        n += <int64_t> r.len
    if r.fault != NULL:
        n += <int64_t> r.fault_len
    if r.hold != r.small:
        n += <int64_t> r.hold_cap
    if r.account != NULL:
        charge(r.account, -n)
    r.account = NULL


# -- sanitizer builds ------------------------------------------------------------------------------------------------

cdef uint16_t[STATES] MOVES
MOVES[<int> STATE_NEW] = (
    1 << STATE_QUEUED | 1 << STATE_PARKED | 1 << STATE_GATHERING | 1 << STATE_ANSWERED | 1 << STATE_GHOST
    | 1 << STATE_CANCELLED | 1 << STATE_FREE
)
MOVES[<int> STATE_QUEUED] = 1 << STATE_PAIRING
MOVES[<int> STATE_PAIRING] = 1 << STATE_QUEUED | 1 << STATE_PARKED | 1 << STATE_ANSWERED | 1 << STATE_FREE
MOVES[<int> STATE_PARKED] = 1 << STATE_NEW | 1 << STATE_FREE
MOVES[<int> STATE_GATHERING] = 1 << STATE_ANSWERED | 1 << STATE_FREE
MOVES[<int> STATE_ANSWERED] = 1 << STATE_FREE
MOVES[<int> STATE_GHOST] = 1 << STATE_FREE
MOVES[<int> STATE_CANCELLED] = 1 << STATE_FREE
MOVES[<int> STATE_FREE] = 0


cdef void request_check(Request* r, int to) noexcept nogil:
    if not MOVES[r.state] >> to & 1:
        fprintf(stderr, b"request %p: state %d must not become %d\n", <void*> r, <int> r.state, to)
        abort()
