"""A client's connection: reads its commands and has them carried out."""
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from proxy.forward.backend cimport Backend
from proxy.forward.buffer cimport Buffer
from proxy.forward.call cimport Call
from proxy.forward.datapath cimport ClientSettings, DataPath
from proxy.forward.ports cimport Outlet
from proxy.forward.reply_queue cimport ReplyQueue
from proxy.forward.request cimport Request
from proxy.resp.scanner cimport ArgVec, CommandScan

cdef class Client(Outlet):
    cdef DataPath path
    cdef readonly ClientSettings settings
    cdef ReplyQueue replies
    cdef readonly uint64_t id               # given by the supervisor: unique in the proxy
    cdef uint32_t affinity                  # which of a node's connections
    cdef uint32_t served_by                 # Node.number of the primary its keyless commands went to last
    cdef public Backend lease               # a connection of its own, closed with it; or None
    cdef public str address
    cdef public str local_address
    cdef public str user
    cdef public bytes name
    cdef public bytes lib_name
    cdef public bytes lib_ver
    cdef public int db
    cdef public bint authenticated
    cdef readonly double created_s
    cdef readonly uint64_t total_commands
    cdef readonly uint8_t proto
    cdef uint8_t policy
    cdef int last_metric
    cdef int64_t active_ns                  # when bytes last came from it or were taken by it
    cdef bint paused                        # not read: too much under way or not taken, or a command must wait
    cdef bint waits_for_room                # ... on the connection its next command would go to
    cdef bint eof                           # nothing more will come
    cdef readonly bint half_closed          # it said so; what it sent before may not be read yet
    cdef bint closing                       # closed as soon as everything is answered and taken; no more input counts
    cdef int close_reason
    cdef readonly bint draining             # see drain()
    cdef int64_t lingering_ns               # when it was told the end; 0 = not yet
    cdef int budget                         # what is left of its turn
    cdef uint64_t turn_in                   # the batch of that turn
    cdef Buffer rest                        # input that is not carried out yet
    cdef ArgVec args                        # of the frame at hand, while it is incomplete
    cdef CommandScan scan
    cdef int untaken                        # bytes in the kernel it had not taken when it was last asked
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
    cdef void give_lease_back(self) noexcept
    cdef void release_input(self) noexcept
