# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""What MONITOR shows: every command that clients have carried out, in Redis's format.

A Monitor stands in front of the dispatcher while somebody monitors, and nowhere else: a command costs nothing more when
nobody does. Its lines are gathered here and taken by worker.monitor some hundred times a second, for the monitors of
this worker and of the others.

What Redis does not show is not shown: commands that were refused before they were carried out, administration, and
passwords. A transaction's commands are shown with its EXEC. (replication.c, replicationFeedMonitors.)
"""
cimport cython

from libc.limits cimport INT_MAX
from libc.stdint cimport INT64_MAX, SIZE_MAX
from libc.stdio cimport snprintf
from libc.string cimport memcmp

from proxy.commands.lookup cimport (
    CLASS_REFUSED, CLASS_UNSERVED, CMD_KNOWN, CMD_MAY_REPLICATE, CMD_NO_AUTH, CMD_NO_MONITOR, CMD_NO_MULTI,
    CMD_READONLY, Command,
)
from proxy.forward.buffer cimport buffer_append, buffer_len, buffer_release
from proxy.forward.call cimport CALL_DONE, Call
from proxy.forward.client cimport Client
from proxy.forward.dispatch cimport Dispatch
from proxy.forward.ports cimport Outlet
from proxy.forward.queued cimport Queued
from proxy.resp.scanner cimport (
    SCAN_DONE, Arg, ArgVec, CommandScan, ScanLimits, args_free, args_grow, command_scan_reset, scan_command,
)

cdef extern from "Python.h":
    const char* PyUnicode_AsUTF8AndSize(object text, Py_ssize_t* size)

cdef extern from "strings.h" nogil:
    int strncasecmp(const char* a, const char* b, size_t n)

cdef extern from "<sys/time.h>" nogil:
    struct timeval:
        long tv_sec
        long tv_usec
    int gettimeofday(timeval* to, void* zone)

cdef enum:
    HELD_MOST = 4 << 20         # bytes of lines that wait to be taken: more are dropped
    LINE_MOST = 1 << 20         # ... and a command that is longer by itself
    HEAD = 64                   # room for a time, or a database

cdef const char* REPLICA = b"-ERR Replica can't interact with the keyspace\r\n"
cdef const char* REDACTED = b'"(redacted)"'
cdef const char* HEX = b"0123456789abcdef"
cdef enum:
    REPLICA_LEN = 47
    REDACTED_LEN = 12


@cython.final
cdef class Monitor(Dispatcher):
    """One per worker. See the module."""

    def __cinit__(self, DataPath path):
        self.path = path

    def __dealloc__(self):
        buffer_release(&self.lines)

    @property
    def active(self):
        """Whether commands are looked at."""
        return self.path.dispatcher is self

    def watch(self, bint wanted):
        """Commands from now on are shown, or are not."""
        if wanted and self.path.dispatcher is not self:
            self.inner = self.path.dispatcher if self.path.dispatcher is not None else Dispatch()
            self.path.dispatcher = self
        elif not wanted and self.path.dispatcher is self:
            self.path.dispatcher = self.inner
            self.inner = None
            buffer_release(&self.lines)
            self.count = 0

    def take(self):
        """(lines, how many) since it was called last: whole ones, each with its CRLF."""
        cdef bytes lines = self.lines.data[self.lines.start:self.lines.end]
        cdef uint32_t n = self.count
        buffer_release(&self.lines)
        self.count = 0
        return lines, n

    cdef int dispatch(self, Outlet outlet, Call* call) noexcept:
        cdef Client client = <Client> outlet
        cdef Buffer lines = Buffer(NULL, 0, 0, 0, NULL)
        cdef uint32_t n = 0
        cdef int result
        cdef bint fits = passes(client, call)
        if fits and client.monitoring and call.row.flags & (CMD_READONLY | CMD_MAY_REPLICATE):
            client.replies.say(call.row.metric, REPLICA, REPLICA_LEN)   # Redis takes a monitor for a replica
            return CALL_DONE
        if fits and not call.row.flags & CMD_NO_MONITOR and (client.transaction is None or is_at_once(call.row)):
            if client.transaction is not None and is_named(call.row, b"exec", 4):
                n = show_queued(client, &lines)
            show(client, call.row, call.frame, call.args, call.argc, &lines)    # the frame may be gone when it is done
            n += 1
        result = self.inner.dispatch(outlet, call)
        if result == CALL_DONE and n:
            self.keep(&lines, n)
        buffer_release(&lines)
        return result

    cdef void keep(self, const Buffer* lines, uint32_t n) noexcept:
        cdef size_t size = buffer_len(lines)
        if size == 0 or size + buffer_len(&self.lines) > HELD_MOST or not buffer_append(
            &self.lines, lines.data + lines.start, size
        ):
            self.dropped += n
        else:
            self.count += n


cdef inline bint is_named(const Command* row, const char* name, size_t n) noexcept nogil:
    return row.name_len == n and memcmp(row.name, name, n) == 0


cdef bint passes(Client client, const Call* call) noexcept nogil:
    """Whether it will be carried out, be it with an error as its result, or queued."""
    cdef const Command* row = call.row
    cdef int arity = row.arity
    return (
        row.flags & CMD_KNOWN
        and (call.argc == <size_t> arity if arity > 0 else call.argc >= <size_t> -arity)
        and row.klass != CLASS_REFUSED and row.klass != CLASS_UNSERVED
        and (client.authenticated or row.flags & CMD_NO_AUTH)
        and not (row.container and call.argc > 1)       # its subcommand is unknown
    )


cdef bint is_at_once(const Command* row) noexcept nogil:
    """Carried out, not queued, between MULTI and EXEC."""
    return not row.flags & CMD_NO_MULTI and (
        is_named(row, b"exec", 4) or is_named(row, b"discard", 7) or is_named(row, b"multi", 5)
        or is_named(row, b"watch", 5) or is_named(row, b"quit", 4) or is_named(row, b"reset", 5)
    )


cdef uint32_t show_queued(Client client, Buffer* to) noexcept:
    """The commands of a transaction that EXEC is about to carry out, in their order; how many."""
    cdef Queued queued = client.transaction
    cdef ArgVec args = ArgVec(NULL, 0, 0)
    cdef CommandScan scan
    cdef ScanLimits limits = ScanLimits(INT64_MAX, INT64_MAX, SIZE_MAX)
    cdef const char* at = queued.frames.data + queued.frames.start
    cdef size_t left = buffer_len(&queued.frames)
    cdef uint32_t n = 0
    cdef int place = 0, next_local = 0
    if queued.spoiled:
        return 0
    command_scan_reset(&scan)
    if left and scan_command(&scan, &args, at, left, &limits, True) == SCAN_DONE:
        at += scan.pos                      # MULTI
        left -= scan.pos
    for place in range(<int> queued.n):
        n += 1
        if next_local < len(queued.local) and queued.local[next_local][0] == place:
            show_words(client, queued.local[next_local][1], to)
            next_local += 1
            continue
        command_scan_reset(&scan)
        if scan_command(&scan, &args, at, left, &limits, True) != SCAN_DONE:
            break
        show(client, client.path.table.find(at, args.v, args.n), at, args.v, args.n, to)
        at += scan.pos
        left -= scan.pos
    args_free(&args)
    return n


cdef void show_words(Client client, list words, Buffer* to) noexcept:
    """A command that the proxy answers itself."""
    cdef ArgVec args = ArgVec(NULL, 0, 0)
    cdef bytes frame = b"".join(words)
    cdef size_t off = 0
    for word in words:
        if args.n == args.cap and not args_grow(&args):
            args_free(&args)
            return
        args.v[args.n].off = off
        args.v[args.n].len = len(<bytes> word)
        off += args.v[args.n].len
        args.n += 1
    show(client, client.path.table.find(frame, args.v, args.n), frame, args.v, args.n, to)
    args_free(&args)


cdef void show(
    Client client, const Command* row, const char* frame, const Arg* args, size_t n, Buffer* to
) noexcept:
    """One line; nothing (and so a dropped line) when it is longer than one may be."""
    cdef timeval now
    cdef char[HEAD] head
    cdef Py_ssize_t size = 0
    cdef const char* who = PyUnicode_AsUTF8AndSize(client.address, &size)
    cdef const char* word
    cdef size_t i, begun = to.end
    cdef int hidden = 0, db = client.db
    gettimeofday(&now, NULL)
    if not buffer_append(to, head, snprintf(head, HEAD, b"+%ld.%06ld [%d ", now.tv_sec, now.tv_usec, db)):
        return
    buffer_append(to, who, size)
    buffer_append(to, b"]", 1)
    for i in range(n):
        word = frame + args[i].off
        buffer_append(to, b" ", 1)
        if hidden:
            hidden -= 1
            buffer_append(to, REDACTED, REDACTED_LEN)
        else:
            quote(word, args[i].len, to)
            hidden = secrets_after(row, i, word, args[i].len)
        if to.end - begun > LINE_MOST:
            to.end = begun
            return
    buffer_append(to, b"\r\n", 2)


cdef int secrets_after(const Command* row, size_t place, const char* word, size_t n) noexcept nogil:
    """How many arguments behind this one nobody is to see."""
    if is_named(row, b"auth", 4):
        return INT_MAX if place == 0 else 0
    if is_named(row, b"hello", 5):
        return 2 if place >= 2 and n == 4 and strncasecmp(word, b"auth", 4) == 0 else 0
    if is_named(row, b"migrate", 7) and place >= 6:
        if n == 4 and strncasecmp(word, b"auth", 4) == 0:
            return 1
        return 2 if n == 5 and strncasecmp(word, b"auth2", 5) == 0 else 0
    return 0


cdef void quote(const char* p, size_t n, Buffer* to) noexcept nogil:
    """As sds.c sdscatrepr: printable ASCII as it is, C escapes, else \\xhh."""
    cdef size_t i, plain = 0
    cdef unsigned char c
    cdef char[4] escape
    cdef size_t size
    n = min(n, <size_t> LINE_MOST + 1)          # more makes the line too long anyhow
    buffer_append(to, b'"', 1)
    escape[0] = c"\\"
    for i in range(n):
        c = <unsigned char> p[i]
        if 32 <= c < 127 and c != c'"' and c != c"\\":
            continue
        buffer_append(to, p + plain, i - plain)
        plain = i + 1
        size = 2
        if c == c'"' or c == c"\\":
            escape[1] = c
        elif c == c"\n":
            escape[1] = c"n"
        elif c == c"\r":
            escape[1] = c"r"
        elif c == c"\t":
            escape[1] = c"t"
        elif c == 7:
            escape[1] = c"a"
        elif c == 8:
            escape[1] = c"b"
        else:
            escape[1] = c"x"
            escape[2] = HEX[c >> 4]
            escape[3] = HEX[c & 15]
            size = 4
        buffer_append(to, escape, size)
    buffer_append(to, p + plain, n - plain)
    buffer_append(to, b'"', 1)
