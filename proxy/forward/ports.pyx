# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The seams inside the data path.

Modules of proxy.forward import one way (see the package), yet a backend must give replies to clients and losses to the
exchange, and parked requests go back to where they came from: they know each other as these abstract classes.
"""


cdef class Sink:
    """Whoever takes a reply: a client's reply queue, or a gather that makes one reply of many."""

    cdef void deliver(self, Request* r, const char* p, size_t n, bint final, bint error) noexcept:
        pass

    cdef void withdraw(self, Request* r) noexcept:
        pass

    cdef void weigh(self, ssize_t n) noexcept:
        pass

    cdef bint alive(self) noexcept:
        return False

    cdef void unsettle(self) noexcept:
        self.unsettled = True

    cdef void cut(self) noexcept:
        pass

    cdef void forsake(self) noexcept:
        pass

    cdef bint has_begun(self) noexcept:
        return False


cdef class Wait(Sink):
    """A blocking command under way: what its client knows of it."""

    cdef void part(self, int why) noexcept:
        pass

    cdef void unblock(self, bint error, object told) noexcept:
        pass


cdef class Outlet(Peer):
    """The peer a reply queue writes to: a client."""

    cdef void room(self) noexcept:
        pass

    cdef void shut(self, int reason) noexcept:
        pass


cdef class Recovery:
    """What becomes of a request that a backend cannot simply answer: Exchange."""

    cdef bint error(self, Peer backend, Request* r, const char* bytes, const char* p, size_t n) noexcept:
        return False

    cdef void lost(self, Peer backend, Request* r, const char* bytes, int sent) noexcept:
        pass

    cdef bint elsewhere(self, Peer backend, Request* r) noexcept:
        return False

    cdef void timed_out(self, Request* r, bint sent) noexcept:
        pass

    cdef void filled(self) noexcept:
        pass

    cdef void room(self) noexcept:
        pass

    cdef void resubmit(self, Request* r) noexcept:
        pass

    cdef void refused(self, Request* r, int why) noexcept:
        pass

    cdef void expired(self, Request* r, int reason) noexcept:
        pass


cdef class PushPort:
    """Where pushes of nodes go: call(backend, frame bytes), or what a compiled hub makes of `pushed`.

    raised(what, error): call has raised; that push is lost.
    """

    def __init__(self, call=None, raised=None):
        self.call = call
        self.raised = raised

    cdef void pushed(self, Peer backend, const char* p, size_t n) noexcept:
        if self.call is None:
            return
        try:
            self.call(backend, p[:n])
        except Exception as error:
            if self.raised is not None:
                self.raised("push", error)

    cdef void begun(self, Peer backend) noexcept:
        pass

    cdef void ended(self, Peer backend) noexcept:
        pass


cdef class Owner(PushPort):
    """A client with connections to the nodes of its own: what is said to them, and where their pushes go. Tracking."""

    cdef void missed(self) noexcept:
        pass
