# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The side of a client that replies: its order queue, its output, its end.

The order queue holds one request per command; replies for its head go straight to the output, others wait in their
request. `paused` is back-pressure: while too many commands are under way, or too many reply bytes are not taken, the
socket is not read. `unsettled` (see Retry.unsettle, Router.renew) pauses the same way until everything under way is
answered.
Client adds the side that reads.
"""
from libc.errno cimport EAGAIN, EINTR, errno

from proxy.forward.buffer cimport buffer_append, buffer_len, buffer_release
from proxy.forward.counters cimport (
    CLOSE_CLIENT, CLOSE_ERROR, CLOSE_OUTPUT_LIMIT, CLOSE_REPLY_CUT, CLOSE_SHUTDOWN, count_error, observe,
)
from proxy.forward.reactor cimport WANT_READ, WANT_WRITE
from proxy.forward.request cimport (
    REQ_DONE, REQ_ERROR, REQ_STREAMING, Request, request_free, request_hold, request_new, request_unhold,
)
from proxy.forward.split cimport split_free

cdef extern from "sys/socket.h" nogil:
    ssize_t send(int fd, const void* buf, size_t n, int flags)
    int shutdown(int fd, int how)
    int MSG_NOSIGNAL, SHUT_WR

cdef enum:
    FLUSH_MAX = 1 << 20     # bytes sent to one client before the others have their turn
    REPLIES_AHEAD = 8       # times the soft output limit that may be asked for ahead of the reader
    FIRST_MEAN = 131072     # what a reply of a client that has had none yet is taken to be
    DIRECT = 16384          # a reply piece of this size is offered to the kernel without being copied first


cdef class Ordered(Origin):
    """Replies in the order of the commands. Never made by itself: Client is."""

    def __cinit__(self):
        self.reply_mean = FIRST_MEAN

    def __dealloc__(self):
        buffer_release(&self.out)

    # -- back-pressure -------------------------------------------------------------------------------------------

    cdef bint overloaded(self) noexcept:
        """Whether no further command should be read now.

        Replies to come are counted with their usual size, so that a pipeline of large reads is not all asked for at
        once when its reader is slow.
        """
        return (
            self.inflight >= self.settings.max_pending
            or self.inflight * self.reply_mean > REPLIES_AHEAD * self.settings.soft_output
            or self.asked > self.settings.max_pending_bytes
            or self.held + self.out.end - self.out.start > self.settings.soft_output
            or (self.unsettled and self.head != NULL)
        )

    cdef bint relieved(self) noexcept:
        """Half of what led to the pause is gone."""
        return (
            self.inflight <= self.settings.max_pending // 2
            and self.inflight * self.reply_mean <= REPLIES_AHEAD * self.settings.soft_output // 2
            and self.asked <= self.settings.max_pending_bytes // 2
            and self.held + buffer_len(&self.out) <= self.settings.soft_output // 2
            and not (self.unsettled and self.head != NULL)
        )

    cdef void resume(self) noexcept:
        """There is room again: Client goes on reading."""
        pass

    cdef void append(self, Request* r) noexcept:
        """A request takes its place in the order."""
        if self.tail == NULL:
            self.head = r
        else:
            self.tail.cnext = r
        self.tail = r
        self.inflight += 1
        self.asked += r.len
        self.path.counts.inflight += 1

    # -- replies -------------------------------------------------------------------------------------------------

    cdef void say_bytes(self, int metric, bytes text) noexcept:
        if text is not None:
            self.say(metric, text, len(text))

    cdef void say(self, int metric, const char* p, size_t n) noexcept:
        """An answer of our own, in its turn."""
        cdef Request* r
        if self.fd < 0:
            return
        if self.head == NULL:
            if n and p[0] == c"-":
                count_error(self.path.counts, metric, p, n)
            observe(&self.path.counts.command[metric], 0)
            self.emit(p, n)
            return
        r = request_new()
        if r == NULL or not request_hold(r, p, n):
            self.close(CLOSE_ERROR)
            return
        r.client = <void*> self
        r.command = metric
        r.start_ns = self.reactor.now
        r.flags = REQ_DONE | (REQ_ERROR if n and p[0] == c"-" else 0)
        self.held += n
        self.append(r)

    cdef void deliver(self, Request* r, const char* p, size_t n, bint final, bint error) noexcept:
        """A piece of a reply: out at once when it is this request's turn, else kept in the request."""
        self.reply_bytes += n
        if r == self.head:
            if final:
                self.finish(r, error, p, n)
                self.head = r.cnext
                if self.head == NULL:
                    self.tail = NULL
                self.emit(p, n)                 # before the request is freed: p may be its own bytes
                if r.split != NULL:
                    split_free(r.split)
                request_free(r)
                if self.head != NULL:
                    self.drain()
            else:
                r.flags |= REQ_STREAMING
                self.emit(p, n)
            return
        if not request_hold(r, p, n):
            if final:
                r.flags |= REQ_DONE
            self.close(CLOSE_ERROR)
            return
        self.held += n
        if final:
            r.flags |= REQ_DONE | (REQ_ERROR if error else 0)
        if self.held + buffer_len(&self.out) > self.settings.hard_output:
            self.close(CLOSE_OUTPUT_LIMIT)

    cdef void withdraw(self, Request* r) noexcept:
        self.held -= r.hold_len
        request_unhold(r)

    cdef void weigh(self, ssize_t n) noexcept:
        self.held += n
        if self.held + buffer_len(&self.out) > self.settings.hard_output:
            self.close(CLOSE_OUTPUT_LIMIT)

    cdef void drain(self) noexcept:
        """The head was answered: out with what waited behind it."""
        cdef Request* r = self.head
        while r != NULL:
            if r.hold_len:
                self.held -= r.hold_len
                self.emit(r.hold, r.hold_len)
                if self.fd < 0:
                    return
            if not r.flags & REQ_DONE:
                if r.hold_len:
                    r.flags |= REQ_STREAMING
                    request_unhold(r)
                return
            self.finish(r, (r.flags & REQ_ERROR) != 0, r.hold, r.hold_len)
            self.head = r.cnext
            if self.head == NULL:
                self.tail = NULL
            if r.split != NULL:
                split_free(r.split)
            request_free(r)
            r = self.head

    cdef void finish(self, Request* r, bint error, const char* p, size_t n) noexcept:
        """Counts an answered request that leaves the queue."""
        self.inflight -= 1
        self.asked -= r.len
        self.reply_mean = self.reply_mean - (self.reply_mean >> 3) + (self.reply_bytes >> 3)
        self.reply_bytes = 0
        self.path.counts.inflight -= 1
        observe(&self.path.counts.command[r.command], self.reactor.now - r.start_ns)
        if error:
            count_error(self.path.counts, r.command, p, n)

    cdef void emit(self, const char* p, size_t n) noexcept:
        """Appends to the output; a large piece is offered to the kernel first, without a copy."""
        cdef ssize_t sent
        if self.fd < 0:
            return
        if n >= DIRECT and self.out.end == self.out.start:
            sent = send(self.fd, p, n, MSG_NOSIGNAL)
            if sent > 0:
                self.path.counts.client_out += sent
                p += sent
                n -= sent
        if n:
            if not buffer_append(&self.out, p, n):
                self.close(CLOSE_ERROR)
                return
            if buffer_len(&self.out) + self.held > self.settings.hard_output:
                self.close(CLOSE_OUTPUT_LIMIT)
                return
        if not self.touched:
            self.reactor.touch(self)

    cdef void flush(self) noexcept:
        """End of a batch: one send(2); then whatever waited for room or for the last answer."""
        cdef ssize_t n
        cdef size_t unsent, sent = 0
        if self.fd < 0:
            return
        unsent = self.out.end - self.out.start
        while unsent:
            if sent >= FLUSH_MAX:
                self.want(self.interest | WANT_WRITE)       # others have their turn first
                break
            n = send(self.fd, self.out.data + self.out.start, min(unsent, <size_t> FLUSH_MAX), MSG_NOSIGNAL)
            if n < 0:
                if errno == EINTR:
                    continue
                if errno != EAGAIN:
                    self.close(CLOSE_CLIENT)
                    return
                self.want(self.interest | WANT_WRITE)
                break
            self.path.counts.client_out += n
            self.out.start += n
            unsent -= n
            sent += n
        if not unsent:
            if self.out.cap:
                buffer_release(&self.out)
            if self.interest & WANT_WRITE:
                self.want(self.interest & ~WANT_WRITE)
            if self.head == NULL:
                if self.closing or (self.eof and not self.paused):
                    self.depart()
                    return
        if self.head == NULL:
            self.unsettled = False
        if self.paused and not self.relieved():
            return
        if self.paused:
            self.paused = False
            self.resume()

    # -- the end -------------------------------------------------------------------------------------------------

    cdef void end(self, int reason) noexcept:
        """Nothing more is read; it is closed by the flush that finds everything answered and taken."""
        self.closing = True
        self.close_reason = reason
        self.want(self.interest & ~WANT_READ)
        self.reactor.touch(self)

    cdef void part(self) noexcept:
        """Graceful end, wanted by the proxy: as if the client had ended its input, only that it may go on sending.

        Whole commands that were read are carried out, when they had to wait too. Then depart() lingers.
        """
        if self.fd < 0 or self.parting:
            return
        self.parting = True
        if not self.eof and not self.closing:
            self.close_reason = CLOSE_SHUTDOWN
            self.eof = True
        self.want(self.interest & ~WANT_READ)
        self.reactor.touch(self)

    cdef void depart(self) noexcept:
        """Everything is answered and taken. A parting client is told the end and may send until it closes, too: bytes
        that come to a closed socket, or lie in it unread, make a reset, which can overtake the replies."""
        if not self.parting:
            self.close(self.close_reason if self.closing else CLOSE_CLIENT)
        elif not self.lingering_ns:
            shutdown(self.fd, SHUT_WR)
            self.lingering_ns = self.reactor.now
            self.path.lingering.add(self)
            self.left()
            self.want(WANT_READ)

    cdef void cut(self, Request* r) noexcept:
        self.close(CLOSE_REPLY_CUT)

    cdef void close(self, int reason) noexcept:
        """Closes it at once. What is under way goes on without a client; its replies are dropped."""
        cdef Request* r = self.head
        cdef Request* following
        if self.fd < 0:
            return
        self.close_fd()
        self.path.counts.closed[reason] += 1
        self.path.counts.inflight -= self.inflight
        self.inflight = 0
        self.asked = 0
        self.head = self.tail = NULL
        self.held = 0
        while r != NULL:
            following = r.cnext
            r.cnext = NULL
            r.client = NULL
            if r.flags & REQ_DONE:
                if r.split != NULL:
                    split_free(r.split)
                request_free(r)
            r = following
        buffer_release(&self.out)
        self.left()
        self.path.clients.discard(self)
        if self.lingering_ns:
            self.path.lingering.discard(self)
        self.path.left += 1
        self.path.desk.left(self, reason)
        if self.path.on_left is not None:
            self.path.on_left()

    cdef void left(self) noexcept:
        """Closed, or as good as: Client gives its input buffers back."""
        pass
