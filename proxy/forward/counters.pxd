"""What the data path counts: one block of 64-bit integers, which another process may read."""
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
    CLOSE_MEMORY_LIMIT = 11     # all clients together held too much, and it the most
    CLOSE_PUBSUB_LIMIT = 12     # it does not take the messages it is subscribed to
    CLOSE_SLOW_FRAME = 13       # clients.frame_timeout
    CLOSE_REASONS = 14

cdef enum:               # RedirectionCount
    COUNT_REDIRECTIONS = 9      # indexed by proxy.cluster.redirection.RedirectionKind

cdef enum:               # RetryReason
    RETRY_LOST = 0
    RETRY_DOWN = 1
    RETRY_TRYAGAIN = 2
    RETRY_CLUSTERDOWN = 3
    RETRY_LOADING = 4
    RETRY_READONLY = 5
    RETRY_MASTERDOWN = 6
    RETRY_MOVED = 7
    RETRY_FULL = 8              # too many unanswered bytes on the connection to its node
    RETRY_NOSCRIPT = 9          # its script is being asked for
    RETRY_PAUSED = 10           # its node is paused (PROXY PAUSE)
    RETRY_REASONS = 11

cdef enum:               # RetryOutcome
    OUTCOME_RETRIED = 0
    OUTCOME_GAVE_UP = 1
    OUTCOME_UNSAFE = 2
    RETRY_OUTCOMES = 3

cdef enum:               # Refusal: why a command was answered with an error of ours, without being sent
    REFUSED_DOWN = 0            # its node has been down for longer than commands are held
    REFUSED_UNCOVERED = 1       # no shard owns its slot
    REFUSED_UNKNOWN = 2         # there is no topology yet
    REFUSED_TOO_MANY = 3        # enough is held for its node, or in all: requests.max_held, max_held_bytes
    REFUSED_LATE = 4            # it was held until its deadline
    REFUSED_PIPELINE = 5        # it would be held behind another one of its pipeline that was, until its deadline
    REFUSED_GONE = 6            # the one node or connection it was for is gone
    REFUSED_MEMORY = 7
    REFUSALS = 8

cdef struct Histogram:
    uint64_t bucket[BUCKETS]
    uint64_t sum_ns

cdef struct CounterBlock:           # 64-bit integers and nothing else: read one by one, each is whole
    Histogram command[COMMANDS]
    uint64_t errors[COMMANDS][KINDS]
    uint64_t splits[COMMANDS]
    uint64_t closed[CLOSE_REASONS]
    uint64_t redirections[COUNT_REDIRECTIONS]
    uint64_t retries[RETRY_REASONS][RETRY_OUTCOMES]
    uint64_t holds[RETRY_REASONS]   # commands that began to be held
    uint64_t refusals[REFUSALS]
    uint64_t accepted
    uint64_t rejected
    uint64_t client_in
    uint64_t client_out
    uint64_t backend_in
    uint64_t backend_out
    uint64_t timeouts
    uint64_t leases_refused         # for want of a connection to the node that is free
    uint64_t monitor_dropped        # lines of MONITOR that were not taken in time
    uint64_t internal_errors        # answers of the proxy's own that raised
    uint64_t messages               # of channels, that nodes pushed for clients
    uint64_t deliveries             # of them to clients
    uint64_t fan_out_pauses         # times that nodes were not read, for too many messages waited
    uint64_t interruptions          # times that subscriptions were not in force for a while
    uint64_t interrupted_ms         # ... and for how long in all
    int64_t inflight
    int64_t blocked                 # clients that wait for the reply to a blocking command

cdef class Counters:
    cdef CounterBlock* block            # those who count keep this pointer, and the object with it
    cdef public dict metrics            # command name -> index; grows, never changes
    cdef bint shared                    # in memory given from outside
    cdef Py_buffer view                 # of that

cdef int64_t* bounds_ns
cdef void count_error(CounterBlock* to, int command, const char* line, size_t n) noexcept nogil
cdef list histogram_values(Histogram* h)

cdef inline void observe(Histogram* h, int64_t ns) noexcept nogil:
    cdef int i = 0
    while i < BUCKETS - 1 and ns > bounds_ns[i]:
        i += 1
    h.bucket[i] += 1
    h.sum_ns += ns
