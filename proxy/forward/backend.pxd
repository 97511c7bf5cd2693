"""A connection to a node: shared by all clients of a worker, or leased to one."""
from libc.stdint cimport int64_t, uint32_t

from proxy.forward.buffer cimport Buffer
from proxy.forward.counters cimport CounterBlock
from proxy.forward.node cimport Node, Pool
from proxy.forward.pipeline cimport BackendSettings, Pipeline
from proxy.forward.ports cimport PushPort
from proxy.forward.request cimport Request
from proxy.resp.scanner cimport ReplyScan

cdef enum:                      # BackendState
    BACKEND_IDLE = 0            # not connected, connected on demand
    BACKEND_CONNECTING = 1      # requests are queued for it
    BACKEND_UP = 2
    BACKEND_BACKOFF = 3         # the last attempt failed; the next one is scheduled
    BACKEND_CLOSED = 4          # for good

cdef class Backend(Pipeline):
    cdef readonly Node node
    cdef Pool pool                          # None: a lease
    cdef readonly int proto                 # that of a lease may change while a client has it, and its db
    cdef readonly int db                    # SELECT n is to be sent in the handshake, if it is not 0
    cdef public int64_t client_id           # of a lease: its CLIENT ID at the node; 0 = not known
    cdef bint patient                       # of a lease: a command blocks it, silence is no stall
    cdef bint spent                         # a lease that nobody is to have next
    cdef readonly bint readonly             # READONLY was or is to be sent in the handshake
    cdef public int state
    cdef object port
    cdef PushPort pushes                    # None = pushes are dropped
    cdef CounterBlock* counts
    cdef Buffer rest                        # an incomplete reply
    cdef Buffer push                        # the passed part of an incomplete push
    cdef ReplyScan scan
    cdef size_t scanned                     # bytes of rest the scanner has passed
    cdef bint passing                       # part of the reply at hand has been passed on already
    cdef dict loads                         # script -> where its SCRIPT LOAD ends in the stream; None = none
    cdef readonly bint draining             # closed once nothing is pending
    cdef public int duty                    # of a lease of the hub's: see proxy.forward.hub; 0 = it is none
    cdef bint deaf                          # not read: see listen()
    cdef uint32_t heard(self) noexcept
    cdef void demand(self) noexcept
    cdef void read(self) noexcept
    cdef bint read_once(self) noexcept
    cdef void salvage(self) noexcept
    cdef bint process(self, char* p, size_t n) noexcept
    cdef bint premature(self) noexcept
    cdef bint unearned(self, char kind) noexcept
    cdef void blame(self) noexcept
    cdef bint pushed(self, const char* p, size_t n, bint final) noexcept
    cdef void reply(self, const char* p, size_t n) noexcept
    cdef void settle(self, Request* r, const char* p, size_t n, bint error) noexcept
    cdef bint refused(self, Request* r, const char* bytes, const char* why, size_t n) noexcept
    cdef bint explain(self, Request* r, const char* fault, size_t n) noexcept
    cdef bint sent_on(self, Request* r, const char* p, size_t n) noexcept
    cdef void lose(self, str reason) noexcept
    cdef void start_over(self) noexcept
    cdef void sweep(self, int64_t now) noexcept
    cdef void retire(self) noexcept
    cdef void listen(self, bint wanted) noexcept
    cdef bint confirmed(self) noexcept
