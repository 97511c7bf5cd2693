# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""What the data path counts.

Incremented as plain C integers on the way of a command; turned into Python values only when admin asks (`snapshot`).
Histogram bounds are shared by all histograms and given in seconds by `BOUNDS_S`.
"""
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
    "socket_error", "cross_protocol",
)
REDIRECTION_NAMES = (None, "moved", "ask", "tryagain", "clusterdown", "loading", "readonly", "masterdown")
RETRY_REASON_NAMES = (
    "connection_lost", "node_down", "tryagain", "clusterdown", "loading", "readonly", "masterdown", "moved",
)
RETRY_OUTCOME_NAMES = ("retried", "gave_up", "unsafe")

assert len(ERROR_KINDS) == KINDS and len(BOUNDS_S) == BUCKETS - 1
assert len(CLOSE_REASON_NAMES) == CLOSE_REASONS and len(REDIRECTION_NAMES) == COUNT_REDIRECTIONS
assert len(RETRY_REASON_NAMES) == RETRY_REASONS and len(RETRY_OUTCOME_NAMES) == RETRY_OUTCOMES

_kind_bytes = [k.encode() for k in ERROR_KINDS]
cdef const char* _kinds[KINDS]
for _i in range(KINDS):
    _kinds[_i] = _kind_bytes[_i]


cdef class Counters:
    """The counters of one worker. `metrics` maps command names to indexes and is shared with the command tables."""

    def __cinit__(self):
        self.metrics = {"other": 0}

    cdef void error(self, int command, const char* line, size_t n) noexcept nogil:
        """Counts an error line (`-WORD ...`) answered for a command."""
        cdef int i
        cdef size_t k, word = 1
        while word < n and line[word] > 32:
            word += 1
        word -= 1
        for i in range(KINDS - 1):
            k = strlen(_kinds[i])
            if k == word and memcmp(_kinds[i], line + 1, k) == 0:
                self.errors[command][i] += 1
                return
        self.errors[command][KINDS - 1] += 1

    def snapshot(self):
        """All counters as plain values.

        commands: name -> {calls, errors: {word: n}, buckets: [n] (not cumulative, one more than BOUNDS_S), sum_s,
        split}.
        """
        cdef int c, i
        cdef uint64_t calls
        commands = {}
        for name, index in self.metrics.items():
            c = index
            calls = 0
            for i in range(BUCKETS):
                calls += self.command[c].bucket[i]
            commands[name] = {
                "calls": calls,
                "errors": {ERROR_KINDS[i]: self.errors[c][i] for i in range(KINDS) if self.errors[c][i]},
                "buckets": [self.command[c].bucket[i] for i in range(BUCKETS)],
                "sum_s": self.command[c].sum_ns / 1e9,
                "split": self.splits[c],
            }
        return {
            "commands": commands,
            "closed": {CLOSE_REASON_NAMES[i]: self.closed[i] for i in range(CLOSE_REASONS)},
            "redirections": {REDIRECTION_NAMES[i]: self.redirections[i] for i in range(1, COUNT_REDIRECTIONS)},
            "retries": {
                (RETRY_REASON_NAMES[c], RETRY_OUTCOME_NAMES[i]): self.retries[c][i]
                for c in range(RETRY_REASONS)
                for i in range(RETRY_OUTCOMES)
            },
            "accepted": self.accepted,
            "rejected": self.rejected,
            "client_in": self.client_in,
            "client_out": self.client_out,
            "backend_in": self.backend_in,
            "backend_out": self.backend_out,
            "timeouts": self.timeouts,
            "inflight": self.inflight,
            "output_bytes": self.output_bytes,
        }


cdef list histogram_values(Histogram* h):
    """[buckets (not cumulative), sum in seconds]."""
    cdef int i
    return [[h.bucket[i] for i in range(BUCKETS)], h.sum_ns / 1e9]
