"""The seams inside the data path: what its modules know of those that come after them."""
from proxy.forward.reactor cimport Peer
from proxy.forward.request cimport Request

cdef class Sink:
    cdef bint unsettled     # its client reads nothing new until all it has under way is answered
    # A piece of a reply (final: the last one; n may be 0). With the last the request is the sink's, which frees it.
    cdef void deliver(self, Request* r, const char* p, size_t n, bint final, bint error) noexcept
    # What was delivered of it has not reached the client and is of no use any more.
    cdef void withdraw(self, Request* r) noexcept
    # Bytes held for the client elsewhere than in its own queue (negative: no longer held).
    cdef void weigh(self, ssize_t n) noexcept
    # Whether anybody still waits for the reply.
    cdef bint alive(self) noexcept
    # A command of the client was redirected or parked, or the place it went to is no longer where the next would go.
    cdef void unsettle(self) noexcept
    # The node was lost in the middle of a reply that had begun to reach the client.
    cdef void cut(self) noexcept
    # Of a gather: its client has left.
    cdef void forsake(self) noexcept
    # Of a gather: part of it is answered.
    cdef bint has_begun(self) noexcept

cdef enum Sent:
    SENT_NOTHING = 0
    SENT_PARTLY = 1
    SENT_WHOLLY = 2

cdef class Outlet(Peer):
    # There is room again in a window that was full.
    cdef void room(self) noexcept
    # Closes it for a CloseReason.
    cdef void shut(self, int reason) noexcept

cdef class Recovery:
    # An error reply: true when it was taken over (redirected, parked); then the request is no longer the backend's.
    cdef bint error(self, Peer backend, Request* r, const char* bytes, const char* p, size_t n) noexcept
    # The connection is gone; bytes are the command's, sent tells how much of it the node may have seen.
    cdef void lost(self, Peer backend, Request* r, const char* bytes, int sent) noexcept
    # Whether a read under way at this node may be had from another one, which is no worse.
    cdef bint elsewhere(self, Peer backend, Request* r) noexcept
    # The deadline has passed; sent: the node may have seen all of it.
    cdef void timed_out(self, Request* r, bint sent) noexcept
    # A window is full: it takes nothing new; there is room in one that was.
    cdef void filled(self) noexcept
    cdef void room(self) noexcept
    # A parked request's time has come (its bytes are in `own`), or its deadline has passed.
    cdef void resubmit(self, Request* r) noexcept
    cdef void expired(self, Request* r, int reason) noexcept
    # It is not to be held at all, for a Refusal.
    cdef void refused(self, Request* r, int why) noexcept

# Why a blocking command is to be over before its time; each goes before those above it.
cdef enum Parting:
    EVICTED = 1     # its connection is needed: as when a node loses its role
    DRAINED = 2     # the proxy ends: the client is told the end, without an answer
    LEFT = 3        # the client has ended its input: it is closed without an answer
    KILLED = 4      # the client is killed: so it is

cdef class Wait(Sink):
    # It is to be over, for a Parting; what has been popped for the client is still its answer.
    cdef void part(self, int why) noexcept
    # CLIENT UNBLOCK; told(whether it was ended by this) is called once, within some seconds.
    cdef void unblock(self, bint error, object told) noexcept

cdef class PushPort:
    cdef object call
    cdef object raised
    # A whole push frame of a node.
    cdef void pushed(self, Peer backend, const char* p, size_t n) noexcept
    # A connection whose pushes come here is up; it was up, and is gone: what was pushed meanwhile is missed.
    cdef void begun(self, Peer backend) noexcept
    cdef void ended(self, Peer backend) noexcept

cdef class Owner(PushPort):
    cdef readonly int db            # of its connections
    cdef readonly tuple greeting    # a command that ends their handshake, in words
    cdef bytes announcement         # a whole command that goes right before one with REQ_CACHING; None = there is none
    # Slots have gone to other nodes: what those push was not meant for it.
    cdef void missed(self) noexcept
