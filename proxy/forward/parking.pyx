# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Requests that wait for a better moment: their node is down, a slot is being moved, a window is full.

The bytes of a parked request are its own. It is submitted anew (Recovery.resubmit) after a backoff, twice as long each
time, or as soon as something has changed (`wake_all`), until its deadline (Recovery.expired). The parked go on in the
order in which clients sent them, whenever each was parked, and those of one slot never overtake each other: a client's
writes to one key must not. They also go on together: what went later could find the slot at another node, before the
first has found its way there.

How many are parked is bounded, in number and bytes. Each shard may have as much as is left for the others: one dead
shard comes to half of the whole at most, two to a third each, and there is always room for the next. In the same way
each client may have as much of its shard's share as is left there for other clients, and the last quarter is for
clients that have few. The longest command for a shard is not counted in bytes, so that one is held however long it is;
and of the oldest command of each client only the first part, so that a huge MGET is held as a whole. Whoever has more
than few leaves an eighth of the whole. Above that a command is refused, when it would be parked for the first time; so
is one for which there is no hope, because another one of its client's pipeline has waited in vain (Account.weary): a
pipeline waits for one deadline, and not for one deadline for each of its commands.

Time stands still for what waits for a paused node (PROXY PAUSE), and for what waits behind that: its deadline is put
off by as long as it waits.
"""
cimport cython
from libc.stdint cimport uint64_t

from proxy.forward.counters cimport (
    OUTCOME_GAVE_UP, OUTCOME_RETRIED, REFUSED_PIPELINE, REFUSED_TOO_MANY, RETRY_DOWN, RETRY_FULL, RETRY_LOST,
    RETRY_MOVED, RETRY_NOSCRIPT, RETRY_PAUSED,
)
from proxy.forward.ports cimport Sink
from proxy.forward.request cimport (
    STATE_NEW, STATE_PARKED, request_free, request_keep, request_move,
)
from proxy.forward.scripts cimport SHA_LEN, sha_of

TICK_S = 0.005      # how often the parked are looked at,
LATEST_S = 0.1      # ... and at least,
cdef enum:
    FEW = 16            # commands of one client, for which the last quarter of a share is kept,
    FEW_BYTES = 65536   # ... and bytes of them
    TICK_EACH = 1024    # ... a tick later for so many of them: a look at each takes time from everybody else


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


cdef inline bint hopeless(const Request* r, int reason) noexcept nogil:
    """Whether its client's pipeline has waited long enough, before this one began to.

    What waits for its turn only, or for another node, goes on soon; not so what is sent to and fro.
    """
    if r.account == NULL or not r.account.weary or reason in (RETRY_LOST, RETRY_FULL, RETRY_NOSCRIPT, RETRY_PAUSED):
        return False
    return (r.attempts > 0) == (reason == RETRY_MOVED)


@cython.final
cdef class Held:
    """What is parked for one node, or of it for one client."""

    cdef Held of_client(self, uint32_t affinity):
        cdef Held found = self.last_client
        if found is None or affinity != self.last_affinity:
            if self.clients is None:
                self.clients = {}
            found = self.clients.get(affinity)
            if found is None:
                found = self.clients[affinity] = Held.__new__(Held)
            self.last_client = found
            self.last_affinity = affinity
        return found

    cdef size_t add(self, size_t n, bint extra) noexcept:
        """One more, of n bytes; extra: not counted against a share. How many bytes more are not, then."""
        cdef size_t more = n if extra else n - self.longest if n > self.longest else 0
        self.count += 1
        self.bytes += n
        self.spared += more
        if extra:
            self.extra += 1
        else:
            self.longest += more
        return more


@cython.final
cdef class Parking:
    """One per worker; Exchange makes it and sets `recovery`."""

    def __cinit__(self, Reactor reactor, Router router, loop, *, int64_t backoff_min_ns, int64_t backoff_max_ns):
        self.reactor = reactor
        self.router = router
        self.loop = loop
        self.held = {}
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
        if self.reactor.now >= r.deadline_ns and reason != RETRY_PAUSED:
            self.counts.timeouts += 1
            self.counts.retries[reason][OUTCOME_GAVE_UP] += 1
            self.recovery.expired(r, reason)
            return True
        if hopeless(r, reason):
            self.counts.retries[reason][OUTCOME_GAVE_UP] += 1
            self.recovery.refused(r, REFUSED_PIPELINE)
            return True
        if r.attempts == 0:
            if reason != RETRY_PAUSED and self.too_many(r, n):   # (a pause is to be seen by nobody)
                self.counts.retries[reason][OUTCOME_GAVE_UP] += 1
                self.recovery.refused(r, REFUSED_TOO_MANY)
                return True
            self.counts.holds[reason] += 1
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
        self.set_timer()
        return True

    cdef void set_timer(self):
        if self.timer is None:
            self.timer = self.loop.call_later(min(TICK_S * (1 + self.waiting // TICK_EACH), LATEST_S), self._wake)

    cdef Held held_for(self, Request* r):
        """What is parked for the node it waits for: its slot's primary, whichever of the shard is to serve it."""
        cdef uint32_t number = self.router.home(r.slot) if r.slot >= 0 else r.node
        cdef Held found = self.last_held
        if found is None or number != self.last_number:
            found = self.held.get(number)
            if found is None:
                found = self.held[number] = Held.__new__(Held)
            self.last_held = found
            self.last_number = number
        return found

    cdef bint too_many(self, Request* r, size_t n):
        """Whether a further request of n bytes would be more than its node's share, which is what is left for all other
        nodes, or more than its client's part of that, which is what is left of it for all other clients; or, if it is
        not counted against a share, more than all may have together."""
        cdef Held held = self.held_for(r)
        cdef Held mine = held.of_client(r.affinity)
        cdef bint extra = mine.count > 0 and mine.number == r.number
        cdef size_t counted = n if extra else min(n, held.longest)      # of these two, the longer one is free
        cdef size_t others = 2 * (mine.count - mine.extra), other_bytes = 2 * (mine.bytes - mine.spared)
        cdef size_t most = self.max_held, most_bytes = self.max_held_bytes      # in all
        if mine.count >= FEW or mine.bytes >= FEW_BYTES:
            others = max(others, self.max_held // 4)
            other_bytes = max(other_bytes, self.max_held_bytes // 4)
            most -= most // 8
            most_bytes -= most_bytes // 8
        if most and self.waiting >= most or most_bytes and counted and (
            self.held_bytes - self.spared + self.extra_bytes + counted > most_bytes
        ):
            return True
        return not extra and (
            most and held.count - held.extra + self.waiting - self.extra + others >= self.max_held
            or most_bytes and counted and (
                held.bytes - held.spared + self.held_bytes - self.spared + other_bytes + 2 * counted
                > self.max_held_bytes
            )
        )

    def held_of(self, uint32_t number):
        """(requests, bytes) that are parked for the shard of the node of that number; 0: for none that is known."""
        cdef Held held = self.held.get(number)
        if held is None:
            return 0, 0
        return held.count, held.bytes

    cdef void append(self, Request* r) noexcept:
        cdef Held held, mine
        cdef bint extra
        if r.slot >= 0:
            self.parked_in[r.slot] += 1
        r.bnext = NULL
        if self.first == NULL:
            self.first = r
            self.looked_ns = self.reactor.now
        else:
            self.last.bnext = r
            if r.number < self.last.number:
                self.unsorted = True
        self.last = r
        held = self.held_for(r)
        mine = held.of_client(r.affinity)
        extra = mine.count > 0 and mine.number == r.number
        if mine.count == 0:
            mine.number = r.number
        mine.add(r.len, extra)
        self.spared += held.add(r.len, extra)
        if extra:
            self.extra += 1
            self.extra_bytes += r.len
        self.waiting += 1
        self.held_bytes += r.len

    cdef Request* empty(self) noexcept:
        """Takes the whole list, whose head is returned, by their numbers."""
        cdef Request* head = sorted_by_number(self.first) if self.unsorted else self.first
        cdef Request* r = head
        while r != NULL:
            if r.slot >= 0:
                self.parked_in[r.slot] = 0
            r = r.bnext
        self.first = NULL
        self.waiting = self.held_bytes = self.spared = self.extra = self.extra_bytes = 0
        self.held.clear()
        self.last_held = None
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
        cdef int64_t looked_ns
        self.reactor.tick()
        if known:
            while r != NULL:
                if self.waits_for(r, sha):
                    r.wake_ns = self.reactor.now
                r = r.bnext
            self.go(False)
            return
        looked_ns = self.looked_ns
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
        self.looked_ns = looked_ns              # time is put off by go() alone

    cdef bint waits_for(self, Request* r, bytes sha):
        cdef const char* p
        if r.reason != RETRY_NOSCRIPT:
            return False
        p = sha_of(r.own, r.len)
        return p != NULL and p[:SHA_LEN].lower() == sha

    cdef void go(self, bint everything) noexcept:
        cdef Request* r = self.empty()
        cdef Request* following
        cdef bint due, paused
        cdef int64_t passed
        cdef set behind = set()                 # slots whose first request waits for a paused node
        self.reactor.tick()
        passed = self.reactor.now - self.looked_ns
        self.looked_ns = self.reactor.now
        while r != NULL:
            following = r.bnext
            r.bnext = NULL
            paused = r.reason == RETRY_PAUSED
            if r.slot < 0:
                due = everything or (r.wake_ns <= self.reactor.now and not paused)
            else:
                due = not self.parked_in[r.slot] and (
                    everything or (r.wake_ns <= self.reactor.now and not paused)
                    or self.went_ns[r.slot] == self.reactor.now
                ) and (not self.doubts or not self.behind_doubt(r))
                if paused:
                    behind.add(r.slot)
                else:
                    paused = len(behind) > 0 and r.slot in behind
            if paused:
                r.deadline_ns += passed
            if abandoned(r):
                request_move(r, STATE_NEW)
                self.discard(r)
            elif r.deadline_ns <= self.reactor.now and not paused:
                self.counts.timeouts += 1
                self.counts.retries[r.reason][OUTCOME_GAVE_UP] += 1
                request_move(r, STATE_NEW)
                self.recovery.expired(r, r.reason)
            elif due and self.router.in_vain(r):
                if r.reason != RETRY_NOSCRIPT and r.reason != RETRY_DOWN:
                    r.reason = RETRY_DOWN
                    self.counts.retries[RETRY_DOWN][OUTCOME_RETRIED] += 1
                self.append(r)
            elif due:
                if r.slot >= 0:
                    self.went_ns[r.slot] = self.reactor.now
                request_move(r, STATE_NEW)
                self.recovery.resubmit(r)
            else:
                self.append(r)
            r = following
        if self.first != NULL:
            self.set_timer()

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
