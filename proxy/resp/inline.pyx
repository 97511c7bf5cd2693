# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Inline commands (`PING\\r\\n`, as typed into telnet) split into words and written as RESP frames.

Why: a client may send inline commands only, also before it is authenticated, so a line must not cost more than a
command in RESP. Called by forward.client for each SCAN_INLINE; proxy.resp.readers has the same for Python.

The words are exactly those of sdssplitargs in Redis's sds.c: a NUL ends the line, \\v and \\f separate arguments
only where they are before one, a closing quote must be followed by a space or the end.

How: the words are unescaped one after the other into the frame's own buffer. They take at most as many bytes as the
line. Then they are moved to their places, from the last to the first, and each gets its header. Because of the headers
before it, the place of a word in the frame is never before its place in the row of bare words. So no word is
overwritten before it has been moved, and the buffer needs no more than the larger of line and frame.

Invariants: no byte outside line[0:n] is read; no loop runs longer than the line; nothing is written before the buffer
is known to be large enough for all of it.
"""
from libc.stdint cimport int64_t, uint8_t
from libc.stdlib cimport free, realloc
from libc.string cimport memchr, memmove
from libc.time cimport CLOCKS_PER_SEC, clock, clock_t

from proxy.resp.scanner cimport Arg, ArgVec, args_free, args_grow

cdef enum:
    ROOM = 512          # a buffer's size is a multiple of this


cdef inline int hex_digit(uint8_t c) noexcept nogil:
    if c'0' <= c <= c'9':
        return c - c'0'
    c |= 32
    return c - 87 if c'a' <= c <= c'f' else -1


cdef inline bint is_space(uint8_t c) noexcept nogil:
    # isspace() in the C locale, which is the one servers run in.
    return c == 32 or 9 <= c <= 13


cdef inline uint8_t escaped(uint8_t c) noexcept nogil:
    # What stands for \c between double quotes.
    if c == c'n':
        return 10
    if c == c'r':
        return 13
    if c == c't':
        return 9
    if c == c'b':
        return 8
    if c == c'a':
        return 7
    return c


cdef inline size_t digits_of(size_t v) noexcept nogil:
    cdef size_t n = 1
    while v >= 10:
        v //= 10
        n += 1
    return n


cdef inline char* write_number(char* end, size_t v) noexcept nogil:
    """`v` and CRLF, ending before `end`; returns where they begin."""
    end -= 2
    end[0] = c'\r'
    end[1] = c'\n'
    while True:
        end -= 1
        end[0] = <char>(c'0' + v % 10)
        v //= 10
        if v == 0:
            return end


cdef bint reserve(InlineFrame* out, size_t want) noexcept nogil:
    cdef char* room
    if want <= out.cap:
        return True
    want = (want + ROOM - 1) // ROOM * ROOM
    room = <char*>realloc(out.frame, want)
    if room == NULL:
        return False
    out.frame = room
    out.cap = want
    return True


cdef inline int next_word(const uint8_t** at, const uint8_t* end, uint8_t** to) noexcept nogil:
    """One word from `at`, which stands on its first byte: INLINE_OK with both pointers behind it."""
    cdef const uint8_t* p = at[0]
    cdef uint8_t* q = to[0]
    cdef uint8_t c, quote = 0
    while p < end:
        c = p[0]
        if quote == 0:
            if c == 32 or c == 10 or c == 13 or c == 9:
                break
            if c == c'"' or c == c"'":
                quote = c
                p += 1
                continue
        elif c == quote:
            p += 1
            if p < end and not is_space(p[0]):
                return INLINE_UNBALANCED
            quote = 0
            break
        elif c == c'\\' and p + 1 < end:
            if quote == c'"':
                if p[1] == c'x' and end - p >= 4 and hex_digit(p[2]) >= 0 and hex_digit(p[3]) >= 0:
                    c = <uint8_t>(hex_digit(p[2]) * 16 + hex_digit(p[3]))
                    p += 3
                else:
                    p += 1
                    c = escaped(p[0])
            elif p[1] == c"'":
                p += 1
                c = p[0]
        q[0] = c
        q += 1
        p += 1
    if quote != 0:
        return INLINE_UNBALANCED
    at[0] = p
    to[0] = q
    return INLINE_OK


cdef bint spread(InlineFrame* out) noexcept nogil:
    """The words that lie one behind the other made into a frame."""
    cdef size_t words = out.args.n
    cdef size_t whole = 3 + digits_of(words)
    cdef size_t i
    cdef Arg* arg
    cdef char* end
    for i in range(words):
        whole += out.args.v[i].len + 5 + digits_of(out.args.v[i].len)
    if not reserve(out, whole):
        return False
    out.len = whole
    end = out.frame + whole
    i = words
    while i > 0:
        i -= 1
        arg = &out.args.v[i]
        end -= 2
        end[0] = c'\r'
        end[1] = c'\n'
        end -= arg.len
        memmove(end, out.frame + arg.off, arg.len)
        arg.off = end - out.frame
        end = write_number(end, arg.len) - 1
        end[0] = c'$'
    end = write_number(end, words) - 1
    end[0] = c'*'
    return True


cdef int inline_command(const char* line, size_t n, InlineFrame* out) noexcept nogil:
    cdef const uint8_t* p = <const uint8_t*>line
    cdef const uint8_t* end
    cdef uint8_t* to
    cdef uint8_t* word
    out.len = 0
    out.args.n = 0
    if n == 0:
        return INLINE_EMPTY
    end = <const uint8_t*>memchr(p, 0, n)
    if end == NULL:
        end = p + n
    if not reserve(out, end - p):
        return INLINE_NO_MEMORY
    to = <uint8_t*>out.frame
    while True:
        while p < end and is_space(p[0]):
            p += 1
        if p == end:
            break
        if out.args.n == out.args.cap and not args_grow(&out.args):
            out.args.n = 0
            return INLINE_NO_MEMORY
        word = to
        if next_word(&p, end, &to) != INLINE_OK:
            out.args.n = 0
            return INLINE_UNBALANCED
        out.args.v[out.args.n].off = word - <uint8_t*>out.frame
        out.args.v[out.args.n].len = to - word
        out.args.n += 1
    if out.args.n == 0:
        return INLINE_EMPTY
    if not spread(out):
        out.args.n = 0
        return INLINE_NO_MEMORY
    return INLINE_OK


cdef void inline_trim(InlineFrame* out) noexcept nogil:
    if out.cap + out.args.cap * sizeof(Arg) > INLINE_KEEP:
        inline_free(out)


cdef void inline_free(InlineFrame* out) noexcept nogil:
    free(out.frame)
    out.frame = NULL
    out.len = 0
    out.cap = 0
    args_free(&out.args)


cdef class InlineSplitter:
    """One InlineFrame for Python: tests and fuzzers."""
    cdef InlineFrame out

    def __dealloc__(self):
        inline_free(&self.out)

    def split(self, const uint8_t[::1] line not None):
        """(frame, arguments) of a line without its ending; (b"", []) for a blank one, None for unbalanced quotes."""
        cdef size_t n = line.shape[0]
        cdef int got = inline_command(<const char*>&line[0] if n else NULL, n, &self.out)
        cdef Arg* arg
        if got == INLINE_NO_MEMORY:
            raise MemoryError
        if got == INLINE_UNBALANCED:
            return None
        words = []
        for i in range(self.out.args.n):
            arg = &self.out.args.v[i]
            words.append(self.out.frame[arg.off:arg.off + arg.len])
        return self.out.frame[:self.out.len] if self.out.len else b"", words

    def trim(self):
        inline_trim(&self.out)

    @property
    def held(self):
        """Bytes of memory it keeps from line to line."""
        return self.out.cap + self.out.args.cap * sizeof(Arg)


def _bench(bytes line not None, int64_t rounds):
    """Nanoseconds one inline_command of `line` takes, for tuning."""
    cdef InlineFrame out = InlineFrame(NULL, 0, 0, ArgVec(NULL, 0, 0))
    cdef const char* p = line
    cdef size_t n = len(line)
    cdef int64_t _round
    cdef size_t good = 0
    cdef clock_t began = clock()
    with nogil:
        for _round in range(rounds):
            good += inline_command(p, n, &out) == INLINE_OK
    inline_free(&out)
    assert good == <size_t>rounds
    return (clock() - began) * 1e9 / CLOCKS_PER_SEC / rounds
