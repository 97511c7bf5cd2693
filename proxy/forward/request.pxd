"""One command on its way: a C struct in two queues, its client's (order of replies) and its backend's (pairing)."""
from libc.stdint cimport int16_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from proxy.forward.account cimport Account

cdef enum RequestFlag:
    REQ_READ = 1            # may be sent again after a lost connection, may go to a replica
    REQ_STREAMING = 2       # part of the reply has reached the client: no other answer is possible any more
    REQ_ERROR = 4           # the held reply is an error
    REQ_SCRIPT = 8          # runs a client's own code: its error lines may be the client's own words
    REQ_EMBEDDED = 16       # lies in its gather's block and is freed with it
    REQ_PUSH = 32           # no command but a push, in its place among the replies
    REQ_BLAMED = 128        # the node broke the protocol over it, or lost the connection in the middle of it before
    REQ_SWALLOWED = 64      # `fault` is the first error among the replies it swallows
    REQ_MUTE = 256          # its client wants no reply to it (CLIENT REPLY OFF, SKIP)
    REQ_CACHING = 512       # its client has said CLIENT CACHING: see Pipeline.announce

cdef enum RequestState:     # who owns it; the legal moves are in request.pyx
    STATE_NEW = 0           # whoever made it, or is moving it from one owner to the next
    STATE_QUEUED = 1        # a backend's pairing queue
    STATE_PAIRING = 2       # taken out of that queue: its reply, loss or timeout is being handled
    STATE_PARKED = 3        # Parking
    STATE_GATHERING = 4     # its gather: it waits for its parts
    STATE_ANSWERED = 5      # its sink: a reply queue, or the gather whose part it is
    STATE_GHOST = 6         # a pairing queue, for nobody: swallows late replies
    STATE_CANCELLED = 7     # a pairing queue, for nobody: its bytes are not to be sent any more
    STATE_FREE = 8
    STATES = 9

cdef enum TargetKind:       # where a request is to go
    TARGET_SLOT = 0         # the owner of `slot`, or one of its replicas
    TARGET_ANY = 1          # any primary, the one numbered `node` if it will do
    TARGET_NODE = 2         # the node numbered `node` and no other
    TARGET_LEASE = 3        # `lease`, a connection that one client owns
    TARGET_SHARD = 4        # the primary numbered `node`; when it owns slots no more, the one that took over `slot`
    TARGET_EXTRA = 5        # the node numbered `node`, which is waited for while it is down only if it owns slots

cdef enum:
    SMALL = 104             # bytes of a held reply that need no allocation
    OWN_FIRST = 32768       # no server has as many databases

cdef struct Request

cdef struct Request:
    Request* cnext          # the client's order
    Request* bnext          # the backend's pairing queue, or the list of the parked
    void* sink              # Sink, borrowed: who takes the reply; NULL when nobody does any more
    uint64_t number         # of the command, ascending as clients' commands are read; parts have their command's
    uint64_t pos            # where its bytes (prefix included) begin in the backend's stream
    size_t len              # of its own bytes, without a prefix
    int64_t start_ns        # when the command had been read
    int64_t sent_ns         # when it was queued at the present backend
    int64_t deadline_ns
    uint32_t affinity       # which of a node's connections: a client keeps to one
    uint32_t swallow        # replies to drop before the one that counts, those of the prefix included
    uint32_t node           # Node.number, for all targets but TARGET_SLOT and TARGET_LEASE
    uint16_t command        # metric index
    int16_t slot            # TARGET_SLOT, TARGET_SHARD, else -1
    uint16_t prefix         # bytes before its own in the window (ASKING)
    uint16_t flags          # RequestFlag
    uint8_t prefix_replies  # how many of `swallow` belong to the prefix
    uint8_t state           # RequestState
    uint8_t target          # TargetKind
    uint8_t policy          # ReadPolicy
    uint8_t proto           # 2 or 3
    uint16_t db             # number of the database; from OWN_FIRST on, of a client's own connections: see Node.pool
    uint8_t redirections
    uint8_t attempts        # times parked
    uint8_t reason          # RetryReason it was last parked for
    uint8_t doubted         # a redirection that only its script named was tried
    uint8_t repaired        # the node was given the script that it runs: see Redirect.repair
    uint8_t cuts            # connections that its node closed while it waited for the reply: see Pipeline.accuse
    uint32_t own_swallow    # what `swallow` is when it is sent (again) without a prefix
    void* gather            # Sink, borrowed: of a command with parts, the one that makes its reply
    void* lease             # Backend, borrowed: TARGET_LEASE
    Account* account        # its client's, where what it owns is counted; NULL = nobody's any more
    int64_t wake_ns         # while parked
    char* own               # its bytes while no backend's window holds them; NULL otherwise
    char* fault             # an error line a server gave for it: see REQ_SWALLOWED, Redirect.judge; owned
    size_t fault_len
    size_t size             # reply bytes delivered so far
    char* hold              # reply bytes held back (small, or allocated)
    size_t hold_len
    size_t hold_cap
    char small[SMALL]

cdef extern from *:
    """
    #ifdef PROXY_CHECKED
    #define REQUEST_CHECKED 1
    #else
    #define REQUEST_CHECKED 0
    #endif
    """
    bint REQUEST_CHECKED    # a sanitizer build: every move of a request is asserted

cdef Request* request_new() noexcept nogil
cdef void request_init(Request* r) noexcept nogil
cdef Request* request_block(uint32_t n, size_t extra) noexcept nogil
cdef void request_block_free(Request* block, uint32_t n) noexcept nogil
cdef void request_dispose(Request* r) noexcept nogil
cdef void request_free(Request* r) noexcept nogil
cdef bint request_hold(Request* r, const char* p, size_t n) noexcept nogil
cdef void request_unhold(Request* r) noexcept nogil
cdef bint request_keep(Request* r, const char* p, size_t n) noexcept nogil
cdef void request_forget(Request* r) noexcept nogil
cdef void request_fault(Request* r, const char* p, size_t n) noexcept nogil
cdef char* request_take_fault(Request* r) noexcept nogil
cdef void request_disown(Request* r) noexcept nogil
cdef void request_check(Request* r, int to) noexcept nogil


cdef inline void request_move(Request* r, int to) noexcept nogil:
    """Gives it to another owner."""
    if REQUEST_CHECKED:
        request_check(r, to)
    r.state = <uint8_t> to
