# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""A pipelined connection to a node, shared by all clients of a worker or leased to one.

States and moves: IDLE -> CONNECTING (a request needs it, or control wants it warm) -> UP (`attach`) -> CONNECTING
(lost) -> BACKOFF (`connect_failed`) -> CONNECTING ...; CLOSED from anywhere (`close`), and when a lease, a client's own
or a draining connection is lost. While CONNECTING, requests wait in the window; control connects, does the handshake
and hands over the descriptor. What is under way is kept by Pipeline.

Invariant: no reply is taken for more than was sent; a node that answers what it has not wholly got is cut off.
"""
cimport cython
from libc.errno cimport errno
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memcmp, memcpy, strerror

from proxy.forward.buffer cimport buffer_append, buffer_len, buffer_release, buffer_shrink
from proxy.forward.counters cimport Counters, observe
from proxy.forward.pipeline cimport span
from proxy.forward.ports cimport Recovery, Sink
from proxy.forward.reactor cimport (
    BROKEN, EVENT_END, EVENT_GONE, EVENT_READ, EVENT_WRITE, SHARED, WANT_END, WANT_READ, WANT_WRITE, WOULD_BLOCK,
    Reactor,
)
from proxy.forward.request cimport (
    REQ_BLAMED, REQ_READ, REQ_SWALLOWED, STATE_CANCELLED, STATE_GHOST, STATE_PAIRING, TARGET_LEASE, Request,
    request_fault, request_free, request_move, request_take_fault,
)
from proxy.resp.scanner cimport SCAN_DONE, SCAN_ERROR, reply_scan_reset, scan_reply

from proxy.forward.node import STATE_NAMES

cdef enum:
    PASS_MIN = 8192             # an incomplete reply is passed on from this size
    REST_MAX = SHARED // 2      # an incomplete line or error longer than this breaks the protocol
    PUSH_MAX = 64 << 20         # a longer push breaks it too
    READ_ROUNDS = 4             # full receive buffers before others get their turn
    SALVAGE_ROUNDS = 64         # ... of a connection that is about to be given up
    FLUSH_MAX = 1 << 20         # bytes sent to one node before the others have their turn
    LISTEN = WANT_READ | WANT_END
    EXECABORT_LEN = 11
    BECAUSE_LEN = 45

cdef const char* EXECABORT = b"-EXECABORT "
cdef const char* BECAUSE = b"-EXECABORT Transaction discarded because of: "


class BackendState:
    """The states by name, for control."""
    IDLE = BACKEND_IDLE
    CONNECTING = BACKEND_CONNECTING
    UP = BACKEND_UP
    BACKOFF = BACKEND_BACKOFF
    CLOSED = BACKEND_CLOSED


@cython.final
cdef class Backend(Pipeline):
    """One connection. `port` is control's side: connect(backend), backend_lost(backend, reason).

    pool: the one it belongs to; None for a lease.
    """

    def __cinit__(self, Reactor reactor, Node node, Pool pool, int proto, int db, Recovery recovery, port,
                  Counters counters, BackendSettings settings, PushPort pushes):
        self.fd = -1
        self.reactor = reactor
        self.node = node
        self.pool = pool
        self.proto = proto
        self.db = db
        self.readonly = node.replica
        self.recovery = recovery
        self.port = port
        self.pushes = pushes
        self.counts = counters.block
        self.settings = settings
        self.state = BACKEND_IDLE
        if pool is not None and pool.owner is not None:
            self.announcement = pool.owner.announcement
        reply_scan_reset(&self.scan)

    def __dealloc__(self):
        buffer_release(&self.rest)
        buffer_release(&self.push)

    def __repr__(self):
        return f"<Backend {self.node.label} RESP{self.proto} {STATE_NAMES[self.state]} pending={self.pending}>"

    # -- control's side ------------------------------------------------------------------------------------------

    @property
    def leased(self):
        """Owned by one client; never made again once it is lost."""
        return self.pool is None

    @property
    def purpose(self):
        """One of node.PURPOSES."""
        if self.pool is None:
            return "subscriber" if self.duty else "leased"
        return "shared" if self.pool.owner is None else "tracking"

    @property
    def greeting(self):
        """The command that ends its handshake, in words; () = there is none."""
        return () if self.pool is None or self.pool.owner is None else self.pool.owner.greeting

    def attach(self, int fd, bytes rest not None=b""):
        """Begins to use a connected descriptor whose handshake is done, and owns it from now on.

        rest: bytes that came behind the handshake: pushes, or the beginning of one. Raises OSError when epoll
        refuses it; the descriptor is then still the caller's.
        """
        if self.state == BACKEND_CLOSED or not self.open_fd(fd):
            raise OSError(errno, "cannot watch the connection")
        self.state = BACKEND_UP
        if self.pool is not None:
            self.pool.down_since_ns = 0
        self.reactor.tick()
        self.progress_ns = self.node.heard_ns = self.reactor.now
        if self.node.silent:
            self.node.heard()
        self.reactor.touch(self)
        if self.pushes is not None:
            self.pushes.begun(self)
        if rest and self.fd >= 0:
            self.process(rest, len(rest))

    def connect_failed(self, bint tried=True):
        """Control could not connect: what waited is handed to recovery. tried: false when it did not try, because the
        node is known not to be reached.

        Its pool counts as down when no other connection of it is up.
        """
        if self.state == BACKEND_CLOSED:
            return
        self.state = BACKEND_BACKOFF if self.pool is not None else BACKEND_CLOSED
        self.node.connect_failures += tried and not self.node.paused
        self.reactor.tick()
        if self.pool is not None and self.pool.down_since_ns == 0 and not self.node.paused and not any(
            (<Backend> b).state == BACKEND_UP for b in self.pool.backends
        ):
            self.pool.down_since_ns = (0 if tried else self.node.down_since()) or self.reactor.now
        self.start_over()

    def close(self):
        """Ends it for good; what is pending is handed to recovery."""
        cdef bint up = self.fd >= 0
        self.state = BACKEND_CLOSED
        self.close_fd()
        if up and self.pushes is not None:
            self.pushes.ended(self)
        self.start_over()

    # -- the data path's side ------------------------------------------------------------------------------------

    cdef void demand(self) noexcept:
        """Has control connect it, if it is idle."""
        if self.state == BACKEND_IDLE:
            self.state = BACKEND_CONNECTING
            self.port.connect(self)

    cdef void ready(self, uint32_t events) noexcept:
        if events & EVENT_WRITE:
            self.flush()
        if events & (EVENT_READ | EVENT_END | EVENT_GONE) and self.fd >= 0 and (not self.deaf or events & EVENT_GONE):
            self.read()

    cdef uint32_t heard(self) noexcept:
        """What epoll is to report apart from room to write."""
        return 0 if self.deaf else LISTEN

    cdef void flush(self) noexcept:
        cdef ssize_t n
        cdef size_t unsent, sent = 0
        if self.fd < 0 or self.wary:
            return
        unsent = self.sendable()
        while unsent:
            if sent >= FLUSH_MAX:
                self.want(self.heard() | WANT_WRITE)        # others have their turn first
                return
            n = self.transmit(
                self.win.data + self.win.start + (self.sent_pos - self.win_pos), min(unsent, <size_t> FLUSH_MAX))
            if n < 0:
                if n == WOULD_BLOCK:
                    self.want(self.heard() | WANT_WRITE)
                    return
                reason = strerror(errno).decode()
                self.salvage()
                self.lose(reason)
                return
            self.counts.backend_out += n
            if self.head != NULL and self.sent_pos < self.head.pos + span(self.head):
                self.progress_ns = self.reactor.now     # only the oldest counts: newer ones may be sent for ever
            self.sent_pos += n
            sent += n
            unsent = self.sendable()
        if self.interest != LISTEN:
            self.want(self.heard())

    cdef void read(self) noexcept:
        cdef int _
        for _ in range(READ_ROUNDS):
            if not self.read_once() or self.duty:       # each of many messages may be for many clients
                return

    cdef bint read_once(self) noexcept:
        """Takes in what has come, a receive buffer of it at most; whether there may be more."""
        cdef char* buf = self.reactor.shared
        cdef size_t left = buffer_len(&self.rest)
        cdef ssize_t n
        if self.fd < 0:
            return False
        n = self.receive(buf + left, SHARED - left)
        if n <= 0:
            if n == 0 or n == BROKEN:
                self.accuse()
                self.lose("closed by the node" if n == 0 else strerror(errno).decode())
            return False
        if left:
            memcpy(buf, self.rest.data + self.rest.start, left)
            buffer_release(&self.rest)
        self.counts.backend_in += n
        self.progress_ns = self.node.heard_ns = self.reactor.now
        if self.node.silent:
            self.node.heard()
        if self.fenced:
            self.reactor.touch(self)        # when these are answered, more may be sent
        return self.process(buf, left + n) and <size_t> n == SHARED - left

    cdef void salvage(self) noexcept:
        """Takes in the answers that lie in the socket of a connection that cannot be sent to any more."""
        cdef int _
        for _ in range(SALVAGE_ROUNDS):
            if not self.read_once():
                return

    cdef bint process(self, char* p, size_t n) noexcept:
        """Pairs every whole reply in p[0:n] with its request; `scanned` bytes of it were scanned before.

        Keeps what is left over. False when the connection was given up meanwhile.
        """
        cdef size_t used = 0, whole = self.scanned
        cdef int rc
        cdef bint partly
        cdef Request* r
        while True:
            rc = scan_reply(&self.scan, p + whole, n - whole, &used)
            whole += used
            if rc == SCAN_DONE:
                if self.scan.push:
                    if not self.pushed(p, whole, True):
                        return False
                else:
                    if self.unearned(self.scan.kind):
                        self.blame()
                        return False
                    partly = self.premature() and not self.head.swallow
                    self.reply(p, whole)
                    if partly:                      # an error: it has been told, and this node will read no further
                        self.lose("an error for a command that was not wholly sent")
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
            if whole >= PASS_MIN and (self.scan.kind != c"-" or self.scan.in_line):
                if self.scan.push:
                    if not self.pushed(p, whole, False):
                        return False
                else:
                    if self.unearned(p[0] if not self.passing else self.scan.kind):
                        self.blame()
                        return False
                    r = self.head
                    if r.sink != NULL and not r.swallow:
                        (<Sink> r.sink).deliver(r, p, whole, False, False)
                        if self.fd < 0:
                            return False
                self.passing = True
                p += whole
                n -= whole
                whole = 0
            if n > REST_MAX:
                self.lose("an endless line in a reply")
                return False
            if n and not self.passing and p[0] != c">" and self.unearned(p[0]):
                self.blame()
                return False
            break
        self.scanned = whole
        if n and not buffer_append(&self.rest, p, n):
            self.lose("out of memory")
            return False
        return True

    cdef bint premature(self) noexcept:
        """Whether the node answers a command that it has not wholly got."""
        return self.head.pos + span(self.head) > self.sent_pos

    cdef bint unearned(self, char kind) noexcept:
        """Whether a reply that begins so is one to nothing, or to half a command.

        Half a command may be answered with an error, and what comes before it wholly: ASKING, or a part of a
        transaction.
        """
        cdef Request* r = self.head
        if r == NULL or self.sent_pos <= r.pos:
            return True
        if not self.premature() or kind == c"-":
            return False
        return r.swallow == 0 or self.sent_pos < r.pos + r.prefix

    cdef void blame(self) noexcept:
        """A reply that was not earned ends the connection; the command it would be for is not tried again."""
        if self.head != NULL and self.head.pos < self.sent_pos:
            self.head.flags |= REQ_BLAMED
        self.lose("a reply to what was not wholly sent")

    cdef bint pushed(self, const char* p, size_t n, bint final) noexcept:
        """A piece of a push: kept until it is whole, then for the port. False when the connection was given up."""
        if self.pushes is None:
            return True
        if self.push.end == self.push.start and final:
            self.pushes.pushed(self, p, n)
            return self.fd >= 0
        if buffer_len(&self.push) + n > PUSH_MAX or not buffer_append(&self.push, p, n):
            self.lose("a push that is too long")
            return False
        if final:
            self.pushes.pushed(self, self.push.data + self.push.start, buffer_len(&self.push))
            buffer_release(&self.push)
        return self.fd >= 0

    cdef void reply(self, const char* p, size_t n) noexcept:
        """The last piece of a reply to the head request, or of one that it swallows."""
        cdef Request* r = self.head
        cdef bint error = self.scan.kind == c"-"
        cdef size_t size
        if r.swallow:
            r.swallow -= 1
            if error and not self.passing and r.swallow < r.own_swallow and not r.flags & REQ_SWALLOWED:
                r.flags |= REQ_SWALLOWED            # the first of its own, not the prefix's
                request_fault(r, p, n)
            return
        size = span(r)
        self.head = r.bnext
        if self.head == NULL:
            self.tail = NULL
        self.pending -= 1
        observe(&self.node.duration, self.reactor.now - r.sent_ns)
        self.settle(r, p, n, error)
        if self.fd >= 0:            # else given up meanwhile: the window is gone
            self.win.start += size
            self.win_pos += size
            if self.head == NULL or self.head.state == STATE_CANCELLED or self.full:
                self.answered()
            if self.draining and self.win.start == self.win.end:
                self.close()

    cdef void settle(self, Request* r, const char* p, size_t n, bint error) noexcept:
        """A request that was answered goes to whoever waits for it, or on its way again."""
        if r.state == STATE_GHOST:
            request_free(r)
            return
        request_move(r, STATE_PAIRING)
        if error and not self.passing and self.sent_on(r, p, n):    # (what redirects is too short to be passed on in
            return                                                  # pieces)
        if not r.flags & REQ_READ and r.account != NULL and (r.slot >= 0 or r.target == TARGET_LEASE):
            r.account.wrote |= <uint64_t> 1 << (self.node.number & 63)
        if r.sink != NULL:
            (<Sink> r.sink).deliver(r, p, n, True, error)
        else:
            request_free(r)

    cdef bint sent_on(self, Request* r, const char* p, size_t n) noexcept:
        """Whether an error line sends the request on its way again. The first error that it swallowed comes before the
        last: that says why, the last only that something was refused (EXECABORT)."""
        cdef const char* bytes = self.win.data + self.win.start + r.prefix
        cdef char* fault
        cdef bint taken
        if not r.flags & REQ_SWALLOWED:
            if r.own_swallow and n > BECAUSE_LEN and memcmp(p, BECAUSE, BECAUSE_LEN) == 0:
                return self.refused(r, bytes, p + BECAUSE_LEN, n - BECAUSE_LEN)
            return self.recovery.error(self, r, bytes, p, n)
        r.flags &= ~REQ_SWALLOWED
        fault = request_take_fault(r)
        taken = fault != NULL and self.recovery.error(self, r, bytes, fault, r.fault_len)
        if not taken and fault != NULL and n >= EXECABORT_LEN and memcmp(p, EXECABORT, EXECABORT_LEN) == 0:
            taken = self.explain(r, fault, r.fault_len)
        free(fault)
        return taken

    cdef bint refused(self, Request* r, const char* bytes, const char* why, size_t n) noexcept:
        """EXEC itself was refused, after all of it was queued: as when the node lost its role in between."""
        cdef Buffer line = Buffer(NULL, 0, 0, 0, NULL)
        cdef bint taken = False
        if buffer_append(&line, b"-", 1) and buffer_append(&line, why, n):
            taken = self.recovery.error(self, r, bytes, line.data, buffer_len(&line))
        buffer_release(&line)
        return taken

    cdef bint explain(self, Request* r, const char* fault, size_t n) noexcept:
        """EXEC was refused because of an error that its client was not shown: it was told QUEUED. Redis's own form."""
        cdef Buffer text = Buffer(NULL, 0, 0, 0, NULL)
        cdef size_t skip = 5 if n > 5 and memcmp(fault, b"-ERR ", 5) == 0 else 1
        if r.sink == NULL or not buffer_append(&text, BECAUSE, BECAUSE_LEN) or not buffer_append(
            &text, fault + skip, n - skip
        ):
            buffer_release(&text)
            return False
        (<Sink> r.sink).deliver(r, text.data, buffer_len(&text), True, True)
        buffer_release(&text)
        return True

    # -- losses --------------------------------------------------------------------------------------------------

    cdef void lose(self, str reason) noexcept:
        """The connection is of no use any more: closes it, hands over what is pending, asks control for a new one."""
        if self.fd < 0:
            return
        self.close_fd()
        if self.draining or self.pool is None or self.pool.owner is not None:
            self.state = BACKEND_CLOSED         # (what its client watches on its own must not seem to be watched on)
        elif self.node.paused:
            self.state = BACKEND_IDLE           # it is being restarted: until it is wanted again
        else:
            self.state = BACKEND_CONNECTING
        if self.pushes is not None:
            self.pushes.ended(self)
        self.start_over()
        self.port.backend_lost(self, reason)

    cdef void start_over(self) noexcept:
        """Forgets what was half read, and hands over what is pending."""
        self.scanned = 0
        self.passing = self.deaf = self.wary = False
        self.loads = None
        reply_scan_reset(&self.scan)
        buffer_release(&self.rest)
        buffer_release(&self.push)
        self.abandon_all()

    cdef void sweep(self, int64_t now) noexcept:
        """Ends requests whose deadline has passed, gives up a connection on which nothing moves, trims buffers."""
        if self.head == NULL:
            if self.draining:
                self.close()
            else:
                buffer_release(&self.win)
            return
        if self.state == BACKEND_UP and now - self.progress_ns > self.settings.stall_ns and not self.deaf and (
            not self.patient or self.passing
        ):
            self.salvage()
            if self.state == BACKEND_UP and now - self.progress_ns > self.settings.stall_ns:
                self.lose("stalled: nothing came back in time")
            return
        buffer_shrink(&self.win)
        if now >= self.next_deadline_ns:
            self.expire(now, self.passing and not self.scan.push)

    cdef void retire(self) noexcept:
        """Takes no more requests; closes once nothing is pending.

        What waits for a connection not made yet goes elsewhere at once. While a reply is being handled its request's
        bytes still stand in the window: then reply() closes.
        """
        self.draining = True
        if self.state != BACKEND_UP or (self.head == NULL and self.win.start == self.win.end):
            self.close()

    # -- the hub's side ------------------------------------------------------------------------------------------

    cdef void listen(self, bint wanted) noexcept:
        """Whether it is read. What the node sends meanwhile waits there, within the limits that it has for that."""
        if self.deaf == (not wanted):
            return
        self.deaf = not wanted
        if self.fd >= 0:
            self.progress_ns = self.reactor.now
            self.want(self.heard() | (self.interest & WANT_WRITE))

    cdef bint confirmed(self) noexcept:
        """The oldest command has been answered by pushes alone (SUBSCRIBE); false when there is none that was sent."""
        if self.head == NULL or self.premature():
            return False
        self.reply(b"+OK\r\n", 5)
        return True
