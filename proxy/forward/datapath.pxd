"""What all clients of a worker share, and what holds for all clients of a listener."""
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from proxy.commands.keys cimport KeyList
from proxy.commands.lookup cimport CommandTable
from proxy.forward.counters cimport CounterBlock, Counters
from proxy.forward.reactor cimport Reactor
from proxy.forward.retry cimport Retry
from proxy.forward.split cimport Plan
from proxy.resp.scanner cimport ArgVec, ScanLimits

cdef class DataPath

cdef class ClientSettings:
    cdef public uint8_t reads               # ReadPolicy a client begins with
    cdef public bint password               # clients must authenticate
    cdef public uint32_t max_pending        # commands under way before reading pauses
    cdef public size_t max_pending_bytes    # of commands under way before reading pauses
    cdef public size_t soft_output          # reply bytes not taken before reading pauses
    cdef public size_t hard_output          # ... before the client is closed
    cdef public size_t max_query            # bytes of input not yet a whole command
    cdef public int64_t timeout_ns          # a request's deadline, from when it was read
    cdef ScanLimits limits
    cdef DataPath path                      # its clients', from the first of them on

cdef class DataPath:
    cdef readonly Reactor reactor
    cdef readonly Retry retry
    cdef readonly Counters counters
    cdef CounterBlock* counts               # the counters'
    cdef public CommandTable table
    cdef public object desk                 # proxy.serve: answer(client, args), refused(...), ...
    cdef readonly set clients
    cdef ArgVec args                        # shared by all clients that are not in the middle of a frame
    cdef KeyList keys
    cdef Plan plan
    cdef uint32_t turn                      # clients taken: spreads them over a node's connections
    cdef readonly uint64_t left             # clients closed so far
    cdef public object on_left              # called without arguments when a client is closed; or None
    cdef readonly set lingering             # clients that were told the end and have not closed
