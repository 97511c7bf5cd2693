"""A pipelined connection to a node that all clients of a worker share, and the node it belongs to."""
from libc.stdint cimport int64_t, uint32_t, uint64_t

from proxy.forward.buffer cimport Buffer
from proxy.forward.counters cimport CounterBlock, Counters, Histogram
from proxy.forward.ports cimport Recovery
from proxy.forward.reactor cimport Peer
from proxy.forward.request cimport Request
from proxy.resp.scanner cimport ReplyScan

cdef enum:                      # BackendState
    BACKEND_IDLE = 0            # not connected, connected on demand
    BACKEND_CONNECTING = 1      # requests are queued for it
    BACKEND_UP = 2
    BACKEND_BACKOFF = 3         # the last attempt failed; the next one is scheduled
    BACKEND_CLOSED = 4          # for good

cdef class Node:
    cdef readonly object address            # proxy.cluster.topology.Address
    cdef readonly str label                 # str(address)
    cdef public bint replica
    cdef public bint usable                 # a replica fit for reads (proxy.control.node_health)
    cdef readonly bint gone                 # no longer in the topology
    cdef int64_t down_since_ns              # 0 = not known to be down
    cdef public uint64_t connect_failures
    cdef Histogram duration
    cdef list resp2                         # Backends, connections_per_node of them
    cdef list resp3
    cdef list retired                       # Backends of a former role, draining

cdef class BackendSettings:
    cdef public int64_t stall_ns

cdef class Backend(Peer):
    cdef readonly Node node
    cdef readonly int proto
    cdef readonly bint readonly             # READONLY was or is to be sent in the handshake
    cdef public int state
    cdef Recovery recovery
    cdef object port
    cdef Counters counters
    cdef CounterBlock* counts
    cdef BackendSettings settings
    cdef Buffer win                         # unanswered and unsent bytes
    cdef uint64_t win_pos                   # stream position of win's first byte
    cdef uint64_t sent_pos                  # stream position up to which bytes were given to the kernel
    cdef Request* head
    cdef Request* tail
    cdef readonly size_t pending
    cdef Buffer rest                        # an incomplete reply
    cdef ReplyScan scan
    cdef size_t scanned                     # bytes of rest the scanner has passed
    cdef bint passing                       # part of the reply at hand has been passed on already
    cdef bint draining                      # closed once nothing is pending
    cdef int64_t progress_ns                # when bytes last came, or bytes of the oldest request went
    cdef int64_t next_deadline_ns           # no pending deadline is earlier
    cdef bint enqueue(self, Request* r, const char* p, size_t n) noexcept
    cdef bint enqueue_asking(self, Request* r, const char* p, size_t n) noexcept
    cdef void demand(self) noexcept
    cdef void read(self) noexcept
    cdef bint process(self, char* p, size_t n) noexcept
    cdef void reply(self, const char* p, size_t n) noexcept
    cdef void give(self, Request* r, const char* p, size_t n, bint final, bint error) noexcept
    cdef void lose(self, str reason) noexcept
    cdef void abandon_all(self) noexcept
    cdef void sweep(self, int64_t now) noexcept
    cdef void expire(self, int64_t now) noexcept
    cdef void retire(self) noexcept
