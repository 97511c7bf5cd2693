"""A client's connection: reads its commands and has them carried out."""
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from proxy.commands.lookup cimport Command
from proxy.forward.buffer cimport Buffer
from proxy.forward.order cimport Ordered
from proxy.forward.request cimport Request
from proxy.resp.scanner cimport Arg, ArgVec, CommandScan

cdef class Client(Ordered):
    cdef readonly uint64_t id               # given by the supervisor: unique in the proxy
    cdef uint32_t affinity                  # which of a node's connections
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
    cdef int64_t active_ns
    cdef Buffer rest                        # input that is no whole command yet
    cdef ArgVec args                        # of the frame at hand, while it is incomplete
    cdef CommandScan scan
    cdef void read(self) noexcept
    cdef void ignore(self) noexcept
    cdef size_t parse(self, const char* buf, size_t n) noexcept
    cdef void parse_rest(self) noexcept
    cdef void inline_command(self, const char* line, size_t n) noexcept
    cdef void fault(self, int code) noexcept
    cdef void dispatch(self, const char* frame, size_t n, const Arg* args, size_t argc) noexcept
    cdef void forward(self, const Command* c, const char* frame, size_t n, const Arg* args, size_t argc) noexcept
    cdef void split(self, const Command* c, const char* frame, size_t n, const Arg* args, size_t argc) noexcept
    cdef void local(self, const Command* c, const char* frame, const Arg* args, size_t argc) noexcept
    cdef Request* request(self, const Command* c, size_t n) noexcept
    cdef bint blocks(self, const char* frame, const Arg* args, size_t argc) noexcept
    cdef void send_on(self, const Command* c, const char* frame, size_t n, int slot) noexcept
    cdef void refuse(self, const Command* c, const char* frame, const Arg* args, size_t argc, str why) noexcept
