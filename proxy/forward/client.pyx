# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""A client's connection: bytes in, frames, calls for the dispatcher; the end of a connection. (Replies: ReplyQueue.)

States: open -> closing (QUIT, a protocol error, end of input: what was asked before is still answered) -> closed; or,
when the proxy wants it to go: open -> draining (as with the end of input) -> lingering (told the end) -> closed.
An idle client holds no buffer: input is read into the reactor's shared buffer, and only what is not carried out yet is
kept.

One client has so much time per batch (`budget`, in units of a forwarded command) and then waits for its next turn,
with what it has sent in `rest`.
"""
cimport cython
from libc.stdint cimport SIZE_MAX, int64_t

from proxy.forward.buffer cimport (
    BLOCK, buffer_append, buffer_len, buffer_release, buffer_reserve, buffer_reserve_within, buffer_shrink, grown,
)
from proxy.forward.call cimport CALL_DONE, CALL_LATER, CALL_NOT_NOW, SLOT_NONE
from proxy.forward.counters cimport (
    CLOSE_CLIENT, CLOSE_ERROR, CLOSE_KILLED, CLOSE_PROTOCOL, CLOSE_QUERY_LIMIT, CLOSE_QUIT, CLOSE_SHUTDOWN,
)
from proxy.forward.datapath cimport ClientSettings, DataPath
from proxy.forward.ports cimport KILLED, LEFT
from proxy.forward.reactor cimport (
    BROKEN, EVENT_END, EVENT_GONE, EVENT_READ, EVENT_WRITE, SHARED, WANT_END, WANT_READ, WANT_WRITE, check_memory,
    count_active, may_postpone,
)
from proxy.forward.reply_queue cimport (
    MUTE_SKIP, PUSH_BEHIND, PUSH_SOON, SEND_FAILED, SENT_ALL, ReplyQueue,
)
from proxy.forward.request cimport Request
from proxy.resp.inline cimport INLINE_EMPTY, INLINE_OK, INLINE_UNBALANCED, inline_command, inline_trim
from proxy.resp.scanner cimport (
    FAULT_NO_MEMORY, FAULT_UNBALANCED, SCAN_DONE, SCAN_INLINE, SCAN_MORE, Arg, args_free, command_scan_reset,
    scan_command,
)

cdef enum:
    READ_ROUNDS = 4         # full receive buffers before others get their turn
    ARGS_KEEP = 4096        # a shared argument vector larger than this is given back
    TURN = 512              # units of a turn: a forwarded command is one, some 0.3 us
    COST_BYTES = 11         # ... and 2^11 bytes of it are another
    COST_INLINE = 2         # ... and being written as a line another
    LARGE_REST = 1 << 20    # input that is not kept for a client that has ended its input and waits
    POSTPONE_MAX = 4096     # output that may wait for a batch while more is due


@cython.final
cdef class Client(ClientInfo):
    """One client; see ClientInfo for what proxy.serve reads and changes."""

    def __cinit__(self, DataPath path, ClientSettings settings, str address, str local_address, uint64_t client_id):
        self.path = path
        self.reactor = path.reactor
        self.settings = settings
        self.replies = ReplyQueue()
        self.replies.outlet = <void*> self
        self.replies.counts = path.counts
        self.replies.limits = settings
        self.replies.account.all = self.replies.out.counted = self.rest.counted = &self.reactor.memory
        self.id = client_id
        path.turn += 1
        self.affinity = path.turn       # not the id: those of one worker may all be even
        self.address = address
        self.local_address = local_address
        self.proto = 2
        self.authenticated = not settings.password
        self.policy = self.wanted_policy = settings.reads
        self.active_ns = self.reactor.now
        command_scan_reset(&self.scan)

    def __dealloc__(self):
        self.rest.counted = NULL        # the reactor may be gone
        buffer_release(&self.rest)
        args_free(&self.args)

    # -- for proxy.serve -----------------------------------------------------------------------------------------

    @property
    def memory(self):
        """Bytes held for it in all: those of all clients come to DataPath.client_memory."""
        return self.held()

    def push(self, bytes frame, bint behind=False):
        """Sends a push between two replies; behind: those that have come for it already before it."""
        self.replies.push(frame, len(frame), PUSH_BEHIND if behind else PUSH_SOON)

    def close_after_reply(self):
        """Ignores further input and closes once everything asked so far is answered."""
        self.end(CLOSE_QUIT)

    def kill(self):
        """Closes it at once; one that is blocked, when it is known that nothing was popped for it, within a second."""
        self.killed = True
        if self.wait is not None:
            self.wait.part(KILLED)
        else:
            self.close(CLOSE_KILLED)

    def kill_after_reply(self):
        """The same as soon as everything asked so far is answered."""
        self.end(CLOSE_KILLED)

    def reset(self):
        """Forgets what RESET ends and only the data path holds: a transaction, what is watched, CLIENT REPLY OFF, what
        is tracked."""
        self.replies.muted &= MUTE_SKIP
        self.untrack()
        self.leave()

    # -- input ---------------------------------------------------------------------------------------------------

    cdef void ready(self, uint32_t events) noexcept:
        if events & EVENT_WRITE:
            self.flush()
        if self.fd < 0:
            return
        if events & EVENT_END:
            self.half_closed = True
            if self.wait is not None:
                self.wait.part(LEFT)
                if self.fd < 0:
                    return
            self.want(self.interest & ~WANT_END)        # it would be reported for ever
            self.reactor.touch(self)
        if events & EVENT_READ and self.interest & WANT_READ:
            if self.lingering_ns:
                self.ignore()
            elif not self.queued:                       # else it has not done yet what it was told before
                self.read()
        elif events & EVENT_GONE:
            self.close(self.close_reason if self.lingering_ns else CLOSE_CLIENT)    # nobody is left to take replies

    cdef int64_t held(self) noexcept:
        """See memory."""
        return self.replies.account.held + <int64_t> (
            self.rest.cap + self.replies.out.cap + self.texts + self.queued_bytes()
            + self.args_counted * sizeof(Arg) + self.replies.inflight * sizeof(Request) + self.subscribed
        )

    cdef bint takes(self) noexcept:
        """Whether it has taken output out of the kernel's buffer since it was last asked: slowly, but it does."""
        cdef int before = self.untaken
        self.untaken = self.in_kernel()
        return self.untaken != before

    cdef void begin_turn(self) noexcept:
        """A new budget in a new batch."""
        if self.turn_in != self.reactor.batches:
            self.turn_in = self.reactor.batches
            self.budget = TURN

    cdef void go_on(self) noexcept:
        """Its next turn: what it has sent already; the reactor tells of what else has come."""
        if self.paused or self.closing:
            return
        self.begin_turn()
        self.parse_rest()
        if self.eof and self.fd >= 0:
            self.reactor.touch(self)            # what came before the end of input is under way: close after it

    cdef void read(self) noexcept:
        cdef char* buf
        cdef size_t room, used, want, most
        cdef ssize_t n
        cdef int _
        cdef bint own
        count_active(self.reactor, self)
        self.begin_turn()
        self.replies.begin_read(self.rest.end == self.rest.start)
        for _ in range(READ_ROUNDS):
            if self.fd < 0 or self.paused or self.closing or self.queued:
                return
            own = self.rest.end > self.rest.start
            if own:
                # A long argument lets the buffer grow as it really comes, never by what its head announces.
                if self.rest.cap - self.rest.end < BLOCK // 4:
                    want = BLOCK
                    most = SIZE_MAX
                    if self.scan.bulk > <int64_t> BLOCK:
                        most = self.scan.pos + <size_t> self.scan.bulk + 2 * BLOCK      # then it is whole
                        used = buffer_len(&self.rest)
                        want = max(min(grown(used), most), used + BLOCK) - used
                    if not buffer_reserve_within(&self.rest, want, most):
                        self.close(CLOSE_ERROR)
                        return
                    check_memory(self.reactor)      # not only when the batch ends: many may be as long as this one
                    if self.fd < 0 or self.paused:
                        return
                buf = self.rest.data + self.rest.end
                room = self.rest.cap - self.rest.end
            else:
                buf = self.reactor.shared
                room = SHARED
            n = self.receive(buf, room)
            if n < 0:
                if n == BROKEN:
                    self.close(CLOSE_CLIENT)
                return
            if n == 0:
                self.eof = self.half_closed = True
                self.want(self.interest & ~WANT_READ)
                self.reactor.touch(self)
                if self.wait is not None:
                    self.wait.part(LEFT)
                return
            self.path.counts.client_in += n
            self.active_ns = self.reactor.now
            if own:
                self.rest.end += n
                self.parse_rest()
            else:
                used = self.parse(buf, n)
                if self.fd >= 0 and not self.closing and used < <size_t> n:
                    want = n - used
                    if <int64_t> BLOCK < self.scan.bulk < <int64_t> SHARED:
                        want += <size_t> self.scan.bulk     # saves growing in steps; no more than was read at once
                    if not buffer_reserve(&self.rest, want):
                        self.close(CLOSE_ERROR)
                        return
                    buffer_append(&self.rest, buf + used, n - used)
                    check_memory(self.reactor)
            if not self.paused and not self.queued and buffer_len(&self.rest) > self.settings.max_query:
                self.close(CLOSE_QUERY_LIMIT)
            if <size_t> n < room:
                self.replies.drained = True
                return

    cdef void ignore(self) noexcept:
        """Input of a client that was told the end; closed with its own end."""
        cdef ssize_t n
        cdef int _
        for _ in range(READ_ROUNDS):
            n = self.receive(self.reactor.shared, SHARED)
            if n == 0 or n == BROKEN:
                self.close(self.close_reason)
            if n < <ssize_t> SHARED:
                return

    cdef void pause(self) noexcept:
        """Nothing more is read, nor carried out of what was, until flush() finds room."""
        self.paused = True
        self.want(self.interest & ~WANT_READ)
        self.reactor.touch(self)

    cdef void wait_for_room(self) noexcept:
        """Its next command is for a connection whose window is full: it is not begun before there is room."""
        self.waits_for_room = True
        self.path.exchange.wait(self)

    cdef void room(self) noexcept:
        self.waits_for_room = False
        self.active_ns = self.reactor.now       # it was us who kept it waiting
        self.reactor.touch(self)

    cdef void parse_rest(self) noexcept:
        """Goes on with the client's own buffer."""
        cdef size_t used = self.parse(self.rest.data + self.rest.start, buffer_len(&self.rest))
        if self.fd < 0:
            return
        self.rest.start += used
        if self.rest.start == self.rest.end or self.closing:
            buffer_release(&self.rest)
        elif used:
            buffer_shrink(&self.rest)

    cdef size_t parse(self, const char* buf, size_t n) noexcept:
        """Carries out every whole command in buf[0:n] there is room and time for; returns the bytes done with."""
        cdef size_t done = 0, size
        cdef int rc, result
        cdef ArgVec* args
        while done < n and self.fd >= 0 and not self.closing:
            if self.replies.overloaded():
                self.pause()
                break
            if self.budget <= 0:
                self.reactor.more(self)
                break
            args = &self.args if self.scan.want >= 0 else &self.path.args   # in the middle of a frame: its own
            rc = scan_command(&self.scan, args, buf + done, n - done, &self.settings.limits, self.authenticated)
            if rc == SCAN_DONE or rc == SCAN_INLINE:
                size = self.scan.pos
                self.budget -= 1 + <int> (size >> COST_BYTES)
                if rc == SCAN_DONE:
                    command_scan_reset(&self.scan)
                    result = self.run(buf + done, size, args) if args.n else 0
                    if args == &self.args:
                        self.free_args()
                    elif args.cap > ARGS_KEEP:
                        args_free(args)
                else:
                    rc = <int> self.scan.line
                    command_scan_reset(&self.scan)
                    result = self.parse_inline(buf + done, rc)
                if result == CALL_LATER:
                    self.reactor.more_late(self)
                    break
                if result == CALL_NOT_NOW:
                    self.replies.unsettled = not self.waits_for_room or self.replies.unsettled
                    self.pause()
                    break
                if self.replies.muted:
                    self.carried_out()
                done += size
            elif rc == SCAN_MORE:
                if self.scan.want >= 0 and args == &self.path.args:
                    self.args = args[0]         # the next client needs the shared one
                    args.v = NULL
                    args.n = args.cap = 0
                if self.args.cap != self.args_counted:
                    self.count_args()
                break
            else:
                self.fault(self.scan.error)
                break
        return done

    cdef int parse_inline(self, const char* line, size_t n) noexcept:
        """A command in plain text: written as a frame, then carried out like any other."""
        cdef int result = inline_command(line, n, &self.path.inline_frame)
        self.budget -= COST_INLINE
        if result == INLINE_OK:
            result = self.run(self.path.inline_frame.frame, self.path.inline_frame.len, &self.path.inline_frame.args)
            inline_trim(&self.path.inline_frame)
            return result
        if result != INLINE_EMPTY:
            self.fault(FAULT_UNBALANCED if result == INLINE_UNBALANCED else FAULT_NO_MEMORY)
        return 0

    cdef int run(self, const char* frame, size_t n, const ArgVec* args) noexcept:
        """Has a whole command carried out: a CallResult."""
        cdef Call call
        cdef int result
        call.frame = frame
        call.n = n
        call.args = args.v
        call.argc = args.n
        call.keys = &self.path.keys
        call.slot = SLOT_NONE
        call.row = self.path.table.find(frame, call.args, call.argc)
        result = self.path.dispatcher.dispatch(self, &call)
        if result == CALL_DONE:
            self.total_commands += 1
            self.last_metric = call.row.metric
        return result

    cdef void fault(self, int code) noexcept:
        """Malformed input: says so as Redis does, and closes after what was asked before is answered."""
        try:
            self.say(0, self.path.responder.fault(code, <unsigned char> self.scan.got, self.address))
        except Exception as error:
            self.failed(0, "protocol error", error)
        self.end(CLOSE_PROTOCOL)

    cdef void failed(self, int metric, str what, error) noexcept:
        """proxy.serve raised instead of answering: the client is told, and so is the log."""
        self.path.counts.internal_errors += 1
        self.say(metric, b"-ERR internal error\r\n")
        self.path.responder.raised(what, error)

    cdef void say(self, int metric, bytes text) noexcept:
        """An answer of our own, in its turn."""
        self.replies.say(metric, text, len(text))

    # -- output --------------------------------------------------------------------------------------------------

    cdef void flush(self) noexcept:
        """End of a batch: one send(2); then whatever waited for room or for the last answer."""
        cdef ReplyQueue replies = self.replies
        cdef size_t unsent
        cdef int result
        if self.fd < 0:
            return
        unsent = replies.out.end - replies.out.start
        if unsent:
            if (
                replies.head != NULL and unsent <= POSTPONE_MAX and not self.postponed and may_postpone(self.reactor)
                and not self.interest & WANT_WRITE
            ):
                self.reactor.postpone(self)
            else:
                self.postponed = False
                result = replies.send_out()
                if result == SEND_FAILED:
                    self.close(CLOSE_CLIENT)
                    return
                if replies.out.end - replies.out.start < unsent:
                    self.active_ns = self.reactor.now
                self.want(self.interest & ~WANT_WRITE if result == SENT_ALL else self.interest | WANT_WRITE)
        if replies.head == NULL:
            replies.unsettled = False
            if replies.out.end == replies.out.start and (
                self.closing or (self.eof and not self.paused and not self.queued)
                or self.held_back and (self.half_closed or self.eof) and not self.path.keeps(self, self.draining)
            ):
                self.depart()
                return
            if self.waits_for_room and buffer_len(&self.rest) > LARGE_REST:
                if self.half_closed or self.eof and not self.draining:
                    self.close(CLOSE_CLIENT)    # it has most likely left: this would be kept for nobody
                    return
        if self.paused and not self.waits_for_room and replies.relieved():
            self.paused = False
            self.resume()

    cdef void resume(self) noexcept:
        """There is room again."""
        self.begin_turn()
        self.parse_rest()
        if self.fd < 0 or self.paused or self.closing:
            return
        if self.eof:
            self.reactor.touch(self)            # what came before the end of input is under way: close after it
        else:
            self.want(self.interest | WANT_READ)

    # -- the end -------------------------------------------------------------------------------------------------

    cdef void end(self, int reason) noexcept:
        """Nothing more is read; it is closed by the flush that finds everything answered and taken."""
        self.closing = True
        self.close_reason = reason
        self.want(self.interest & ~WANT_READ)
        self.reactor.touch(self)

    cdef void drain(self) noexcept:
        """Graceful end, wanted by the proxy: as if the client had ended its input, only that it may go on sending: see
        depart(). Whole commands that have come are carried out, when they had to wait too."""
        if self.fd < 0 or self.draining:
            return
        self.draining = True
        self.unread_bytes = self.unread()  # of one that was held back, or that had no turn; depart() reads it
        self.replies.stopped = False        # what it has sent is finished first: then it holds nothing
        if not self.eof and not self.closing:
            self.close_reason = CLOSE_SHUTDOWN
            self.eof = True
        self.want(self.interest & ~WANT_READ)
        self.reactor.touch(self)

    cdef void depart(self) noexcept:
        """Everything is answered and taken. A draining client is told the end and may send until it closes, too: bytes
        that come to a closed socket, or lie in it unread, make a reset, which can overtake the replies."""
        cdef int64_t before, read
        if not self.draining:
            self.close(self.close_reason if self.closing else CLOSE_CLIENT)
        elif self.unread_bytes > 0:
            before = self.path.counts.client_in
            self.read()
            read = self.path.counts.client_in - before
            self.unread_bytes = self.unread_bytes - read if read else 0
            self.reactor.touch(self)
        elif not self.lingering_ns:
            self.end_of_output()
            self.lingering_ns = self.reactor.now
            self.path.lingering.add(self)
            self.release_input()
            self.want(self.interest | WANT_READ)

    cdef void shut(self, int reason) noexcept:
        self.close(reason)

    cdef void close(self, int reason) noexcept:
        """Closes it at once. What is under way goes on without a client; its replies are dropped."""
        if self.fd < 0:
            return
        self.close_fd()
        self.count_texts()
        self.path.counts.closed[reason] += 1
        self.replies.forsake()
        self.release_input()
        self.path.clients.discard(self)
        if self.held_back:
            self.path.let_go(self)
        elif self.waits_for_room:
            self.path.exchange.waiting.pop(self, None)
        if self.lingering_ns:
            self.path.lingering.discard(self)
        self.path.closed += 1
        self.leave()
        self.untrack()
        try:
            self.path.responder.closed(self, reason)
        except Exception as error:
            self.path.counts.internal_errors += 1
            self.path.responder.raised("close", error)
        if self.path.on_close is not None:
            self.path.on_close()

    cdef void release_input(self) noexcept:
        buffer_release(&self.rest)
        self.free_args()

    cdef void count_args(self) noexcept:
        """What the argument vector of an incomplete command takes has changed."""
        self.reactor.memory += (<int64_t> self.args.cap - <int64_t> self.args_counted) * <int64_t> sizeof(Arg)
        self.args_counted = self.args.cap

    cdef void free_args(self) noexcept:
        args_free(&self.args)
        self.count_args()
