"""What a server's error line means for routing."""

cdef enum:
    HOST_MAX = 255          # bytes of a host, as a name in DNS (and in cluster-announce-hostname) may have

cdef enum RedirectionKind:
    REDIR_NONE = 0          # an ordinary error: the client's
    REDIR_MOVED = 1
    REDIR_ASK = 2
    REDIR_TRYAGAIN = 3
    REDIR_CLUSTERDOWN = 4
    REDIR_LOADING = 5
    REDIR_READONLY = 6
    REDIR_MASTERDOWN = 7
    REDIR_NOSCRIPT = 8      # the node has no script of this name

cdef struct Redirection:
    int kind
    int slot                # MOVED, ASK
    const char* host        # into the line; host_len 0 = the address the command was sent to
    size_t host_len
    int port

# line: the whole error frame, from '-' to CRLF. Returns the kind; REDIR_NONE for whatever is not, to the last byte, a
# line that servers send before they execute anything.
cdef int parse_redirection(const char* line, size_t n, Redirection* out) noexcept nogil
