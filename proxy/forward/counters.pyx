# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""What the data path counts.

Incremented as plain C integers on the way of a command, in one block of memory that may be shared with another process
(the supervisor reads a worker's at any time, and after its death); turned into Python values by `snapshot`, which only
reads. Histogram bounds are shared by all histograms and given in seconds by `BOUNDS_S`.
"""
from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uintptr_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, strlen

BOUNDS_S = (
    0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
)

cdef int64_t _bounds[BUCKETS]
cdef int _i
for _i in range(BUCKETS - 1):
    _bounds[_i] = <int64_t> round(BOUNDS_S[_i] * 1e9)
bounds_ns = _bounds

# Redis's error words, the first word of an error line; what is not listed counts as the last, `other`.
ERROR_KINDS = (
    "ERR", "WRONGTYPE", "MOVED", "ASK", "TRYAGAIN", "CLUSTERDOWN", "CROSSSLOT", "LOADING", "READONLY", "MASTERDOWN",
    "NOAUTH", "WRONGPASS", "NOPERM", "NOSCRIPT", "NOGROUP", "NOPROTO", "NOREPLICAS", "OOM", "MISCONF", "BUSY",
    "BUSYGROUP", "BUSYKEY", "EXECABORT", "UNBLOCKED", "INPROG", "NOTREADY", "NOTBUSY", "UNKILLABLE", "TIMEOUT",
    "LOST", "DENIED", "other",
)
CLOSE_REASON_NAMES = (
    "client", "quit", "protocol_error", "output_limit", "query_limit", "idle", "killed", "shutdown", "reply_cut",
    "socket_error", "cross_protocol", "memory_limit", "pubsub_limit", "slow_frame",
)
REDIRECTION_NAMES = (None, "moved", "ask", "tryagain", "clusterdown", "loading", "readonly", "masterdown",
                     "noscript")
RETRY_REASON_NAMES = (
    "connection_lost", "node_down", "tryagain", "clusterdown", "loading", "readonly", "masterdown", "moved",
    "node_busy", "noscript", "paused",
)
REFUSAL_NAMES = (
    "node_down", "uncovered", "no_topology", "too_many_held", "held_too_long", "pipeline", "node_gone", "no_memory",
)
RETRY_OUTCOME_NAMES = ("retried", "gave_up", "unsafe")
COUNTERS_SIZE = sizeof(CounterBlock)

assert len(ERROR_KINDS) == KINDS and len(BOUNDS_S) == BUCKETS - 1
assert len(CLOSE_REASON_NAMES) == CLOSE_REASONS and len(REDIRECTION_NAMES) == COUNT_REDIRECTIONS
assert len(REFUSAL_NAMES) == REFUSALS
assert len(RETRY_REASON_NAMES) == RETRY_REASONS and len(RETRY_OUTCOME_NAMES) == RETRY_OUTCOMES

_kind_bytes = [k.encode() for k in ERROR_KINDS]
cdef const char* _kinds[KINDS]
for _i in range(KINDS):
    _kinds[_i] = _kind_bytes[_i]


cdef class Counters:
    """The counters of one worker. `metrics` maps command names to indexes and is shared with the command tables.

    memory: where they are, zeroed by its maker; None = in memory of their own. ValueError when it will not do.
    """

    def __cinit__(self, memory=None):
        self.metrics = {"other": 0}
        if memory is None:
            self.block = <CounterBlock*> calloc(1, sizeof(CounterBlock))
            if self.block == NULL:
                raise MemoryError
            return
        try:
            PyObject_GetBuffer(memory, &self.view, PyBUF_WRITABLE)
        except BufferError as error:
            raise ValueError(f"counters need memory they can write: {error}") from None
        self.shared = True
        if <size_t> self.view.len < sizeof(CounterBlock):
            raise ValueError(f"counters need {COUNTERS_SIZE} bytes of memory, not {self.view.len}")
        if <uintptr_t> self.view.buf % sizeof(uint64_t):
            raise ValueError("counters need memory aligned to 8 bytes")
        self.block = <CounterBlock*> self.view.buf

    def __dealloc__(self):
        if self.shared:
            PyBuffer_Release(&self.view)
        else:
            free(self.block)

    def fault(self):
        """Counts an exception of our own code outside of a command."""
        self.block.internal_errors += 1

    def refuse_leases(self, uint64_t times):
        """Counts commands for which no connection to the node was free."""
        self.block.leases_refused += times

    def drop_monitored(self, uint64_t lines):
        """Counts lines of MONITOR that were not taken in time."""
        self.block.monitor_dropped += lines

    @property
    def accepted(self):
        """Clients that were taken in and served."""
        return self.block.accepted

    @property
    def gone(self):
        """Clients that have left: closed, or turned away before they were served."""
        cdef uint64_t gone = self.block.rejected
        cdef int i
        for i in range(CLOSE_REASONS):
            gone += self.block.closed[i]
        return gone

    def totals(self):
        """Sums for INFO, under its names: cheap enough to be asked for with every INFO."""
        cdef CounterBlock* block = self.block
        cdef uint64_t calls = 0
        cdef int c, i
        for c in range(COMMANDS):
            for i in range(BUCKETS):
                calls += block.command[c].bucket[i]
        return {
            "total_connections_received": block.accepted,
            "total_commands_processed": calls,
            "total_net_input_bytes": block.client_in,
            "total_net_output_bytes": block.client_out,
            "rejected_connections": block.rejected,
            "proxy_commands_in_flight": block.inflight,
            "blocked_clients": block.blocked,
        }

    def snapshot(self):
        """All counters as plain values: proxy.admin.snapshot.CounterValues.

        Commands that were never answered share one list of buckets: what a snapshot holds must not be changed in place.
        """
        cdef CounterBlock* block = self.block
        cdef Histogram seen
        cdef int c, i
        cdef uint64_t calls
        cdef list silent = [0] * BUCKETS
        commands = {}
        for name, index in self.metrics.items():
            if not 0 <= index < COMMANDS:
                raise IndexError(f"no counters for {name}: index {index}")
            c = index
            seen = block.command[c]         # calls and buckets are of one moment, whoever goes on counting
            calls = 0
            for i in range(BUCKETS):
                calls += seen.bucket[i]
            commands[name] = {
                "calls": calls,
                "errors": {ERROR_KINDS[i]: block.errors[c][i] for i in range(KINDS) if block.errors[c][i]},
                "buckets": [seen.bucket[i] for i in range(BUCKETS)] if calls else silent,
                "sum_s": seen.sum_ns / 1e9,
                "split": block.splits[c],
            }
        return {
            "commands": commands,
            "closed": {CLOSE_REASON_NAMES[i]: block.closed[i] for i in range(CLOSE_REASONS)},
            "redirections": {REDIRECTION_NAMES[i]: block.redirections[i] for i in range(1, COUNT_REDIRECTIONS)},
            "retries": {
                (RETRY_REASON_NAMES[c], RETRY_OUTCOME_NAMES[i]): block.retries[c][i]
                for c in range(RETRY_REASONS)
                for i in range(RETRY_OUTCOMES)
            },
            "holds": {RETRY_REASON_NAMES[i]: block.holds[i] for i in range(RETRY_REASONS)},
            "refusals": {REFUSAL_NAMES[i]: block.refusals[i] for i in range(REFUSALS)},
            "accepted": block.accepted,
            "rejected": block.rejected,
            "client_in": block.client_in,
            "client_out": block.client_out,
            "backend_in": block.backend_in,
            "backend_out": block.backend_out,
            "timeouts": block.timeouts,
            "leases_refused": block.leases_refused,
            "monitor_dropped": block.monitor_dropped,
            "internal_errors": block.internal_errors,
            "messages": block.messages,
            "deliveries": block.deliveries,
            "fan_out_pauses": block.fan_out_pauses,
            "interruptions": block.interruptions,
            "interrupted_ms": block.interrupted_ms,
            "inflight": block.inflight,
            "blocked": block.blocked,
        }


cdef void count_error(CounterBlock* to, int command, const char* line, size_t n) noexcept nogil:
    """Counts an error line (`-WORD ...`) answered for a command."""
    cdef int i
    cdef size_t k, word = 1
    while word < n and line[word] > 32:
        word += 1
    word -= 1
    for i in range(KINDS - 1):
        k = strlen(_kinds[i])
        if k == word and memcmp(_kinds[i], line + 1, k) == 0:
            to.errors[command][i] += 1
            return
    to.errors[command][KINDS - 1] += 1


cdef list histogram_values(Histogram* h):
    """[buckets (not cumulative), sum in seconds]."""
    cdef int i
    return [[h.bucket[i] for i in range(BUCKETS)], h.sum_ns / 1e9]
