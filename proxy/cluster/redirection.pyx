# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""A server's error line read as what it means for routing.

forward.retry calls parse_redirection for every error reply; Python code has parse. The lines are those of
clusterRedirectClient in Redis's cluster.c: `-MOVED <slot> <host>:<port>` and `-ASK ...`, where the host may be empty or
`?` (endpoint unknown: the address the command went to), a name, an IPv4 address, or an IPv6 address without brackets,
so that the last colon parts host and port. Brackets are taken off for those who put them.

Invariants: host points into the line and holds neither spaces nor control characters; slot and port are in range.
"""
from libc.stdint cimport int64_t
from libc.string cimport memchr, memcmp

from proxy.cluster.slot cimport SLOTS
from proxy.resp.number cimport string2ll


cdef inline bint says(const char* line, size_t n, const char* word, size_t length) noexcept nogil:
    """The line is `-word`, and then a space or its end."""
    cdef char after
    if n < length + 1 or memcmp(line + 1, word, length) != 0:
        return False
    if n == length + 1:
        return True
    after = line[length + 1]
    return after == c' ' or after == c'\r'


cdef bint read_target(const char* p, const char* end, Redirection* out) noexcept nogil:
    """`<slot> <host>:<port>`, up to a space, a CR or the end."""
    cdef const char* q = <const char*>memchr(p, c' ', end - p)
    cdef const char* colon = NULL
    cdef int64_t value = 0
    if q == NULL or not string2ll(p, q - p, &value) or not 0 <= value < SLOTS:
        return False
    out.slot = <int>value
    p = q + 1
    q = p
    while q < end and q[0] != c' ' and q[0] != c'\r':
        if <unsigned char>q[0] <= 32 or q[0] == 127:
            return False
        if q[0] == c':':
            colon = q
        q += 1
    if colon == NULL or not string2ll(colon + 1, q - colon - 1, &value) or not 0 < value < 65536:
        return False
    out.port = <int>value
    if colon - p >= 2 and p[0] == c'[' and (colon - 1)[0] == c']':
        p += 1
        out.host_len = colon - p - 1
    else:
        out.host_len = colon - p
    out.host = p
    if out.host_len == 1 and p[0] == c'?':
        out.host_len = 0
    return True


cdef int parse_redirection(const char* line, size_t n, Redirection* out) noexcept nogil:
    cdef size_t skip
    out.kind = REDIR_NONE
    out.slot = -1
    out.host = NULL
    out.host_len = 0
    out.port = 0
    if n < 5 or line[0] != c'-':
        return REDIR_NONE
    # The first letter tells most errors of the client's own (ERR, WRONGTYPE) apart at once.
    if line[1] == c'M' and says(line, n, b"MOVED", 5):
        out.kind = REDIR_MOVED
        skip = 7
    elif line[1] == c'A' and says(line, n, b"ASK", 3):
        out.kind = REDIR_ASK
        skip = 5
    else:
        if line[1] == c'T' and says(line, n, b"TRYAGAIN", 8):
            out.kind = REDIR_TRYAGAIN
        elif line[1] == c'C' and says(line, n, b"CLUSTERDOWN", 11):
            out.kind = REDIR_CLUSTERDOWN
        elif line[1] == c'L' and says(line, n, b"LOADING", 7):
            out.kind = REDIR_LOADING
        elif line[1] == c'R' and says(line, n, b"READONLY", 8):
            out.kind = REDIR_READONLY
        elif line[1] == c'M' and says(line, n, b"MASTERDOWN", 10):
            out.kind = REDIR_MASTERDOWN
        return out.kind
    if skip >= n or line[skip - 1] != c' ' or not read_target(line + skip, line + n, out):
        out.kind = REDIR_NONE
        out.host_len = 0
    return out.kind


cdef dict NAMES = {
    REDIR_MOVED: "MOVED",
    REDIR_ASK: "ASK",
    REDIR_TRYAGAIN: "TRYAGAIN",
    REDIR_CLUSTERDOWN: "CLUSTERDOWN",
    REDIR_LOADING: "LOADING",
    REDIR_READONLY: "READONLY",
    REDIR_MASTERDOWN: "MASTERDOWN",
}


def parse(const unsigned char[::1] line not None):
    """(kind, slot, host, port) of an error frame, None for an ordinary error.

    kind is the error's first word; slot is -1, host empty and port 0 where the error names none. An empty host stands
    for the address the command was sent to.
    """
    cdef Redirection r
    cdef size_t n = line.shape[0]
    if n == 0 or parse_redirection(<const char*>&line[0], n, &r) == REDIR_NONE:
        return None
    return NAMES[r.kind], r.slot, r.host[:r.host_len].decode("utf-8", "replace") if r.host_len else "", r.port
