# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""One reply made of many.

A command with parts has a place in its client's order (the parent) and a Gather, the sink of its parts: it holds their
replies until the last has come, has them combined into one, and delivers that for the parent. With one part it is a
transform of that part's reply. Made by dispatch, for split commands and for what proxy.serve asks of several nodes.

A failed part fails the whole answer with that part's own error: never a silent nil or 0 (FIELD: Predixy). What
proxy.serve makes of the replies may also be a further round of parts for the same parent (Rounds).

Lifetime: the parts lie in one block; they and the gather live until the last part is answered, whether anybody waits
for the reply or not. What is held for a client that has left is freed at once, what comes later is dropped.
"""
cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport SIZE_MAX, int64_t, uint32_t
from libc.string cimport memcpy

from proxy.forward.account cimport charge
from proxy.forward.buffer cimport Buffer, buffer_append, buffer_release, buffer_reserve
from proxy.forward.counters cimport count_error
from proxy.forward.ports cimport Outlet
from proxy.forward.reactor cimport monotonic_ns
from proxy.forward.request cimport (
    REQ_ERROR, STATE_ANSWERED, STATE_GATHERING, request_block, request_block_free, request_disown, request_free,
    request_hold, request_move, request_unhold,
)
from proxy.resp.encode cimport HEAD_MAX, put_head
from proxy.resp.scanner cimport SCAN_DONE, ReplyScan, reply_scan_reset, scan_reply

cdef const char* BAD_PART = b"-ERR a node answered part of this command in an unexpected form\r\n"
cdef const char* NO_MEMORY = b"-OOM the proxy is out of memory\r\n"
cdef const char* TOO_MUCH = b"-ERR the nodes' replies to this command are together too long\r\n"
cdef const char* RAISED = b"-ERR internal error\r\n"
cdef enum:
    BAD_PART_LEN = 65
    NO_MEMORY_LEN = 33
    RAISED_LEN = 21
    TOO_MUCH_LEN = 63
    SCRATCH_KEEP = 65536

cdef Buffer scratch             # replies whose turn has not come are made here, one at a time


cdef class Rounds:
    """Who sends a further round; proxy.forward.ask has the one there is."""

    cdef bint again(self, Gather g, object made) noexcept:
        return False


@cython.final
@cython.no_gc
cdef class Gather(Sink):
    """See the module. States: begun (parent set) -> complete, or forsaken (parent NULL) -> let go."""

    cdef void deliver(self, Request* r, const char* p, size_t n, bint final, bint error) noexcept:
        if self.parent != NULL and n and self.held + n > self.most:
            self.too_much()
        elif self.parent != NULL and n:
            r.size += n
            if request_hold(r, p, n):
                self.held += n
                self.replies.weigh(<ssize_t> n)     # may close the client, which forsakes this
            else:
                self.no_memory = True
        if final:
            if error:
                r.flags |= REQ_ERROR
            self.part_answered(r)

    cdef void too_much(self) noexcept:
        """More than is held for one command: nothing of it counts any more."""
        cdef uint32_t i
        self.most = 0
        self.replies.weigh(-<ssize_t> self.held)
        self.held = 0
        for i in range(self.nparts):
            request_unhold(&self.parts[i])

    cdef void part_answered(self, Request* part) noexcept:
        request_move(part, STATE_ANSWERED)
        self.missing -= 1
        if self.missing == 0:
            self.complete()

    cdef void withdraw(self, Request* r) noexcept:
        if self.parent != NULL and r.hold_len:
            self.held -= r.hold_len
            self.replies.weigh(-<ssize_t> r.hold_len)
        r.size = 0
        request_unhold(r)

    cdef bint alive(self) noexcept:
        return self.parent != NULL

    cdef bint has_begun(self) noexcept:
        return self.missing != self.nparts

    cdef void unsettle(self) noexcept:
        if self.parent != NULL:
            self.replies.unsettle()

    cdef void forsake(self) noexcept:
        """The client has left, or is about to be closed: gives back its place and all that is held."""
        cdef uint32_t i
        request_free(self.parent)
        self.parent = NULL
        charge(&self.replies.account, -<ssize_t> self.size)
        for i in range(self.nparts):
            request_unhold(&self.parts[i])
            request_disown(&self.parts[i])

    cdef void complete(self) noexcept:
        """The last part is answered."""
        cdef Request* parent
        cdef Buffer* out
        cdef size_t before
        cdef bint error = False
        if self.finish is not None and self.parent != NULL and self.call_finish():
            self.let_go()                           # its parent has another one
            return
        parent = self.parent
        if parent != NULL:
            self.replies.weigh(-<ssize_t> self.held)
            out = self.replies.room(parent)
            if out != NULL:
                before = out.end - out.start
                if not self.make(out, &error):
                    buffer_append(out, NO_MEMORY, NO_MEMORY_LEN)
                if error:
                    count_error(self.replies.counts, parent.command, out.data + out.start + before,
                                out.end - out.start - before)
                self.replies.made(out.end - out.start - before)
                if self.parent != NULL:             # else it was more than the client may hold
                    parent.gather = NULL
                    self.replies.deliver(parent, NULL, 0, True, False)
            else:
                if not self.make(&scratch, &error):
                    buffer_append(&scratch, NO_MEMORY, NO_MEMORY_LEN)
                parent.gather = NULL
                self.replies.deliver(parent, scratch.data + scratch.start, scratch.end - scratch.start, True, error)
                scratch.start = scratch.end = 0
                if scratch.cap > SCRATCH_KEEP:
                    buffer_release(&scratch)
        self.let_go()

    cdef bint call_finish(self) noexcept:
        """Leaves what it makes of the replies in `made`: None when it raises, or when a part has failed.

        It may do what it likes to the client. Whether it asked for another round, and that is on its way.
        """
        cdef uint32_t i
        cdef int64_t began_ns = monotonic_ns()
        if not self.errors:
            if self.no_memory or self.most == 0:
                return False
            for i in range(self.nparts):
                if self.parts[i].flags & REQ_ERROR:
                    return False
        try:
            if self.no_memory or self.most == 0:    # (it is the answer whatever finish returns but another round)
                line = NO_MEMORY[:NO_MEMORY_LEN] if self.no_memory else TOO_MUCH[:TOO_MUCH_LEN]
                replies = [line] * self.nparts
            else:
                replies = [
                    PyBytes_FromStringAndSize(self.parts[i].hold, <Py_ssize_t> self.parts[i].hold_len)
                    for i in range(self.nparts)
                ]
            made = self.finish(replies)
            if self.parent == NULL:
                return False
            if isinstance(made, bytes):
                self.made = made
            elif self.rounds is None:
                raise TypeError(f"a reply is bytes, not {type(made).__name__}")
            else:
                return self.rounds.again(self, made)
        except Exception as error:
            self.replies.counts.internal_errors += 1
            self.raised("finish", error)
        finally:
            if self.replies.outlet != NULL:         # all Python of a batch has its time, this too
                (<Outlet> self.replies.outlet).reactor.python_ns -= monotonic_ns() - began_ns
        return False

    cdef bint make(self, Buffer* out, bint* error) noexcept:
        """Combines the parts' replies, or takes the first that failed; `out` is as before when there is no memory."""
        cdef uint32_t i
        cdef size_t before = out.end - out.start
        cdef Request* part
        if self.no_memory:
            error[0] = True
            return False
        if self.most == 0:
            error[0] = True
            return buffer_append(out, TOO_MUCH, TOO_MUCH_LEN)
        for i in range(0 if self.errors else self.nparts):
            part = &self.parts[i]
            if part.flags & REQ_ERROR:
                error[0] = True
                return buffer_append(out, part.hold, part.hold_len)
        if self.combine(self, out, error):
            return True
        out.end = out.start + before
        error[0] = True
        return False

    cdef void let_go(self) noexcept:
        """Ends what gather_begin began."""
        if self.parent != NULL:
            charge(&self.replies.account, -<ssize_t> self.size)
        self.discard()
        Py_DECREF(self)

    cdef void discard(self) noexcept:
        """Frees the parts; by itself: of a gather that was never begun."""
        cdef uint32_t i
        for i in range(self.nparts):
            request_free(&self.parts[i])
        request_block_free(self.parts, self.nparts)
        self.parts = NULL
        self.finish = self.raised = self.made = self.kept = self.rounds = None


cdef Gather gather_new(ReplyQueue replies, uint32_t nparts, uint32_t nkeys, Combine combine):
    """See the .pxd; the caller fills the parts and, for combine_array, part_of. None when there is no memory."""
    cdef Gather g = Gather.__new__(Gather)
    cdef uint32_t i
    g.size = nparts * sizeof(Request) + nkeys * sizeof(uint32_t)
    g.parts = request_block(nparts, nkeys * sizeof(uint32_t))
    if g.parts == NULL:
        return None
    g.replies = replies
    g.part_of = <uint32_t*> (g.parts + nparts)
    g.nparts = g.missing = nparts
    g.nkeys = nkeys
    g.combine = combine
    g.held = 0
    g.no_memory = False
    g.most = SIZE_MAX
    for i in range(nparts):
        g.parts[i].sink = <void*> g
        g.parts[i].account = &replies.account
    return g


cdef void gather_begin(Gather g, Request* parent) noexcept:
    """From now on it lives until every part is answered; the parts are the parent's in all but their target."""
    request_move(parent, STATE_GATHERING)
    adopt(g, parent)


cdef void gather_again(Gather g, Gather before) noexcept:
    cdef Request* parent = before.parent
    before.parent = NULL
    before.replies.weigh(-<ssize_t> before.held)
    charge(&before.replies.account, -<ssize_t> before.size)
    adopt(g, parent)


cdef void adopt(Gather g, Request* parent) noexcept:
    cdef Request* part
    cdef uint32_t i
    for i in range(g.nparts):
        part = &g.parts[i]
        part.flags |= parent.flags
        part.number = parent.number
        part.start_ns = parent.start_ns
        part.deadline_ns = parent.deadline_ns
        part.affinity = parent.affinity
        part.command = parent.command
        part.policy = parent.policy
        part.proto = parent.proto
        part.db = parent.db
    g.parent = parent
    parent.gather = <void*> g
    charge(&g.replies.account, g.size)
    Py_INCREF(g)


# -- ways to combine ---------------------------------------------------------------------------------------------------

cdef bint bad_part(Gather g, Buffer* out, size_t before, bint* error) noexcept:
    """A part's reply is not of the form that its command has."""
    out.end = out.start + before
    error[0] = True
    return buffer_append(out, BAD_PART, BAD_PART_LEN)


cdef inline size_t head_length(const char* frame, size_t n) noexcept nogil:
    """Bytes of `*<n>\\r\\n`."""
    cdef size_t i = 0
    while i < n and frame[i] != c"\n":
        i += 1
    return i + 1


cdef bint combine_first(Gather g, Buffer* out, bint* error) noexcept:
    """The first part's: all say the same (+OK)."""
    return buffer_append(out, g.parts[0].hold, g.parts[0].hold_len)


cdef bint combine_sum(Gather g, Buffer* out, bint* error) noexcept:
    """Integers added up."""
    cdef int64_t total = 0, value
    cdef uint32_t i
    cdef size_t k, before = out.end - out.start
    cdef Request* part
    for i in range(g.nparts):
        part = &g.parts[i]
        if part.hold_len < 4 or part.hold[0] != c":":
            return bad_part(g, out, before, error)
        value = 0
        k = 1
        while c"0" <= part.hold[k] <= c"9":
            value = value * 10 + (part.hold[k] - c"0")
            k += 1
        if part.hold[k] != c"\r" or k == 1 or k > 19:
            return bad_part(g, out, before, error)
        total += value
    if not buffer_reserve(out, HEAD_MAX):
        return False
    out.end += put_head(out.data + out.end, c":", total)
    return True


cdef bint combine_array(Gather g, Buffer* out, bint* error) noexcept:
    """One element per key: each part's elements stand in the order of its keys, so one cursor a part is enough."""
    cdef uint32_t i
    cdef size_t used = 0, total = HEAD_MAX, before = out.end - out.start
    cdef Request* part
    cdef ReplyScan scan
    for i in range(g.nparts):
        part = &g.parts[i]
        if part.hold_len < 5 or part.hold[0] != c"*":
            return bad_part(g, out, before, error)
        total += part.hold_len
        part.pos = head_length(part.hold, part.hold_len)    # no place in a stream any more: the cursor
    if not buffer_reserve(out, total):
        return False
    out.end += put_head(out.data + out.end, c"*", g.nkeys)
    for i in range(g.nkeys):
        part = &g.parts[g.part_of[i]]
        if part.pos == 4 and part.hold[1] == c"1":
            used = part.hold_len - 4        # the only element: what is left of a reply that was scanned whole
        else:
            reply_scan_reset(&scan)
            if part.pos >= part.hold_len or scan_reply(
                &scan, part.hold + part.pos, part.hold_len - part.pos, &used
            ) != SCAN_DONE:
                return bad_part(g, out, before, error)
        if used == 0:
            return bad_part(g, out, before, error)
        memcpy(out.data + out.end, part.hold + part.pos, used)
        out.end += used
        part.pos += used
    return True


cdef bint combine_python(Gather g, Buffer* out, bint* error) noexcept:
    """What a function of proxy.serve made of the list of the parts' replies."""
    if g.made is None:
        error[0] = True
        return buffer_append(out, RAISED, RAISED_LEN)
    error[0] = PyBytes_GET_SIZE(g.made) > 0 and PyBytes_AS_STRING(g.made)[0] == c"-"
    return buffer_append(out, PyBytes_AS_STRING(g.made), PyBytes_GET_SIZE(g.made))
