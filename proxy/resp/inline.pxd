"""Inline commands made into the frames that every other command comes as."""
from proxy.resp.scanner cimport ArgVec

cdef enum:
    INLINE_OK = 1               # out holds the command
    INLINE_EMPTY = 0            # a blank line: nothing to do, nothing to answer
    INLINE_UNBALANCED = -1      # unbalanced quotes in request (FAULT_UNBALANCED)
    INLINE_NO_MEMORY = -2       # out could not grow (FAULT_NO_MEMORY)
    INLINE_KEEP = 65536         # bytes that inline_trim leaves

cdef struct InlineFrame:        # all zero at first; one may serve all clients of a worker, one line at a time
    char* frame                 # the command as RESP: *<words> and a bulk string each
    size_t len                  # its bytes; 0 when the last line was none
    size_t cap
    ArgVec args                 # where the arguments stand in it

# line: without its ending. The result is INLINE_*; what the last call wrote is gone in any case.
cdef int inline_command(const char* line, size_t n, InlineFrame* out) noexcept nogil
# Gives memory back when out holds more than INLINE_KEEP; its content is gone then.
cdef void inline_trim(InlineFrame* out) noexcept nogil
cdef void inline_free(InlineFrame* out) noexcept nogil
