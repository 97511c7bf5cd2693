"""Requests that wait for a better moment."""
from libc.stdint cimport int64_t, uint32_t, uint64_t

from proxy.cluster.slot cimport SLOTS
from proxy.forward.counters cimport CounterBlock
from proxy.forward.ports cimport Recovery
from proxy.forward.reactor cimport Reactor
from proxy.forward.request cimport Request
from proxy.forward.router cimport Router

cdef class Held:
    cdef readonly size_t count              # requests
    cdef readonly size_t bytes              # of them
    cdef size_t longest                     # of one of them: it is not counted against a share, see Parking.too_many
    cdef uint64_t number                    # of one client: Request.number of the oldest
    cdef size_t extra                       # parts of such, beyond the first: they are not counted, either
    cdef size_t spared                      # bytes that are not counted
    cdef dict clients                       # their own part of it: Request.affinity -> Held; of one client: None
    cdef Held last_client                   # ... that of last_affinity
    cdef uint32_t last_affinity
    cdef Held of_client(self, uint32_t affinity)
    cdef size_t add(self, size_t n, bint extra) noexcept

cdef class Parking:
    cdef Reactor reactor
    cdef Router router
    cdef Recovery recovery
    cdef CounterBlock* counts
    cdef object loop
    cdef Request* first             # linked by bnext, by their numbers unless `unsorted`
    cdef Request* last
    cdef bint unsorted
    cdef readonly size_t waiting    # requests parked
    cdef readonly size_t held_bytes     # of them
    cdef size_t spared              # ... that are counted against no share: the longest for each node, and
    cdef size_t extra               # parts of each client's oldest command beyond the first
    cdef size_t extra_bytes         # ... of these
    cdef dict held                  # by the number of the node that they wait for, 0 = none is known -> Held
    cdef Held last_held             # ... that of last_number
    cdef uint32_t last_number
    cdef public size_t max_held     # requests; 0 = no limit, as the next
    cdef public size_t max_held_bytes
    cdef uint32_t parked_in[SLOTS]  # of them, per slot
    cdef int64_t went_ns[SLOTS]     # per slot, when some went on the last time
    cdef readonly dict doubts       # slot -> (requests whose redirection is in doubt, number of the oldest at least)
    cdef object timer               # None while nothing is parked
    cdef bint soon                  # a wake_all is under way
    cdef bint gated                 # some node is paused: see proxy.forward.gate
    cdef int64_t looked_ns          # when the parked were last looked at
    cdef object _wake
    cdef object _wake_all
    cdef public int64_t backoff_min_ns
    cdef public int64_t backoff_max_ns
    cdef bint park(self, Request* r, const char* p, size_t n, int reason) noexcept
    cdef void wake_soon(self) noexcept
    cdef bint waits_for(self, Request* r, bytes sha)
    cdef Held held_for(self, Request* r)
    cdef bint too_many(self, Request* r, size_t n)
    cdef void set_timer(self)
    cdef void append(self, Request* r) noexcept
    cdef Request* empty(self) noexcept
    cdef void discard(self, Request* r) noexcept
    cdef void doubt(self, Request* r)
    cdef void doubt_ends(self, Request* r)
    cdef bint behind_doubt(self, Request* r)
    cdef void go(self, bint everything) noexcept
