# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""A pipelined connection to a node, shared by all clients of a worker.

States and moves: IDLE -> CONNECTING (a request needs it, or control wants it warm) -> UP (`attach`) -> CONNECTING
(lost) -> BACKOFF (`connect_failed`) -> CONNECTING ...; CLOSED from anywhere (`close`). While CONNECTING, requests wait
in the window; control connects, does the handshake (proxy.control.backend_pool) and hands over the descriptor.

The window `win` holds the bytes of every request from its queueing to its answer, so that a redirected or lost request
can be sent again; replies of a connection come in order, so answering only moves the window's start.
A timed-out request that was sent leaves a ghost in the pairing queue that swallows the late reply.
"""
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport INT64_MAX, int64_t
from libc.string cimport memcpy, memmove, strerror

from proxy.forward.buffer cimport (
    Buffer, buffer_append, buffer_len, buffer_release, buffer_reserve, buffer_shrink,
)
from proxy.forward.counters cimport histogram_values, observe
from proxy.forward.ports cimport Origin
from proxy.forward.reactor cimport SHARED, WANT_READ, WANT_WRITE, Reactor
from proxy.forward.request cimport (
    REQ_INTERNAL, REQ_PART, REQ_STREAMING, Request, request_free, request_hold, request_new,
)
from proxy.resp.scanner cimport SCAN_DONE, SCAN_ERROR, reply_scan_reset, scan_reply

cdef extern from "sys/socket.h" nogil:
    ssize_t recv(int fd, void* buf, size_t n, int flags)
    ssize_t send(int fd, const void* buf, size_t n, int flags)
    int MSG_NOSIGNAL

cdef enum:
    PASS_MIN = 8192             # an incomplete reply is passed on from this size
    REST_MAX = SHARED // 2      # an incomplete line or error longer than this breaks the protocol
    READ_ROUNDS = 4             # full receive buffers before others get their turn
    FLUSH_MAX = 1 << 20         # bytes sent to one node before the others have their turn
    KEEP = 4 << 20              # an empty window keeps at most this much, until the next sweep finds it empty

STATE_NAMES = ("idle", "connecting", "up", "backoff", "closed")


class BackendState:
    """The states by name, for control."""
    IDLE = BACKEND_IDLE
    CONNECTING = BACKEND_CONNECTING
    UP = BACKEND_UP
    BACKOFF = BACKEND_BACKOFF
    CLOSED = BACKEND_CLOSED


cdef const char* ASKING = b"*1\r\n$6\r\nASKING\r\n"
cdef enum:
    ASKING_LEN = 16


cdef class BackendSettings:
    """Limits of connections: stall_ns, after which a connection on which nothing moves is given up."""

    def __cinit__(self, *, stall_ns):
        self.stall_ns = stall_ns


cdef class Node:
    """A server of the cluster as the data path knows it: its connections and its figures."""

    def __cinit__(self, address, bint replica):
        self.address = address
        self.label = str(address)
        self.replica = replica
        self.usable = True
        self.resp2 = []
        self.resp3 = []
        self.retired = []

    @property
    def up(self):
        """Whether any connection to it is established."""
        return any((<Backend> b).state == BACKEND_UP for b in self.backends())

    @property
    def down(self):
        """Whether the last attempt to connect failed."""
        return self.down_since_ns != 0

    def backends(self):
        """All its connections, those still draining included."""
        return [*self.resp2, *self.resp3, *self.retired]

    def figures(self):
        """{role, up, usable, pending, connections: {state: n}, connect_failures, buckets, sum_s}."""
        connections = dict.fromkeys(STATE_NAMES, 0)
        pending = 0
        for b in self.backends():
            connections[STATE_NAMES[(<Backend> b).state]] += 1
            pending += (<Backend> b).pending
        buckets, sum_s = histogram_values(&self.duration)
        return {
            "role": "replica" if self.replica else "primary",
            # Answers: connected, or (a replica nobody reads from) found fit by its last probe.
            "up": self.up or (self.replica and self.usable and not self.down),
            "usable": bool(self.usable),
            "pending": pending,
            "connections": connections,
            "connect_failures": self.connect_failures,
            "buckets": buckets,
            "sum_s": sum_s,
        }


cdef class Backend(Peer):
    """One connection. `port` is control's side: connect(backend), backend_lost(backend, reason)."""

    def __cinit__(self, Reactor reactor, Node node, int proto, Recovery recovery, port, Counters counters,
                  BackendSettings settings):
        self.fd = -1
        self.reactor = reactor
        self.node = node
        self.proto = proto
        self.readonly = node.replica
        self.recovery = recovery
        self.port = port
        self.counters = counters
        self.counts = counters.block
        self.settings = settings
        self.state = BACKEND_IDLE
        self.next_deadline_ns = 0
        reply_scan_reset(&self.scan)

    def __dealloc__(self):
        buffer_release(&self.win)
        buffer_release(&self.rest)

    def __repr__(self):
        return f"<Backend {self.node.label} RESP{self.proto} {STATE_NAMES[self.state]} pending={self.pending}>"

    # -- control's side ------------------------------------------------------------------------------------------

    def attach(self, int fd):
        """Begins to use a connected descriptor whose handshake is done, and owns it from now on.

        Raises OSError when epoll refuses it; the descriptor is then still the caller's.
        """
        if self.state == BACKEND_CLOSED or not self.open_fd(fd):
            raise OSError(errno, "cannot watch the connection")
        self.state = BACKEND_UP
        self.node.down_since_ns = 0
        self.reactor.tick()
        self.progress_ns = self.reactor.now
        self.reactor.touch(self)

    def connect_failed(self):
        """Control could not connect: what waited is handed to recovery."""
        if self.state == BACKEND_CLOSED:
            return
        self.state = BACKEND_BACKOFF
        self.node.connect_failures += 1
        self.reactor.tick()
        if self.node.down_since_ns == 0:
            self.node.down_since_ns = self.reactor.now
        self.abandon_all()

    def close(self):
        """Ends it for good; what is pending is handed to recovery."""
        self.state = BACKEND_CLOSED
        self.close_fd()
        self.abandon_all()

    # -- the data path's side ------------------------------------------------------------------------------------

    cdef void demand(self) noexcept:
        """Has control connect it, if it is idle."""
        if self.state == BACKEND_IDLE:
            self.state = BACKEND_CONNECTING
            self.port.connect(self)

    cdef bint enqueue(self, Request* r, const char* p, size_t n) noexcept:
        """Queues a command's bytes and the request that waits for its reply; false when there is no memory.

        p must not point into this backend's own window.
        """
        cdef size_t live = self.win.end - self.win.start
        if not buffer_append(&self.win, p, n):
            return False
        r.pos = self.win_pos + live
        r.len = n
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
        return True

    cdef bint enqueue_asking(self, Request* r, const char* p, size_t n) noexcept:
        """Queues ASKING and the command, adjacent."""
        cdef Request* asking
        if not buffer_reserve(&self.win, ASKING_LEN + n):
            return False
        asking = request_new()
        if asking == NULL:
            return False
        asking.flags = REQ_INTERNAL
        asking.deadline_ns = r.deadline_ns
        self.enqueue(asking, ASKING, ASKING_LEN)
        return self.enqueue(r, p, n)

    cdef void ready(self, bint readable, bint writable) noexcept:
        if writable:
            self.flush()
        if readable:
            self.read()

    cdef void flush(self) noexcept:
        cdef ssize_t n
        cdef size_t unsent, done, sent = 0
        if self.fd < 0:
            return
        done = self.sent_pos - self.win_pos
        unsent = self.win.end - self.win.start - done
        while unsent:
            if sent >= FLUSH_MAX:
                self.want(WANT_READ | WANT_WRITE)           # others have their turn first
                return
            n = send(self.fd, self.win.data + self.win.start + done, min(unsent, <size_t> FLUSH_MAX), MSG_NOSIGNAL)
            if n < 0:
                if errno == EINTR:
                    continue
                if errno == EAGAIN:
                    self.want(WANT_READ | WANT_WRITE)
                    return
                self.lose(strerror(errno).decode())
                return
            self.counts.backend_out += n
            if self.head != NULL and self.sent_pos < self.head.pos + self.head.len:
                self.progress_ns = self.reactor.now     # only the oldest counts: newer ones may be sent for ever
            self.sent_pos += n
            done += n
            sent += n
            unsent -= n
        if self.interest != WANT_READ:
            self.want(WANT_READ)

    cdef void read(self) noexcept:
        cdef char* buf = self.reactor.shared
        cdef size_t left
        cdef ssize_t n
        cdef int _
        for _ in range(READ_ROUNDS):
            if self.fd < 0:
                return
            left = buffer_len(&self.rest)
            n = recv(self.fd, buf + left, SHARED - left, 0)
            if n < 0:
                if errno == EINTR:
                    continue
                if errno != EAGAIN:
                    self.lose(strerror(errno).decode())
                return
            if n == 0:
                self.lose("closed by the node")
                return
            if left:
                memcpy(buf, self.rest.data + self.rest.start, left)
                buffer_release(&self.rest)
            self.counts.backend_in += n
            self.progress_ns = self.reactor.now
            if not self.process(buf, left + n) or <size_t> n < SHARED - left:
                return

    cdef bint process(self, char* p, size_t n) noexcept:
        """Pairs every whole reply in p[0:n] with its request; `scanned` bytes of it were scanned before.

        Keeps what is left over. False when the connection was given up meanwhile.
        """
        cdef size_t used = 0, whole = self.scanned
        cdef int rc
        cdef Request* r
        while True:
            rc = scan_reply(&self.scan, p + whole, n - whole, &used)
            whole += used
            if rc == SCAN_DONE:
                if not self.scan.push:
                    if self.head == NULL:
                        self.lose("a reply that nothing was asked for")
                        return False
                    self.reply(p, whole)
                    if self.fd < 0:
                        return False
                self.passing = False
                p += whole
                n -= whole
                whole = 0
                if n == 0:
                    break
                continue
            if rc == SCAN_ERROR:
                self.lose("a malformed reply")
                return False
            if whole >= PASS_MIN and self.scan.kind != c"-":
                if not self.scan.push:
                    r = self.head
                    if r == NULL:
                        self.lose("a reply that nothing was asked for")
                        return False
                    self.give(r, p, whole, False, False)
                self.passing = True
                p += whole
                n -= whole
                whole = 0
            if n > REST_MAX:
                self.lose("an endless line in a reply")
                return False
            break
        self.scanned = whole
        if n and not buffer_append(&self.rest, p, n):
            self.lose("out of memory")
            return False
        return True

    cdef void reply(self, const char* p, size_t n) noexcept:
        """The last piece of the head request's reply."""
        cdef Request* r = self.head
        cdef size_t size = r.len
        cdef bint error = self.scan.kind == c"-" and not self.passing
        self.head = r.bnext
        if self.head == NULL:
            self.tail = NULL
        self.pending -= 1
        observe(&self.node.duration, self.reactor.now - r.sent_ns)
        if r.flags & REQ_INTERNAL:
            request_free(r)
        elif not (error and self.recovery.error(self, r, self.win.data + self.win.start, p, n)):
            self.give(r, p, n, True, error)
        if self.fd < 0:
            return              # given up meanwhile: the window is gone
        self.win.start += size
        self.win_pos += size
        if self.win.start == self.win.end:
            self.win.start = self.win.end = 0
            if self.win.cap > KEEP:
                buffer_release(&self.win)
            if self.draining:
                self.close()

    cdef void give(self, Request* r, const char* p, size_t n, bint final, bint error) noexcept:
        """Passes a piece of a reply to whoever waits for it, or drops it."""
        if r.flags & REQ_INTERNAL:
            return
        if r.flags & REQ_PART:
            if final:
                self.recovery.answer(r, p, n, error)
            elif request_hold(r, p, n) and r.parent.client != NULL:
                (<Origin> r.parent.client).weigh(<ssize_t> n)
        elif r.client != NULL:
            (<Origin> r.client).deliver(r, p, n, final, error)
        elif final:
            request_free(r)

    # -- losses --------------------------------------------------------------------------------------------------

    cdef void lose(self, str reason) noexcept:
        """The connection is of no use any more: closes it, hands over what is pending, asks control for a new one."""
        if self.fd < 0:
            return
        self.close_fd()
        self.state = BACKEND_CLOSED if self.draining else BACKEND_CONNECTING
        self.abandon_all()
        self.port.backend_lost(self, reason)

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
        self.head = self.tail = NULL
        self.pending = 0
        self.win_pos = self.sent_pos = 0
        self.scanned = 0
        self.passing = False
        reply_scan_reset(&self.scan)
        buffer_release(&self.rest)
        while r != NULL:
            following = r.bnext
            r.bnext = NULL
            if r.flags & REQ_INTERNAL:
                request_free(r)
            else:
                self.recovery.lost(self, r, win.data + win.start + (r.pos - win_pos), r.pos + r.len <= sent_pos)
            r = following
        buffer_release(&win)

    cdef void sweep(self, int64_t now) noexcept:
        """Ends requests whose deadline has passed, gives up a connection on which nothing moves, trims buffers."""
        if self.head == NULL:
            if self.draining:
                self.close()
            else:
                buffer_release(&self.win)
            return
        if self.state == BACKEND_UP and now - self.progress_ns > self.settings.stall_ns:
            self.lose("stalled: nothing came back in time")
            return
        buffer_shrink(&self.win)
        if now >= self.next_deadline_ns:
            self.expire(now)

    cdef void expire(self, int64_t now) noexcept:
        """Ends requests whose deadline has passed.

        One that the node may have in part becomes a ghost. One that is wholly unsent is taken out of the window, for
        its client is told so: it must not be carried out later.
        """
        cdef Request* r = self.head
        cdef Request* before = NULL
        cdef Request* following
        cdef Request* ghost
        cdef char* bytes = self.win.data + self.win.start
        cdef size_t cut = 0
        cdef bint unsent
        self.next_deadline_ns = now + 3600 * <int64_t> 1000000000
        while r != NULL:
            following = r.bnext
            unsent = r.pos >= self.sent_pos
            if before != NULL and before.flags & REQ_INTERNAL and before.deadline_ns == r.deadline_ns:
                unsent = False              # its ASKING was sent and must not meet another command
            if cut:
                memmove(bytes + (r.pos - cut - self.win_pos), bytes + (r.pos - self.win_pos), r.len)
                r.pos -= cut
            if r.flags & REQ_STREAMING or (r == self.head and self.passing):
                before = r
            elif r.deadline_ns > now:
                if r.deadline_ns < self.next_deadline_ns:
                    self.next_deadline_ns = r.deadline_ns
                before = r
            elif unsent:
                if before == NULL:
                    self.head = following
                else:
                    before.bnext = following
                if self.tail == r:
                    self.tail = before
                self.pending -= 1
                cut += r.len
                r.bnext = NULL
                if r.flags & REQ_INTERNAL:
                    request_free(r)
                else:
                    self.recovery.timed_out(r, False)
            elif r.flags & REQ_INTERNAL:
                before = r
            else:
                ghost = request_new()
                if ghost == NULL:
                    self.next_deadline_ns = now     # the next sweep tries again
                    before = r
                    r = following
                    continue
                ghost.flags = REQ_INTERNAL
                ghost.pos = r.pos
                ghost.len = r.len
                ghost.sent_ns = r.sent_ns
                ghost.deadline_ns = INT64_MAX
                ghost.bnext = following
                if before == NULL:
                    self.head = ghost
                else:
                    before.bnext = ghost
                if self.tail == r:
                    self.tail = ghost
                r.bnext = NULL
                self.recovery.timed_out(r, True)
                before = ghost
            r = following
        self.win.end -= cut

    cdef void retire(self) noexcept:
        """Takes no more requests; closes once nothing is pending.

        What waits for a connection not made yet goes elsewhere at once. While a reply is being handled its request's
        bytes still stand in the window: then reply() closes.
        """
        self.draining = True
        if self.state != BACKEND_UP or (self.head == NULL and self.win.start == self.win.end):
            self.close()
