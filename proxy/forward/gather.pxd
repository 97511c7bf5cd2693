"""One reply made of many: the parts of a command, and how their replies are combined."""
from libc.stdint cimport uint32_t

from proxy.forward.buffer cimport Buffer
from proxy.forward.ports cimport Sink
from proxy.forward.reply_queue cimport ReplyQueue
from proxy.forward.request cimport Request

cdef class Gather

cdef class Rounds:
    # What finish() made is no reply: sends what it is, for the same parent. False: it makes no sense, `g` goes on.
    cdef bint again(self, Gather g, object made) noexcept

# Appends the one reply to `out`; false when there is no memory. error: the reply is an error.
ctypedef bint (*Combine)(Gather g, Buffer* out, bint* error) noexcept

cdef class Gather(Sink):
    cdef ReplyQueue replies     # the client's
    cdef Request* parent        # the command's place in the client's order; NULL once the client has left
    cdef Request* parts         # nparts of them, in one block with part_of
    cdef uint32_t nparts
    cdef uint32_t missing       # parts not answered yet
    cdef uint32_t nkeys
    cdef uint32_t* part_of      # per key, in the order of the keys: the part that has it
    cdef Combine combine
    cdef object finish          # for combine_python
    cdef bint errors            # ... it is called with error replies, too
    cdef object raised          # called with (what, error) when that raises
    cdef Rounds rounds          # where more is sent that finish() asks for
    cdef bytes made             # what it returned
    cdef object kept            # what the parts borrow: connections that are leased
    cdef size_t held            # reply bytes held in the parts
    cdef size_t most            # ... at most, else the answer is an error; 0 = they were more
    cdef size_t size            # of the parts' block
    cdef bint no_memory
    cdef void too_much(self) noexcept
    cdef void part_answered(self, Request* part) noexcept
    cdef void complete(self) noexcept
    cdef bint call_finish(self) noexcept
    cdef bint make(self, Buffer* out, bint* error) noexcept
    cdef void let_go(self) noexcept
    cdef void discard(self) noexcept

# A gather for a new parent; NULL parts (and no effect) when there is no memory. parent must be in the queue already.
cdef Gather gather_new(ReplyQueue replies, uint32_t nparts, uint32_t nkeys, Combine combine)
cdef void gather_begin(Gather g, Request* parent) noexcept
# The same for a parent that has had parts before, whose gather was `before`: that one is over then.
cdef void gather_again(Gather g, Gather before) noexcept

cdef bint combine_first(Gather g, Buffer* out, bint* error) noexcept
cdef bint combine_sum(Gather g, Buffer* out, bint* error) noexcept
cdef bint combine_array(Gather g, Buffer* out, bint* error) noexcept
cdef bint combine_python(Gather g, Buffer* out, bint* error) noexcept
