"""What the proxy itself says, in C: frame heads written straight into a caller's buffer."""
from libc.stdint cimport int64_t

cdef enum:
    HEAD_MAX = 24       # bytes a head can take at most: type, 20 digits and sign, CRLF

# Writes `<kind><n>\r\n` at out (room for HEAD_MAX bytes) and returns the bytes written.
cdef size_t put_head(char* out, char kind, int64_t n) noexcept nogil
