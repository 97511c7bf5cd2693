"""The side of a client that replies: its order queue, its output, its end."""
from libc.stdint cimport int64_t, uint32_t

from proxy.forward.buffer cimport Buffer
from proxy.forward.datapath cimport ClientSettings, DataPath
from proxy.forward.ports cimport Origin
from proxy.forward.request cimport Request

cdef class Ordered(Origin):
    cdef DataPath path
    cdef readonly ClientSettings settings
    cdef bint paused                        # not read: too much under way or not taken
    cdef bint eof                           # nothing more will come
    cdef bint closing                       # closed as soon as everything is answered and taken; no more input counts
    cdef int close_reason
    cdef readonly bint parting              # see part()
    cdef int64_t lingering_ns               # when it was told the end; 0 = not yet
    cdef uint32_t inflight                  # requests in the order queue
    cdef size_t asked                       # bytes of the requests in the order queue
    cdef size_t reply_mean                  # bytes of a usual reply of this client, lately
    cdef size_t reply_bytes                 # delivered since a reply was last finished
    cdef size_t held                        # reply bytes that wait for their turn
    cdef Request* head
    cdef Request* tail
    cdef Buffer out                         # reply bytes not yet taken by the kernel
    cdef bint overloaded(self) noexcept
    cdef bint relieved(self) noexcept
    cdef void resume(self) noexcept
    cdef void append(self, Request* r) noexcept
    cdef void say(self, int metric, const char* p, size_t n) noexcept
    cdef void say_bytes(self, int metric, bytes text) noexcept
    cdef void emit(self, const char* p, size_t n) noexcept
    cdef void finish(self, Request* r, bint error, const char* p, size_t n) noexcept
    cdef void drain(self) noexcept
    cdef void end(self, int reason) noexcept
    cdef void part(self) noexcept
    cdef void depart(self) noexcept
    cdef void close(self, int reason) noexcept
    cdef void left(self) noexcept
