# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The seams inside the data path.

Modules of proxy.forward import one way (buffer < request < reactor < backend < router < retry < split < client), yet
a backend must give replies to clients and losses to retry: it knows them as these two abstract classes.
"""


cdef class Origin(Peer):
    """Where replies go: a client."""

    cdef void deliver(self, Request* r, const char* p, size_t n, bint final, bint error) noexcept:
        pass

    cdef void withdraw(self, Request* r) noexcept:
        pass

    cdef void weigh(self, ssize_t n) noexcept:
        pass

    cdef void cut(self, Request* r) noexcept:
        pass


cdef class Recovery:
    """What becomes of a request that a backend cannot simply answer: Retry."""

    cdef bint error(self, Peer backend, Request* r, const char* bytes, const char* p, size_t n) noexcept:
        return False

    cdef void lost(self, Peer backend, Request* r, const char* bytes, bint sent) noexcept:
        pass

    cdef void timed_out(self, Request* r, bint sent) noexcept:
        pass

    cdef void answer(self, Request* r, const char* p, size_t n, bint error) noexcept:
        pass
