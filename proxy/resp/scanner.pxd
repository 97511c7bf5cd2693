"""Where frames begin and end, without copying or decoding them (sans-IO, never rescans).

Commands: a resumable scan fills the argument spans. Replies: a resumable scan finds the frame's end only.
"""
from libc.stdint cimport int64_t, uint8_t

cdef enum:
    SCAN_ERROR = -1     # malformed: see CommandScan.error
    SCAN_MORE = 0       # not whole yet: call again with more bytes
    SCAN_DONE = 1       # a whole frame
    SCAN_INLINE = 2     # a whole inline line (commands only): its bytes are [0, line), the frame is [0, pos)

cdef enum CommandFault:
    FAULT_NONE = 0
    FAULT_MULTIBULK_LENGTH = 1          # invalid multibulk length
    FAULT_BULK_LENGTH = 2               # invalid bulk length
    FAULT_EXPECTED_DOLLAR = 3           # expected '$', got 'x' (x in CommandScan.got)
    FAULT_BIG_INLINE = 4                # too big inline request
    FAULT_BIG_MULTIBULK_COUNT = 5       # too big mbulk count string
    FAULT_BIG_BULK_COUNT = 6            # too big bulk count string
    FAULT_UNAUTH_MULTIBULK = 7          # unauthenticated multibulk length
    FAULT_UNAUTH_BULK = 8               # unauthenticated bulk length
    FAULT_UNBALANCED = 9                # unbalanced quotes in request (raised by inline_command's caller)
    FAULT_NO_MEMORY = 10                # the argument vector could not grow
    FAULT_CRLF = 11                     # invalid CRLF in request

cdef struct Arg:
    size_t off          # of the argument's first byte, from the frame's first byte
    size_t len          # bytes

cdef struct ArgVec:
    Arg* v
    size_t n
    size_t cap

cdef struct ScanLimits:
    int64_t max_bulk    # bytes of one argument (proto-max-bulk-len)
    int64_t max_args    # arguments of one command
    size_t max_inline   # bytes of one inline command or count line (64 KiB)

cdef struct CommandScan:
    size_t pos          # bytes of the frame already passed
    size_t searched     # bytes after pos already searched for the end of the current line
    int64_t want        # arguments still to come; -1 before the count is known
    int64_t bulk        # length of the argument at hand; -1 before its header is known
    size_t line         # SCAN_INLINE: bytes of the line without its ending
    int error           # CommandFault
    char got            # FAULT_EXPECTED_DOLLAR: what stood there

cdef enum:
    REPLY_STREAM_DEPTH = 16             # nesting of streamed aggregates (no server sends any)

cdef struct ReplyScan:
    int64_t pending                     # values still to come at this level
    int64_t body                        # bytes of a bulk still to pass, without its CRLF; -1 = reading a line
    size_t searched                     # bytes of a partial line already searched
    uint8_t kind                        # first byte of the value itself (attributes skipped); 0 before it is known
    uint8_t push                        # the frame is a push, not a reply
    uint8_t attributes                  # > 0 while inside a leading attribute
    uint8_t in_chunk                    # inside a streamed string
    uint8_t in_line                     # inside a long line whose beginning has been passed
    int depth                           # open streamed aggregates
    int64_t stack[REPLY_STREAM_DEPTH]   # `pending` of the levels around them, negated for a streamed map

cdef void command_scan_reset(CommandScan* s) noexcept nogil
cdef int scan_command(CommandScan* s, ArgVec* args, const char* frame, size_t n, const ScanLimits* limits,
                      bint authenticated) noexcept nogil
cdef bint args_grow(ArgVec* args) noexcept nogil      # at least one more; false without memory, nothing lost
cdef void args_free(ArgVec* args) noexcept nogil

cdef void reply_scan_reset(ReplyScan* s) noexcept nogil
cdef int scan_reply(ReplyScan* s, const char* data, size_t n, size_t* used) noexcept nogil
