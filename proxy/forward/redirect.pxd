"""What a node's error line means for a request: follow it elsewhere, wait, or give it to the client."""
from proxy.cluster.redirection cimport Redirection
from proxy.forward.backend cimport Backend
from proxy.forward.counters cimport CounterBlock
from proxy.forward.node cimport Node
from proxy.forward.parking cimport Parking
from proxy.forward.ports cimport Sink
from proxy.forward.request cimport Request
from proxy.forward.router cimport Router
from proxy.forward.scripts cimport Scripts

cdef enum Verdict:
    ORDINARY = 0            # the client's
    TAKEN = 1               # sent elsewhere, or parked
    STRANDED = 2            # there is no memory to do either

cdef class Redirect

cdef class Probe(Sink):
    cdef Redirect redirect
    cdef Node node              # that is asked
    cdef Request* r             # that is in doubt
    cdef bint odd               # the answer comes in pieces

cdef class Redirect:
    cdef Router router
    cdef Parking parking
    cdef Scripts scripts
    cdef CounterBlock* counts
    cdef public object port
    cdef public int max_redirections
    cdef int judge(self, Backend backend, Request* r, const char* bytes, const char* p, size_t n) noexcept
    cdef Node named(self, bytes line, Node node, int* kind)
    cdef Node known(self, bytes host, int port, Node node)
    cdef int lead(self, Node said, void* window, Request* r, const char* bytes, Redirection* to, int kind) noexcept
    cdef int doubt(self, Backend backend, Request* r, const char* whole) noexcept
    cdef void decide(self, Request* r, Node said, const char* p, size_t n) noexcept
    cdef int follow(self, void* window, Request* r, const char* bytes, Node node, bint ask) noexcept
    cdef int repair(self, Backend backend, Request* r, const char* bytes, const char* p, size_t n) noexcept
    cdef int give(self, Backend backend, Request* r, bytes name, bytes load)
    cdef int wait(self, Request* r, const char* bytes, int reason) noexcept
