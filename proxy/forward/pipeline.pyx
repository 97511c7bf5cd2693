# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""What is under way on one connection to a node: the window of bytes and the queue of requests that wait for replies.

The window holds the bytes of every request from its queueing to its answer, so that a redirected or lost request can be
sent again; replies of a connection come in order, so answering only moves the window's start. What a request brings
besides its own bytes is a prefix (ASKING, or CLIENT CACHING), whose replies are swallowed like those that the request
itself does not want (MULTI's +OK and +QUEUED).

A timed-out request that was sent leaves a ghost in the queue that swallows the late reply; one that was not leaves a
cancelled place, whose bytes are passed over and never sent.

A read whose reply the node cannot bear (it is beyond the node's output limit, say) makes it close the connection, and
what else was under way there is lost with it. Which read that was cannot be seen: the node takes back the replies to
those before it, too. So all that were lost are suspects (Request.cuts) when they are sent again, and nothing else is
under way together with them (`fence`): the first time they go together, then each by itself, and the one that costs
its third connection fails (Exchange.lost).

Invariant: win_pos <= sent_pos <= win_pos + bytes in the window. Backend is the one subclass: it moves the bytes.
"""
from libc.stdint cimport INT64_MAX, int64_t, uint8_t, uint16_t, uint64_t

from proxy.forward.buffer cimport Buffer, buffer_append, buffer_release, buffer_reserve
from proxy.forward.ports cimport SENT_NOTHING, SENT_PARTLY, SENT_WHOLLY
from proxy.forward.reactor cimport Peer
from proxy.forward.request cimport (
    REQ_CACHING, REQ_EMBEDDED, REQ_READ, REQ_STREAMING, STATE_CANCELLED, STATE_GHOST, STATE_PAIRING, STATE_QUEUED,
    Request, request_free, request_keep, request_move, request_new,
)

cdef enum:
    CALLED = 64 << 10           # what a node has read at once, at most: bytes in which the reason for a close stands
    KEEP = 4 << 20              # an empty window keeps at most this much, until the next sweep finds it empty


cdef inline Request* next_cancelled(Request* r) noexcept nogil:
    while r != NULL and r.state != STATE_CANCELLED:
        r = r.bnext
    return r


cdef class BackendSettings:
    """Limits of connections.

    stall_ns: after which a connection on which nothing moves is given up. max_window: bytes of unanswered commands
    from which on no further command is taken. silent_ns: after which a node that owes replies is taken to hang.
    """

    def __cinit__(self, *, stall_ns, max_window=16 << 20, silent_ns=1_000_000_000):
        self.stall_ns = stall_ns
        self.silent_ns = silent_ns
        self.max_window = max_window


cdef class Pipeline(Peer):
    """See the module. Never made by itself."""

    def __dealloc__(self):
        buffer_release(&self.win)

    cdef int enqueue(self, Request* r, const char* p, size_t n) noexcept:
        """Queues a command's bytes and the request that waits for its reply: an EnqueueResult.

        p must not point into this backend's own window.
        """
        cdef size_t live = self.win.end - self.win.start
        if r.flags & REQ_CACHING:
            return self.announce(r, p, n)
        if self.full and not r.flags & REQ_EMBEDDED:    # a command that has begun to be sent is sent with all its parts
            return WINDOW_FULL
        if not buffer_append(&self.win, p, n):
            return NO_MEMORY
        if r.cuts:
            self.fenced = True
        if live + n >= self.settings.max_window and not self.full:
            self.full = True
            self.recovery.filled()
        request_move(r, STATE_QUEUED)
        r.pos = self.win_pos + live
        r.len = n
        r.prefix = 0
        r.swallow = r.own_swallow
        r.sent_ns = self.reactor.now
        r.bnext = NULL
        if self.head == NULL:
            self.head = r
            self.progress_ns = r.sent_ns
            self.next_deadline_ns = r.deadline_ns
        else:
            self.tail.bnext = r
            if r.deadline_ns < self.next_deadline_ns:
                self.next_deadline_ns = r.deadline_ns
        self.tail = r
        self.pending += 1
        if not self.touched:
            self.reactor.touch(self)
        return ENQUEUED

    cdef int announce(self, Request* r, const char* p, size_t n) noexcept:
        """As enqueue, behind the command that is for this one only (CLIENT CACHING)."""
        cdef int result
        if self.announcement is not None:
            return self.enqueue_behind(r, self.announcement, len(self.announcement), 1, p, n)
        r.flags &= ~REQ_CACHING
        result = self.enqueue(r, p, n)
        r.flags |= REQ_CACHING
        return result

    cdef int enqueue_behind(self, Request* r, const char* prefix, size_t nprefix, int replies, const char* p,
                            size_t n) noexcept:
        """As enqueue, with a prefix right before the command; the prefix's replies are swallowed."""
        cdef int result
        cdef uint16_t caching = r.flags & REQ_CACHING
        if not buffer_reserve(&self.win, nprefix + n):
            return NO_MEMORY
        r.flags &= ~REQ_CACHING             # there is one prefix
        result = self.enqueue(r, prefix, nprefix)
        r.flags |= caching
        if result != ENQUEUED:
            return result
        buffer_append(&self.win, p, n)
        r.prefix = <uint16_t> nprefix
        r.prefix_replies = <uint8_t> replies
        r.len = n
        r.swallow = r.own_swallow + replies
        return ENQUEUED

    cdef size_t sendable(self) noexcept:
        """Bytes that may be sent at once from sent_pos on: up to the end, the fence, or the next cancelled request."""
        cdef uint64_t end = self.fence() if self.fenced else self.win_pos + (self.win.end - self.win.start)
        while self.cancelled != NULL:
            if self.cancelled.pos > self.sent_pos:
                if self.cancelled.pos < end:
                    end = self.cancelled.pos
                break
            self.sent_pos = self.cancelled.pos + span(self.cancelled)
            self.cancelled = next_cancelled(self.cancelled.bnext)
        return end - self.sent_pos if end > self.sent_pos else 0

    cdef uint64_t fence(self) noexcept:
        """Stream position up to which may be sent: suspects are under way by themselves, those that have cost more than
        one connection one at a time. (The oldest request is never behind it.)"""
        cdef Request* r = self.head
        if r != NULL and r.cuts > 1:
            return r.pos + span(r)
        if r != NULL and r.cuts:
            while r != NULL and r.cuts == 1:
                r = r.bnext
        else:
            while r != NULL and not r.cuts:
                r = r.bnext
            self.fenced = r != NULL
        return self.win_pos + (self.win.end - self.win.start) if r == NULL else r.pos

    cdef void accuse(self) noexcept:
        """The node has closed the connection: the reads that it owed a reply may be why."""
        cdef Request* r = self.head
        while r != NULL and r.pos + span(r) <= self.sent_pos and r.pos - self.win_pos < CALLED:
            if r.flags & REQ_READ and r.cuts < MOST_CUTS:
                r.cuts += 1
            r = r.bnext

    cdef void answered(self) noexcept:
        """The window's start has moved on: what was cancelled right behind it is of no use any more, either."""
        cdef Request* r
        while self.head != NULL and self.head.state == STATE_CANCELLED:
            r = self.head
            self.head = r.bnext
            if self.head == NULL:
                self.tail = NULL
            if self.cancelled == r:
                self.cancelled = next_cancelled(r.bnext)
            self.win.start += span(r)
            self.win_pos += span(r)
            if self.sent_pos < self.win_pos:
                self.sent_pos = self.win_pos
            request_free(r)
        if self.full and self.win.end - self.win.start <= self.settings.max_window // 2:
            self.full = False
            self.recovery.room()
        if self.win.start == self.win.end:
            self.win.start = self.win.end = 0
            if self.win.cap > KEEP:
                buffer_release(&self.win)

    cdef void abandon_all(self) noexcept:
        """Hands every pending request to recovery and starts an empty stream.

        The queue and the window are taken away first, for recovery may queue requests here again.
        """
        cdef Request* r = self.head
        cdef Request* following
        cdef Buffer win = self.win
        cdef uint64_t win_pos = self.win_pos
        cdef uint64_t sent_pos = self.sent_pos
        self.win.data = NULL
        self.win.start = self.win.end = self.win.cap = 0
        self.head = self.tail = self.cancelled = NULL
        self.pending = 0
        self.fenced = False
        self.asked = sent_pos > 0
        self.win_pos = self.sent_pos = self.unsettled_to = 0
        while r != NULL:
            following = r.bnext
            r.bnext = NULL
            if r.state == STATE_QUEUED:
                request_move(r, STATE_PAIRING)
                self.recovery.lost(
                    self, r, win.data + win.start + (r.pos + r.prefix - win_pos),
                    SENT_WHOLLY if r.pos + span(r) <= sent_pos else SENT_PARTLY if r.pos < sent_pos else SENT_NOTHING)
            else:
                request_free(r)
            r = following
        buffer_release(&win)
        if self.full:
            self.full = False
            self.recovery.room()

    cdef void expire(self, int64_t now, bint passing) noexcept:
        """Ends requests whose deadline has passed.

        One that the node may have in part becomes a ghost. One that is wholly unsent is cancelled, for its client is
        told so: it must not be carried out later. passing: part of the oldest one's reply has been passed on.
        """
        cdef Request* r = self.head
        cdef Request* before = NULL
        cdef Request* following
        cdef Request* expired = NULL
        cdef Request** to = &expired
        self.next_deadline_ns = now + 3600 * <int64_t> 1000000000
        while r != NULL:
            following = r.bnext
            if r.state != STATE_QUEUED or r.flags & REQ_STREAMING or (r == self.head and passing):
                pass
            elif r.deadline_ns > now:
                if r.deadline_ns < self.next_deadline_ns:
                    self.next_deadline_ns = r.deadline_ns
            elif self.make_ghost(r, before):
                before = self.head if before == NULL else before.bnext      # the ghost
                request_move(r, STATE_PAIRING)
                r.bnext = NULL
                to[0] = r
                to = &r.bnext
                r.swallow = before.state == STATE_GHOST     # of no other use any more
                r = following
                continue
            else:
                self.next_deadline_ns = now         # no memory: the next sweep tries again
            before = r
            r = following
        self.answered()                             # what was cancelled at the head
        while expired != NULL:                      # at last: an answer may close its client, and this
            r = expired
            expired = r.bnext
            r.bnext = NULL
            self.recovery.timed_out(r, r.swallow)

    cdef void give_away(self, bint passing) noexcept:
        """Hands every read that another node can serve to recovery, as if it were lost; what comes for it is dropped.

        passing: see expire.
        """
        cdef Request* r = self.head
        cdef Request* before = NULL
        cdef Request* following
        cdef Request* given = NULL
        cdef Request** to = &given
        while r != NULL:
            following = r.bnext
            if (
                r.state == STATE_QUEUED and r.sink != NULL and not r.flags & REQ_STREAMING
                and not (r == self.head and passing) and self.recovery.elsewhere(self, r)
                and request_keep(r, self.win.data + self.win.start + (r.pos + r.prefix - self.win_pos), r.len)
                and self.make_ghost(r, before)
            ):
                before = self.head if before == NULL else before.bnext      # the ghost
                request_move(r, STATE_PAIRING)
                r.bnext = NULL
                to[0] = r
                to = &r.bnext
            else:
                before = r
            r = following
        self.answered()                             # what was cancelled at the head
        while given != NULL:
            r = given
            given = r.bnext
            r.bnext = NULL
            self.recovery.lost(self, r, r.own, SENT_WHOLLY)

    cdef bint make_ghost(self, Request* r, Request* before) noexcept:
        """Puts a stand-in in the place of a request in the queue; false when there is no memory."""
        cdef Request* ghost = request_new()
        if ghost == NULL:
            return False
        ghost.pos = r.pos
        ghost.len = r.len
        ghost.prefix = r.prefix
        ghost.swallow = r.swallow
        ghost.cuts = r.cuts
        ghost.sent_ns = r.sent_ns
        ghost.deadline_ns = INT64_MAX
        ghost.bnext = r.bnext
        if before == NULL:
            self.head = ghost
        else:
            before.bnext = ghost
        if self.tail == r:
            self.tail = ghost
        if r.pos >= self.sent_pos:
            request_move(ghost, STATE_CANCELLED)
            self.pending -= 1
            if self.cancelled == NULL or ghost.pos < self.cancelled.pos:
                self.cancelled = ghost
        else:
            request_move(ghost, STATE_GHOST)
        return True
