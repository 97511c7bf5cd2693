# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""What becomes of a request that cannot simply be sent and answered (DESIGN 5).

`submit` sends a request to where the router says. MOVED and ASK are followed at once; what a node refuses for a while
(TRYAGAIN, CLUSTERDOWN, LOADING, READONLY, MASTERDOWN), what finds its node down, and what is lost unsent or was a read
is parked: its bytes are copied, and it is submitted anew after a backoff, or as soon as control says that something has
changed (`wake_all`), until its deadline, when the client gets the server's own last error. A write that was sent and
lost gets an error that says it may have been executed; nothing is ever sent twice that may have been executed.
"""
from libc.stdint cimport int64_t, uint8_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from proxy.cluster.redirection cimport (
    REDIR_ASK, REDIR_CLUSTERDOWN, REDIR_LOADING, REDIR_MASTERDOWN, REDIR_MOVED, REDIR_NONE, REDIR_READONLY,
    Redirection, parse_redirection,
)
from proxy.forward.backend cimport Node
from proxy.forward.buffer cimport buffer_release
from proxy.forward.counters cimport (
    OUTCOME_GAVE_UP, OUTCOME_RETRIED, OUTCOME_UNSAFE, RETRY_CLUSTERDOWN, RETRY_DOWN, RETRY_LOADING, RETRY_LOST,
    RETRY_MASTERDOWN, RETRY_MOVED, RETRY_READONLY, RETRY_TRYAGAIN,
)
from proxy.forward.ports cimport Origin
from proxy.forward.request cimport (
    REQ_PART, REQ_READ, REQ_STREAMING, request_free, request_hold, request_keep, request_unhold,
)
from proxy.forward.router cimport CHOSEN, UNCOVERED, UNKNOWN, WAIT
from proxy.forward.split cimport split_assemble, split_free, split_weight

cdef enum:
    SCRATCH_KEEP = 65536

TICK_S = 0.005      # how often the parked are looked at

cdef inline bint abandoned(const Request* r) noexcept nogil:
    """Whether nobody waits for it any more."""
    return (r.parent.client if r.flags & REQ_PART else r.client) == NULL


cdef int* REASON_OF = [0, RETRY_MOVED, RETRY_MOVED, RETRY_TRYAGAIN, RETRY_CLUSTERDOWN, RETRY_LOADING, RETRY_READONLY,
                       RETRY_MASTERDOWN]


cdef class Retry(Recovery):
    """One per worker.

    texts: the ready error lines `uncovered`, `unknown`, `down`, `timeout`, `timeout_sent`, `lost`, `memory`.
    `port` is control's side: stale(reason), resolve(host, port, node) -> Address, node_unfit(node, reason).
    """

    def __cinit__(self, Reactor reactor, Router router, Counters counters, loop, *, int64_t backoff_min_ns,
                  int64_t backoff_max_ns, int max_redirections, dict texts):
        self.reactor = reactor
        self.router = router
        self.counters = counters
        self.counts = counters.block
        self.loop = loop
        self.backoff_min_ns = backoff_min_ns
        self.backoff_max_ns = backoff_max_ns
        self.max_redirections = max_redirections
        self.text_uncovered = texts["uncovered"]
        self.text_unknown = texts["unknown"]
        self.text_down = texts["down"]
        self.text_timeout = texts["timeout"]
        self.text_timeout_sent = texts["timeout_sent"]
        self.text_lost = texts["lost"]
        self.text_memory = texts["memory"]
        self._wake = self.wake
        router.recovery = self

    def __dealloc__(self):
        buffer_release(&self.scratch)

    def bind(self, port):
        """Gives it control's side."""
        self.port = port

    # -- on the way out ------------------------------------------------------------------------------------------

    cdef void submit(self, Request* r, const char* p, size_t n) noexcept:
        """Sends it, parks it, or fails it. p[0:n]: the command's bytes; they may be r.own."""
        cdef int choice = self.router.choose(r)
        if choice == CHOSEN:
            if not self.router.chosen.enqueue(r, p, n):
                self.fail(r, self.text_memory)
            elif r.own != NULL:
                free(r.own)
                r.own = NULL
        elif choice == WAIT:
            self.park(r, p, n, RETRY_DOWN)
        elif choice == UNCOVERED:
            self.port.stale("uncovered")
            self.give_up(r, self.text_uncovered)
        elif choice == UNKNOWN:
            self.port.stale("unknown")
            self.give_up(r, self.text_unknown)
        else:
            self.counts.retries[RETRY_DOWN][OUTCOME_GAVE_UP] += 1
            self.give_up(r, self.text_down)

    # -- what comes back -----------------------------------------------------------------------------------------

    cdef bint error(self, Peer peer, Request* r, const char* bytes, const char* p, size_t n) noexcept:
        """An error reply p[0:n]: true when the request was taken over. bytes: the command's, r.len of them."""
        cdef Redirection to
        cdef int kind = parse_redirection(p, n, &to)
        cdef int reason
        cdef Backend backend = <Backend> peer
        if kind == REDIR_NONE:
            return False
        self.counts.redirections[kind] += 1
        self.unsettle(r)
        if abandoned(r):
            return False
        if kind == REDIR_MOVED or kind == REDIR_ASK:
            if kind == REDIR_MOVED:
                self.port.stale("moved")
            if r.redirections >= self.max_redirections:
                return False
            r.redirections += 1
            address = self.port.resolve(to.host[:to.host_len].decode("utf-8", "replace"), to.port, backend.node)
            return self.follow(backend, r, bytes, address, to.slot, kind == REDIR_ASK)
        reason = REASON_OF[kind]
        if kind == REDIR_READONLY or kind == REDIR_CLUSTERDOWN:
            self.port.stale("readonly" if kind == REDIR_READONLY else "clusterdown")
        elif backend.node.replica and kind in (REDIR_LOADING, REDIR_MASTERDOWN):
            self.port.node_unfit(backend.node, "loading" if kind == REDIR_LOADING else "link to the primary down")
        self.remember(r, p, n)
        r.redirections = 0                  # a later round begins anew; the deadline bounds the rounds
        self.park(r, bytes, r.len, reason)
        return True

    cdef void unsettle(self, Request* r) noexcept:
        """Its client sends nothing new until what it has under way is answered.

        A later command for the same key could otherwise reach the new owner first.
        """
        cdef void* client = r.parent.client if r.flags & REQ_PART else r.client
        if client != NULL:
            (<Origin> client).unsettled = True

    cdef bint follow(self, Peer peer, Request* r, const char* bytes, address, int slot, bint ask) noexcept:
        """Sends a redirected request to the node named; true, for from here on it is taken over."""
        cdef Node node
        cdef Backend target
        cdef int choice
        cdef size_t n = r.len
        cdef const char* p = bytes
        cdef bint done
        if ask:
            node = self.router.node_for(address, False)
        else:
            node = self.router.learn(slot, address)
        choice = self.router.at(node, r)
        # Two nodes that name each other while a slot changes hands: give them time from the second round on.
        if choice != CHOSEN or r.redirections > 2 or self.parked_in[slot]:
            self.park(r, p, n, RETRY_MOVED)
            return True
        target = self.router.chosen
        if target is peer:                  # bytes stand in its own window, which may move
            if not request_keep(r, p, n):
                self.fail(r, self.text_memory)
                return True
            p = r.own
        done = target.enqueue_asking(r, p, n) if ask else target.enqueue(r, p, n)
        if not done:
            self.fail(r, self.text_memory)
        elif r.own != NULL:
            free(r.own)
            r.own = NULL
        return True

    cdef void lost(self, Peer peer, Request* r, const char* bytes, bint sent) noexcept:
        cdef Origin client = None
        if r.flags & REQ_STREAMING:
            if r.client != NULL:
                client = <Origin> r.client
                client.cut(r)               # it leaves; the request is ours now
            request_free(r)
            return
        if abandoned(r):
            self.discard(r)
            return
        if sent and not r.flags & REQ_READ:
            self.counts.retries[RETRY_LOST][OUTCOME_UNSAFE] += 1
            self.fail(r, self.text_lost)
            return
        self.withdraw(r)                    # part of a reply: that had to wait for its turn, or of a split command
        self.park(r, bytes, r.len, RETRY_LOST)

    cdef void timed_out(self, Request* r, bint sent) noexcept:
        self.counts.timeouts += 1
        self.fail(r, self.text_timeout_sent if sent and not r.flags & REQ_READ else self.text_timeout)

    # -- answers -------------------------------------------------------------------------------------------------

    cdef void fail(self, Request* r, bytes text) noexcept:
        """Answers with an error of ours."""
        self.withdraw(r)
        self.answer(r, text, len(text), True)

    cdef void give_up(self, Request* r, bytes text) noexcept:
        """Answers with the server's last error, or else with ours."""
        self.withdraw(r)
        if r.fault != NULL:
            self.answer(r, r.fault, r.fault_len, True)
        else:
            self.answer(r, text, len(text), True)

    cdef void discard(self, Request* r) noexcept:
        """Gives back what nobody waits for; a part with its split, when it was the last."""
        if r.flags & REQ_PART:
            self.fail(r, self.text_lost)
        else:
            request_free(r)

    cdef void withdraw(self, Request* r) noexcept:
        """Forgets what is held of its reply."""
        if r.client != NULL:
            (<Origin> r.client).withdraw(r)
            return
        if r.flags & REQ_PART and r.parent.client != NULL:
            (<Origin> r.parent.client).weigh(-<ssize_t> r.hold_len)
        request_unhold(r)

    cdef void answer(self, Request* r, const char* p, size_t n, bint error) noexcept:
        """The whole (or the last piece of the) reply of a request that is in no queue but its client's."""
        cdef Request* parent
        cdef bint bad = False
        if not r.flags & REQ_PART:
            if r.client != NULL:
                (<Origin> r.client).deliver(r, p, n, True, error)
            else:
                request_free(r)
            return
        parent = r.parent
        if not request_hold(r, p, n):
            self.withdraw(r)
            n = 6
            request_hold(r, b"-ERR\r\n", n)     # fits without an allocation
        if parent.client != NULL:
            (<Origin> parent.client).weigh(<ssize_t> n)
        parent.split.left -= 1
        if parent.split.left:
            return
        if parent.client != NULL:
            (<Origin> parent.client).weigh(-<ssize_t> split_weight(parent.split))
            if split_assemble(parent.split, &self.scratch, &bad):
                (<Origin> parent.client).deliver(
                    parent, self.scratch.data + self.scratch.start, self.scratch.end - self.scratch.start, True, bad)
            else:
                (<Origin> parent.client).deliver(parent, self.text_memory, len(self.text_memory), True, True)
            self.scratch.start = self.scratch.end = 0
            if self.scratch.cap > SCRATCH_KEEP:
                buffer_release(&self.scratch)
        else:
            split_free(parent.split)
            request_free(parent)

    # -- parking -------------------------------------------------------------------------------------------------

    cdef void remember(self, Request* r, const char* p, size_t n) noexcept:
        """Keeps the server's error for the case that the deadline comes first."""
        if r.fault != NULL:
            free(r.fault)
        r.fault_len = 0
        r.fault = <char*> malloc(n)
        if r.fault != NULL:
            memcpy(r.fault, p, n)
            r.fault_len = n

    cdef void park(self, Request* r, const char* p, size_t n, int reason) noexcept:
        """Keeps it for a while: twice as long each time, never beyond its deadline."""
        cdef int64_t delay = self.backoff_min_ns << (r.attempts if r.attempts < 16 else 16)
        if self.reactor.now >= r.deadline_ns:
            self.counts.retries[reason][OUTCOME_GAVE_UP] += 1
            self.give_up(r, self.text_down)
            return
        if not request_keep(r, p, n):
            self.fail(r, self.text_memory)
            return
        self.counts.retries[reason][OUTCOME_RETRIED] += 1
        if delay > self.backoff_max_ns:
            delay = self.backoff_max_ns
        if r.attempts < 255:
            r.attempts += 1
        r.reason = <uint8_t> reason
        r.wake_ns = self.reactor.now + delay
        if r.wake_ns > r.deadline_ns:
            r.wake_ns = r.deadline_ns
        self.unsettle(r)
        self.append(r)
        if self.timer is None:
            self.timer = self.loop.call_later(TICK_S, self._wake)

    cdef void append(self, Request* r) noexcept:
        """Parked requests stay in the order in which they came, and those of one slot go on in that order (`go`,
        `follow`): a client's writes to one key must not overtake."""
        if r.slot >= 0:
            self.parked_in[r.slot] += 1
        r.bnext = NULL
        if self.parked == NULL:
            self.parked = r
        else:
            self.last_parked.bnext = r
        self.last_parked = r
        self.waiting += 1

    cdef void unpark(self) noexcept:
        """Empties the list; the caller has taken its head and disposes of all in it."""
        cdef Request* r = self.parked
        while r != NULL:
            if r.slot >= 0:
                self.parked_in[r.slot] = 0
            r = r.bnext
        self.parked = NULL
        self.waiting = 0

    def wake(self):
        """Submits anew what has waited long enough; ends what is past its deadline."""
        self.timer = None
        self.go(False)

    def wake_all(self):
        """Something has changed (a topology, a connection): nothing need wait any longer."""
        self.go(True)

    cdef void go(self, bint everything) noexcept:
        cdef Request* r = self.parked
        cdef Request* following
        self.reactor.tick()
        self.unpark()
        while r != NULL:
            following = r.bnext
            r.bnext = NULL
            if abandoned(r):
                self.discard(r)
            elif r.deadline_ns <= self.reactor.now:
                self.counts.timeouts += 1
                self.counts.retries[r.reason][OUTCOME_GAVE_UP] += 1
                self.give_up(r, self.text_down)
            elif (everything or r.wake_ns <= self.reactor.now) and (r.slot < 0 or not self.parked_in[r.slot]):
                self.submit(r, r.own, r.len)
            else:
                self.append(r)
            r = following
        if self.parked != NULL and self.timer is None:
            self.timer = self.loop.call_later(TICK_S, self._wake)

    def stop(self):
        """Ends the timer and whatever is parked."""
        cdef Request* r = self.parked
        cdef Request* following
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        self.unpark()
        while r != NULL:
            following = r.bnext
            if abandoned(r):
                self.discard(r)
            else:
                self.give_up(r, self.text_down)
            r = following
