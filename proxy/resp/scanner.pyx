# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Where frames begin and end: the wire format's hot half, without copying or decoding.

Called per command by forward.client (scan_command) and per reply by forward.backend (scan_reply); proxy.resp.readers
wraps the same code for Python: resp.decode, fake nodes, tests, fuzzers.

Invariants
* No byte outside [frame, frame + n) or [data, data + n) is read.
* The outcome does not depend on how the stream was cut: bytes given at once or one by one make the same frames and
  faults. A fault is therefore decided by a fixed prefix of the stream, never by what else lies in the buffer.
* Nothing passed is looked at again, but for the digits of the partial count line at hand.
* No recursion, and memory only for arguments that were really seen, whatever counts are announced.

CommandScan, from reset: count line (want -1) -> per argument: header (bulk -1) -> body (bulk >= 0) -> SCAN_DONE.
ReplyScan: between frames (pending 0, depth 0) -> value (body -1) <-> bulk body (body >= 0) -> between frames.

What is a valid command is decided as in processMultibulkBuffer and processInlineBuffer of networking.c, with two
exceptions. The
two bytes after a line's or an argument's end must be CRLF: Redis skips them, Valkey closes, and others share the
connection. And lines are searched up to max_inline bytes only.
"""
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memchr, memcmp

from proxy.resp.number cimport is_crlf, is_double, string2ll

cdef enum:
    ARGS_MIN = 16                   # first size of an argument vector
    UNAUTH_ARGS = 10                # networking.c: limits before AUTH
    UNAUTH_BULK = 16384
    LINE_PASS = 8192                # a simple string, error or big number is passed in pieces from this length on
    NUMBER_MAX = 325                # a double's text (hiredis's limit)

cdef int64_t BULK_MAX = <int64_t>1 << 32            # one bulk in a reply: beyond any value a server holds
cdef int64_t COUNT_MAX = (<int64_t>1 << 32) - 1     # announced elements (hiredis's limit)
cdef int64_t PENDING_MAX = <int64_t>1 << 62


# ---- commands

cdef void command_scan_reset(CommandScan* s) noexcept nogil:
    s.pos = 0
    s.searched = 0
    s.want = -1
    s.bulk = -1
    s.line = 0
    s.error = FAULT_NONE
    s.got = 0


cdef void args_free(ArgVec* args) noexcept nogil:
    free(args.v)
    args.v = NULL
    args.n = 0
    args.cap = 0


cdef bint args_grow(ArgVec* args) noexcept nogil:
    cdef size_t cap = args.cap * 2 if args.cap else ARGS_MIN
    cdef Arg* v = <Arg*>realloc(args.v, cap * sizeof(Arg))
    if v == NULL:
        return False
    args.v = v
    args.cap = cap
    return True


cdef int fault(CommandScan* s, int code) noexcept nogil:
    s.error = code
    return SCAN_ERROR


cdef int count_line(CommandScan* s, const char* frame, size_t n, const ScanLimits* limits, int too_big,
                    int64_t* value, bint* valid) noexcept nogil:
    """The line at s.pos, a type byte and a number: SCAN_DONE with s.pos moved past it, else SCAN_MORE or SCAN_ERROR."""
    cdef size_t window = n - s.pos
    cdef const char* p = frame + s.pos
    cdef const char* cr
    cdef size_t length
    if window > limits.max_inline + 1:
        window = limits.max_inline + 1
    cr = <const char*>memchr(p + s.searched, c'\r', window - s.searched)
    if cr == NULL:
        s.searched = window
        return fault(s, too_big) if window > limits.max_inline else SCAN_MORE
    length = cr - p
    if s.pos + length + 2 > n:
        s.searched = length
        return SCAN_MORE
    s.searched = 0
    if cr[1] != c'\n':
        return fault(s, FAULT_CRLF)
    if too_big == FAULT_BIG_BULK_COUNT and p[0] != c'$':
        s.got = p[0]
        return fault(s, FAULT_EXPECTED_DOLLAR)
    valid[0] = length > 0 and string2ll(p + 1, length - 1, value)
    s.pos += length + 2
    return SCAN_DONE


cdef int scan_inline(CommandScan* s, const char* frame, size_t n, const ScanLimits* limits) noexcept nogil:
    cdef size_t window = n if n <= limits.max_inline else limits.max_inline + 1
    cdef const char* nl = <const char*>memchr(frame + s.searched, c'\n', window - s.searched)
    if nl == NULL:
        s.searched = window
        return fault(s, FAULT_BIG_INLINE) if window > limits.max_inline else SCAN_MORE
    s.line = nl - frame
    s.pos = s.line + 1
    if s.line and frame[s.line - 1] == c'\r':
        s.line -= 1
    return SCAN_INLINE


cdef int scan_command(CommandScan* s, ArgVec* args, const char* frame, size_t n, const ScanLimits* limits,
                      bint authenticated) noexcept nogil:
    cdef const char* h
    cdef size_t pos, left, off
    cdef int64_t want, bulk
    cdef uint8_t d, e
    cdef bint valid = False
    cdef int got
    if s.want < 0:
        if s.pos == 0:
            args.n = 0
        if n == 0:
            return SCAN_MORE
        if frame[0] != c'*':
            return scan_inline(s, frame, n, limits)
        d = <uint8_t>(frame[1] - c'0') if n >= 4 else 255
        if d <= 9 and is_crlf(frame + 2):
            want = d
            s.pos = 4
            s.searched = 0
        else:
            want = 0
            got = count_line(s, frame, n, limits, FAULT_BIG_MULTIBULK_COUNT, &want, &valid)
            if got != SCAN_DONE:
                return got
            if not valid:
                return fault(s, FAULT_MULTIBULK_LENGTH)
        if want > limits.max_args:
            return fault(s, FAULT_MULTIBULK_LENGTH)
        if want > UNAUTH_ARGS and not authenticated:
            return fault(s, FAULT_UNAUTH_MULTIBULK)
        s.want = want if want > 0 else 0
    want = s.want
    pos = s.pos
    bulk = s.bulk
    while want > 0:
        if bulk < 0:
            left = n - pos
            h = frame + pos
            # One and two digits cover command names, most keys and flags.
            if left >= 5 and h[0] == c'$':
                d = <uint8_t>(h[1] - c'0')
                e = <uint8_t>(h[2] - c'0')
                if d <= 9:
                    if is_crlf(h + 2):
                        bulk = d
                        off = pos + 4
                    elif e <= 9 and d != 0 and is_crlf(h + 3):
                        bulk = d * 10 + e
                        off = pos + 5
            if bulk >= 0:
                s.searched = 0
            else:
                s.pos = pos
                s.want = want
                s.bulk = -1
                if left == 0:
                    return SCAN_MORE
                got = count_line(s, frame, n, limits, FAULT_BIG_BULK_COUNT, &bulk, &valid)
                if got != SCAN_DONE:
                    return got
                if not valid or bulk < 0:
                    return fault(s, FAULT_BULK_LENGTH)
                off = s.pos
            if bulk > limits.max_bulk:
                return fault(s, FAULT_BULK_LENGTH)
            if bulk > UNAUTH_BULK and not authenticated:
                return fault(s, FAULT_UNAUTH_BULK)
            pos = off
        left = n - pos
        if left < 2 or <int64_t>(left - 2) < bulk:
            s.pos = pos
            s.want = want
            s.bulk = bulk
            return SCAN_MORE
        if not is_crlf(frame + pos + bulk):
            return fault(s, FAULT_CRLF)
        if args.n == args.cap and not args_grow(args):
            return fault(s, FAULT_NO_MEMORY)
        args.v[args.n].off = pos
        args.v[args.n].len = <size_t>bulk
        args.n += 1
        pos += <size_t>bulk + 2
        bulk = -1
        want -= 1
    s.pos = pos
    s.want = 0
    s.bulk = -1
    return SCAN_DONE


# ---- replies

cdef void reply_scan_reset(ReplyScan* s) noexcept nogil:
    s.pending = 0
    s.body = -1
    s.searched = 0
    s.kind = 0
    s.push = 0
    s.attributes = 0
    s.in_chunk = 0
    s.in_line = 0
    s.depth = 0


cdef inline int number_line(const char** at, const char* end, int64_t* value) noexcept nogil:
    """A type byte, a number as string2ll takes it and CRLF: moves `at` past them, or leaves it."""
    cdef const char* first = at[0] + 1
    cdef const char* q = first
    cdef uint64_t v = 0
    cdef uint8_t d
    if q < end and q[0] == c'-':
        q += 1
    while q < end:
        d = <uint8_t>(q[0] - c'0')
        if d > 9:
            break
        v = v * 10 + d
        q += 1
    if q == end:
        return SCAN_MORE if q - first <= 20 else SCAN_ERROR
    if q[0] != c'\r':
        return SCAN_ERROR
    if q + 1 == end:
        return SCAN_MORE
    if q[1] != c'\n':
        return SCAN_ERROR
    if first[0] >= c'1' and q - first <= 18:
        value[0] = <int64_t>v
    elif not string2ll(first, q - first, value):
        return SCAN_ERROR
    at[0] = q + 2
    return SCAN_DONE


cdef int text_line(ReplyScan* s, const char** at, const char* end) noexcept nogil:
    """A line of text: + - ( , # _ by their first byte. Moves `at` past it, or leaves it."""
    cdef const char* p = at[0] + 1
    cdef uint8_t kind = <uint8_t>at[0][0]
    cdef size_t limit = <size_t> -1
    cdef size_t n = end - p
    cdef const char* cr = <const char*>memchr(p + s.searched, c'\r', n - s.searched)
    if kind == c',' or kind == c'#' or kind == c'_':
        limit = NUMBER_MAX
    if cr != NULL:
        n = cr - p
    if n > limit:
        return SCAN_ERROR
    if cr == NULL or cr + 1 == end:
        s.searched = n
        if n >= LINE_PASS:                      # scripts make lines of any length, and numbers of any text
            if kind != c'(' and memchr(p, c'\n', n) != NULL:
                return SCAN_ERROR
            s.in_line = kind
            s.searched = 0
            at[0] = p + n
        return SCAN_MORE
    s.searched = 0
    if cr[1] != c'\n':
        return SCAN_ERROR
    if kind == c'+' or kind == c'-':
        # A line feed in a simple line can only be the middle of something else: servers replace them.
        if memchr(p, c'\n', n) != NULL:
            return SCAN_ERROR
    elif kind == c'_':
        if n:
            return SCAN_ERROR
    elif kind == c'#':
        if n != 1 or ((p[0] | 32) != c't' and (p[0] | 32) != c'f'):
            return SCAN_ERROR
    elif kind == c',' and not is_double(p, n):
        return SCAN_ERROR
    at[0] = cr + 2
    return SCAN_DONE


cdef int pass_line(ReplyScan* s, const char** at, const char* end) noexcept nogil:
    """What is there of a long line, and its CRLF once both bytes are."""
    cdef const char* p = at[0]
    cdef const char* cr = <const char*>memchr(p, c'\r', end - p)
    cdef const char* stop = cr if cr != NULL else end
    if s.in_line != c'(' and memchr(p, c'\n', stop - p) != NULL:
        return SCAN_ERROR
    at[0] = stop
    if cr == NULL or cr + 1 == end:
        return SCAN_MORE
    if cr[1] != c'\n':
        return SCAN_ERROR
    at[0] = cr + 2
    s.in_line = 0
    return SCAN_DONE


cdef int pass_body(ReplyScan* s, const char** at, const char* end) noexcept nogil:
    """What is there of a bulk's body, and its CRLF once both bytes are."""
    cdef const char* p = at[0]
    if end - p < s.body:
        s.body -= end - p
        at[0] = end
        return SCAN_MORE
    p += s.body
    s.body = 0
    at[0] = p
    if p == end:
        return SCAN_MORE
    if p[0] != c'\r':
        return SCAN_ERROR
    if p + 1 == end:
        return SCAN_MORE
    if p[1] != c'\n':
        return SCAN_ERROR
    at[0] = p + 2
    s.body = -1
    return SCAN_DONE


cdef int chunk_head(ReplyScan* s, const char** at, const char* end) noexcept nogil:
    """`;<n>` before a chunk of a streamed string; `;0` ends it and with it the value (s.pending)."""
    cdef int64_t v = 0
    cdef const char* q = at[0]
    cdef int got = number_line(&q, end, &v) if q[0] == c';' else SCAN_ERROR
    if got != SCAN_DONE:
        return got
    if v < 0 or v > BULK_MAX:
        return SCAN_ERROR
    at[0] = q
    if v:
        s.body = v
    else:
        s.in_chunk = 0
        s.pending -= 1
    return SCAN_DONE


cdef int stream_begin(ReplyScan* s, const char** at, const char* end) noexcept nogil:
    """`$?` `*?` `~?` `%?`: a string or an aggregate of unknown length; s.pending becomes that of its level."""
    cdef const char* p = at[0]
    cdef Py_ssize_t n = min(end - p, 4)
    cdef bint level = s.depth < REPLY_STREAM_DEPTH and (p[0] == c'*' or p[0] == c'~' or p[0] == c'%')
    if memcmp(p + 1, b"?\r\n", n - 1) != 0 or not (level or p[0] == c'$'):
        return SCAN_ERROR
    if n < 4:
        return SCAN_MORE
    if level:
        s.stack[s.depth] = -s.pending if p[0] == c'%' else s.pending
        s.depth += 1
        s.pending = 0
    else:
        s.in_chunk = 1
    at[0] = p + 4
    return SCAN_DONE


cdef int stream_end(ReplyScan* s, const char** at, const char* end) noexcept nogil:
    """`.`: the innermost streamed aggregate is whole; s.pending becomes that of the level around it."""
    cdef const char* p = at[0]
    cdef Py_ssize_t n = min(end - p, 3)
    if memcmp(p, b".\r\n", n) != 0:
        return SCAN_ERROR
    if n < 3:
        return SCAN_MORE
    s.depth -= 1
    s.pending = s.stack[s.depth] - 1 if s.stack[s.depth] > 0 else -s.stack[s.depth] - 1
    at[0] = p + 3
    return SCAN_DONE


cdef int scan_reply(ReplyScan* s, const char* data, size_t n, size_t* used) noexcept nogil:
    cdef const char* p = data               # the first byte not consumed
    cdef const char* end = data + n
    cdef const char* q
    cdef const char* t                      # q for what is not inlined: its address must not escape
    cdef int64_t pending = s.pending        # at a streamed level: 0 between two elements
    cdef int64_t v = 0
    cdef char c
    cdef int got
    if pending == 0 and s.depth == 0 and n:
        s.kind = 0
        s.push = 0
        s.attributes = 0
        pending = 1
    while True:
        if s.body >= 0:
            t = p
            got = pass_body(s, &t, end)
            p = t
            if got == SCAN_DONE and not s.in_chunk:
                pending -= 1
        elif p == end:
            got = SCAN_MORE
        elif s.in_line:
            t = p
            got = pass_line(s, &t, end)
            p = t
            if got == SCAN_DONE:
                pending -= 1
        elif s.in_chunk or (pending == 0 and p[0] == c'.'):
            t = p
            s.pending = pending
            got = chunk_head(s, &t, end) if s.in_chunk else stream_end(s, &t, end)
            pending = s.pending
            p = t
        else:
            c = p[0]
            q = p
            if pending == 0:                # a streamed map (negative in the stack) has pairs
                pending = 2 if s.stack[s.depth - 1] < 0 else 1
            if s.kind == 0 and pending == 1 and s.depth == 0:
                s.attributes = c == c'|'
                if not s.attributes:
                    s.kind = <uint8_t>c
                    s.push = c == c'>'
            if c == c'$' or c == c'=' or c == c'!':
                got = number_line(&q, end, &v)
                if got == SCAN_DONE:
                    if v > BULK_MAX or v < -1:
                        got = SCAN_ERROR
                    elif v == -1:
                        p = q
                        pending -= 1
                    elif c == c'=' and (v < 4 or (end - q >= 4 and q[3] != c':')):
                        got = SCAN_ERROR
                    elif c == c'=' and end - q < 4:
                        got = SCAN_MORE     # the format and its colon are judged before the body is passed on
                    elif end - q - 2 >= v:
                        if is_crlf(q + v):
                            p = q + v + 2
                            pending -= 1
                        else:
                            got = SCAN_ERROR
                    else:
                        p = q
                        s.body = v
            elif c == c':':
                got = number_line(&q, end, &v)
                if got == SCAN_DONE:
                    p = q
                    pending -= 1
            elif c == c'+' and end - p >= 5 and memcmp(p, b"+OK\r\n", 5) == 0:
                got = SCAN_DONE
                p += 5
                pending -= 1
                s.searched = 0
            elif c == c'*' or c == c'%' or c == c'~' or c == c'>' or c == c'|':
                got = number_line(&q, end, &v)
                if got == SCAN_DONE:
                    if v > COUNT_MAX or v < -1 or (v == -1 and c == c'|') or pending > PENDING_MAX:
                        got = SCAN_ERROR
                    else:
                        p = q
                        if v == -1:
                            pending -= 1
                        elif c == c'%':
                            pending += 2 * v - 1
                        elif c == c'|':
                            pending += 2 * v    # stands before a value and is none itself
                        else:
                            pending += v - 1
            elif c == c'+' or c == c'-' or c == c'_' or c == c'#' or c == c',' or c == c'(':
                t = p
                got = text_line(s, &t, end)
                if got == SCAN_DONE:
                    p = t
                    pending -= 1
                elif s.in_line:
                    p = t
            else:
                got = SCAN_ERROR
            # Every branch has left p at the value it refuses.
            if got == SCAN_ERROR and end - p >= 2 and p[1] == c'?':
                t = p
                s.pending = pending
                got = stream_begin(s, &t, end)
                pending = s.pending
                p = t
        if got != SCAN_DONE or (pending == 0 and s.depth == 0):
            break
    s.pending = pending
    used[0] = p - data
    return got
