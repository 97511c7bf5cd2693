# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""What a server's error line means for routing.

forward.redirect calls parse_redirection for every error reply; Python code has parse. A line that is recognized makes
the proxy send the command again, so it must prove that nothing was executed. A first word does not prove that: a
script may return any error it likes (`return redis.error_reply('TRYAGAIN later')`), and so may a module. Therefore
only lines are recognized that are, to the last byte, what a server says before it executes anything. All others are
passed on to the client.

* Redirections: `-MOVED <slot> <host>:<port>` and `-ASK ...` (clusterRedirectClient in Redis's cluster.c), where the
  host may be empty or `?` (endpoint unknown: the address the command went to), a name, an IPv4 address, or an IPv6
  address without brackets, so that the last colon separates host and port. Brackets are removed from those who send
  them.
* Refusals: the lines of REFUSALS. A command refused inside a script (`redis.call`) is none of them: since Redis 7.0
  its line goes on with ` script: <sha>, on @user_script:<line>.`, before that it begins with `-ERR`.

What cannot be told apart: a script that returns such a line in full, or what `redis.pcall` gave it.

Invariants: host points into the line and holds neither spaces nor control characters; slot and port are in range.
"""
from libc.stdint cimport int64_t
from libc.string cimport memchr, memcmp

from proxy.cluster.slot cimport SLOTS
from proxy.resp.number cimport is_crlf, string2ll

# (kind, the line without its CRLF, where it comes from). Texts of other states of a server (BUSY, MISCONF, NOREPLICAS,
# OOM) are left out on purpose: waiting does not help, or the client has to know.
REFUSALS = (
    ("TRYAGAIN", b"-TRYAGAIN Multiple keys request during rehashing of slot",
     "cluster.c clusterRedirectClient (CLUSTER_REDIR_UNSTABLE): Redis from 6.2, Valkey from 7.2"),
    ("TRYAGAIN", b"-TRYAGAIN Slot is being trimmed",
     "cluster.c clusterRedirectClient (CLUSTER_REDIR_TRIMMING, writes only): Redis 8 since redis/redis#14750"),
    ("CLUSTERDOWN", b"-CLUSTERDOWN The cluster is down",
     "cluster.c clusterRedirectClient (CLUSTER_REDIR_DOWN_STATE): Redis from 6.2, Valkey from 7.2"),
    ("CLUSTERDOWN", b"-CLUSTERDOWN The cluster is down and only accepts read commands",
     "cluster.c clusterRedirectClient (CLUSTER_REDIR_DOWN_RO_STATE): Redis from 6.2, Valkey from 7.2"),
    ("CLUSTERDOWN", b"-CLUSTERDOWN Hash slot not served",
     "cluster.c clusterRedirectClient (CLUSTER_REDIR_DOWN_UNBOUND): Redis from 6.2, Valkey from 7.2"),
    ("LOADING", b"-LOADING Redis is loading the dataset in memory",
     "server.c createSharedObjects: Redis from 6.2; Valkey with extended-redis-compatibility"),
    ("LOADING", b"-LOADING Valkey is loading the dataset in memory",
     "server.c createSharedObjectsWithCompat: Valkey, its default"),
    ("READONLY", b"-READONLY You can't write against a read only replica.",
     "server.c createSharedObjects, given by processCommand: Redis from 6.2, Valkey from 7.2"),
    ("READONLY", b"-READONLY Can not run script with write flag on readonly replica",
     "script.c scriptPrepareForRun: Redis from 7.0, Valkey from 7.2"),
    ("MASTERDOWN", b"-MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
     "server.c createSharedObjects, given by processCommand and scriptPrepareForRun: Redis from 6.2, Valkey from 7.2"),
    ("MASTERDOWN", b"-MASTERDOWN Link with MASTER is down, replica-serve-stale-data is set to 'no' and 'allow-stale' "
     b"flag is not set on the script.",
     "script.c scriptPrepareForRun: Redis from 7.0, Valkey from 7.2"),
    ("NOSCRIPT", b"-NOSCRIPT No matching script. Please use EVAL.",
     "server.c createSharedObjects, given by evalShaCommand: Redis from 2.6, Valkey 7.2 and 8"),
    ("NOSCRIPT", b"-NOSCRIPT No matching script.",
     "server.c createSharedObjects: Valkey 9.1"),
)

cdef dict NAMES = {
    REDIR_MOVED: "MOVED",
    REDIR_ASK: "ASK",
    REDIR_TRYAGAIN: "TRYAGAIN",
    REDIR_CLUSTERDOWN: "CLUSTERDOWN",
    REDIR_LOADING: "LOADING",
    REDIR_READONLY: "READONLY",
    REDIR_MASTERDOWN: "MASTERDOWN",
    REDIR_NOSCRIPT: "NOSCRIPT",
}

cdef enum:
    REFUSALS_MAX = 16

cdef struct Refusal:
    const char* text        # of a bytes object in texts, which keeps it
    size_t len
    int kind

cdef Refusal refusals[REFUSALS_MAX]
cdef int nrefusals = 0
cdef tuple texts = tuple(row[1] for row in REFUSALS)


cdef int fill_refusals() except -1:
    global nrefusals
    cdef bytes line
    kinds = {name: kind for kind, name in NAMES.items()}
    assert len(REFUSALS) <= REFUSALS_MAX
    for i, line in enumerate(texts):
        refusals[i].text = line
        refusals[i].len = <size_t>len(line)
        refusals[i].kind = kinds[REFUSALS[i][0]]
        nrefusals = i + 1
    return 0


fill_refusals()


cdef int refusal(const char* line, size_t n) noexcept nogil:
    """The kind of a line without its CRLF."""
    cdef int i
    # The first letter tells most errors of the client's own (ERR, WRONGTYPE) apart at once.
    if line[1] != c'T' and line[1] != c'C' and line[1] != c'L' and line[1] != c'R' and line[1] != c'M' and (
        line[1] != c'N'
    ):
        return REDIR_NONE
    for i in range(nrefusals):
        if refusals[i].len == n and memcmp(line, refusals[i].text, n) == 0:
            return refusals[i].kind
    return REDIR_NONE


cdef bint read_target(const char* p, const char* end, Redirection* out) noexcept nogil:
    """`<slot> <host>:<port>`, all of it and nothing else."""
    cdef const char* q = <const char*>memchr(p, c' ', end - p)
    cdef const char* colon = NULL
    cdef int64_t value = 0
    if q == NULL or not string2ll(p, q - p, &value) or not 0 <= value < SLOTS:
        return False
    out.slot = <int>value
    p = q + 1
    q = p
    while q < end:
        if <unsigned char>q[0] <= 32 or q[0] == 127:
            return False
        if q[0] == c':':
            colon = q
        q += 1
    if colon == NULL or not string2ll(colon + 1, end - colon - 1, &value) or not 0 < value < 65536:
        return False
    out.port = <int>value
    if colon - p >= 2 and p[0] == c'[' and (colon - 1)[0] == c']':
        p += 1
        out.host_len = colon - p - 1
    else:
        out.host_len = colon - p
    if out.host_len > HOST_MAX:
        return False
    out.host = p
    if out.host_len == 1 and p[0] == c'?':
        out.host_len = 0
    return True


cdef int parse_redirection(const char* line, size_t n, Redirection* out) noexcept nogil:
    cdef const char* end
    out.kind = REDIR_NONE
    out.slot = -1
    out.host = NULL
    out.host_len = 0
    out.port = 0
    if n < 8 or line[0] != c'-':
        return REDIR_NONE
    end = line + n - 2
    if not is_crlf(end):
        return REDIR_NONE
    if n >= 9 and memcmp(line, b"-MOVED ", 7) == 0:
        if read_target(line + 7, end, out):
            out.kind = REDIR_MOVED
    elif memcmp(line, b"-ASK ", 5) == 0:
        if read_target(line + 5, end, out):
            out.kind = REDIR_ASK
    else:
        out.kind = refusal(line, n - 2)
    if out.kind == REDIR_NONE:
        out.slot = -1
        out.host = NULL
        out.host_len = 0
        out.port = 0
    return out.kind


def parse(const unsigned char[::1] line not None):
    """(kind, slot, host, port) of an error frame, None for an ordinary error.

    kind is the error's first word; slot is -1, host empty and port 0 where the error names none. An empty host stands
    for the address the command was sent to.
    """
    cdef Redirection r
    cdef size_t n = line.shape[0]
    if n == 0 or parse_redirection(<const char*>&line[0], n, &r) == REDIR_NONE:
        return None
    return NAMES[r.kind], r.slot, r.host[:r.host_len].decode("utf-8", "replace") if r.host_len else "", r.port
