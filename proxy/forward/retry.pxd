"""What becomes of a request that cannot simply be sent and answered."""
from libc.stdint cimport int64_t, uint32_t

from proxy.cluster.slot cimport SLOTS
from proxy.forward.backend cimport Backend
from proxy.forward.buffer cimport Buffer
from proxy.forward.counters cimport CounterBlock, Counters
from proxy.forward.ports cimport Recovery
from proxy.forward.reactor cimport Peer, Reactor
from proxy.forward.request cimport Request
from proxy.forward.router cimport Router

cdef class Retry(Recovery):
    cdef Reactor reactor
    cdef Router router
    cdef Counters counters
    cdef CounterBlock* counts
    cdef object loop
    cdef object port
    cdef Request* parked            # linked by bnext, in the order in which they were parked
    cdef Request* last_parked
    cdef readonly size_t waiting    # requests parked
    cdef uint32_t parked_in[SLOTS]  # of them, per slot
    cdef object timer               # None while nothing is parked
    cdef object _wake
    cdef Buffer scratch             # the answer of a split command
    cdef public int64_t backoff_min_ns
    cdef public int64_t backoff_max_ns
    cdef public int max_redirections
    # Ready error lines (proxy.resp.errors).
    cdef bytes text_uncovered
    cdef bytes text_unknown
    cdef bytes text_down
    cdef bytes text_timeout
    cdef bytes text_timeout_sent
    cdef bytes text_lost
    cdef bytes text_memory
    cdef void submit(self, Request* r, const char* p, size_t n) noexcept
    cdef void park(self, Request* r, const char* p, size_t n, int reason) noexcept
    cdef void fail(self, Request* r, bytes text) noexcept
    cdef void give_up(self, Request* r, bytes text) noexcept
    cdef void discard(self, Request* r) noexcept
    cdef void withdraw(self, Request* r) noexcept
    cdef void remember(self, Request* r, const char* p, size_t n) noexcept
    cdef bint follow(self, Peer backend, Request* r, const char* bytes, object address, int slot, bint ask) noexcept
    cdef void append(self, Request* r) noexcept
    cdef void unpark(self) noexcept
    cdef void unsettle(self, Request* r) noexcept
    cdef void go(self, bint everything) noexcept
