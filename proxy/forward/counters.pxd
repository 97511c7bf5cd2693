"""What the data path counts, as C arrays; read by admin at scrape time."""
from libc.stdint cimport int64_t, uint64_t

cdef enum:
    COMMANDS = 1024         # metric indexes; 0 = other
    BUCKETS = 18            # histogram buckets, the last one without a bound
    KINDS = 32              # error words

cdef enum:               # CloseReason
    CLOSE_CLIENT = 0            # the client left
    CLOSE_QUIT = 1
    CLOSE_PROTOCOL = 2          # malformed input
    CLOSE_OUTPUT_LIMIT = 3
    CLOSE_QUERY_LIMIT = 4
    CLOSE_IDLE = 5
    CLOSE_KILLED = 6            # by an administrator
    CLOSE_SHUTDOWN = 7
    CLOSE_REPLY_CUT = 8         # the node was lost in the middle of a reply
    CLOSE_ERROR = 9             # socket error, no memory
    CLOSE_CROSS_PROTOCOL = 10   # POST or Host:
    CLOSE_REASONS = 11

cdef enum:               # RedirectionCount
    COUNT_REDIRECTIONS = 8      # indexed by proxy.cluster.redirection.RedirectionKind

cdef enum:               # RetryReason
    RETRY_LOST = 0
    RETRY_DOWN = 1
    RETRY_TRYAGAIN = 2
    RETRY_CLUSTERDOWN = 3
    RETRY_LOADING = 4
    RETRY_READONLY = 5
    RETRY_MASTERDOWN = 6
    RETRY_MOVED = 7
    RETRY_REASONS = 8

cdef enum:               # RetryOutcome
    OUTCOME_RETRIED = 0
    OUTCOME_GAVE_UP = 1
    OUTCOME_UNSAFE = 2
    RETRY_OUTCOMES = 3

cdef struct Histogram:
    uint64_t bucket[BUCKETS]
    uint64_t sum_ns

cdef class Counters:
    cdef Histogram command[COMMANDS]
    cdef uint64_t errors[COMMANDS][KINDS]
    cdef uint64_t closed[CLOSE_REASONS]
    cdef uint64_t redirections[COUNT_REDIRECTIONS]
    cdef uint64_t retries[RETRY_REASONS][RETRY_OUTCOMES]
    cdef uint64_t accepted
    cdef uint64_t rejected
    cdef uint64_t client_in
    cdef uint64_t client_out
    cdef uint64_t backend_in
    cdef uint64_t backend_out
    cdef uint64_t splits[COMMANDS]
    cdef uint64_t timeouts
    cdef int64_t inflight
    cdef int64_t output_bytes           # reply bytes held for clients
    cdef readonly dict metrics          # command name -> index; grows, never changes
    cdef void error(self, int command, const char* line, size_t n) noexcept nogil

cdef int64_t* bounds_ns
cdef list histogram_values(Histogram* h)

cdef inline void observe(Histogram* h, int64_t ns) noexcept nogil:
    cdef int i = 0
    while i < BUCKETS - 1 and ns > bounds_ns[i]:
        i += 1
    h.bucket[i] += 1
    h.sum_ns += ns
