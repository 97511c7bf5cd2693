"""What all clients of a worker share, and what holds for all clients of a listener."""
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from proxy.commands.keys cimport KeyList
from proxy.commands.lookup cimport CommandTable
from proxy.forward.call cimport Dispatcher
from proxy.forward.counters cimport CounterBlock, Counters
from proxy.forward.exchange cimport Exchange
from proxy.forward.leases cimport Leases
from proxy.forward.reactor cimport Reactor
from proxy.forward.reply_queue cimport OutputLimits
from proxy.forward.split cimport Plan
from proxy.resp.inline cimport InlineFrame
from proxy.resp.scanner cimport ArgVec, ScanLimits

cdef class DataPath

cdef class ClientSettings(OutputLimits):
    cdef public uint8_t reads               # ReadPolicy a client begins with
    cdef public bint password               # clients must authenticate
    cdef size_t own_max_query               # bytes of input not yet a whole command, as configured
    cdef int64_t own_max_bulk               # bytes of one argument, as configured
    cdef readonly size_t max_query          # ... and in force: no more than every node takes
    cdef public int64_t timeout_ns          # a request's deadline, from when it was read
    cdef ScanLimits limits
    cdef DataPath path                      # its clients', from the first of them on
    cdef void clamp(self) noexcept

cdef class DataPath:
    cdef readonly Reactor reactor
    cdef readonly Exchange exchange
    cdef readonly Leases leases
    cdef readonly Counters counters
    cdef CounterBlock* counts               # the counters'
    cdef public CommandTable table
    cdef public object responder            # proxy.serve: answer(client, args), refuse(...), ...
    cdef Dispatcher dispatcher              # set by the first accept
    cdef readonly set clients
    cdef list settings                      # ClientSettings of all of them
    cdef ArgVec args                        # shared by all clients that are not in the middle of a frame
    cdef InlineFrame inline_frame           # the inline command at hand
    cdef KeyList keys
    cdef Plan plan
    cdef int64_t node_max_bulk              # the smallest proto-max-bulk-len of the nodes; 0 = not known
    cdef size_t node_max_query              # ... client-query-buffer-limit
    cdef uint64_t commands                  # that became requests so far: their numbers
    cdef uint32_t turn                      # clients taken: spreads them over a node's connections
    cdef readonly uint64_t closed           # clients closed so far
    cdef public object on_close             # called without arguments when a client is closed; or None
    cdef int64_t most_memory                # see max_memory
    cdef readonly set lingering             # clients that were told the end and have not closed
    cdef uint8_t paused                     # CLIENT PAUSE: see proxy.forward.hold, as for the following three
    cdef int64_t paused_until
    cdef object pause_timer
    cdef dict metric_names                  # by index, as far as they are known: see ClientInfo.last_command
    cdef set held
    cdef dict gated                         # clients whose next command is for a paused node, in the order they came
    cdef set left                           # ... that have ended their input, most likely for good: see keeps
    cdef public size_t most_left            # so many of them are kept
    cdef readonly set tracking              # clients that track
    cdef void adopt(self, ClientSettings settings)
    cdef bint keeps(self, client, bint draining) noexcept
    cdef void let_go(self, client)
