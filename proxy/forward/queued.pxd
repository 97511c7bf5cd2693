"""What a client has queued since MULTI."""
from libc.stdint cimport int64_t, uint32_t

from proxy.forward.buffer cimport Buffer

cdef class Queued:
    cdef Buffer frames          # MULTI, then the commands that go to a server
    cdef readonly uint32_t n    # commands queued
    cdef uint32_t sent          # of them, those in `frames`
    cdef int slot               # of their keys; -1 = none has keys yet
    cdef bint spoiled           # one was refused: EXEC will be, too
    cdef bint reads             # none of them may change anything
    cdef size_t texts           # bytes that `local` takes, counted in *all
    cdef int64_t* all           # Reactor.memory, while the client is connected
    cdef list local             # [(place among the commands, words)] of those that the proxy answers itself
    cdef bint add(self, const char* frame, size_t n) noexcept
    cdef bint add_local(self, list words, size_t most)
    cdef void count(self, int64_t* all) noexcept
    cdef void spoil(self) noexcept
    cdef void drop(self) noexcept
