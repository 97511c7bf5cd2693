"""A client's replies: their order, what is held back, what is not yet taken."""
from libc.stdint cimport uint8_t, uint32_t

from proxy.forward.account cimport Account
from proxy.forward.buffer cimport Buffer
from proxy.forward.counters cimport CounterBlock
from proxy.forward.ports cimport Outlet, Sink
from proxy.forward.request cimport Request

cdef enum Mute:             # whose replies are kept from a client: see CLIENT REPLY
    MUTE_OFF = 1            # everybody's, until it says ON
    MUTE_SKIP = 2           # the present command's
    MUTE_NEXT = 4           # the next command's
    TELL_NEXT = 8           # Client.carried_out() wants to know of the next command, for another reason

cdef enum PushPlace:
    PUSH_SOON = 0           # as soon as no reply has begun and is not finished
    PUSH_BEHIND = 1         # ... and not before what has been answered, in whole or in part, and waits for its turn
    PUSH_LAST = 2           # behind all that is under way

cdef class OutputLimits:
    cdef public uint32_t max_pending        # commands under way before reading pauses
    cdef public size_t max_pending_bytes    # of commands under way before reading pauses
    cdef public size_t soft_output          # reply bytes not taken before reading pauses
    cdef public size_t hard_output          # ... before the client is closed

cdef class ReplyQueue(Sink):
    cdef void* outlet                       # Outlet, borrowed: it owns this; NULL once it is closed
    cdef CounterBlock* counts
    cdef OutputLimits limits
    cdef uint32_t inflight                  # requests in the queue, pushes apart
    cdef uint32_t proven                    # replies of this burst that have come: see overloaded()
    cdef size_t asked                       # bytes of the requests in the queue
    cdef size_t reply_mean                  # bytes of a usual reply of this client, lately
    cdef size_t held                        # reply bytes that wait for their turn
    cdef Account account                    # what requests of the queue own
    cdef bint drained                       # its client was read to the end the last time
    cdef bint stopped                       # its client is not read: all clients together hold too much
    cdef uint8_t muted                      # Mute bits; what comes into the queue with OFF or SKIP is not sent
    cdef Request* head
    cdef Request* tail
    cdef Request* pushing                   # the last push in the queue
    cdef Buffer out                         # reply bytes not yet taken by the kernel
    cdef bint overloaded(self) noexcept
    cdef bint relieved(self) noexcept
    cdef size_t unproven(self) noexcept
    cdef void begin_read(self, bint empty) noexcept
    cdef void append(self, Request* r) noexcept
    cdef void next_command(self) noexcept
    cdef void say(self, int metric, const char* p, size_t n) noexcept
    cdef Request* ready_made(self, const char* p, size_t n) noexcept
    cdef void push(self, const char* p, size_t n, int place) noexcept
    cdef Request* place_of(self, int place) noexcept
    cdef Buffer* room(self, Request* r) noexcept
    cdef void made(self, size_t n) noexcept
    cdef void emit(self, const char* p, size_t n) noexcept
    cdef void drop(self) noexcept
    cdef void finish(self, Request* r, bint error, const char* p, size_t n) noexcept
    cdef void pop(self) noexcept
    cdef void advance(self) noexcept
    cdef int send_out(self) noexcept
    cdef void over(self) noexcept
    cdef void shut(self, int reason) noexcept

cdef enum SendResult:
    SENT_ALL = 0
    SENT_PART = 1           # the kernel takes no more, or others are to have their turn: wait to be writable
    SEND_FAILED = 2
