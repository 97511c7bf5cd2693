# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""A client's replies: their order, what is held back, what is not yet taken.

The queue holds one request per command, oldest first; replies for the first go straight to the output, others wait in
their request (DESIGN 3, rule 4). A push has a place in the order too, for it must not stand inside a reply, nor before
one that its node gave earlier. The queue belongs to one client, which reads, flushes and closes; it is the sink of the
client's requests, those of a command with parts apart, whose sink is a gather that answers for them.

Back-pressure: `overloaded` tells the client to stop reading while too many commands are under way, or too many reply
bytes are not taken; `relieved`, that half of that is gone. `unsettled` stops it until everything under way is answered,
`stopped` until all clients together hold less (proxy.forward.memory).

A client may want no replies (CLIENT REPLY). Its requests are queued, counted and answered like any other; what comes
for one of them is dropped here, at the last moment. Pushes are no replies.
"""
cimport cython

from proxy.forward.account cimport charge
from proxy.forward.buffer cimport buffer_append, buffer_len, buffer_release
from proxy.forward.counters cimport CLOSE_ERROR, CLOSE_OUTPUT_LIMIT, CLOSE_REPLY_CUT, count_error, observe
from proxy.forward.reactor cimport BROKEN
from proxy.forward.request cimport (
    REQ_ERROR, REQ_MUTE, REQ_PUSH, REQ_STREAMING, STATE_ANSWERED, request_disown, request_free, request_hold,
    request_move, request_new, request_unhold,
)

cdef enum:
    FLUSH_MAX = 1 << 20     # bytes sent to one client before the others have their turn
    REPLIES_AHEAD = 8       # times the soft output limit that may be asked for ahead of the reader
    FIRST_MEAN = 131072     # what a reply of a client that has had none yet is taken to be
    UNPROVEN = 65536        # ... and one of a burst of requests, as long as fewer of them have been answered
    DIRECT = 16384          # a reply piece of this size is offered to the kernel without being copied first


cdef class OutputLimits:
    """What may be under way or held for one client; see the .pxd."""


@cython.final
cdef class ReplyQueue(Sink):
    """See the module. Made by Client, which sets `outlet`, `counts` and `limits`."""

    def __cinit__(self):
        self.reply_mean = FIRST_MEAN

    def __dealloc__(self):
        self.out.counted = NULL         # the reactor may be gone
        buffer_release(&self.out)

    # -- back-pressure -------------------------------------------------------------------------------------------

    cdef bint overloaded(self) noexcept:
        """Whether no further command should be read now.

        Replies to come are counted with the size of those that came lately; and because nobody knows whether the next
        ones will be like them, a burst of requests begins with few of them under way: each that is answered allows
        another one. A pipeline of large reads is thereby not all asked for at once when its reader is slow.
        """
        return (
            self.inflight >= self.limits.max_pending
            or self.unproven() > REPLIES_AHEAD * self.limits.soft_output
            or self.inflight * self.reply_mean > REPLIES_AHEAD * self.limits.soft_output
            or self.asked > self.limits.max_pending_bytes
            or self.held + self.out.end - self.out.start > self.limits.soft_output
            or (self.unsettled and self.head != NULL)
        )

    cdef bint relieved(self) noexcept:
        """Half of what led to the pause is gone."""
        return (
            self.inflight <= self.limits.max_pending // 2
            and self.unproven() <= REPLIES_AHEAD * self.limits.soft_output // 2
            and self.inflight * self.reply_mean <= REPLIES_AHEAD * self.limits.soft_output // 2
            and self.asked <= self.limits.max_pending_bytes // 2
            and self.held + buffer_len(&self.out) <= self.limits.soft_output // 2
            and not (self.unsettled and self.head != NULL)
            and not self.stopped
        )

    cdef size_t unproven(self) noexcept:
        """What requests beyond those that were answered in this burst are taken to bring, in bytes."""
        return <size_t> (self.inflight - self.proven) * UNPROVEN if self.inflight > self.proven else 0

    cdef void begin_read(self, bint empty) noexcept:
        """The client is about to be read; empty: nothing that it has sent before waits to be carried out.

        A burst begins when everything it had asked for was answered: what it will ask for now is unknown. What comes
        after all that it had sent was read is no part of a pipeline that has waited in vain, and is held anew.
        """
        if empty and self.head == NULL:
            self.proven = 0
        if self.drained:
            self.account.weary = False
        self.drained = False

    # -- in -------------------------------------------------------------------------------------------------------

    cdef void append(self, Request* r) noexcept:
        """A request takes its place in the order."""
        if self.tail == NULL:
            self.head = r
        else:
            self.tail.cnext = r
        self.tail = r
        if self.muted & (MUTE_OFF | MUTE_SKIP):
            r.flags |= REQ_MUTE
        self.inflight += 1
        self.asked += r.len
        self.counts.inflight += 1
        self.account.all[0] += sizeof(Request)

    cdef void next_command(self) noexcept:
        """A command has been carried out: what CLIENT REPLY SKIP said is for the next one."""
        self.muted = (self.muted & (MUTE_OFF | TELL_NEXT)) | (MUTE_SKIP if self.muted & MUTE_NEXT else 0)

    cdef void say(self, int metric, const char* p, size_t n) noexcept:
        """An answer of our own, in its turn."""
        cdef Request* r
        if self.outlet == NULL:
            return
        if self.head == NULL:
            if n and p[0] == c"-":
                count_error(self.counts, metric, p, n)
            observe(&self.counts.command[metric], 0)
            if not self.muted & (MUTE_OFF | MUTE_SKIP):
                self.emit(p, n)
            return
        r = self.ready_made(p, n)
        if r == NULL:
            return
        r.command = metric
        r.size = n
        r.start_ns = (<Outlet> self.outlet).reactor.now
        r.flags = REQ_ERROR if n and p[0] == c"-" else 0
        self.append(r)

    cdef Request* ready_made(self, const char* p, size_t n) noexcept:
        """An answered request that holds these bytes; NULL, and the client closed, when there is no memory."""
        cdef Request* r = request_new()
        if r != NULL:
            r.account = &self.account
        if r == NULL or not request_hold(r, p, n):
            if r != NULL:
                request_free(r)
            self.shut(CLOSE_ERROR)
            return NULL
        request_move(r, STATE_ANSWERED)
        r.sink = <void*> self
        self.held += n
        return r

    cdef void push(self, const char* p, size_t n, int place) noexcept:
        """A push to the client, whole, at a PushPlace; none overtakes another, but those of PUSH_LAST hold up nothing.

        It takes time by the requests behind the last push that waits, so never by the number of pushes.
        """
        cdef Request* r
        cdef Request* before
        if self.outlet == NULL:
            return
        before = self.place_of(place)
        if before == NULL:
            self.emit(p, n)
            return
        if before == self.pushing:
            if not request_hold(before, p, n):
                self.shut(CLOSE_ERROR)
                return
            self.held += n
            self.over()
            return
        r = self.ready_made(p, n)
        if r == NULL:
            return
        r.flags = REQ_PUSH
        charge(&self.account, sizeof(Request))
        r.cnext = before.cnext
        before.cnext = r
        if self.tail == before:
            self.tail = r
        if place != PUSH_LAST:
            self.pushing = r
        self.over()

    cdef Request* place_of(self, int place) noexcept:
        """Behind which request a push is to come; NULL: before all."""
        cdef Request* found = self.pushing
        cdef Request* at
        if place == PUSH_LAST:
            return self.tail
        at = self.head if found == NULL else found
        while at != NULL:
            if (at == self.head and at.flags & REQ_STREAMING) or (place == PUSH_BEHIND and (
                (at.state == STATE_ANSWERED and not at.flags & REQ_PUSH)
                or (at.gather != NULL and (<Sink> at.gather).has_begun())
            )):
                found = at
            at = at.cnext
        return found

    # -- replies -------------------------------------------------------------------------------------------------

    cdef void deliver(self, Request* r, const char* p, size_t n, bint final, bint error) noexcept:
        """Out at once when it is this request's turn, else kept in the request."""
        r.size += n
        if r == self.head:
            if final:
                request_move(r, STATE_ANSWERED)
                self.finish(r, error, p, n)
                self.pop()
                if not r.flags & REQ_MUTE:
                    self.emit(p, n)             # before the request is freed: p may be its own bytes
                else:
                    self.drop()
                request_free(r)
                if self.head != NULL:
                    self.advance()
            elif not r.flags & REQ_MUTE:
                r.flags |= REQ_STREAMING
                self.emit(p, n)
            return
        if r.flags & REQ_MUTE and not (final and error):        # an error is counted by its text
            n = 0
        if not request_hold(r, p, n):
            if final:
                request_move(r, STATE_ANSWERED)
            self.shut(CLOSE_ERROR)
            return
        self.held += n
        if final:
            request_move(r, STATE_ANSWERED)
            if error:
                r.flags |= REQ_ERROR
        self.over()

    cdef Buffer* room(self, Request* r) noexcept:
        """The output itself, when it is this request's turn: its reply may be written there, and then made() and
        deliver() with nothing be called. NULL otherwise."""
        return &self.out if r == self.head and self.outlet != NULL and not r.flags & REQ_MUTE else NULL

    cdef void made(self, size_t n) noexcept:
        """n bytes of the head's reply were written into the output."""
        self.head.size += n
        self.over()

    cdef void withdraw(self, Request* r) noexcept:
        self.held -= r.hold_len
        r.size -= r.hold_len
        request_unhold(r)

    cdef void weigh(self, ssize_t n) noexcept:
        self.held += n
        if n > 0:
            self.over()

    cdef bint alive(self) noexcept:
        return self.outlet != NULL

    cdef void cut(self) noexcept:
        self.shut(CLOSE_REPLY_CUT)

    cdef void over(self) noexcept:
        """Closes the client when more is held for it than may be."""
        if self.held + buffer_len(&self.out) > self.limits.hard_output:
            self.shut(CLOSE_OUTPUT_LIMIT)

    cdef void pop(self) noexcept:
        self.head = self.head.cnext
        if self.head == NULL:
            self.tail = NULL

    cdef void advance(self) noexcept:
        """The head was answered: out with what waited behind it."""
        cdef Request* r = self.head
        while r != NULL:
            if r.hold_len:
                self.held -= r.hold_len
                if not r.flags & REQ_MUTE:
                    self.emit(r.hold, r.hold_len)
                    if self.outlet == NULL:
                        return
            if r.state != STATE_ANSWERED:
                if r.hold_len:
                    r.flags |= REQ_STREAMING
                    request_unhold(r)
                return
            if r.flags & REQ_PUSH:
                charge(&self.account, -<ssize_t> sizeof(Request))
                if r == self.pushing:
                    self.pushing = NULL
            else:
                self.finish(r, (r.flags & REQ_ERROR) != 0, r.hold, r.hold_len)
                if r.flags & REQ_MUTE:
                    self.drop()
            self.pop()
            request_free(r)
            r = self.head

    cdef void finish(self, Request* r, bint error, const char* p, size_t n) noexcept:
        """Counts an answered request that leaves the queue."""
        self.inflight -= 1
        self.asked -= r.len
        self.proven += 1
        self.reply_mean = self.reply_mean - (self.reply_mean >> 3) + (r.size >> 3)
        self.counts.inflight -= 1
        self.account.all[0] -= sizeof(Request)
        observe(&self.counts.command[r.command], (<Outlet> self.outlet).reactor.now - r.start_ns)
        if error:
            count_error(self.counts, r.command, p, n)

    # -- out -----------------------------------------------------------------------------------------------------

    cdef void emit(self, const char* p, size_t n) noexcept:
        """Appends to the output; a large piece is offered to the kernel first, without a copy."""
        cdef ssize_t sent
        cdef Outlet outlet
        if self.outlet == NULL:
            return
        outlet = <Outlet> self.outlet
        if n >= DIRECT and self.out.end == self.out.start:
            sent = outlet.transmit(p, n)
            if sent > 0:
                self.counts.client_out += sent
                p += sent
                n -= sent
        if n:
            if not buffer_append(&self.out, p, n):
                self.shut(CLOSE_ERROR)
                return
            self.over()
        if not outlet.touched:
            outlet.reactor.touch(outlet)

    cdef void drop(self) noexcept:
        """In the place of emit(): nothing is to be sent, but there may be room again."""
        cdef Outlet outlet
        if self.outlet != NULL:
            outlet = <Outlet> self.outlet
            if not outlet.touched:
                outlet.reactor.touch(outlet)

    cdef int send_out(self) noexcept:
        """Gives the output to the kernel: a SendResult."""
        cdef Outlet outlet = <Outlet> self.outlet
        cdef ssize_t n
        cdef size_t unsent = self.out.end - self.out.start, sent = 0
        while unsent:
            if sent >= FLUSH_MAX:
                return SENT_PART
            n = outlet.transmit(self.out.data + self.out.start, min(unsent, <size_t> FLUSH_MAX))
            if n < 0:
                return SEND_FAILED if n == BROKEN else SENT_PART
            self.counts.client_out += n
            self.out.start += n
            unsent -= n
            sent += n
        if self.out.cap:
            buffer_release(&self.out)
        return SENT_ALL

    # -- the end -------------------------------------------------------------------------------------------------

    cdef void shut(self, int reason) noexcept:
        if self.outlet != NULL:
            (<Outlet> self.outlet).shut(reason)

    cdef void forsake(self) noexcept:
        """The client is closed: what is under way goes on without a sink; its replies are dropped."""
        cdef Request* r = self.head
        cdef Request* following
        self.outlet = NULL
        self.counts.inflight -= self.inflight
        self.account.all[0] -= <ssize_t> (self.inflight * sizeof(Request))
        self.inflight = 0
        self.asked = 0
        self.held = 0
        self.head = self.tail = self.pushing = NULL
        while r != NULL:
            following = r.cnext
            r.cnext = NULL
            r.sink = NULL
            if r.gather != NULL:
                (<Sink> r.gather).forsake()     # frees what it holds, and the request
            elif r.state == STATE_ANSWERED:
                if r.flags & REQ_PUSH:
                    charge(&self.account, -<ssize_t> sizeof(Request))
                request_free(r)
            else:
                request_unhold(r)               # whoever has it frees the rest in time
                request_disown(r)
            r = following
        buffer_release(&self.out)
