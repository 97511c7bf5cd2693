"""Numbers as the wire format writes them, judged in place (inline C, no module behind it at run time).

Cimported by scanner for counts and lengths, by cluster.redirection for slots and ports, and by whoever reads a number
argument (numkeys, a cursor, a database index) the way Redis does.
"""
from libc.stdint cimport int64_t, uint8_t, uint64_t


cdef inline bint is_crlf(const char* p) noexcept nogil:
    return p[0] == c'\r' and p[1] == c'\n'


cdef inline bint string2ll(const char* p, size_t n, int64_t* out) noexcept nogil:
    """Redis's util.c string2ll: no sign but '-', no spaces, no leading zeros, no "-0", within int64."""
    cdef uint64_t v = 0
    cdef uint64_t limit = <uint64_t>0x7FFFFFFFFFFFFFFF
    cdef uint8_t d
    cdef bint negative = False
    cdef size_t i
    if n == 0 or n > 20:
        return False
    if p[0] == c'-':
        negative = True
        limit += 1
        p += 1
        n -= 1
        if n == 0 or p[0] == c'0':
            return False
    if p[0] == c'0' and n > 1:
        return False
    for i in range(n):
        d = <uint8_t>(p[i] - c'0')
        if d > 9 or v > (limit - d) // 10:
            return False
        v = v * 10 + d
    out[0] = <int64_t>(0 - v) if negative else <int64_t>v
    return True


cdef inline bint is_double(const char* p, size_t n) noexcept nogil:
    """The number grammar of RESP3, with inf and nan in any case."""
    cdef size_t i = 0, digits = 0
    if n and (p[0] == c'-' or p[0] == c'+'):
        i = 1
    if n - i == 3:
        if (p[i] | 32) == c'i' and (p[i + 1] | 32) == c'n' and (p[i + 2] | 32) == c'f':
            return p[0] != c'+'
        if (p[i] | 32) == c'n' and (p[i + 1] | 32) == c'a' and (p[i + 2] | 32) == c'n':
            return p[0] != c'+'
    while i < n and c'0' <= p[i] <= c'9':
        i += 1
        digits += 1
    if i < n and p[i] == c'.':
        i += 1
        while i < n and c'0' <= p[i] <= c'9':
            i += 1
            digits += 1
    if digits == 0:
        return False
    if i < n and (p[i] | 32) == c'e':
        i += 1
        if i < n and (p[i] == c'-' or p[i] == c'+'):
            i += 1
        digits = i
        while i < n and c'0' <= p[i] <= c'9':
            i += 1
        if i == digits:
            return False
    return i == n
