# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""What all clients of a worker share (`DataPath`), and what holds for all clients of a listener (`ClientSettings`)."""
from libc.stdlib cimport free

from proxy.commands.keys cimport keys_free
from proxy.forward.buffer cimport buffer_release
from proxy.resp.scanner cimport args_free

from proxy.forward.router import READ_POLICIES


cdef class ClientSettings:
    """What holds for all clients of a listener; sizes in bytes, see the .pxd."""

    def __cinit__(self, *, reads="primary", bint password=False, max_pending=1024,
                  max_pending_bytes=16 << 20, soft_output=1 << 20, hard_output=1 << 30, max_query=1 << 30,
                  max_bulk=512 << 20, max_arguments=1 << 20, timeout_ns=5_000_000_000):
        self.reads = READ_POLICIES.index(reads)
        self.password = password
        self.max_pending = max_pending
        self.max_pending_bytes = max_pending_bytes
        self.soft_output = soft_output
        self.hard_output = hard_output
        self.max_query = max_query
        self.timeout_ns = timeout_ns
        self.limits.max_bulk = max_bulk
        self.limits.max_args = max_arguments
        self.limits.max_inline = 65536


cdef class DataPath:
    """What all clients of a worker share. desk: proxy.serve.desk.Desk, for whatever is not a plain forward."""

    def __cinit__(self, Reactor reactor, Retry retry, Counters counters, CommandTable table, desk):
        self.reactor = reactor
        self.retry = retry
        self.counters = counters
        self.table = table
        self.desk = desk
        self.clients = set()

    def __dealloc__(self):
        args_free(&self.args)
        keys_free(&self.keys)
        free(self.plan.parts)
        free(self.plan.part_of)
        buffer_release(&self.plan.bytes)

    def reject(self):
        """Counts a connection that was turned away."""
        self.counters.rejected += 1
