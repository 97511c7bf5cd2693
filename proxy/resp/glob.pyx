# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Redis's glob patterns, to the letter of stringmatchlen (util.c), in bounded time.

Why: SCAN enumerates slots in ways in which a server cannot apply MATCH, and events of the keyspace come to patterns
that no node has subscribed for them, so the proxy has to. Called by serve.scan_page, serve.pubsub_view and
forward.topics.

A pattern is compiled once into steps: one byte, any byte, one byte of a set, or a star. Only the last star is ever
returned to: when what follows it fits nowhere, a longer match of an earlier star cannot help (skipLongerMatches). A
match takes no more steps than the lengths of pattern and key multiplied; who asks gives a budget of steps.

What is peculiar, as there: an empty key is matched by the empty pattern only; a set without its end goes on to the end
of the pattern; the ends of a range may stand in either order, and are signed bytes; a backslash at the end is itself.
"""
cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

cdef enum:
    STEP_STAR = -1
    STEP_ANY = -2
    STEP_SET = -256         # and below: STEP_SET - n is the set n


@cython.final
cdef class Glob:
    """Glob(pattern); MemoryError when there is none for it."""
    def __cinit__(self, bytes pattern not None):
        cdef Py_ssize_t size = PyBytes_GET_SIZE(pattern)
        self.steps = <int*> malloc((size + 1) * sizeof(int))
        # A set takes at least two bytes of the pattern, but for one at its end.
        self.sets = <uint8_t*> malloc((pattern.count(b"[") + 1) * 32)
        if self.steps == NULL or self.sets == NULL:
            raise MemoryError
        self.compile(PyBytes_AS_STRING(pattern), size)

    def __dealloc__(self):
        free(self.steps)
        free(self.sets)

    cdef void compile(self, const char* p, Py_ssize_t size) noexcept:
        cdef Py_ssize_t i = 0
        cdef int nsets = 0
        while i < size:
            if p[i] == c"*":
                if self.n == 0 or self.steps[self.n - 1] != STEP_STAR:
                    self.steps[self.n] = STEP_STAR
                    self.n += 1
            elif p[i] == c"?":
                self.steps[self.n] = STEP_ANY
                self.n += 1
            elif p[i] == c"[":
                i = self.compile_set(p, size, i + 1, self.sets + 32 * nsets)
                self.steps[self.n] = STEP_SET - nsets
                self.n += 1
                nsets += 1
            else:
                if p[i] == c"\\" and i + 1 < size:
                    i += 1
                self.steps[self.n] = <uint8_t> p[i]
                self.n += 1
            i += 1

    cdef Py_ssize_t compile_set(self, const char* p, Py_ssize_t size, Py_ssize_t i, uint8_t* bits) noexcept:
        """From behind the `[`; returns where its `]` is, or the pattern's last byte."""
        cdef bint negated = i < size and p[i] == c"^"
        cdef int low, high, c
        memset(bits, 0, 32)
        if negated:
            i += 1
        while i < size and p[i] != c"]":
            if p[i] == c"\\" and i + 1 < size:
                i += 1
                low = high = p[i]
            elif i + 2 < size and p[i + 1] == c"-":
                low, high = p[i], p[i + 2]
                i += 2
                if low > high:
                    low, high = high, low
            else:
                low = high = p[i]
            for c in range(low, high + 1):
                bits[(c & 255) >> 3] |= <uint8_t> (1 << (c & 7))
            i += 1
        if negated:
            for c in range(32):
                bits[c] = <uint8_t> ~bits[c]
        return i if i < size else size - 1

    cdef int64_t match(self, const char* key, Py_ssize_t size, int64_t budget) noexcept:
        """1, 0, or -1 when it takes more steps than the budget; steps taken are added to `taken`."""
        cdef Py_ssize_t at = 0, i = 0, star = -1, from_ = 0
        cdef int step
        cdef uint8_t byte
        if size == 0:
            return self.n == 0
        while i < size:
            self.taken += 1
            if self.taken > budget:
                return -1
            if at < self.n:
                step = self.steps[at]
                if step == STEP_STAR:
                    at += 1
                    if at == self.n:
                        return 1
                    star = at
                    from_ = i
                    continue
                byte = <uint8_t> key[i]
                if step == byte or step == STEP_ANY or (
                    step <= STEP_SET and self.sets[32 * (STEP_SET - step) + (byte >> 3)] & (1 << (byte & 7))
                ):
                    at += 1
                    i += 1
                    continue
            if star < 0:
                return 0
            at = star
            from_ += 1
            i = from_
        while at < self.n and self.steps[at] == STEP_STAR:
            at += 1
        return at == self.n

    def matching(self, list keys not None, int64_t budget):
        """The keys that match, in order; None when that takes more steps than the budget."""
        cdef list out = []
        cdef bytes key
        cdef int64_t got
        self.taken = 0
        for key in keys:
            got = self.match(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key), budget)
            if got < 0:
                return None
            if got:
                out.append(key)
        return out


def literal_prefix(bytes pattern not None):
    """What every name begins with that the pattern fits, and whether that is all of the pattern."""
    cdef bytearray literal = bytearray()
    cdef Py_ssize_t at = 0, size = PyBytes_GET_SIZE(pattern)
    cdef const char* p = PyBytes_AS_STRING(pattern)
    while at < size:
        if p[at] in (c"*", c"?", c"["):
            return bytes(literal), False
        if p[at] == c"\\" and at + 1 < size:
            at += 1
        literal.append(<uint8_t> p[at])
        at += 1
    return bytes(literal), True
