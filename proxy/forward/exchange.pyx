# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Requests on their way out, and what becomes of those that come back unanswered (DESIGN 5).

`submit` sends a request to where the router says. A command for a connection whose window is full is not begun at
all: its client waits until there is room (`must_wait`, `wait`). An error that redirects or refuses is judged by
Redirect; what finds its node down, or is lost unsent or was a read, is parked (Parking) and submitted anew, until its
deadline, when the client gets the server's own last error. A write that was sent and lost gets an error that says it
may have been executed; nothing is ever sent twice that may have been executed.
"""
cimport cython
from libc.string cimport memcmp

from proxy.forward.backend cimport Backend
from proxy.forward.counters cimport (
    OUTCOME_GAVE_UP, OUTCOME_UNSAFE, REFUSED_DOWN, REFUSED_GONE, REFUSED_LATE, REFUSED_MEMORY, REFUSED_TOO_MANY,
    REFUSED_UNCOVERED, REFUSED_UNKNOWN, RETRY_DOWN, RETRY_FULL, RETRY_LOST, RETRY_MOVED, RETRY_NOSCRIPT, RETRY_PAUSED,
    Counters,
)
from proxy.forward.pipeline cimport ENQUEUED, MOST_CUTS, WINDOW_FULL
from proxy.forward.ports cimport SENT_PARTLY, SENT_WHOLLY, Outlet, Sink
from proxy.forward.reactor cimport Peer, Reactor
from proxy.forward.redirect cimport ORDINARY, STRANDED
from proxy.forward.request cimport (
    REQ_BLAMED, REQ_READ, REQ_STREAMING, REQ_SWALLOWED, TARGET_LEASE, request_forget, request_free, request_unhold,
)
from proxy.forward.router cimport CHOSEN, LOST, PAUSED, UNCOVERED, UNKNOWN, WAIT
from proxy.forward.scripts cimport Scripts

from proxy.resp import errors

cdef bytes IN_VAIN = errors.REDIRECTED_IN_VAIN


cdef inline bint redirects(const char* p, size_t n) noexcept nogil:
    return n > 7 and (memcmp(p, b"-MOVED ", 7) == 0 or memcmp(p, b"-ASK ", 5) == 0)


@cython.final
cdef class Exchange(Recovery):
    """One per worker.

    texts: ready error lines `uncovered unknown down held full timeout timeout_sent lost cut gone memory`.
    """

    def __cinit__(self, Reactor reactor, Router router, Counters counters, loop, *, backoff_min_ns, backoff_max_ns,
                  max_redirections, dict texts):
        self.router = router
        self.counts = counters.block
        self.parking = Parking(reactor, router, loop, backoff_min_ns=backoff_min_ns, backoff_max_ns=backoff_max_ns)
        self.parking.recovery = self
        self.parking.counts = counters.block
        self.redirect = Redirect(router, self.parking, max_redirections=max_redirections)
        self.redirect.counts = counters.block
        self.scripts = self.redirect.scripts = Scripts()
        self.waiting = {}
        self.text_uncovered = texts["uncovered"]
        self.text_unknown = texts["unknown"]
        self.text_down = texts["down"]
        self.text_held = texts["held"]
        self.text_full = texts["full"]
        self.text_timeout = texts["timeout"]
        self.text_timeout_sent = texts["timeout_sent"]
        self.text_lost = texts["lost"]
        self.text_cut = texts["cut"]
        self.text_gone = texts["gone"]
        self.text_memory = texts["memory"]
        router.recovery = self

    def bind(self, port):
        """Gives it control's side: stale(reason), resolve(host, port, node) -> Address or None, node_unfit(...)."""
        self.port = port
        self.redirect.port = port

    # -- on the way out ------------------------------------------------------------------------------------------

    cdef void submit(self, Request* r, const char* p, size_t n) noexcept:
        """Sends it, parks it, or fails it. p[0:n]: the command's bytes; they may be r.own."""
        cdef int choice = self.router.choose(r)
        cdef int result
        if choice == CHOSEN:
            result = (<Backend> self.router.chosen).enqueue(r, p, n)
            if result == ENQUEUED:
                if r.own != NULL:
                    request_forget(r)
            elif result == WINDOW_FULL:
                self.park(r, p, n, RETRY_FULL)
            else:
                self.no_memory(r)
        elif choice == WAIT:
            self.park(r, p, n, RETRY_DOWN)
        elif choice == PAUSED and r.account != NULL:
            self.park(r, p, n, RETRY_PAUSED)
        elif choice == UNCOVERED:
            self.port.stale("uncovered")
            self.refuse(r, REFUSED_UNCOVERED, self.text_uncovered)
        elif choice == UNKNOWN:
            self.port.stale("unknown")
            self.refuse(r, REFUSED_UNKNOWN, self.text_unknown)
        elif choice == LOST:
            self.refuse(r, REFUSED_GONE, self.text_gone)
        else:                           # or PAUSED, and it is a question of ours: those do not wait for that
            self.counts.retries[RETRY_DOWN][OUTCOME_GAVE_UP] += 1
            self.refuse(r, REFUSED_DOWN, self.text_down)

    cdef void resubmit(self, Request* r) noexcept:
        r.repaired = 0                      # it may find another node, or this one begun anew
        self.submit(r, r.own, r.len)

    cdef void park(self, Request* r, const char* p, size_t n, int reason) noexcept:
        if not self.parking.park(r, p, n, reason):
            self.no_memory(r)

    # -- what comes back -----------------------------------------------------------------------------------------

    cdef bint error(self, Peer backend, Request* r, const char* bytes, const char* p, size_t n) noexcept:
        cdef int verdict = self.redirect.judge(<Backend> backend, r, bytes, p, n)
        if verdict == STRANDED:
            self.no_memory(r)
        return verdict != ORDINARY

    cdef void lost(self, Peer backend, Request* r, const char* bytes, int sent) noexcept:
        if r.sink == NULL:
            request_free(r)
            return
        if r.flags & REQ_STREAMING:
            (<Sink> r.sink).cut()               # the client leaves; the request is ours now
            request_free(r)
            return
        if not (<Sink> r.sink).alive():
            (<Sink> r.sink).deliver(r, NULL, 0, True, False)
            return
        if sent == SENT_WHOLLY and not r.flags & REQ_READ or sent == SENT_PARTLY and r.flags & REQ_BLAMED:
            self.counts.retries[RETRY_LOST][OUTCOME_UNSAFE] += 1
            self.fail(r, self.text_lost)
            return
        if sent == SENT_WHOLLY and r.cuts >= MOST_CUTS:
            self.fail(r, self.text_cut)
            return
        if sent == SENT_PARTLY:
            r.flags |= REQ_BLAMED           # perhaps the node cannot stand it: it may cost the others one connection
        if r.target == TARGET_LEASE:
            self.fail(r, self.text_gone)
            return
        (<Sink> r.sink).withdraw(r)         # part of a reply that had to wait for its turn
        r.flags &= ~REQ_SWALLOWED
        r.redirections = 0                  # it goes to the slot's owner again, which may redirect it again
        self.park(r, bytes, r.len, RETRY_LOST)

    cdef bint elsewhere(self, Peer backend, Request* r) noexcept:
        return self.router.elsewhere((<Backend> backend).node, r)

    cdef void timed_out(self, Request* r, bint sent) noexcept:
        if r.sink != NULL and (<Sink> r.sink).alive():
            self.counts.timeouts += 1
            if r.account != NULL:
                r.account.weary = True
        if sent and not r.flags & REQ_READ:
            self.fail(r, self.text_timeout_sent)
        else:
            self.give_up(r, self.text_timeout)

    cdef void filled(self) noexcept:
        self.full += 1

    cdef void room(self) noexcept:
        cdef dict waiting = self.waiting
        cdef Outlet client
        self.full -= 1
        self.parking.wake_soon()
        self.waiting = {}
        for client in waiting:              # in the order in which they came to wait
            client.room()

    cdef int must_wait(self, Request* r) noexcept:
        """What a command that has not been begun is to wait for: a Waits."""
        cdef int choice
        if not self.full:
            return WAITS_NOT
        choice = self.router.choose(r)
        if choice == PAUSED:
            return WAITS_FOR_RESUME
        return WAITS_FOR_ROOM if choice == CHOSEN and (<Backend> self.router.chosen).full else WAITS_NOT

    cdef void wait(self, Outlet client):
        """Has the client told (Outlet.room) when there is room somewhere again."""
        self.waiting[client] = None

    cdef void expired(self, Request* r, int reason) noexcept:
        if reason == RETRY_NOSCRIPT:
            self.give_up(r, self.text_down)     # nobody knows its script: it has the node's own answer
            return
        if r.account != NULL:
            r.account.weary = True
        if reason == RETRY_FULL:
            self.refuse(r, REFUSED_LATE, self.text_full)
        else:
            self.refuse(r, REFUSED_LATE, IN_VAIN if reason == RETRY_MOVED else self.text_down)

    cdef void refused(self, Request* r, int why) noexcept:
        self.refuse(r, why, self.text_held if why == REFUSED_TOO_MANY else self.text_down)

    # -- answers of our own --------------------------------------------------------------------------------------

    cdef void refuse(self, Request* r, int why, bytes text) noexcept:
        """Gives it up, for a Refusal."""
        self.counts.refusals[why] += 1
        self.give_up(r, text)

    cdef void no_memory(self, Request* r) noexcept:
        self.counts.refusals[REFUSED_MEMORY] += 1
        self.fail(r, self.text_memory)

    cdef void fail(self, Request* r, bytes text) noexcept:
        """Answers with an error of ours."""
        self.answer(r, text, len(text))

    cdef void give_up(self, Request* r, bytes text) noexcept:
        """Answers with the server's last error, or else with ours, as in place of a redirection, which means nothing
        to a client of one server. (But a script's own line is its client's.)"""
        if r.fault != NULL and (r.doubted or not redirects(r.fault, r.fault_len)):
            self.answer(r, r.fault, r.fault_len)
        else:
            self.answer(r, text, len(text))

    cdef void answer(self, Request* r, const char* p, size_t n) noexcept:
        """An error for a request that no queue but its client's holds any more; nothing of a reply before it counts."""
        if r.sink == NULL:
            request_unhold(r)
            request_free(r)
            return
        (<Sink> r.sink).withdraw(r)
        (<Sink> r.sink).deliver(r, p, n, True, True)
