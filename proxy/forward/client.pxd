"""A client's connection: reads its commands and has them carried out."""
from libc.stdint cimport int64_t, uint32_t, uint64_t

from proxy.forward.call cimport Call
from proxy.forward.client_info cimport ClientInfo
from proxy.resp.scanner cimport ArgVec, CommandScan

cdef class Client(ClientInfo):
    cdef uint32_t affinity                  # which of a node's connections
    cdef uint32_t served_by                 # Node.number of the primary its keyless commands went to last
    cdef bint paused                        # not read: too much under way or not taken, or a command must wait
    cdef bint waits_for_room                # ... on the connection its next command would go to, or for a pause's end
    cdef int64_t partial_ns                 # since when its input ends in the middle of a command; 0 = it does not
    cdef uint64_t partial_of                # ... after how many whole ones (both: clients.close_slow)
    cdef readonly bint held_back            # its next command waits for the end of a pause
    cdef bint eof                           # nothing more will come
    cdef readonly bint half_closed          # it said so; what it sent before may not be read yet
    cdef bint closing                       # closed as soon as everything is answered and taken; no more input counts
    cdef int close_reason
    cdef readonly bint draining             # see drain()
    cdef int64_t unread_bytes               # ... bytes that had come by then and are still to be read
    cdef int64_t lingering_ns               # when it was told the end; 0 = not yet
    cdef int budget                         # what is left of its turn
    cdef uint64_t turn_in                   # the batch of that turn
    cdef ArgVec args                        # of the frame at hand, while it is incomplete
    cdef size_t args_counted                # its capacity, as far as it is counted in Reactor.memory
    cdef CommandScan scan
    cdef int untaken                        # bytes in the kernel it had not taken when it was last asked
    cdef int64_t held(self) noexcept
    cdef void begin_turn(self) noexcept
    cdef bint takes(self) noexcept
    cdef void read(self) noexcept
    cdef void ignore(self) noexcept
    cdef void pause(self) noexcept
    cdef void wait_for_room(self) noexcept
    cdef size_t parse(self, const char* buf, size_t n) noexcept
    cdef void parse_rest(self) noexcept
    cdef int parse_inline(self, const char* line, size_t n) noexcept
    cdef void fault(self, int code) noexcept
    cdef int run(self, const char* frame, size_t n, const ArgVec* args) noexcept
    cdef void say(self, int metric, bytes text) noexcept
    cdef void failed(self, int metric, str what, error) noexcept
    cdef void resume(self) noexcept
    cdef void end(self, int reason) noexcept
    cdef void drain(self) noexcept
    cdef void depart(self) noexcept
    cdef void close(self, int reason) noexcept
    cdef void release_input(self) noexcept
    cdef void count_args(self) noexcept
    cdef void free_args(self) noexcept
