# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The scanner for Python: bytes in, frames out; inline words and fault texts with it.

CommandReader is the server's side of a connection, ReplyReader the client's: for resp.decode, fake nodes, tests and
fuzzers. serve.responder calls fault_text.

Invariants: a reader hands out every whole frame exactly once and as it came; its buffer is a heap block of exactly the
bytes it holds, so that the address sanitizer sees a scan that reads one byte too many.
"""
from libc.stdint cimport int64_t, uint8_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy, memmove
from libc.time cimport CLOCKS_PER_SEC, clock, clock_t

from proxy.resp.inline cimport INLINE_NO_MEMORY, INLINE_UNBALANCED, InlineFrame, inline_command, inline_free
from proxy.resp.scanner cimport (
    FAULT_EXPECTED_DOLLAR,
    FAULT_NO_MEMORY,
    FAULT_UNBALANCED,
    SCAN_DONE,
    SCAN_ERROR,
    SCAN_INLINE,
    SCAN_MORE,
    Arg,
    ArgVec,
    CommandScan,
    ReplyScan,
    ScanLimits,
    args_free,
    command_scan_reset,
    reply_scan_reset,
    scan_command,
    scan_reply,
)

from proxy.resp.errors import ProtocolFault

cdef tuple FAULT_TEXTS = (
    b"", b"invalid multibulk length", b"invalid bulk length", b"expected '$', got '%c'", b"too big inline request",
    b"too big mbulk count string", b"too big bulk count string", b"unauthenticated multibulk length",
    b"unauthenticated bulk length", b"unbalanced quotes in request", b"", b"invalid CRLF in request")


def fault_text(int code, int got=0):
    """The whole error line for a CommandFault, as Redis words it; got: CommandScan.got.

    CR and LF become spaces as in addReplyErrorFormat; every other byte goes out raw.
    """
    if code == FAULT_NO_MEMORY:
        return b"-OOM out of memory for the arguments of a command\r\n"
    cdef bytes text = FAULT_TEXTS[code]
    if code == FAULT_EXPECTED_DOLLAR:
        text = text.replace(b"%c", b" " if got in (10, 13) else bytes((got & 0xFF,)))
    return b"-ERR Protocol error: " + text + b"\r\n"


def split_inline(bytes line not None):
    """An inline command's arguments (the line comes without its ending), None when its quotes do not balance."""
    cdef InlineFrame out = InlineFrame(NULL, 0, 0, ArgVec(NULL, 0, 0))
    cdef list words = []
    cdef int got = inline_command(line, len(line), &out)
    cdef Arg* arg
    try:
        if got == INLINE_NO_MEMORY:
            raise MemoryError
        for i in range(out.args.n):
            arg = &out.args.v[i]
            words.append(out.frame[arg.off:arg.off + arg.len])
        return None if got == INLINE_UNBALANCED else words
    finally:
        inline_free(&out)


cdef class CommandReader:
    """feed(bytes) -> [(frame, [argument, ...]), ...]: what a server reads from a client.

    Inline lines are split too; an empty one and `*0` give no arguments. Malformed input raises ProtocolFault with
    Redis's words, in the first feed that has no whole frame before it, and in every feed after that.
    """
    cdef CommandScan scan
    cdef ArgVec args
    cdef ScanLimits limits
    cdef char* data                 # exactly `n` bytes long, for the sanitizer's sake
    cdef size_t n
    cdef object fault
    cdef public bint authenticated

    def __cinit__(self, *, int64_t max_bulk=512 << 20, int64_t max_args=1 << 20, size_t max_inline=64 << 10,
                  bint authenticated=True):
        command_scan_reset(&self.scan)
        self.limits = ScanLimits(max_bulk, max_args, max_inline)
        self.authenticated = authenticated

    def __dealloc__(self):
        free(self.data)
        args_free(&self.args)

    def feed(self, const uint8_t[::1] more not None):
        cdef list frames = []
        cdef size_t start = 0, i
        cdef int got
        cdef const char* f
        self.data = keep(self.data, &self.n, 0, more)
        while self.fault is None:
            f = self.data + start
            got = scan_command(&self.scan, &self.args, f, self.n - start, &self.limits, self.authenticated)
            if got == SCAN_MORE:
                break
            if got == SCAN_ERROR:
                self.fault = ProtocolFault(fault_text(self.scan.error, self.scan.got))
                break
            if got == SCAN_INLINE:
                words = split_inline(f[:self.scan.line])
                if words is None:
                    self.fault = ProtocolFault(fault_text(FAULT_UNBALANCED))
                    break
            else:
                words = [f[self.args.v[i].off:self.args.v[i].off + self.args.v[i].len] for i in range(self.args.n)]
            frames.append((f[:self.scan.pos], words))
            start += self.scan.pos
            command_scan_reset(&self.scan)
        self.data = keep(self.data, &self.n, start, None)
        if self.fault is not None and not frames:
            raise self.fault
        return frames


cdef class ReplyReader:
    """feed(bytes) -> [(frame, kind, push), ...]: what a client reads from a server; kind is the type's letter.

    Malformed input raises ProtocolFault, in the first feed that has no whole frame before it, and in every one after.
    """
    cdef ReplyScan scan
    cdef char* data                 # exactly `n` bytes long, for the sanitizer's sake
    cdef size_t n
    cdef list parts                 # consumed bytes of the frame at hand
    cdef int64_t passed
    cdef object fault

    def __cinit__(self):
        reply_scan_reset(&self.scan)
        self.parts = []

    def __dealloc__(self):
        free(self.data)

    @property
    def kind(self):
        """Type letter of the frame at hand or, between frames, of the last one; empty while unknown."""
        return chr(self.scan.kind) if self.scan.kind else ""

    @property
    def taken(self):
        """Bytes passed since the reader was made: where in the stream a fault stands, or a partial token begins."""
        return self.passed

    def feed(self, const uint8_t[::1] more not None):
        cdef list frames = []
        cdef size_t start = 0, used = 0
        cdef int got
        self.data = keep(self.data, &self.n, 0, more)
        while self.fault is None:
            got = scan_reply(&self.scan, self.data + start, self.n - start, &used)
            self.passed += used
            if got == SCAN_ERROR:
                self.fault = ProtocolFault(b"-ERR Protocol error: malformed reply\r\n")
                break
            self.parts.append((self.data + start)[:used])
            start += used
            if got == SCAN_MORE:
                break
            frames.append((b"".join(self.parts), chr(self.scan.kind), bool(self.scan.push)))
            self.parts.clear()
        self.data = keep(self.data, &self.n, start, None)
        if self.fault is not None and not frames:
            raise self.fault
        return frames

    def rest(self):
        """The bytes of a frame that is not whole yet."""
        return b"".join(self.parts) + self.data[:self.n]


def split_frames(const uint8_t[::1] body not None):
    """The whole frames that follow each other in `body`, as a list; ProtocolFault when something else stands there.

    For replies with many elements: several times as fast as a ReplyReader, which takes bytes as they come.
    """
    cdef list frames = []
    cdef ReplyScan scan
    cdef const char* p = <const char*> &body[0] if body.shape[0] else NULL
    cdef size_t start = 0, used = 0, n = body.shape[0]
    while start < n:
        reply_scan_reset(&scan)
        if scan_reply(&scan, p + start, n - start, &used) != SCAN_DONE:
            raise ProtocolFault(b"-ERR Protocol error: malformed reply\r\n")
        frames.append(p[start:start + used])
        start += used
    return frames


def split_array(const uint8_t[::1] frame not None, places):
    """An array's frame in pieces: where the elements with these indexes, ascending, begin. [offset, ...].

    Of an index beyond the last element: the frame's end. ValueError when it is not one whole array.
    """
    cdef const char* p = <const char*> &frame[0] if frame.shape[0] else NULL
    cdef size_t n = frame.shape[0], at = 0, used = 0
    cdef int64_t index = 0, wanted
    cdef ReplyScan scan
    cdef list offsets = []
    while at < n and p[at] != c"\n":
        at += 1
    at += 1
    if n < 4 or p[0] != c"*" or at > n:
        raise ValueError("no array")
    for wanted in places:
        while index < wanted and at < n:
            reply_scan_reset(&scan)
            if scan_reply(&scan, p + at, n - at, &used) != SCAN_DONE:
                raise ValueError("no whole array")
            at += used
            index += 1
        offsets.append(at)
    return offsets


cdef char* keep(char* data, size_t* n, size_t start, const uint8_t[::1] more) except? NULL:
    """Drops `start` bytes in front, appends `more`, and leaves a block of exactly the size; NULL when empty."""
    cdef size_t extra = 0 if more is None else more.shape[0]
    cdef size_t rest = n[0] - start
    cdef char* out
    if start:
        memmove(data, data + start, rest)
    n[0] = rest
    if rest + extra == 0:
        free(data)
        return NULL
    if start == 0 and extra == 0:
        return data
    out = <char*>realloc(data, rest + extra)
    if out == NULL:
        raise MemoryError
    if extra:
        memcpy(out + rest, &more[0], extra)
    n[0] = rest + extra
    return out


def _bench(bytes frame not None, int64_t rounds, bint reply):
    """Nanoseconds one scan of `frame` takes, for tuning."""
    cdef CommandScan command
    cdef ReplyScan answer
    cdef ArgVec args = ArgVec(NULL, 0, 0)
    cdef ScanLimits limits = ScanLimits(512 << 20, 1 << 20, 64 << 10)
    cdef const char* p = frame
    cdef size_t n = len(frame), used = 0
    cdef int64_t _round
    cdef int good = 0
    cdef clock_t began = clock()
    reply_scan_reset(&answer)
    with nogil:
        for _round in range(rounds):
            if reply:
                good += scan_reply(&answer, p, n, &used) == SCAN_DONE
            else:
                command_scan_reset(&command)
                good += scan_command(&command, &args, p, n, &limits, True) == SCAN_DONE
    args_free(&args)
    assert good == rounds
    return (clock() - began) * 1e9 / CLOCKS_PER_SEC / rounds
