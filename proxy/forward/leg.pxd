"""One connection that a blocking command is sent on."""
from libc.stdint cimport int64_t, uint32_t

from proxy.forward.backend cimport Backend
from proxy.forward.client cimport Client
from proxy.forward.node cimport Node
from proxy.forward.ports cimport Sink, Wait
from proxy.forward.reply_queue cimport ReplyQueue
from proxy.forward.request cimport Request
from proxy.forward.timeout cimport Timeout

cdef class Command(Wait)

cdef class Leg(Sink):
    cdef Command owner
    cdef Node node              # of WAIT: the primary that it asks; after ASK: the node that is asked
    cdef Backend lease          # ... also while a question about it is under way
    cdef Request* r             # on its way, or blocked there; NULL = answered, or between two attempts
    cdef bytes reply            # of WAIT: what it was answered
    cdef bint asking            # ASK named the node
    cdef bint ended             # CLIENT UNBLOCK has ended it
    cdef bint settled           # CLIENT UNBLOCK has come to the node, for its answer says so
    cdef uint32_t questions     # CLIENT UNBLOCK under way for it
    cdef uint32_t attempts      # in a row that were refused or did not come about
    cdef int redirections       # ... and redirections
    cdef int64_t trouble_ns     # since when
    cdef int64_t astray_ns      # since when its node is not the one for its slot any more
    cdef bint suspended         # it is being ended at a node that is to be paused, to be begun again afterwards
    cdef bint held              # it waits for its node to be paused no more
    cdef object timer
    cdef void go(self) noexcept
    cdef Node target(self)
    cdef int send(self, Backend lease) noexcept
    cdef void answered(self, Request* r, const char* p, size_t n, bint error) noexcept
    cdef bint redirected(self, Request* r, const char* p, size_t n) noexcept
    cdef void again(self, bytes fault) noexcept
    cdef void hold(self) noexcept
    cdef void release(self) noexcept
    cdef void abandon(self) noexcept
    cdef void look(self, int64_t now, int64_t patience_ns) noexcept

cdef class Command(Wait):
    cdef Client client
    cdef ReplyQueue replies
    cdef Request* parent        # its place in the client's order, with its bytes; NULL = answered, or the client left
    cdef int slot               # Slots: SLOT_NONE for WAIT, and where no keys could be found
    cdef bytes cover            # of WAIT: what goes before it
    cdef bint for_replicas      # it is WAIT or WAITAOF
    cdef bint sent              # once at least
    cdef bint lapses            # CLIENT UNBLOCK ... TIMEOUT came when its node was being told to end it with an error
    cdef Timeout timeout
    cdef int parting            # a Parting: why it is to be over before its time
    cdef bint left_early        # the client had ended its input before the command began
    cdef bint hit               # CLIENT UNBLOCK has ended it, at some node
    cdef bint failed            # a question about it was not answered
    cdef void finish(self, const char* p, size_t n, bint error) noexcept
    cdef void fail(self, bytes text) noexcept
    # Its node does not answer it any more, or does as it was asked to: says so, to whom that is to be said.
    cdef void lose(self) noexcept
    cdef void end_here(self) noexcept
    # Its time is over while it is not sent to anybody.
    cdef void elapsed(self) noexcept
    cdef void leg_answered(self, Leg leg, const char* p, size_t n, bint error) noexcept
    cdef void heard(self, bytes reply) noexcept
