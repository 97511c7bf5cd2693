"""What is under way on one connection to a node."""
from libc.stdint cimport int64_t, uint64_t

from proxy.forward.buffer cimport Buffer
from proxy.forward.ports cimport Recovery
from proxy.forward.reactor cimport Peer
from proxy.forward.request cimport Request

cdef enum EnqueueResult:
    ENQUEUED = 0
    WINDOW_FULL = 1             # too many unanswered bytes: try again when there is room
    NO_MEMORY = 2

cdef enum:
    MOST_CUTS = 3               # connections that a read may cost: then it fails

cdef class BackendSettings:
    cdef public int64_t stall_ns
    cdef public int64_t silent_ns
    cdef public size_t max_window

cdef class Pipeline(Peer):
    cdef Recovery recovery
    cdef BackendSettings settings
    cdef Buffer win                         # unanswered and unsent bytes
    cdef uint64_t win_pos                   # stream position of win's first byte
    cdef uint64_t sent_pos                  # stream position up to which bytes were given to the kernel
    cdef Request* head
    cdef Request* tail
    cdef Request* cancelled                 # the first cancelled request in the queue
    cdef readonly size_t pending
    cdef bint wary                          # its node is silent: nothing more is sent before it is heard
    cdef bint fenced                        # some of its reads are suspects: see fence
    cdef readonly bint asked                # the last connection was sent something
    cdef bint full                          # takes nothing new, until half of it is empty
    cdef uint64_t unsettled_to              # clients of what stands before this position: see Router.unsettle_slot
    cdef int64_t progress_ns                # when bytes last came, or bytes of the oldest request went
    cdef int64_t next_deadline_ns           # no pending deadline is earlier
    cdef bytes announcement                 # of Owner, if it is a client's own connection
    cdef int enqueue(self, Request* r, const char* p, size_t n) noexcept
    cdef int enqueue_behind(self, Request* r, const char* prefix, size_t nprefix, int replies, const char* p,
                            size_t n) noexcept
    cdef int announce(self, Request* r, const char* p, size_t n) noexcept
    cdef size_t sendable(self) noexcept
    cdef uint64_t fence(self) noexcept
    cdef void accuse(self) noexcept
    cdef void answered(self) noexcept
    cdef void abandon_all(self) noexcept
    cdef void expire(self, int64_t now, bint passing) noexcept
    cdef void give_away(self, bint passing) noexcept
    cdef bint make_ghost(self, Request* r, Request* before) noexcept


cdef inline size_t span(const Request* r) noexcept nogil:
    """Its bytes in the window."""
    return r.prefix + r.len
