"""How many bytes clients hold, counted where memory is taken and given back: of one client, and of all together.

Everything that is allocated for a client and lasts longer than a batch is counted, by its allocated size: unfinished
input, requests under way, their own bytes, parts of split commands, replies that are held, output that is not taken.
What waits in a backend's window belongs to the backend. Memory that a client leaves behind when it is closed (a request
whose reply is still to come) is not counted any more: closing another client would not bring it back.

Used by buffer, request, reply_queue, gather and client; read by proxy.forward.memory.
"""
from libc.stdint cimport int64_t, uint64_t

cdef struct Account:
    int64_t held        # by one client, its requests and the buffers of its connection apart
    int64_t* all        # by all clients, everything: Reactor.memory
    bint weary          # a command of its pipeline was held in vain: none of the others is, see ReplyQueue.begin_read
    uint64_t wrote      # nodes that have answered a write of the client: bit Node.number % 64, for WAIT


cdef inline void charge(Account* a, int64_t n) noexcept nogil:
    """n more bytes (negative: fewer) are held by the client."""
    a.held += n
    a.all[0] += n
