"""Requests on their way out, and what becomes of those that come back unanswered."""
from libc.stdint cimport uint32_t

from proxy.forward.counters cimport CounterBlock
from proxy.forward.parking cimport Parking
from proxy.forward.ports cimport Outlet, Recovery
from proxy.forward.redirect cimport Redirect
from proxy.forward.request cimport Request
from proxy.forward.router cimport Router
from proxy.forward.scripts cimport Scripts

cdef enum Waits:            # what a command that has not been begun is to wait for
    WAITS_NOT = 0
    WAITS_FOR_ROOM = 1
    WAITS_FOR_RESUME = 2    # its node is paused

cdef class Exchange(Recovery):
    cdef readonly Router router
    cdef readonly Redirect redirect
    cdef readonly Parking parking
    cdef readonly Scripts scripts
    cdef CounterBlock* counts
    cdef object port
    cdef uint32_t full              # connections whose windows are full; and one while any node is paused
    cdef dict waiting               # clients that wait for room on one of them, in that order
    # Ready error lines (proxy.resp.errors).
    cdef bytes text_uncovered
    cdef bytes text_unknown
    cdef bytes text_down
    cdef bytes text_held
    cdef bytes text_full
    cdef bytes text_timeout
    cdef bytes text_timeout_sent
    cdef bytes text_lost
    cdef bytes text_cut
    cdef bytes text_gone
    cdef bytes text_memory
    cdef int must_wait(self, Request* r) noexcept
    cdef void wait(self, Outlet client)
    cdef void submit(self, Request* r, const char* p, size_t n) noexcept
    cdef void park(self, Request* r, const char* p, size_t n, int reason) noexcept
    cdef void refuse(self, Request* r, int why, bytes text) noexcept
    cdef void no_memory(self, Request* r) noexcept
    cdef void fail(self, Request* r, bytes text) noexcept
    cdef void give_up(self, Request* r, bytes text) noexcept
    cdef void answer(self, Request* r, const char* p, size_t n) noexcept
