"""One command on its way: a C struct in two queues, its client's (order of replies) and its backend's (pairing)."""
from libc.stdint cimport int16_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef enum RequestFlag:
    REQ_READ = 1            # may be sent again after a lost connection, may go to a replica
    REQ_DONE = 2            # answered, waiting for its turn in the client's order
    REQ_STREAMING = 4       # part of the reply has reached the client: no other answer is possible any more
    REQ_INTERNAL = 8        # the proxy's own (ASKING, a timed-out command's ghost): the reply is dropped
    REQ_PART = 16           # one slot's share of a split command; parent is set
    REQ_ERROR = 32          # the held reply is an error
    REQ_ANYWHERE = 64       # keyless: any primary will do

cdef enum:
    SMALL = 104             # bytes of a held reply that need no allocation

cdef struct Request

cdef struct Split:          # a split command under way: see proxy.forward.split
    uint8_t kind
    uint32_t nkeys
    uint32_t nparts
    uint32_t left           # parts not answered yet
    uint32_t* part_of       # nkeys, SPLIT_MGET only
    Request** parts         # nparts; each freed with the split

cdef struct Request:
    Request* cnext          # the client's order
    Request* bnext          # the backend's pairing, or the list of the parked
    void* client            # Origin, borrowed; NULL once the client has left
    Request* parent         # REQ_PART
    Split* split            # of a parent
    uint64_t pos            # where its bytes begin in the backend's stream
    size_t len              # of its bytes
    char* own               # its bytes while no backend's window holds them; NULL otherwise
    char* fault             # the last error a server gave for it, while it waits; owned
    size_t fault_len
    char* hold              # reply bytes held back (small, or allocated)
    size_t hold_len
    size_t hold_cap
    int64_t start_ns        # when the command had been read
    int64_t sent_ns         # when it was queued at the present backend
    int64_t deadline_ns
    int64_t wake_ns         # while parked
    uint32_t affinity       # which of a node's connections: a client keeps to one
    uint16_t command        # metric index
    int16_t slot            # -1 = REQ_ANYWHERE
    uint8_t flags
    uint8_t policy          # ReadPolicy
    uint8_t proto           # 2 or 3
    uint8_t redirections
    uint8_t attempts        # times parked
    uint8_t reason          # RetryReason it was last parked for
    char small[SMALL]

cdef Request* request_new() noexcept nogil
cdef void request_free(Request* r) noexcept nogil
cdef bint request_hold(Request* r, const char* p, size_t n) noexcept nogil
cdef void request_unhold(Request* r) noexcept nogil
cdef bint request_keep(Request* r, const char* p, size_t n) noexcept nogil
