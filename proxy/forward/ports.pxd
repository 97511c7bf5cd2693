"""The seams inside the data path: what a backend knows of those it answers to."""
from libc.stdint cimport int64_t

from proxy.forward.reactor cimport Peer
from proxy.forward.request cimport Request

cdef class Origin(Peer):
    cdef bint unsettled     # a command of this client was redirected or parked: see Retry.unsettle
    # A piece of the reply (final: the last one) of a request in this client's order; n may be 0.
    cdef void deliver(self, Request* r, const char* p, size_t n, bint final, bint error) noexcept
    # What was delivered of it has not reached the client and is of no use any more.
    cdef void withdraw(self, Request* r) noexcept
    # Bytes held for this client in the parts of a split command (negative: no longer held).
    cdef void weigh(self, ssize_t n) noexcept
    # The node was lost in the middle of a reply that had begun to reach the client.
    cdef void cut(self, Request* r) noexcept

cdef class Recovery:
    # An error reply: true when it was taken over (redirected, parked); then the request is no longer the backend's.
    cdef bint error(self, Peer backend, Request* r, const char* bytes, const char* p, size_t n) noexcept
    # The connection is gone; bytes are the command's, sent tells whether the node may have seen all of it.
    cdef void lost(self, Peer backend, Request* r, const char* bytes, bint sent) noexcept
    # The deadline has passed; sent: the node may have seen all of it.
    cdef void timed_out(self, Request* r, bint sent) noexcept
    # Gives the whole reply to whoever waits for it.
    cdef void answer(self, Request* r, const char* p, size_t n, bint error) noexcept
