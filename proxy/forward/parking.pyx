# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Requests that wait for a better moment: their node is down, a slot is being moved, a window is full.

The bytes of a parked request are its own. It is submitted anew (Recovery.resubmit) after a backoff, twice as long each
time, or as soon as something has changed (`wake_all`), until its deadline (Recovery.expired). The parked go on in the
order in which clients sent them, whenever each was parked, and those of one slot never overtake each other: a client's
writes to one key must not. They also go on together: what went later could find the slot at another node, before the
first has found its way there.
"""
cimport cython
from libc.stdint cimport uint64_t

from proxy.forward.counters cimport OUTCOME_GAVE_UP, OUTCOME_RETRIED, RETRY_NOSCRIPT
from proxy.forward.ports cimport Sink
from proxy.forward.request cimport (
    STATE_NEW, STATE_PARKED, request_free, request_keep, request_move,
)
from proxy.forward.scripts cimport SHA_LEN, sha_of

TICK_S = 0.005      # how often the parked are looked at


cdef inline bint abandoned(const Request* r) noexcept:
    """Whether nobody waits for it any more."""
    return r.sink == NULL or not (<Sink> r.sink).alive()


cdef Request* merged(Request* one, Request* two) noexcept nogil:
    """Two sorted lists as one; of equal numbers those of the first come first."""
    cdef Request* head = NULL
    cdef Request** to = &head
    while one != NULL and two != NULL:
        if one.number <= two.number:
            to[0] = one
            to = &one.bnext
            one = one.bnext
        else:
            to[0] = two
            to = &two.bnext
            two = two.bnext
    to[0] = one if one != NULL else two
    return head


cdef Request* sorted_by_number(Request* r) noexcept nogil:
    """A merge sort from below: runs[k] is empty or has 2^k requests, those that came earlier in the higher ones."""
    cdef Request* runs[64]
    cdef Request* one
    cdef int k
    for k in range(64):
        runs[k] = NULL
    while r != NULL:
        one = r
        r = r.bnext
        one.bnext = NULL
        k = 0
        while runs[k] != NULL:
            one = merged(runs[k], one)
            runs[k] = NULL
            k += 1
        runs[k] = one
    one = NULL
    for k in range(64):
        one = merged(runs[k], one)
    return one


@cython.final
cdef class Parking:
    """One per worker; Exchange makes it and sets `recovery`."""

    def __cinit__(self, Reactor reactor, loop, *, int64_t backoff_min_ns, int64_t backoff_max_ns):
        self.reactor = reactor
        self.loop = loop
        self.backoff_min_ns = backoff_min_ns
        self.backoff_max_ns = backoff_max_ns
        self.doubts = {}
        self._wake = self.wake
        self._wake_all = self.wake_all

    cdef bint park(self, Request* r, const char* p, size_t n, int reason) noexcept:
        """Keeps it for a while, never beyond its deadline. p[0:n]: its bytes; they may be r.own.

        False when there is no memory: the request is still the caller's then.
        """
        cdef int64_t delay = self.backoff_min_ns << (r.attempts if r.attempts < 16 else 16)
        if self.reactor.now >= r.deadline_ns:
            self.counts.retries[reason][OUTCOME_GAVE_UP] += 1
            self.recovery.expired(r, reason)
            return True
        if not request_keep(r, p, n):
            return False
        self.counts.retries[reason][OUTCOME_RETRIED] += 1
        if delay > self.backoff_max_ns:
            delay = self.backoff_max_ns
        if r.attempts < 255:
            r.attempts += 1
        r.reason = <unsigned char> reason
        r.wake_ns = self.reactor.now + delay
        # Sent right before its deadline, a write would end in an error that leaves open whether it was executed.
        if r.wake_ns + delay > r.deadline_ns or reason == RETRY_NOSCRIPT:
            r.wake_ns = r.deadline_ns       # the latter: until script_answered, which is sure to come
        if r.sink != NULL:
            (<Sink> r.sink).unsettle()
        request_move(r, STATE_PARKED)
        self.append(r)
        if self.timer is None:
            self.timer = self.loop.call_later(TICK_S, self._wake)
        return True

    cdef void append(self, Request* r) noexcept:
        if r.slot >= 0:
            self.parked_in[r.slot] += 1
        r.bnext = NULL
        if self.first == NULL:
            self.first = r
        else:
            self.last.bnext = r
            if r.number < self.last.number:
                self.unsorted = True
        self.last = r
        self.waiting += 1

    cdef Request* empty(self) noexcept:
        """Takes the whole list, whose head is returned, by their numbers."""
        cdef Request* head = sorted_by_number(self.first) if self.unsorted else self.first
        cdef Request* r = head
        while r != NULL:
            if r.slot >= 0:
                self.parked_in[r.slot] = 0
            r = r.bnext
        self.first = NULL
        self.waiting = 0
        self.unsorted = False
        return head

    def wake(self):
        """Submits anew what has waited long enough; ends what is past its deadline."""
        self.timer = None
        self.go(False)

    def wake_all(self):
        """Something has changed (a topology, a connection): nothing need wait any longer."""
        self.soon = False
        self.go(True)

    cdef void wake_soon(self) noexcept:
        """wake_all, when whoever calls is done."""
        if self.first != NULL and not self.soon:
            self.soon = True
            self.loop.call_soon(self._wake_all)

    def script_answered(self, bytes sha not None, bint known):
        """What waits for this script goes on; when nobody knows it, it gets the node's NOSCRIPT."""
        cdef Request* r = self.first
        cdef Request* following
        self.reactor.tick()
        if known:
            while r != NULL:
                if self.waits_for(r, sha):
                    r.wake_ns = self.reactor.now
                r = r.bnext
            self.go(False)
            return
        r = self.empty()
        while r != NULL:
            following = r.bnext
            r.bnext = NULL
            if self.waits_for(r, sha) and not abandoned(r):
                request_move(r, STATE_NEW)
                self.counts.retries[RETRY_NOSCRIPT][OUTCOME_GAVE_UP] += 1
                self.recovery.expired(r, RETRY_NOSCRIPT)
            else:
                self.append(r)
            r = following

    cdef bint waits_for(self, Request* r, bytes sha):
        cdef const char* p
        if r.reason != RETRY_NOSCRIPT:
            return False
        p = sha_of(r.own, r.len)
        return p != NULL and p[:SHA_LEN].lower() == sha

    cdef void go(self, bint everything) noexcept:
        cdef Request* r = self.empty()
        cdef Request* following
        cdef bint due
        self.reactor.tick()
        while r != NULL:
            following = r.bnext
            r.bnext = NULL
            if r.slot < 0:
                due = everything or r.wake_ns <= self.reactor.now
            else:
                due = not self.parked_in[r.slot] and (
                    everything or r.wake_ns <= self.reactor.now or self.went_ns[r.slot] == self.reactor.now
                ) and (not self.doubts or not self.behind_doubt(r))
            if abandoned(r):
                request_move(r, STATE_NEW)
                self.discard(r)
            elif r.deadline_ns <= self.reactor.now:
                self.counts.timeouts += 1
                self.counts.retries[r.reason][OUTCOME_GAVE_UP] += 1
                request_move(r, STATE_NEW)
                self.recovery.expired(r, r.reason)
            elif due:
                if r.slot >= 0:
                    self.went_ns[r.slot] = self.reactor.now
                request_move(r, STATE_NEW)
                self.recovery.resubmit(r)
            else:
                self.append(r)
            r = following
        if self.first != NULL and self.timer is None:
            self.timer = self.loop.call_later(TICK_S, self._wake)

    cdef void discard(self, Request* r) noexcept:
        """Gives back what nobody waits for; a part of something goes to its gather, which counts its parts."""
        if r.sink != NULL:
            (<Sink> r.sink).deliver(r, NULL, 0, True, False)
        else:
            request_free(r)

    cdef void doubt(self, Request* r):
        """Until doubt_ends, what was sent later for its slot stays parked (Redirect.doubt has the request itself)."""
        count, oldest = self.doubts.get(r.slot, (0, r.number))
        self.doubts[r.slot] = count + 1, min(oldest, r.number)

    cdef void doubt_ends(self, Request* r):
        count, oldest = self.doubts[r.slot]
        if count == 1:
            del self.doubts[r.slot]
        else:
            self.doubts[r.slot] = count - 1, max(oldest, r.number + 1)     # they end in the order of their beginning

    cdef bint behind_doubt(self, Request* r):
        cdef uint64_t oldest
        found = self.doubts.get(r.slot)
        if found is None:
            return False
        oldest = found[1]
        return oldest < r.number

    def stop(self):
        """Ends the timer and whatever is parked."""
        cdef Request* r = self.empty()
        cdef Request* following
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        while r != NULL:
            following = r.bnext
            request_move(r, STATE_NEW)
            if abandoned(r):
                self.discard(r)
            else:
                self.recovery.expired(r, r.reason)
            r = following
